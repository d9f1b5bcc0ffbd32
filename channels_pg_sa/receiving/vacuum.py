"""Makes the room of deleted messages usable again, sooner than autovacuum, which looks once a minute, would."""

from __future__ import annotations

import asyncio
import logging

from channels_pg_sa.connections.database import Database
from channels_pg_sa.connections.fate import OUTAGE
from channels_pg_sa.errors import words_of
from channels_pg_sa.iothread import Spawn
from channels_pg_sa.logs import Logger
from channels_pg_sa.statements.queries import Queries

logger = Logger(__name__)

DELETIONS = 50_000
"""Rows that this node deletes between two of its vacuums; about 20 MB of small messages."""
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
        self._deleted = 0
        self._due = DELETIONS
        self._task: asyncio.Task[None] | None = None

    def note(self, deleted: int) -> None:
        """Take note of so many deleted rows."""
        self._deleted += deleted
        if self._deleted >= self._due and (self._task is None or self._task.done()):
            self._deleted = 0
            self._task = self._spawn(self._run(), "channels_pg_sa vacuum")

    async def _run(self) -> None:
        try:
            async with self._database.connection(PATIENCE) as connection:
                left = await self._queries.vacuum(connection)
        except OUTAGE as error:
            logger.log(logging.INFO, "A vacuum failed: %s", words_of(error))
            return
        # Dead rows that an open transaction may still see cannot be removed, and slow each vacuum: then fewer of them.
        self._due = max(DELETIONS, 2 * left)
