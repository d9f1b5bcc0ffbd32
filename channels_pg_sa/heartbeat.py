"""The sign of life that a node gives and wants to hear, and the sweeping that comes with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from .clock import Clock
from .database import OUTAGE, Database
from .listener import Listener
from .queries import Pulse, Queries

logger = logging.getLogger(__name__)

SILENCE = 2
"""Heartbeats without a notification or the answer to a ping, after which a listener is taken for dead."""
SWEEP = 5000
"""Rows deleted in one transaction of a sweep."""


class Heartbeat:
    """Renew the node's lease, and see whether its listener still hears.

    Args:
        interval: seconds between beats.
        database: lends connections.
        queries: the layer's statements.
        listener: which must hear the beats.
        clock: is told the database's time.
        topic: gives the node's topic.
        queues: gives the queues to ask about.
        filled: called with those of them in which rows wait.
        deleted: is told how many rows were swept.
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
        topic: Callable[[], str],
        queues: Callable[[], list[str]],
        filled: Callable[[list[str]], None],
        deleted: Callable[[int], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._interval = interval
        self._database = database
        self._queries = queries
        self._listener = listener
        self._clock = clock
        self._topic = topic
        self._queues = queues
        self._filled = filled
        self._deleted = deleted
        self._spawn = spawn
        self._number = 0
        self._due = 0.0
        self._now = asyncio.Event()
        self._beating: asyncio.Task[None] | None = None
        self._pinging: asyncio.Task[None] | None = None

    @property
    def next_number(self) -> int:
        """The number of a beat that has not been sent yet."""
        return self._number + 1

    def hurry(self) -> None:
        """Beat at once."""
        self._now.set()

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._now.wait(), self._pause())
            self._check_listener()
            if self._now.is_set() or time.monotonic() >= self._due:
                self._now.clear()
                # Not all nodes at the same moment: they may have been started together.
                self._due = time.monotonic() + self._interval * random.uniform(0.9, 1.0)  # noqa: S311
                if self._listener.is_listening and (self._beating is None or self._beating.done()):
                    self._beating = self._spawn(self._beat(), "channels_pg_sa beat")

    def _pause(self) -> float:
        """Return the seconds until the next beat, or until the listener's silence calls for something."""
        next_look = self._due
        if self._listener.is_listening:
            patience = self._interval * (SILENCE if self._is_pinging else 1)
            next_look = min(next_look, self._listener.alive_at + patience)
        return max(0.0, next_look - time.monotonic())

    def _check_listener(self) -> None:
        """Doubt a listener that does not hear even one's own beats: ask it, because they may not have been sent."""
        silent = time.monotonic() - self._listener.alive_at
        if not self._listener.is_listening or silent < self._interval:
            return
        if silent >= SILENCE * self._interval:
            self._database.doubt()
            self._listener.restart(f"it has heard nothing for {silent:.1f} s, and does not answer")
        elif not self._is_pinging:
            self._pinging = self._spawn(self._listener.ping(), "channels_pg_sa ping")

    @property
    def _is_pinging(self) -> bool:
        return self._pinging is not None and not self._pinging.done()

    async def _beat(self) -> None:
        try:
            pulse = await self._ask()
            if not pulse.alive and self._listener.is_listening:
                self._listener.restart("its lease had run out")
            if pulse.filled:
                self._filled(pulse.filled)
            if pulse.sweep_due:
                await self._sweep()
        except OUTAGE as error:
            logger.info("A heartbeat failed: %s", str(error).strip() or type(error).__name__)
        except Exception:
            logger.exception("A heartbeat failed")

    async def _ask(self) -> Pulse:
        async with self._database.connection(self._interval) as connection:
            self._number += 1
            before = time.monotonic()
            pulse = await self._queries.beat(
                connection, topic=self._topic(), sign=f"B{self._number}", queues=self._queues()
            )
            self._clock.observe(before, time.monotonic(), pulse.now)
        return pulse

    async def _sweep(self) -> None:
        deleted: int | None = SWEEP
        while deleted == SWEEP:
            async with self._database.connection(self._interval) as connection:
                deleted = await self._queries.sweep(connection, SWEEP)
            self._deleted(deleted or 0)
