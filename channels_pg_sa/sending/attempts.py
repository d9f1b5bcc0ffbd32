"""What callers ask for, done on a connection: again if the server certainly did not do it, and told of if it fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import psycopg

from channels_pg_sa.backoff import Backoff
from channels_pg_sa.call import Call
from channels_pg_sa.connections.connection import Connection
from channels_pg_sa.connections.database import Database
from channels_pg_sa.connections.fate import Fate, fate, is_queue_full, needs_other_connection
from channels_pg_sa.errors import SchemaError, SendError, words_of
from channels_pg_sa.statements.queries import Queries

J = TypeVar("J")


class Attempts:
    """Do the jobs of calls.

    Args:
        database: lends connections.
        queries: the layer's statements.
        timeout: seconds that an attempt may take.
    """

    def __init__(self, database: Database, queries: Queries, timeout: float) -> None:
        self._database = database
        self._queries = queries
        self._timeout = timeout
        self._trouble = float("-inf"), ""  # when an attempt was last in vain, and why: calls behind it wait for that

    async def make(
        self,
        calls: Sequence[Call[J]],
        work: Callable[[Connection, list[Call[J]]], Awaitable[None]],
        *,
        repeatable: bool,
    ) -> None:
        """Do the jobs of the calls that are still waited for; again, if the server certainly did not do them.

        Args:
            calls: whose errors are set here.
            work: does the jobs of calls on a connection, in one statement or transaction, and sets their results.
            repeatable: whether doing them twice is as good as once.
        """
        backoff = Backoff()
        while True:
            async with self._database.connection(self._timeout) as connection:
                live = [call for call in calls if call.start()]
                if not live:
                    return
                try:
                    await work(connection, live)
                except psycopg.Error as error:
                    outcome, reason = fate(error), words_of(error)
                    await self._mend(connection, error)
                    if outcome is not Fate.NOT_DONE and not (repeatable and outcome is Fate.UNKNOWN):
                        schema_error = await self._schema_error(connection, error, outcome)
                        for call in live:
                            call.error = schema_error or send_error(call, error, outcome)
                        return
                else:
                    return
            self._trouble = time.monotonic(), reason
            for call in live:
                call.doubtful = call.doubtful or outcome is Fate.UNKNOWN
                call.trouble = reason
                call.started = False
            await asyncio.sleep(backoff.next())

    async def _mend(self, connection: Connection, error: psycopg.Error) -> None:
        """Do what another attempt needs."""
        if needs_other_connection(error):
            connection.pgconn.finish()
        elif is_queue_full(error):
            with contextlib.suppress(psycopg.Error):  # this frees what all have read; a statement that fails does not
                await connection.execute("SELECT pg_notification_queue_usage()")

    async def _schema_error(self, connection: Connection, error: psycopg.Error, outcome: Fate) -> SchemaError | None:
        if outcome is not Fate.NO_SCHEMA:
            return None
        return self._queries.schema_error(connection, await self._revision(connection), error)

    async def _revision(self, connection: Connection) -> str | None:
        try:
            _, revision, _ = await self._queries.enter(connection)
        except SchemaError as error:
            return error.found
        except psycopg.Error:
            return None
        return revision

    def late(self, call: Call[Any], reason: str | None = None) -> SendError:
        """Return the error of a call whose deadline has passed; for that `reason` if the database is not in trouble."""
        when, trouble = self._trouble
        behind = trouble if when >= call.since else None
        return SendError(
            maybe_sent=call.started or call.doubtful,
            waited=time.monotonic() - call.since,
            reason=self._database.trouble or call.trouble or reason or behind,
        )


def send_error(call: Call[Any], error: psycopg.Error, outcome: Fate) -> SendError:
    """Return what a caller is told of an error that the statement met."""
    waited = time.monotonic() - call.since
    maybe_sent = outcome is Fate.UNKNOWN or call.doubtful
    hint = ". docs/sqlalchemy.md has the GRANTs" if isinstance(error, psycopg.errors.InsufficientPrivilege) else ""
    sent = SendError(maybe_sent=maybe_sent, waited=waited, reason=words_of(error) + hint)
    sent.__cause__ = error
    return sent
