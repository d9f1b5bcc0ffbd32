"""A new connection of the listener's becomes this node's, at the start as after an outage."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable

import psycopg

from channels_pg_sa.config import Settings
from channels_pg_sa.connections.connection import Connection, is_pooled
from channels_pg_sa.connections.database import Database
from channels_pg_sa.connections.fate import OUTAGE, Fate, fate
from channels_pg_sa.errors import ConfigurationError, PoolerError, PrivilegeError, words_of
from channels_pg_sa.iothread import Spawn
from channels_pg_sa.names import node_of
from channels_pg_sa.parcels import Parcel
from channels_pg_sa.schema import REVISION
from channels_pg_sa.statements.queries import Queries
from channels_pg_sa.topics import Topics
from channels_pg_sa.version import __version__

from .clock import Clock
from .dispatcher import Dispatcher
from .inbox import Inbox
from .listener import ConnectionLost, Listener
from .queuereader import QueueReader

POOLER_PATIENCE = 2.0
"""Seconds that a notification to oneself may take where a pooler is suspected of swallowing it, or another look."""


class Recovery:
    """LISTEN, and then read from the tables what has happened meanwhile.

    Args:
        settings: of the layer.
        topics: are told the installation's secret.
        database: lends connections.
        queries: the layer's statements.
        inbox: takes in what the tables have for this node.
        clock: the database's.
        listener: whose connections they are.
        queues: knows whose doorbells are to be listened for.
        spawn: starts a task and holds it.
    """

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        *,
        database: Database,
        queries: Queries,
        inbox: Inbox,
        clock: Clock,
        listener: Listener,
        queues: QueueReader,
        spawn: Spawn,
    ) -> None:
        self.may_be_registered = False
        """Whether this node may have a row: the answer to a commit can be lost, or not be waited for any more."""
        self._settings = settings
        self._topics = topics
        self._database = database
        self._queries = queries
        self._inbox = inbox
        self._clock = clock
        self._listener = listener
        self._queues = queues
        self._spawn = spawn
        self._is_way_unknown = settings.listens_apart
        self._mark = 0

    async def recover(self, connection: Connection, progressed: Callable[[], None]) -> None:
        """Make a new connection of the listener's this node's.

        Args:
            connection: the new one.
            progressed: called after each statement whose time grows with what the node has.

        Raises:
            SchemaError, PoolerError, PrivilegeError, ConfigurationError: it cannot be, as things are set up.
            ConnectionLost: the node's row was gone again in the end.
        """
        try:
            await self._begin(connection, progressed)
        except psycopg.errors.InsufficientPrivilege as error:
            raise PrivilegeError(words_of(error)) from error
        except psycopg.Error as error:
            if fate(error) is Fate.NO_SCHEMA:
                raise self._queries.schema_error(connection, REVISION, error) from error
            raise

    async def _begin(self, connection: Connection, progressed: Callable[[], None]) -> None:
        pooled = await is_pooled(connection)
        if pooled:  # the session may have been another's, whose prepared statements are still there
            connection.prepare_threshold = None
        await self._enter(connection)
        with self._inbox.decisions() as dispatcher:
            dispatcher.rows.begin_recovery()
        queues = self._queues.queues
        await self._queries.listen(connection, [self._topics.own, *self._topics.of_queues(queues)])
        if pooled:
            await self._check_pooler(connection)
        await self._register(connection, progressed)
        if self._is_way_unknown:
            await self._check_database(connection)
        # In this order: whoever joined before a message was sent is a member when the second is read.
        waiting = await self._queries.waiting(connection)
        progressed()
        members = await self._queries.members(connection)
        progressed()
        if not await self._queries.is_known(connection):
            # It stood still, or read for longer than its lease. What is in memory is restored by the next attempt.
            raise ConnectionLost("it was swept while it recovered")
        with self._inbox.decisions() as dispatcher:
            dispatcher.members.replace(members)
            dispatcher.vanished(waiting)
            self._take_in(dispatcher, waiting)
        await self._send_mark(connection)
        self._queues.on_listening(queues)

    async def reread(self) -> None:
        """Find rows that were claimed by a statement whose answer was lost."""
        async with self._database.connection(self._settings.send_timeout) as connection:
            with self._inbox.decisions() as dispatcher:
                dispatcher.rows.begin_query()
            try:
                waiting = await self._queries.waiting(connection)
                # Of all the rest we hear; we may not have heard yet of the joins that a message to a group is for.
                claimed = [parcel for parcel in waiting if not parcel.grouped and node_of(parcel.name) is None]
                with self._inbox.decisions() as dispatcher:
                    self._take_in(dispatcher, claimed)
            finally:
                with self._inbox.decisions() as dispatcher:
                    dispatcher.rows.end_query()
            await self._send_mark(connection)

    def _take_in(self, dispatcher: Dispatcher, waiting: list[Parcel]) -> None:
        """Take in what the mailbox holds, which until a mark comes round may be notified of once more."""
        self._mark += 1
        dispatcher.recover(waiting, self._mark, self._clock.now())

    async def _send_mark(self, connection: Connection) -> None:
        """Notify ourselves, to hear where the notifications end that may tell once more of what a table showed.

        Only their order tells: a row can be read before those who listen are notified of it, so the answer to a
        statement, or time, would say nothing. If this fails, the reading must be done again, with a mark of its own.
        """
        await self._queries.notify(connection, self._topics.own, f"B{self._mark}")

    async def _enter(self, connection: Connection) -> None:
        before = time.monotonic()
        try:
            self._topics.secret, revision, now = await self._queries.enter(connection)
        except psycopg.Error as error:
            if fate(error) is Fate.NO_SCHEMA:
                raise self._queries.schema_error(connection, None) from error
            raise
        self._clock.observe(before, time.monotonic(), now)
        if revision < REVISION:
            raise self._queries.schema_error(connection, revision)

    async def _check_pooler(self, connection: Connection) -> None:
        """Notify ourselves by another way: what never comes was swallowed by a pooler in transaction mode."""
        for _ in range(3):  # once may be chance
            payload = f"B-{secrets.randbelow(2**31)}"  # a mark before any other: it means nothing to the dispatcher
            async with self._database.connection(POOLER_PATIENCE) as other:
                await self._queries.notify(other, self._topics.own, payload)
            if not await self._listener.hears(connection, payload.encode(), POOLER_PATIENCE):
                raise PoolerError

    async def _check_database(self, connection: Connection) -> None:
        """See, once, that statements find this node where it listens; later a failover may come between the two.

        If nothing can be asked now, that is another matter.
        """
        # Not wait_for(): a pool that cannot connect may swallow its cancellation.
        looking = self._spawn(self._is_found(), "channels_pg_sa listen_url")
        await asyncio.wait([looking], timeout=POOLER_PATIENCE)
        if not looking.done():
            looking.cancel()
            return
        self._is_way_unknown = looking.result() is not True
        if looking.result() is False and await self._queries.is_known(connection):
            raise ConfigurationError(
                '"listen_url" leads to another database than the rest of the address: what is sent there is not heard.'
            )

    async def _is_found(self) -> bool | None:
        with contextlib.suppress(*OUTAGE):
            async with self._database.connection(POOLER_PATIENCE) as connection:
                return await self._queries.is_known(connection)
        return None

    async def _register(self, connection: Connection, progressed: Callable[[], None]) -> None:
        self.may_be_registered = True
        async with connection.transaction():
            await self._queries.keep_from_sweeping(connection)
            if not await self._queries.is_known(connection):
                # New, or taken for dead and swept: what is a member here is one still.
                with self._inbox.decisions() as dispatcher:
                    members = dispatcher.members.to_restore()
                await self._queries.restore(connection, members, progressed)
            # After that, because its lease begins now; nobody sweeps until we have committed.
            await self._queries.register(connection, host=socket.gethostname(), pid=os.getpid(), version=__version__)
        progressed()
