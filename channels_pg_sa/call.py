"""One caller's job, and how its outcome gets back to where the caller waits: a coroutine on its loop, or a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, TypeVar

J = TypeVar("J")

GRACE = 5.0
"""Seconds beyond its deadline that a thread waits for its call: only a dead I/O thread lets it wait so long."""


class Call(Generic[J]):
    """One caller's job, and the way its outcome gets back to that caller's event loop or thread.

    Args:
        job: what to do.
        timeout: seconds after which the caller is told that it did not happen in time.
        loop: the caller's, None if the caller is a plain thread.
        report: called with the outcome, on the I/O loop, in place of a caller who waits for it.
    """

    __slots__ = (
        *("job", "since", "deadline", "loop", "report", "future", "gate"),
        *("leads", "started", "doubtful", "trouble", "settled", "result", "error"),
    )

    def __init__(
        self,
        job: J,
        timeout: float,
        loop: asyncio.AbstractEventLoop | None,
        *,
        report: Callable[[Call[J]], None] | None = None,
    ) -> None:
        self.job = job
        self.since = time.monotonic()
        self.deadline = self.since + timeout
        self.loop = loop
        self.report = report
        self.future: asyncio.Future[None] | None = None
        self.gate: threading.Lock | None = None
        if loop is not None and report is None:
            self.future = loop.create_future()
        elif report is None:
            # Not an Event, whose own lock a KeyboardInterrupt may leave closed; then whoever sets it waits for ever.
            self.gate = threading.Lock()
            self.gate.acquire()
        self.leads = False
        self.started = False
        self.doubtful = False  # whether an attempt ended without an answer, so that it may be done already
        self.trouble: str | None = None  # what the last attempt met, if there is to be another
        self.settled = False
        self.result: Any = None
        self.error: BaseException | None = None

    def start(self) -> bool:
        """Note that the job is about to be done; return False if nobody waits for it any more, so that it must not."""
        if self.settled or self.error is not None or (self.future is not None and self.future.cancelled()):
            return False
        self.started = True
        return True

    def wait(self) -> Any:
        """Block the calling thread until the outcome; return the result or raise the error; None if that is reported.

        Raises:
            RuntimeError: there is no outcome, long after the deadline: the I/O thread is dead.
        """
        patience = max(0.0, self.deadline - time.monotonic()) + GRACE
        if self.gate is not None and not self.gate.acquire(timeout=patience):
            raise RuntimeError("The layer's I/O thread gives no sign of life.")
        return self._outcome()

    def __await__(self) -> Generator[Any, None, Any]:
        if self.future is not None:
            yield from self.future
        return self._outcome()

    def _outcome(self) -> Any:
        if self.report is not None:  # it is told of the outcome, and the caller is not
            return None
        if self.error is not None:
            raise self.error
        return self.result


def settle(calls: Iterable[Call[Any]]) -> None:
    """Tell the callers that their outcomes are there, with one wake-up for each event loop."""
    loops: defaultdict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = defaultdict(list)
    for call in calls:
        if call.settled:
            continue
        call.settled = True
        if call.gate is not None:
            call.gate.release()
        elif call.future is not None and call.loop is not None:
            loops[call.loop].append(call.future)
        elif call.report is not None:
            call.report(call)
    for loop, futures in loops.items():
        try:
            loop.call_soon_threadsafe(resolve, futures)
        except RuntimeError:  # the loop was closed under its callers, nobody is left to tell
            continue


def resolve(futures: Iterable[asyncio.Future[None]]) -> None:
    """Set the futures' results, on their own loop."""
    for future in futures:
        if not future.done():
            future.set_result(None)
