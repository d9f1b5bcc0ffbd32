"""What a caller is told of several attempts, of which each has met something else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from channels_pg_sa.backoff import Backoff
from channels_pg_sa.call import Call
from channels_pg_sa.connections.fate import Fate
from channels_pg_sa.errors import SchemaError
from channels_pg_sa.schema import REVISION
from channels_pg_sa.sending.attempts import Attempts, send_error

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


@pytest.mark.parametrize(
    ("met", "found"), [(psycopg.errors.UndefinedTable("no installation"), None), (SchemaError("", REVISION), "")]
)
async def test_tables_that_do_not_tell_their_revision(met: Exception, found: str | None) -> None:
    """The caller is told what the statement met, and of the revision what is known; not what that question met."""
    server: Any = Server([psycopg.errors.UndefinedTable("no messages")])

    async def enter(_connection: Any) -> None:
        raise met

    server.enter = enter
    server.schema_error = lambda _connection, revision, error: SchemaError(revision, REVISION, reason=str(error))
    attempts, call = Attempts(server, server, 60.0), Call[Any](1, 60.0, None)
    await attempts.make([call], server.work, repeatable=True)
    assert isinstance(call.error, SchemaError)
    assert call.error.found == found


async def test_another_attempt_is_not_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first one met would be there still."""
    monkeypatch.setattr(Backoff, "next", lambda _: 3600)
    server: Any = Server([LOCKED])
    attempts, call = Attempts(server, server, 60.0), Call[Any](1, 60.0, None)
    working = asyncio.create_task(attempts.make([call], server.work, repeatable=True))
    for _ in range(20):
        await asyncio.sleep(0)
    assert call.trouble is not None
    assert not server.is_silent.is_set()
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working


@pytest.mark.parametrize("known", range(1, 5))
def test_which_reason_is_told(known: int) -> None:
    """Why there is no connection, else what the last attempt met, else what the call waits for, else who was before."""
    reasons = ["no connection", "the last attempt", "what it waits for", "an attempt before"]
    away, met, waits, before = [None] * (4 - known) + reasons[4 - known :]
    server: Any = Server([])
    server.trouble = away
    attempts, call = Attempts(server, server, 60.0), Call[Any](1, 60.0, None)
    attempts._trouble = call.since + 1, before or ""
    call.trouble = met
    assert attempts.late(call, waits).reason == reasons[4 - known]


async def test_pauses_between_attempts_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of one backoff."""
    backoffs: list[Backoff] = []

    def at_once(self: Backoff) -> float:
        backoffs.append(self)
        return 0.0

    monkeypatch.setattr(Backoff, "next", at_once)
    server: Any = Server([LOCKED, LOCKED, LOCKED])
    await until_silent(server)
    assert [backoff is backoffs[0] for backoff in backoffs] == [True] * 3


async def test_nothing_is_asked_for_callers_who_gave_up() -> None:
    """None of the batch waits any more when there is a connection."""
    server: Any = Server([])
    call = Call[Any](1, 60.0, None)
    call.error = TimeoutError()
    await asyncio.wait_for(Attempts(server, server, 60.0).make([call], server.work, repeatable=True), 10)
    assert not server.is_silent.is_set()


async def test_a_queue_of_notifications_that_cannot_be_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another attempt is made all the same."""
    monkeypatch.setattr("channels_pg_sa.sending.attempts.is_queue_full", lambda _: True)
    await until_silent(Unfreed([LOCKED]))


class Unfreed(Server):
    """A database that refuses to free the queue."""

    @contextlib.asynccontextmanager
    async def connection(self, _timeout: float) -> AsyncIterator[Any]:
        yield self

    async def execute(self, _statement: str) -> None:
        raise LOST


async def until_silent(server: Any) -> None:
    """Make attempts until the server has met all its errors."""
    working = asyncio.create_task(
        Attempts(server, server, 60.0).make([Call[Any](1, 60.0, None)], server.work, repeatable=True)
    )
    await asyncio.wait(
        [working, silent := asyncio.ensure_future(server.is_silent.wait())], return_when="FIRST_COMPLETED"
    )
    assert silent.done()
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working


def test_the_driver_s_error_is_the_cause() -> None:
    """Whoever wants to know more than its words finds it there."""
    assert send_error(Call[Any](1, 60.0, None), LOCKED, Fate.REFUSED).__cause__ is LOCKED
