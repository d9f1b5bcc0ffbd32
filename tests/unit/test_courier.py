"""What is fetched and deleted, when the database answers late, in parts, or has lost its rows."""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

import pytest

from channels_pg_sa.entry import Row
from channels_pg_sa.parcels import Parcel
from channels_pg_sa.receiving import backlog as backlog_module
from channels_pg_sa.receiving.courier import Courier
from channels_pg_sa.receiving.dispatcher import Dispatcher

OWN = "s.0123456789ab!a"
LATER = 200.0


class Mailbox:
    """A database that gives no connection before it is told to; the courier, and the dispatcher it serves."""

    def __init__(self) -> None:
        self.rows: dict[int, bytes] = {}
        self.fetched: list[list[int]] = []
        self.freed: list[int] = []
        self.open = asyncio.Event()
        self.wanted = asyncio.Event()
        self.dispatcher = Dispatcher(lambda _: None, bounded=True)
        settings: Any = types.SimpleNamespace(send_timeout=5.0, bounded=True)
        mailbox: Any = self
        self.courier = Courier(settings, mailbox, mailbox, mailbox, deleted=self.freed.append, spawn=self._spawn)
        self.courier.deletions._pause = 0.0

    @contextlib.asynccontextmanager
    async def connection(self, _patience: float) -> AsyncIterator[None]:
        self.wanted.set()
        await self.open.wait()
        yield

    async def fetch(self, _connection: None, rows: list[Row]) -> dict[int, bytes | None]:
        """One payload at a time: the rest is behind too many bytes."""
        self.fetched.append([row for row, _ in rows])
        there = sorted(self.rows.keys() & {row for row, _ in rows})
        return {row: self.rows[row] if row == there[0] else None for row in there}

    async def forget(self, _connection: None, rows: list[Row]) -> int:
        """Each message took 300 bytes."""
        return 300 * len(rows)

    @contextlib.contextmanager
    def decisions(self) -> Iterator[Dispatcher]:
        yield self.dispatcher

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work, name=name)


def rows(*numbers: int) -> list[Row]:
    """Rows of messages that expire at the same time."""
    return [(number, LATER) for number in numbers]


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(backlog_module.Backoff, "next", lambda _self: 0.001)


async def test_what_was_too_much_for_one_answer_is_asked_for_again() -> None:
    """It has not vanished; what has, is told so at once."""
    mailbox = Mailbox()
    mailbox.rows = {1: b"1", 2: b"2", 4: b"4"}
    mailbox.dispatcher.hear([Parcel(row, OWN, False, LATER, None) for row in (1, 2, 3, 4)], 100.0)
    mailbox.open.set()
    mailbox.courier.fetches.add(rows(1, 2, 3, 4))
    await mailbox.courier.fetches.finish(5)
    assert mailbox.fetched == [[1, 2, 3, 4], [2, 4], [4]]
    taken = [mailbox.dispatcher.take(OWN, 100.0) for _ in range(3)]
    assert [entry and entry.payload for entry in taken] == [b"1", b"2", b"4"]
    assert mailbox.dispatcher.counters["vanished"] == 1


async def test_ids_are_forgotten_when_their_rows_are_gone() -> None:
    """They may come again; and what the deletion has left in the table is reported."""
    mailbox = Mailbox()
    mailbox.dispatcher.hear([Parcel(1, OWN, False, LATER, b"eA==")], 100.0)
    mailbox.open.set()
    mailbox.courier.deletions.add(rows(1))
    await mailbox.courier.finish(5)
    assert mailbox.dispatcher.rows._expires == {}
    assert mailbox.freed == [300]


@pytest.mark.parametrize("is_deletion", [False, True])
async def test_an_answer_that_comes_when_the_id_is_another_s(is_deletion: bool) -> None:
    """It says nothing of that one, which is fetched by itself, and not deleted."""
    mailbox = Mailbox()
    mailbox.dispatcher.hear([Parcel(1, OWN, False, LATER, b"eA==" if is_deletion else None)], 100.0)
    backlog = mailbox.courier.deletions if is_deletion else mailbox.courier.fetches
    asked, answer = asyncio.Event(), asyncio.Event()

    async def late(_connection: None, asked_for: list[Row]) -> Any:
        assert asked_for == rows(1)
        asked.set()
        await answer.wait()
        return 1 if is_deletion else {}

    mailbox.forget = mailbox.fetch = late  # type: ignore[method-assign]
    mailbox.open.set()
    backlog.add(rows(1))
    await asked.wait()
    mailbox.dispatcher.hear([Parcel(1, OWN, False, LATER + 5, b"eQ==")], 100.0)
    answer.set()
    await backlog.finish(5)
    assert mailbox.dispatcher.rows._expires == {1: LATER + 5}
    assert mailbox.dispatcher.rows._gone == set()
    payloads = [entry.payload for entry in iter(lambda: mailbox.dispatcher.take(OWN, 100.0), None)]
    assert payloads == ([b"x", b"y"] if is_deletion else [b"y"])
