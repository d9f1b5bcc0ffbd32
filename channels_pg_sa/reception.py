"""The receiving half of a node: listens, recovers, and keeps its place among the other nodes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import psycopg

from .clock import Clock
from .config import Settings
from .connection import Connection, is_pooled
from .courier import Courier
from .database import Database
from .dispatcher import Dispatcher
from .drops import DropLog
from .errors import ChannelLayerError, LayerClosed, PoolerError, SchemaError
from .fate import OUTAGE, Fate, fate
from .flushing import Flushes
from .heartbeat import Heartbeat
from .inbox import Inbox
from .iothread import IOThread
from .listener import ConnectionLost, Listener
from .mailboxes import Effects, Entry
from .names import node_of, topic
from .parcels import Acknowledged, Flushed, Parcel, parse
from .queries import Queries
from .schema import REVISION
from .vacuum import Vacuum
from .version import __version__

logger = logging.getLogger(__name__)

RECANCEL = 0.5
"""Seconds after which a task that was cancelled and goes on is cancelled again."""
READY = 0.005
"""Seconds between two looks whether the listener is up."""
POOLER_PATIENCE = 2.0
"""Seconds that a notification to oneself may take where a pooler is suspected of swallowing it."""


class Reception:
    """Hear what is sent to a node, and hand it to readers; made on the I/O loop, used from any thread.

    Args:
        node_id: of the node.
        settings: of the layer.
        thread: the I/O thread.
        database: lends connections.
        queries: the layer's statements.
        dispatcher: decides who gets what.
        announcements: payloads that local channels get when the database is lost, and when it is back; None for none.
    """

    def __init__(
        self,
        node_id: str,
        settings: Settings,
        thread: IOThread,
        *,
        database: Database,
        queries: Queries,
        dispatcher: Dispatcher,
        announcements: tuple[bytes | None, bytes | None],
    ) -> None:
        self._node_id = node_id
        self._settings = settings
        self._thread = thread
        self._database = database
        self._queries = queries
        self._announcements = announcements
        self._secret = ""
        self._started = False
        self._starting = threading.Lock()
        self._is_away = False
        self._registered = False
        self._mark = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self._clock = Clock()
        self.inbox = Inbox(
            dispatcher,
            self._clock,
            work=self._work,
            want=lambda channel: self._soon(self._courier.want, channel),
        )
        self._listener = Listener(
            settings.listen,
            settings.heartbeat,
            recover=self._recover,
            hear=self._hear,
            up=self._came_up,
            down=self._went_down,
        )
        spawn = thread.spawn
        vacuum = Vacuum(database, queries, spawn)
        self._courier = Courier(
            database,
            queries,
            decisions=self.inbox.decisions,
            listen=self._listen_to_queues,
            deleted=vacuum.note,
            reread=self._reread,
            spawn=spawn,
            patience=settings.send_timeout,
            expiry=settings.expiry,
            bounded=settings.bounded,
        )
        self._heartbeat = Heartbeat(
            settings.heartbeat,
            database,
            queries,
            self._listener,
            self._clock,
            topic=self._topic,
            queues=lambda: sorted(self._courier.book.queues),
            filled=self._courier.overlooked,
            deleted=vacuum.note,
            spawn=spawn,
        )
        self._flushes = Flushes(node_id, database, queries, self._listener, self._topic)

    # For the node --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to listen, unless that has been done."""
        if not self._started:
            with self._starting:
                start, self._started = not self._started, True
            if start:
                self._soon(self._start)

    def receive(self, channel: str, *, shared: bool) -> Awaitable[Entry]:
        """Wait for the next message of a channel.

        Args:
            channel: a name, or what names begin with up to their `!`.
            shared: whether other nodes may read it too.
        """
        if not self._started:
            self.start()
        return self.inbox.receive(channel, shared=shared)

    def check(self) -> None:
        """Raise what keeps this node from receiving, if anything does: SchemaError, PoolerError or LayerClosed."""
        self.inbox.check()

    async def ready(self) -> None:
        """Wait until this node listens; a group it joins before that could be left before its messages are read."""
        while self._started and not self._listener.is_listening:
            self.check()
            await asyncio.sleep(READY)

    async def flush(self, connection: Connection) -> None:
        """Delete all messages and memberships of the prefix, and wait until every node has forgotten them."""
        await self._flushes.flush(connection)

    async def keep_house(self, drops: DropLog, *, thoroughly: bool) -> None:
        """Free what nobody reads; thoroughly: stop listening for queues that nobody reads, too."""
        self.inbox.keep_house(drops, thoroughly=thoroughly)
        self._courier.give_back()
        if thoroughly:
            await self._courier.rest()

    @property
    def is_away(self) -> bool:
        """Whether the database has been lost."""
        return self._started and not self._listener.is_listening

    @property
    def counters(self) -> dict[str, int]:
        """What has been received and dropped so far, and why."""
        return self.inbox.counters

    @property
    def state(self) -> str:
        """How it is doing, in a few words."""
        if self.inbox.failure is not None:
            word = "closed" if isinstance(self.inbox.failure, LayerClosed) else "failed"
        elif not self._started:
            word = "not listening yet"
        else:
            word = "listening" if self._listener.is_listening else "connecting"
        return f"{word}, {self.inbox.state}"

    def refuse(self, error: ChannelLayerError) -> None:
        """Serve nobody any more, and tell those who wait."""
        self.inbox.fail(error)

    async def finish(self, patience: float) -> None:
        """Return what was claimed and not read, do what is still to be done, and stop listening."""
        self._courier.give_back()
        await self._courier.finish(patience)
        running = set(self._tasks)
        while running:
            for task in running:
                task.cancel()
            # Before Python 3.12 wait_for() may swallow a cancellation.
            _, running = await asyncio.wait(running, timeout=RECANCEL)

    async def sign_off(self, patience: float) -> None:
        """Delete what is this node's. If the database is away, others will sweep it."""
        if self._registered:
            with contextlib.suppress(*OUTAGE):
                await asyncio.wait_for(self._leave_all(patience), patience)

    # Listening -----------------------------------------------------------------------------------

    def _start(self) -> None:
        self._tasks = [
            self._thread.spawn(self._listener.run(), "channels_pg_sa listener"),
            self._thread.spawn(self._heartbeat.run(), "channels_pg_sa heartbeat"),
        ]

    async def _recover(self, connection: Connection) -> None:
        """Make a new connection of the listener's ours: LISTEN first, then read what the tables have for this node."""
        pooled = await is_pooled(connection)
        if pooled:  # the session may have been another's, whose prepared statements are still there
            connection.prepare_threshold = None
        await self._enter(connection)
        with self.inbox.decisions() as dispatcher:
            known = dispatcher.known
        queues = sorted(self._courier.book.queues)
        await self._listener.listen(connection, [self._topic(), *self._queue_topics(queues)])
        if pooled:
            await self._check_pooler(connection)
        await self._register(connection)
        # In this order: who joined before a message was sent is a member when the second is read.
        waiting = await self._queries.waiting(connection)
        members = await self._queries.members(connection)
        with self.inbox.decisions() as dispatcher:
            dispatcher.members.replace(members)
            dispatcher.vanished(known.difference(parcel.id for parcel in waiting))
            self._take_in(dispatcher, waiting)
        await self._send_mark(connection)
        self._courier.hears(queues)

    def _take_in(self, dispatcher: Dispatcher, waiting: list[Parcel]) -> None:
        """Take in what the mailbox holds, which until a mark comes round may be notified of once more."""
        self._mark += 1
        dispatcher.recover(waiting, self._mark, self._clock.now())

    async def _send_mark(self, connection: Connection) -> None:
        """Notify ourselves, to hear where the notifications end that may tell once more of what a table showed.

        Only their order tells: a row can be read before those who listen are notified of it, so the answer to a
        statement, or time, would say nothing. If this fails, the reading must be done again, with a mark of its own.
        """
        await self._queries.tell(connection, self._topic(), f"B{self._mark}")

    async def _enter(self, connection: Connection) -> None:
        before = time.monotonic()
        try:
            self._secret, revision, now = await self._queries.enter(connection)
        except psycopg.Error as error:
            if fate(error) is Fate.NO_SCHEMA:
                raise SchemaError(None, REVISION) from error
            raise
        self._clock.observe(before, time.monotonic(), now)
        if revision < REVISION:
            raise SchemaError(revision, REVISION)

    async def _check_pooler(self, connection: Connection) -> None:
        """Notify ourselves by another way: what never comes was swallowed by a pooler in transaction mode."""
        for _ in range(3):  # once may be chance
            sign = f"B-{secrets.randbelow(2**31)}"
            async with self._database.connection(POOLER_PATIENCE) as other:
                await self._queries.tell(other, self._topic(), sign)
            if not await self._listener.hears(connection, sign.encode(), POOLER_PATIENCE):
                raise PoolerError

    async def _register(self, connection: Connection) -> None:
        async with connection.transaction():
            known = await self._queries.register(
                connection, host=socket.gethostname(), pid=os.getpid(), version=__version__
            )
            if not known:
                # New, or taken for dead and swept: what is a member here is one still.
                with self.inbox.decisions() as dispatcher:
                    members = list(dispatcher.members)
                await self._queries.restore(connection, members)
        self._registered = True

    async def _reread(self) -> None:
        """Find rows that were claimed by a statement whose answer was lost."""
        async with self._database.connection(self._settings.send_timeout) as connection:
            waiting = await self._queries.waiting(connection)
            # Of all the rest we hear; we may not have heard yet of the joins that a message to a group is for.
            claimed = [parcel for parcel in waiting if not parcel.grouped and node_of(parcel.name) is None]
            with self.inbox.decisions() as dispatcher:
                self._take_in(dispatcher, claimed)
            await self._send_mark(connection)

    async def _leave_all(self, patience: float) -> None:
        async with self._database.connection(patience) as connection:
            await self._queries.leave_all(connection)

    async def _listen_to_queues(self, queues: list[str], stop: bool) -> bool:
        return await self._listener.add(self._queue_topics(queues), stop=stop)

    # What is heard -------------------------------------------------------------------------------

    def _hear(self, payloads: list[bytes]) -> None:
        now = self._clock.now()
        with self.inbox.decisions() as dispatcher:
            for payload in payloads:
                dispatcher.hear(parse(payload), now)

    def _work(self, effects: Effects) -> None:
        if not self._thread.is_current:
            self._soon(self._work, effects)
            return
        self._courier.work(effects)
        for control in effects.controls:
            if isinstance(control, Flushed):
                self._courier.flushed()
                self._thread.spawn(self._flushes.answer(control), "channels_pg_sa flush answer")
            elif isinstance(control, Acknowledged):
                self._thread.spawn(self._flushes.hear_answer(control), "channels_pg_sa flush answered")

    def _came_up(self, away: float | None) -> None:
        if not isinstance(self.inbox.failure, LayerClosed):
            self.inbox.failure = None
        self._courier.listen_to_late()
        if away is not None:
            logger.warning("Node %s hears PostgreSQL again, after %.1f s", self._node_id, away)
            self._announce(self._announcements[1])
        self._is_away = False

    def _went_down(self, error: Exception) -> None:
        """Say so once. If the setup is at fault, those who wait are told; it may be mended, so the listener goes on."""
        self._database.doubt()
        if not self._is_away:
            reason = str(error).strip() or type(error).__name__
            expected = isinstance(error, (*OUTAGE, ConnectionLost, ChannelLayerError))
            logger.warning(
                "Node %s does not hear PostgreSQL, and reconnects: %s",
                self._node_id,
                reason,
                exc_info=None if expected else error,
            )
            self._announce(self._announcements[0])
        self._is_away = True
        if isinstance(error, ChannelLayerError) and self.inbox.failure is None:
            self.refuse(error)

    def _announce(self, payload: bytes | None) -> None:
        if payload is not None:
            with self.inbox.decisions() as dispatcher:
                dispatcher.announce(payload, self._clock.now() + self._settings.expiry)

    # Parts ---------------------------------------------------------------------------------------

    def _soon(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: so has what this was about
            self._thread.loop.call_soon_threadsafe(function, *arguments)

    def _topic(self) -> str:
        return topic(self._secret, "node", self._settings.prefix, self._node_id)

    def _queue_topics(self, queues: Iterable[str]) -> list[str]:
        return [topic(self._secret, "queue", self._settings.prefix, queue) for queue in queues]
