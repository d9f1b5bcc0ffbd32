"""Makes the room of deleted messages usable again, sooner than autovacuum, which looks once a minute, would."""

from __future__ import annotations

import asyncio
import logging

from channels_pg_sa.connections.database import Database
from channels_pg_sa.connections.fate import OUTAGE
from channels_pg_sa.errors import words_of
from channels_pg_sa.iothread import Spawn, cancelled
from channels_pg_sa.logs import Logger
from channels_pg_sa.statements.messages import ROW
from channels_pg_sa.statements.queries import Queries

logger = Logger(__name__)

ROOM = 40_000_000
"""Bytes of messages that this node deletes between two of its vacuums."""
PATIENCE = 10.0
"""Seconds that a vacuum may take, and keep one of few connections."""


class Vacuum:
    """Vacuum the table of messages when this node has deleted much. Only its owner may; another role leaves it alone.

    Args:
        database: lends connections.
        queries: the layer's statements.
        spawn: starts a task and holds it.
    """

    def __init__(self, database: Database, queries: Queries, spawn: Spawn) -> None:
        self._database = database
        self._queries = queries
        self._spawn = spawn
        self._freed = 0
        self._due = ROOM
        self._is_stopped = False
        self._task: asyncio.Task[None] | None = None

    def note_rows(self, rows: int) -> None:
        """Take note of so many deleted messages of unknown size."""
        self.note(rows * ROW)

    def note(self, room: int) -> None:
        """Take note of so many bytes of deleted messages."""
        self._freed += room
        if self._freed >= self._due and not self._is_stopped and (self._task is None or self._task.done()):
            self._freed = 0
            self._task = self._spawn(self._run(), "channels_pg_sa vacuum")

    async def stop(self) -> None:
        """Break off what is under way: it may take long, and keeps nobody from anything. And begin no other.

        A sweep, or a deletion that has not come in time, may still go on.
        """
        self._is_stopped = True
        if self._task is not None:
            await cancelled({self._task})

    async def _run(self) -> None:
        try:
            async with self._database.connection(PATIENCE) as connection:
                left = await self._queries.vacuum(connection)
        except OUTAGE as error:
            logger.log(logging.INFO, "A vacuum failed: %s", words_of(error))
            if self._due < 16 * ROOM:  # there may be more to do than this time is enough for
                self._due *= 2
            return
        # Dead rows that an open transaction may still see cannot be removed, and slow each vacuum: then fewer of them.
        # Not at once: of rows that are removed the statistics may hear too late.
        self._due = max(ROOM, 2 * min(left, self._due))
