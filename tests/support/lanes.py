"""Lanes without a database, whose batches wait until they are let go."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from channels_pg_sa.call import Call
from channels_pg_sa.sending.lane import Lane, Over

Calls = list[Call[int]]


class Late(Exception):
    """The deadline has passed; carries whether the job had been started."""


class Bench:
    """A lane whose batches wait until they are let go.

    Args:
        options: the lane's own.
    """

    def __init__(self, **options: Any) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.lane: Lane[int] = Lane(
            "test", asyncio.get_running_loop(), self._run, late=lambda call: Late(call.started), **options
        )

    async def _run(self, calls: Calls) -> None:
        self.entered.set()
        await self.gate.wait()
        live = [call for call in calls if call.start()]
        self.batches.append([call.job for call in live])
        for call in live:
            call.result = 10 * call.job
            if call.job < 0:
                call.error = ValueError(call.job)

    def call(self, job: int, timeout: float = 30) -> Call[int]:
        """Submit a job for this loop."""
        return self.lane.submit(Call(job, timeout, asyncio.get_running_loop()))


async def outcome(call: Call[int]) -> object:
    """Return the result of a call, or its error."""
    try:
        return await asyncio.wait_for(result_of(call), 10)
    except (Late, ValueError, RuntimeError) as error:
        return error


async def result_of(call: Call[int]) -> object:
    """Wait for the result of a call, or its error."""
    return await call


class FastPath:
    """A fast path that keeps the batches it has begun until it is told that they are over."""

    def __init__(self) -> None:
        self.is_open = True
        self.run: list[list[int]] = []
        self.begun: list[tuple[list[Call[int]], Over]] = []
        self.threads: list[threading.Thread] = []
        self.entered = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.lane: Lane[int] = Lane(
            "test", asyncio.get_running_loop(), self._run, late=lambda call: Late(call.started), fast_path=self._begin
        )

    async def _run(self, calls: Calls) -> None:
        live = [call for call in calls if call.start()]
        self.run.append([call.job for call in live])

    def _begin(self, calls: Calls, over: Over) -> bool:
        if self.is_open:
            self.threads.append(threading.current_thread())
            self.begun.append((calls, over))
            if threading.current_thread() is threading.main_thread():
                self.entered.set()
            else:
                self._loop.call_soon_threadsafe(self.entered.set)
        return self.is_open

    def call(self, job: int, timeout: float = 30) -> Call[int]:
        """Submit a job for this loop."""
        return self.lane.submit(Call(job, timeout, asyncio.get_running_loop()))

    async def finish(self, *, done: bool = True) -> list[int]:
        """Wait until a batch has been begun, end it, and return its jobs."""
        await self.entered.wait()
        calls, over = self.begun.pop()
        self.entered.clear()
        over(done)
        return [call.job for call in calls]

    async def alone(self) -> None:
        """Let one call be done by itself, so that the next may be begun by its caller."""
        call = self.call(0)
        await self.finish()
        await call


def finish_round(loop: asyncio.AbstractEventLoop) -> None:
    """Let a loop that was stopped go on for a moment."""
    loop.call_soon(loop.stop)
    loop.run_forever()
