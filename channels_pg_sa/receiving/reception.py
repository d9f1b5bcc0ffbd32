"""The receiving half of a node: listens, recovers, and keeps its place among the other nodes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import psycopg

from channels_pg_sa.config import Settings
from channels_pg_sa.connections.connection import Connection
from channels_pg_sa.connections.database import Database
from channels_pg_sa.connections.fate import OUTAGE
from channels_pg_sa.drops import DropLog
from channels_pg_sa.entry import Entry
from channels_pg_sa.errors import ChannelLayerError
from channels_pg_sa.iothread import IOThread, cancelled
from channels_pg_sa.parcels import Flushed, parse
from channels_pg_sa.statements.queries import Queries
from channels_pg_sa.topics import Topics

from .clock import Clock
from .courier import Courier
from .dispatcher import Dispatcher
from .flushing import Answers, Flushes
from .heartbeat import Heartbeat
from .inbox import Inbox
from .listener import Listener
from .localchannels import Effects
from .outages import Announcements, Outages
from .queuereader import QueueReader
from .recovery import Recovery
from .vacuum import Vacuum

AGAIN = 0.5
"""Seconds that a second attempt to sign off may take."""


class Reception:
    """Hear what is sent to a node, and hand it to readers; made on the I/O loop, used from any thread.

    Args:
        node_id: of the node.
        settings: of the layer.
        thread: the I/O thread.
        database: lends connections.
        queries: the layer's statements.
        announcements: what local channels get when the database is lost, and when it is back.
    """

    def __init__(
        self,
        node_id: str,
        settings: Settings,
        thread: IOThread,
        *,
        database: Database,
        queries: Queries,
        announcements: Announcements,
    ) -> None:
        self._thread = thread
        self._database = database
        self._queries = queries
        self._started = False
        self._group_expiry = settings.group_expiry or math.inf
        self._tasks: list[asyncio.Task[Any]] = []
        self._clock = clock = Clock()
        topics = Topics(settings.prefix, node_id)
        spawn = thread.spawn
        self._vacuum = vacuum = Vacuum(database, queries, spawn)
        dispatcher = Dispatcher(settings.capacity_of, bounded=settings.bounded)
        self._members = dispatcher.members
        self.inbox = inbox = Inbox(
            dispatcher,
            clock,
            work=self._work,
            want=lambda channel: self._soon(self._queues.on_reader, channel),
        )
        self._outages = Outages(
            node_id,
            inbox,
            clock,
            expiry=settings.expiry,
            announcements=announcements,
            loop=thread.loop,
            key="listen_url" if settings.listens_apart else None,
        )
        self._listener = listener = Listener(
            settings.listen,
            settings.heartbeat,
            recover=self._recover,
            hear=self._hear,
            up=self._came_up,
            down=self._went_down,
        )
        self._courier = Courier(settings, database, queries, inbox, deleted=vacuum.note, spawn=spawn)
        self._queues = QueueReader(
            settings, database, queries, inbox, listener=listener, topics=topics, reread=self._reread, spawn=spawn
        )
        self._recovery = Recovery(
            settings,
            topics,
            database=database,
            queries=queries,
            inbox=inbox,
            clock=clock,
            listener=listener,
            queues=self._queues,
            spawn=spawn,
        )
        self._heartbeat = Heartbeat(
            settings.heartbeat,
            database,
            queries,
            listener,
            clock,
            topics=topics,
            queues=self._queues,
            deleted=vacuum.note_rows,
            spawn=spawn,
        )
        self._flushes = Flushes(node_id, database, queries, topics, timeout=settings.send_timeout)

    # For the node --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to listen, unless that has been done."""
        if not self._started:
            self._soon(self._start)  # first: a thread may be interrupted between the two
            self._started = True

    def receive(self, channel: str, *, shared: bool) -> Awaitable[Entry]:
        """Wait for the next message of a channel.

        Args:
            channel: a name, or what names begin with up to their `!`.
            shared: whether other nodes may read it too.
        """
        if not self._started:
            # As soon as this reader waits, who is to hear of it if the very first attempt fails.
            asyncio.get_running_loop().call_soon(self.start)
        return self.inbox.receive(channel, shared=shared)

    def check(self) -> None:
        """Raise what keeps this node from receiving, if anything does: a set-up that does not work, or LayerClosed."""
        self.inbox.check()

    async def ready(self) -> None:
        """Wait until this node listens; a group it joins before that could be left before its messages are read.

        Raises: as `check` does.
        """
        while self._started and not self._listener.is_listening:
            self.check()
            await self._outages.wait()

    def session(self) -> int | None:
        """Return the number of the connection over which this node hears, and has back the memberships it had lost.

        None while it hears nothing.
        """
        return None if self.is_away else self._outages.ended

    @property
    def trouble(self) -> str | None:
        """Why this node does not hear the server, as far as is known; None if it does."""
        return self._outages.trouble

    def watch(self, memberships: Iterable[tuple[str, str]]) -> None:
        """Take note of groups and channels of this node's that are about to join, after all that were before them."""
        # Without the inbox's lock: a caller's thread may be interrupted, and then keep it. One assignment needs none.
        self._members.watch(memberships)

    def expect(self, memberships: Iterable[tuple[str, str]]) -> None:
        """Take note of those that have joined, of which this node may not have heard yet."""
        expires = self._clock.now() + self._group_expiry
        with self.inbox.decisions() as dispatcher:
            for group, channel in memberships:
                dispatcher.members.expect(group, channel, expires)

    def doubt(self, memberships: Iterable[tuple[str, str]]) -> None:
        """Take note of groups and channels of this node's, of whose memberships the database knows nothing any more."""
        with self.inbox.decisions() as dispatcher:
            for group, channel in memberships:
                dispatcher.members.doubt(group, channel)

    async def flush(self, connection: Connection) -> Answers:
        """Delete all messages and memberships of the prefix; every living node answers when it has forgotten them."""
        return await self._flushes.flush(connection)

    def keep_house(self, drops: DropLog, *, thoroughly: bool) -> None:
        """Free what nobody reads; thoroughly: stop listening for queues that nobody reads, too."""
        self.inbox.keep_house(drops, thoroughly=thoroughly)
        self._queues.give_back()
        if thoroughly:
            self._queues.reread_if_doubtful()
            self._queues.rest()

    def sweep(self) -> None:
        """Delete what nobody needs any more; a node that listens does so with its heartbeats."""
        if not self._started:
            self._heartbeat.sweep()

    @property
    def is_away(self) -> bool:
        """Whether the database has been lost."""
        return self._started and not self._listener.is_listening

    @property
    def counters(self) -> Counter[str]:
        """What has been received and dropped so far, and why."""
        return self.inbox.counters

    @property
    def state(self) -> str:
        """How it is doing, in a few words."""
        if self.inbox.failure is not None:
            word = "closed" if self.inbox.is_closed else "failed"
        elif not self._started:
            word = "not listening yet"
        else:
            word = "listening" if self._listener.is_listening else "connecting"
        return f"{word}, {self.inbox.state}"

    def refuse(self, error: ChannelLayerError) -> None:
        """Serve nobody any more, and tell those who wait."""
        self._outages.refuse(error)

    async def finish(self, patience: float) -> None:
        """Return what was claimed and not read, do what is still to be done, and stop listening."""
        end = time.monotonic() + patience
        self.inbox.dismiss()
        await self._queues.finish(patience)  # what a claim under way brings is given back as well
        self._queues.give_back()
        await self._queues.finish(max(0.0, end - time.monotonic()))
        await self._courier.finish(max(0.0, end - time.monotonic()))
        await self._vacuum.stop()
        await cancelled(set(self._tasks))

    async def sign_off(self, patience: float) -> None:
        """Delete what is this node's. If the database is away, others will sweep it."""
        if self._recovery.may_be_registered:
            with contextlib.suppress(*OUTAGE):
                await asyncio.wait_for(self._unregister(patience), patience)

    # Listening -----------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._tasks or self.inbox.is_closed:
            return
        self._tasks = [
            self._thread.spawn(self._listener.run(), "channels_pg_sa listener"),
            self._thread.spawn(self._heartbeat.run(), "channels_pg_sa heartbeat"),
        ]

    async def _recover(self, connection: Connection, progressed: Callable[[], None]) -> None:
        await self._recovery.recover(connection, progressed)

    async def _reread(self) -> None:
        await self._recovery.reread()

    async def _unregister(self, patience: float) -> None:
        try:
            await self._unregister_once(patience)
        except psycopg.OperationalError:
            # Its session was ended, perhaps alone. If not, there is nobody to tell. (Not for longer: psycopg 3.2 may
            # put such an error in the place of a cancellation.)
            await asyncio.wait_for(self._unregister_once(AGAIN), AGAIN)

    async def _unregister_once(self, patience: float) -> None:
        async with self._database.connection(patience) as connection:
            await self._queries.unregister(connection)

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
        self._courier.fetches.add(effects.fetch)
        self._courier.deletions.add(effects.delete)
        for ring in effects.rings:
            self._queues.on_ring(ring.queue, ring.id)
        for flush in effects.flushes:
            if isinstance(flush, Flushed):
                self._queues.on_flush()
                self._thread.spawn(self._flushes.answer(flush), "channels_pg_sa flush answer")
            else:
                self._flushes.hear_answer(flush)

    def _came_up(self) -> None:
        self._outages.end()
        self._queues.listen_to_late()

    def _went_down(self, error: Exception) -> None:
        self._database.doubt()
        self._outages.begin(error)

    # Parts ---------------------------------------------------------------------------------------

    def _soon(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: so has what this was about
            self._thread.loop.call_soon_threadsafe(function, *arguments)
