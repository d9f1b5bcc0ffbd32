"""The sign of life that a node gives, and the sweeping that comes with it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from psycopg.errors import InsufficientPrivilege, InvalidSqlStatementName

from channels_pg_sa.connections.connection import Connection
from channels_pg_sa.connections.database import Database
from channels_pg_sa.connections.fate import OUTAGE, log_level
from channels_pg_sa.errors import words_of
from channels_pg_sa.iothread import Spawn
from channels_pg_sa.logs import Logger
from channels_pg_sa.statements.queries import Pulse, Queries
from channels_pg_sa.topics import Topics

from .clock import Clock
from .listener import PATIENCE, ConnectionLost, Listener
from .queuereader import QueueReader

logger = Logger(__name__)

AGAIN = 1.0
"""Seconds after which a beat that was not answered is sent again, if the interval is no shorter."""
SLOW = 0.25
"""Seconds after which an answer has kept notifications waiting for too long."""
SWEEP = 5000
"""Messages deleted in one transaction of a sweep, beside up to twice as many memberships."""

Work = Callable[[], Coroutine[Any, Any, None]]


class Heartbeat:
    """Renew the node's lease over the listener's connection, which shows at once that this still listens.

    One statement asks all. Where its answers take long, as after hours of a transaction that keeps dead rows, only the
    lease is renewed that way, and the rest is asked elsewhere: notifications wait for what runs between them.

    Args:
        interval: seconds between beats.
        database: lends connections for what may take long.
        queries: the layer's statements.
        listener: lends the connection that listens.
        clock: is told the database's time.
        topics: what the session must LISTEN to.
        queues: knows the queues to ask about, and is told of those in which rows wait.
        deleted: is told how many messages were swept.
        spawn: starts a task and holds it.
    """

    def __init__(
        self,
        interval: float,
        database: Database,
        queries: Queries,
        listener: Listener,
        clock: Clock,
        *,
        topics: Topics,
        queues: QueueReader,
        deleted: Callable[[int], None],
        spawn: Spawn,
    ) -> None:
        self._interval = interval
        self._patience = max(interval, PATIENCE)  # with less, what takes long would be broken off and begun for ever
        self._database = database
        self._queries = queries
        self._listener = listener
        self._clock = clock
        self._topics = topics
        self._queues = queues
        self._deleted = deleted
        self._spawn = spawn
        self._is_quick = True
        self._may_sweep = True
        self._is_answered = False
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._told: dict[str, str] = {}  # why each failed the last time

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            # Not all nodes at the same moment: they may have been started together.
            pause, began = self._interval * random.uniform(0.9, 1.0), time.monotonic()  # noqa: S311
            self._is_answered = False
            if self._listener.is_listening:
                # Not cancelled with us: psycopg would then wait for a server that may be silent.
                await asyncio.wait([self._start("heartbeat", self._beat)])
            if not self._is_answered:
                pause = min(pause, AGAIN)
            await asyncio.sleep(began + pause - time.monotonic())

    def sweep(self) -> None:
        """Delete what nobody needs any more, if the role may do that: whoever only sends need not have the right."""
        if self._may_sweep:
            self._start("sweep", self._sweep_if_allowed)

    def _start(self, name: str, work: Work) -> asyncio.Task[None]:
        """Do it in a task, unless that runs already."""
        if name not in self._tasks or self._tasks[name].done():
            self._tasks[name] = self._spawn(self._attempt(name, work), f"channels_pg_sa {name}")
        return self._tasks[name]

    async def _attempt(self, name: str, work: Work) -> None:
        try:
            await work()
            self._told.pop(name, None)
        except (ConnectionLost, *OUTAGE) as error:
            reason = words_of(error)
            is_new = self._told.get(name) != reason and not isinstance(error, ConnectionLost)
            logger.log(log_level(error) if is_new else logging.INFO, "A %s failed: %s", name, reason)
            self._told[name] = reason
        except Exception:
            logger.exception("A %s failed", name)

    async def _beat(self) -> None:
        is_whole = self._is_quick
        try:
            pulse = await self._listener.lend(self._ask if is_whole else self._renew)
        except InvalidSqlStatementName as error:
            self._listener.restart(f"its session was reset: {error}")
            raise
        self._is_answered = True
        if not pulse.alive:
            self._listener.restart("it was not registered any more: its lease had run out, or its row was deleted")
        elif not pulse.hears:
            self._listener.restart("its session was reset, or tables or secret made anew: it hears nothing of ours")
        if is_whole:
            self._heed(pulse)
        else:
            self._start("look around", self._look)

    async def _ask(self, connection: Connection) -> Pulse:
        self._is_quick = False  # until it has proved to be
        before = time.monotonic()
        pulse = await self._queries.beat(connection, self._topics, self._queues.queues)
        self._is_quick = time.monotonic() - before < SLOW
        self._clock.observe(before, time.monotonic(), pulse.now)
        return pulse

    async def _renew(self, connection: Connection) -> Pulse:
        before = time.monotonic()
        pulse = await self._queries.renew(connection, self._topics)
        self._clock.observe(before, time.monotonic(), pulse.now)
        return pulse

    async def _look(self) -> None:
        async with self._database.connection(self._patience) as connection:
            pulse = await self._ask(connection)
        self._heed(pulse)

    def _heed(self, pulse: Pulse) -> None:
        self._queues.on_filled(pulse.filled)
        if pulse.sweep_due:
            self._start("sweep", self._sweep)

    async def _sweep_if_allowed(self) -> None:
        try:
            await self._sweep()
        except InsufficientPrivilege:
            self._may_sweep = False

    async def _sweep(self) -> None:
        messages = memberships = SWEEP
        while max(messages, memberships) >= SWEEP:
            async with self._database.connection(self._patience) as connection:
                messages, memberships = await self._queries.sweep(connection, SWEEP)
            self._deleted(messages)
