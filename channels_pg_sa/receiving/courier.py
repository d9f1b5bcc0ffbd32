"""Does what the dispatcher decides about the node's own mailbox: fetches and deletes its rows."""

from __future__ import annotations

import functools
from collections.abc import Callable

from channels_pg_sa.config import Settings
from channels_pg_sa.connections.database import Database
from channels_pg_sa.connections.fate import log_level
from channels_pg_sa.entry import Row
from channels_pg_sa.iothread import Spawn
from channels_pg_sa.statements.queries import Queries

from .backlog import Backlog
from .inbox import Inbox


class Courier:
    """Carry messages from the node's mailbox to the dispatcher, and delete them there; lives on the I/O loop.

    Args:
        settings: of the layer.
        database: lends connections.
        queries: the layer's statements.
        inbox: whose dispatcher decides.
        deleted: is told how much room that leaves, in bytes.
        spawn: starts a task and holds it.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queries: Queries,
        inbox: Inbox,
        *,
        deleted: Callable[[int], None],
        spawn: Spawn,
    ) -> None:
        self._patience = settings.send_timeout
        self._database = database
        self._queries = queries
        self._inbox = inbox
        self._deleted = deleted
        make = functools.partial(Backlog[Row], spawn=spawn, level=log_level)
        # Deleting can wait, so that more rows go together: nobody waits for it but senders who count what is unread.
        pause = 0.02 if settings.bounded else 0.1
        self.deletions = make("channels_pg_sa deletions", run=self._delete, batch=5000, pause=pause)
        self.fetches = make("channels_pg_sa fetches", run=self._fetch, batch=32)

    async def finish(self, timeout: float) -> None:
        """Wait until nothing is left to delete, but no longer than so many seconds."""
        await self.deletions.finish(timeout)

    async def _fetch(self, rows: list[Row]) -> None:
        async with self._database.connection(self._patience) as connection:
            found = await self._queries.fetch(connection, rows)
        payloads = {row: payload for row, payload in found.items() if payload is not None}
        left = found.keys() - payloads.keys()
        with self._inbox.decisions() as dispatcher:
            dispatcher.fetched([row for row in rows if row[0] not in left], payloads)
        self.fetches.add(row for row in rows if row[0] in left)

    async def _delete(self, rows: list[Row]) -> None:
        async with self._database.connection(self._patience) as connection:
            room = await self._queries.forget(connection, rows)
        self._deleted(room)
        with self._inbox.decisions() as dispatcher:
            dispatcher.rows.deleted(rows)
