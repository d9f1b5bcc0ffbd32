"""One layer in one process: composes outbox, inbox, listener and heartbeat on an I/O thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import psycopg

from .backlog import Backlog
from .clock import Clock
from .config import Settings
from .courier import Courier
from .database import OUTAGE, Connection, Database, Fate, fate, is_pooled
from .dispatcher import Dispatcher, Effects
from .drops import DropLog
from .errors import ChannelLayerError, LayerClosed, PoolerError, SchemaError
from .flushing import Flushes
from .heartbeat import Heartbeat
from .inbox import Inbox
from .iothread import IOThread
from .lane import Call
from .listener import ConnectionLost, Listener
from .names import node_of, recipient_of, topic
from .outbox import Outbox
from .parcels import Acknowledged, Flushed, parse
from .queries import GroupSend, Join, Leave, Queries, Send
from .schema import REVISION
from .version import __version__

logger = logging.getLogger(__name__)

Loop = asyncio.AbstractEventLoop

READY = 0.005
"""Seconds between two looks whether the listener is up."""
TICK = 1.0
"""Seconds between two rounds of housekeeping in memory."""
CLOSING = 5.0
"""Seconds that closing may take for what is still to be done."""
CLOSING_ALONE = 0.5
"""The same while the database is away."""
POOLER_PATIENCE = 2.0
"""Seconds that a notification to oneself may take where a pooler is suspected of swallowing it."""


class Node:
    """Send, receive and keep groups for one layer of this process, from any thread.

    The Call that a method returns is awaited by a coroutine on `loop`, or wait()ed for by a thread that gave no loop.

    Args:
        settings: of the layer.
        node_id: stands in the names of its channels.
        announcements: payloads that local channels get when the database is lost, and when it is back; None for none.
    """

    def __init__(
        self, settings: Settings, node_id: str, *, announcements: tuple[bytes | None, bytes | None] = (None, None)
    ) -> None:
        self.id = node_id
        self.drops = DropLog()
        self._settings = settings
        self._announcements = announcements
        self._pid = os.getpid()
        self._failure: ChannelLayerError | None = None
        self._closing = False
        self._listening = False
        self._switch = threading.Lock()
        self._secret = ""
        self._is_away = False
        self._registered = False
        self._work_tasks: list[asyncio.Task[Any]] = []
        self._thread = IOThread(f"channels_pg_sa {node_id}")
        try:
            self._thread.call(self._compose()).result()
        except BaseException:
            self._thread.stop()
            raise

    async def _compose(self) -> None:
        settings, spawn = self._settings, self._thread.spawn
        bounded = settings.capacity is not None or bool(settings.channel_capacity)
        self._clock = Clock()
        self._queries = Queries(
            prefix=settings.prefix,
            node=self.id,
            schema=settings.schema,
            expiry=settings.expiry,
            group_expiry=settings.group_expiry,
            lease=settings.lease,
        )
        self._database = Database(settings)
        await self._database.open()
        self._outbox = Outbox(
            self._thread.loop,
            self._database,
            self._queries,
            capacity_of=self.capacity_of,
            bounded=bounded,
            drops=self.drops,
            ready=self._ready,
            flush=self._flush,
            timeout=settings.send_timeout,
        )
        self._inbox = Inbox(
            Dispatcher(self.capacity_of, bounded=bounded),
            self._clock,
            work=self._work,
            check=self._check,
            want=lambda channel: self._soon(self._courier.want, channel),
        )
        self._listener = Listener(
            settings.listen, recover=self._recover, hear=self._hear, up=self._came_up, down=self._went_down
        )
        self._rereads = Backlog[str]("channels_pg_sa mailbox", spawn, self._reread, batch=1, outage=OUTAGE)
        self._courier = Courier(
            self._database,
            self._queries,
            decisions=self._inbox.decisions,
            listen=self._listen_to_queues,
            reread=lambda: self._rereads.add([self.id]),
            spawn=spawn,
            patience=settings.send_timeout,
        )
        self._heartbeat = Heartbeat(
            settings.heartbeat,
            self._database,
            self._queries,
            self._listener,
            self._clock,
            topic=self._topic,
            queues=lambda: sorted(self._courier.book.queues),
            filled=self._courier.overlooked,
            spawn=spawn,
        )
        self._flushes = Flushes(self.id, self._database, self._queries, self._listener, self._topic)
        self._work_tasks.append(spawn(self._keep_house(), "channels_pg_sa housekeeping"))

    # Verbs ---------------------------------------------------------------------------------------

    def send(self, channel: str, payload: bytes, loop: Loop | None) -> Call[Any]:
        """Send to a channel; the result is False if it is full."""
        self._check()
        job = Send(recipient_of(channel), channel, payload, self.capacity_of(channel))
        return self._outbox.submit(self._outbox.sends, job, loop)

    def group_send(self, group: str, payload: bytes, loop: Loop | None) -> Call[Any]:
        """Send to the members of a group."""
        self._check()
        return self._outbox.submit(self._outbox.sends, GroupSend(group, payload), loop)

    def join(self, group: str, channel: str, loop: Loop | None) -> Call[Any]:
        """Make a channel a member of a group, or renew its membership."""
        owner = node_of(channel) or ""
        if owner == self.id:
            self.listen()
        self._check()
        return self._outbox.submit(self._outbox.memberships, Join(group, owner, channel), loop)

    def leave(self, group: str, channel: str, loop: Loop | None) -> Call[Any]:
        """End a membership."""
        self._check()
        return self._outbox.submit(self._outbox.memberships, Leave(group, node_of(channel) or "", channel), loop)

    def flush(self, loop: Loop | None) -> Call[Any]:
        """Forget all messages and groups of the prefix, in the database and in every process."""
        self.listen()
        self._check()
        return self._outbox.submit(self._outbox.flushes, None, loop)

    async def receive(self, channel: str) -> bytes:
        """Wait for the payload of the next message of a channel.

        Raises:
            ValueError: the channel belongs to another node.
            SchemaError, PoolerError: the layer cannot work as it is set up.
            LayerClosed: it was closed meanwhile.
        """
        owner = node_of(channel)
        if owner is not None and owner != self.id:
            raise ValueError(f"{channel} belongs to another process or layer: to node {owner}, and this is {self.id}.")
        self.listen()
        return await self._inbox.receive(channel, shared=owner is None)

    def listen(self) -> None:
        """Start the listener and the heartbeat, unless they run already."""
        if not self._listening:
            with self._switch:
                start, self._listening = not self._listening, True
            if start:
                self._soon(self._start_listening)

    def drop(self, reason: str, what: str) -> None:
        """Count a message that was dropped; `what` it was goes to the log."""
        self.drops.add(reason, what)

    def capacity_of(self, channel: str) -> int | None:
        """Return the most unread messages of a channel, None for no limit."""
        for pattern, capacity in self._settings.channel_capacity:
            if pattern.match(channel):
                return capacity
        return self._settings.capacity

    @property
    def counters(self) -> Counter[str]:
        """What has been received and dropped so far, and why."""
        return self._inbox.counters + self.drops.counters

    @property
    def state(self) -> str:
        """How it is doing, in a few words."""
        if self._closing or self._failure is not None:
            word = "closed" if self._closing else "failed"
        elif not self._listening:
            word = "not listening yet"
        else:
            word = "listening" if self._listener.is_listening else "connecting"
        return f"{word}, {self._inbox.state}"

    def close(self) -> None:
        """Finish what was begun, take back what is this node's, and close every connection; may be called twice."""
        with self._switch:
            first, self._closing = not self._closing, True
        if not first or os.getpid() != self._pid:
            return
        if self._thread.is_current:  # a garbage collector calls from wherever it runs
            self._thread.spawn(self._close(), "channels_pg_sa close").add_done_callback(lambda _: self._thread.stop())
            return
        try:
            self._thread.call(self._close()).result(3 * CLOSING)
        except Exception:
            logger.exception("Node %s did not close as it should", self.id)
        self._thread.stop()

    # Receiving -----------------------------------------------------------------------------------

    def _start_listening(self) -> None:
        spawn = self._thread.spawn
        self._work_tasks += [
            spawn(self._listener.run(), "channels_pg_sa listener"),
            spawn(self._heartbeat.run(), "channels_pg_sa heartbeat"),
        ]

    async def _recover(self, connection: Connection) -> None:
        """Make a new connection of the listener's ours: LISTEN first, then read what the tables have for this node."""
        await self._enter(connection)
        queues = sorted(self._courier.book.queues)
        await self._listener.listen(connection, [self._topic(), *self._queue_topics(queues)])
        if await is_pooled(connection):
            await self._check_pooler(connection)
        await self._register(connection)
        members = await self._queries.members(connection)
        waiting = await self._queries.waiting(connection)
        with self._inbox.decisions() as dispatcher:
            dispatcher.members.replace(members)
            dispatcher.recover(waiting, self._heartbeat.next_number, self._clock.now())
        self._courier.hears(queues)

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
                connection, host=socket.gethostname(), pid=self._pid, version=__version__
            )
            if not known:
                # New, or taken for dead and swept: what is a member here is one still.
                with self._inbox.decisions() as dispatcher:
                    members = list(dispatcher.members)
                await self._queries.restore(connection, members)
        self._registered = True

    async def _reread(self, _nodes: list[str]) -> None:
        async with self._database.connection(self._settings.send_timeout) as connection:
            waiting = await self._queries.waiting(connection)
        with self._inbox.decisions() as dispatcher:
            dispatcher.recover(waiting, self._heartbeat.next_number, self._clock.now())
        self._heartbeat.hurry()

    def _hear(self, payloads: list[bytes]) -> None:
        now = self._clock.now()
        with self._inbox.decisions() as dispatcher:
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
        self._failure = None
        self._heartbeat.hurry()
        self._courier.listen_to_late()
        if away is not None:
            logger.warning("Node %s hears PostgreSQL again, after %.1f s", self.id, away)
            self._announce(self._announcements[1])
        self._is_away = False

    def _went_down(self, error: Exception) -> None:
        """Say so once. If the setup is at fault, those who wait are told; it may be mended, so the listener goes on."""
        if not self._is_away:
            reason = str(error).strip() or type(error).__name__
            expected = isinstance(error, (*OUTAGE, ConnectionLost, ChannelLayerError))
            logger.warning(
                "Node %s does not hear PostgreSQL, and reconnects: %s",
                self.id,
                reason,
                exc_info=None if expected else error,
            )
            self._announce(self._announcements[0])
        self._is_away = True
        if isinstance(error, ChannelLayerError) and self._failure is None:
            self._failure = error
            self._inbox.wake_all()

    def _announce(self, payload: bytes | None) -> None:
        if payload is not None:
            with self._inbox.decisions() as dispatcher:
                dispatcher.announce(payload, self._clock.now() + self._settings.expiry)

    async def _ready(self) -> None:
        """Wait until this node listens; a group it joins before that could be left before its messages are read."""
        while self._listening and not self._listener.is_listening:
            self._check()
            await asyncio.sleep(READY)

    async def _flush(self, connection: Connection) -> None:
        await self._flushes.flush(connection)

    async def _keep_house(self) -> None:
        next_rest = time.monotonic() + self._settings.heartbeat
        while True:
            await asyncio.sleep(TICK)
            self._inbox.keep_house(self.drops)
            self.drops.report()
            self._courier.give_back()
            if time.monotonic() > next_rest:
                next_rest += self._settings.heartbeat
                await self._courier.rest()

    async def _close(self) -> None:
        end = time.monotonic() + (CLOSING if self._listener.is_listening or not self._listening else CLOSING_ALONE)
        self._inbox.wake_all()
        await self._outbox.close(LayerClosed("The layer is closed."), end - time.monotonic())
        self._courier.give_back()
        await self._courier.finish(end - time.monotonic())
        for task in self._work_tasks:
            task.cancel()
        await asyncio.gather(*self._work_tasks, return_exceptions=True)
        self.drops.report(at_once=True)
        if self._registered:
            with contextlib.suppress(Exception):  # the database is away: it will sweep what this node leaves behind
                await asyncio.wait_for(self._leave_all(), max(0.1, end - time.monotonic()))
        await self._database.close()

    async def _leave_all(self) -> None:
        async with self._database.connection(CLOSING) as connection:
            await self._queries.leave_all(connection)

    # Parts ---------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._closing:
            raise LayerClosed("The layer is closed.")
        if self._failure is not None:
            raise self._failure

    def _soon(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: so has what this was about
            self._thread.loop.call_soon_threadsafe(function, *arguments)

    def _topic(self) -> str:
        return topic(self._secret, "node", self._settings.prefix, self.id)

    def _queue_topics(self, queues: Iterable[str]) -> list[str]:
        return [topic(self._secret, "queue", self._settings.prefix, queue) for queue in queues]

    async def _listen_to_queues(self, queues: list[str], stop: bool) -> bool:
        return await self._listener.add(self._queue_topics(queues), stop=stop)
