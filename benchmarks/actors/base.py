"""What every actor has: a stage to work on, a report to fill, tasks to end."""

from __future__ import annotations

import array
import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

WARM = -1
"""The number of a message that only makes sure the way is open."""

HANG_SECONDS = 10.0
"""After this a call that does not return is given up."""


class Counter(Protocol):
    """A slot of memory that the coordinating process reads."""

    value: int


@dataclass
class Stage:
    """What one actor works with: the layer, the case's time in seconds, and two shared counters."""

    layer: Any
    seconds: float
    warmed: Counter
    received: Counter
    targets: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What one actor did. Times are seconds on the monotonic clock; `last_seen` is by message number.

    `empty_calls` is how many async_to_sync calls that do nothing the same process makes in a second.
    """

    sent: int = 0
    refused: int = 0
    received: int = 0
    doubled: int = 0
    finished: float = 0.0
    latencies: array.array[float] = field(default_factory=lambda: array.array("d"))
    calls: array.array[float] = field(default_factory=lambda: array.array("d"))
    started: dict[int, float] = field(default_factory=dict)
    last_seen: dict[int, float] = field(default_factory=dict)
    seen: bytes | None = None
    bytes_each: float | None = None
    empty_calls: float | None = None
    errors: list[str] = field(default_factory=list)

    def note(self, error: BaseException) -> None:
        """Keep the first few errors."""
        if len(self.errors) < 3:
            self.errors.append(f"{type(error).__name__}: {error}"[:200])


class Actor:
    """Do nothing, politely; each kind of role overrides its part."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.report = Report()
        self._tasks: set[asyncio.Task[None]] = set()

    async def prepare(self) -> list[str]:
        """Open channels and start reading; return the names others may send to."""
        return []

    async def meet(self, targets: list[str]) -> None:
        """Learn the names that all actors have returned from `prepare`."""
        self.stage.targets = targets

    async def warm(self) -> None:
        """Send something through each way that will be used."""

    async def run(self) -> None:
        """Do the work that is measured."""

    async def stop(self) -> Report:
        """Stop reading and return what was seen."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=HANG_SECONDS)
        return self.report

    async def close(self) -> None:
        """End what others may have used until they stopped; the layer is still open."""

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    async def _finish(self, lanes: list[Coroutine[Any, Any, None]]) -> None:
        tasks = [asyncio.ensure_future(lane) for lane in lanes]
        _, hung = await asyncio.wait(tasks, timeout=self.stage.seconds + HANG_SECONDS)
        for task in hung:
            task.cancel()
        if hung:
            self.report.errors.append(f"{len(hung)} of {len(tasks)} callers hung for {HANG_SECONDS:.0f} s")
            await asyncio.wait(hung, timeout=1.0)
        self.report.finished = time.monotonic()
