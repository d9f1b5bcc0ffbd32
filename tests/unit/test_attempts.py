"""What a caller is told of several attempts, of which each has met something else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from channels_pg_sa.call import Call
from channels_pg_sa.sending.attempts import Attempts

LOST = psycopg.OperationalError("the connection was lost")
LOCKED = psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")


class Server:
    """A database whose connections meet errors, one after the other, and after these give no answer."""

    trouble = None

    def __init__(self, errors: list[psycopg.Error]) -> None:
        self._errors = errors
        self.is_silent = asyncio.Event()

    @contextlib.asynccontextmanager
    async def connection(self, _timeout: float) -> AsyncIterator[None]:
        yield

    async def work(self, _connection: Any, _calls: list[Call[Any]]) -> None:
        if self._errors:
            raise self._errors.pop(0)
        self.is_silent.set()
        await asyncio.sleep(3600)


@pytest.mark.parametrize(
    ("errors", "maybe_sent"), [([LOCKED], False), ([LOST], True), ([LOST, LOCKED], True), ([LOCKED, LOST], True)]
)
async def test_what_one_attempt_may_have_done_no_other_undoes(errors: list[psycopg.Error], maybe_sent: bool) -> None:
    """Though it was certainly not done by the last: who is late is told that it may have been."""
    server: Any = Server(list(errors))
    attempts, call = Attempts(server, server, 60.0), Call[Any](1, 60.0, None)
    working = asyncio.create_task(attempts.make([call], server.work, repeatable=True))
    await server.is_silent.wait()
    call.started = False  # as before the next attempt
    assert attempts.late(call).maybe_sent is maybe_sent
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working
