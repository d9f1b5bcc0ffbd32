"""When the table of messages is vacuumed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import psycopg
import pytest

from channels_pg_sa.receiving.vacuum import ROOM, Vacuum


class Table:
    """A database that vacuums when it is told to; and the vacuum that asks it."""

    def __init__(self) -> None:
        self.left = 0
        self.vacuums = 0
        self.error: Exception | None = None
        self.open = asyncio.Event()
        table: Any = self
        self.tasks: list[asyncio.Task[Any]] = []
        self.vacuum_of = Vacuum(table, table, self._spawn)

    @contextlib.asynccontextmanager
    async def connection(self, _patience: float) -> AsyncIterator[None]:
        yield

    async def vacuum(self, _connection: None) -> int:
        self.vacuums += 1
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return self.left

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.get_running_loop().create_task(work, name=name))
        return self.tasks[-1]

    async def after(self, *deletions: int) -> int:
        """How many vacuums there have been, when so many bytes have been deleted."""
        for deleted in deletions:
            self.vacuum_of.note(deleted)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return self.vacuums


@pytest.fixture
async def table() -> Table:
    """One that is quick."""
    table = Table()
    table.open.set()
    return table


async def test_enough_deletions_make_a_vacuum(table: Table) -> None:
    """They are counted anew from one to the next."""
    assert await table.after(ROOM - 1) == 0
    assert await table.after(1) == 1
    assert await table.after(ROOM - 1) == 1
    assert await table.after(1) == 2


async def test_there_is_one_at_a_time(table: Table) -> None:
    """What is deleted meanwhile counts for the next."""
    table.open.clear()
    assert await table.after(ROOM, ROOM, ROOM) == 1
    table.open.set()
    assert await table.after(0, 1) == 2


async def test_there_is_none_after_the_end(table: Table) -> None:
    """What is under way is broken off, and what is deleted later, by a sweep say, begins no other."""
    table.open.clear()
    assert await table.after(ROOM) == 1
    await table.vacuum_of.stop()
    assert table.tasks[0].cancelled()
    assert await table.after(ROOM, ROOM) == 1


async def test_what_cannot_be_removed_makes_them_fewer(table: Table) -> None:
    """As long as it cannot."""
    table.left = ROOM
    assert await table.after(ROOM) == 1
    table.left = 0
    assert await table.after(ROOM) == 1
    assert await table.after(ROOM) == 2
    assert await table.after(ROOM) == 3


async def test_they_do_not_get_fewer_at_once(table: Table) -> None:
    """However much the statistics, which may be late, say is left: half as many each time."""
    table.left = 100 * ROOM
    assert await table.after(ROOM) == 1
    table.left = 0
    assert await table.after(ROOM) == 1
    assert await table.after(ROOM) == 2


async def test_one_that_fails_is_no_trouble(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    """It is told in a line; the next is made later, in case there is more than can be done in the time."""
    caplog.set_level(logging.INFO, "channels_pg_sa")
    table.error = psycopg.OperationalError("the connection is lost")
    assert await table.after(ROOM) == 1
    await table.tasks[0]
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    table.error = None
    assert await table.after(ROOM) == 1
    assert await table.after(ROOM) == 2
    assert await table.after(ROOM) == 3


async def test_however_often_one_fails_there_is_another(table: Table) -> None:
    """And after one that does not, the next comes as soon as ever."""
    table.error = psycopg.OperationalError("too slow")
    assert await table.after(*[16 * ROOM] * 20) == 20
    table.error = None
    assert await table.after(16 * ROOM) == 21
    assert await table.after(ROOM) == 22


async def test_one_that_fails_does_not_make_the_next_come_sooner(table: Table) -> None:
    """Where they had become few, because an open transaction keeps rows from being removed."""
    table.left = 1000 * ROOM
    for power in range(7):
        await table.after(2**power * ROOM)
    table.error = psycopg.OperationalError("too slow")
    assert await table.after(127 * ROOM) == 7
    assert await table.after(ROOM, 127 * ROOM) == 8
    assert await table.after(ROOM) == 9
