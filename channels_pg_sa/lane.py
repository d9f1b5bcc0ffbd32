"""Natural batching: while one batch runs, the calls that arrive wait for the next, and go together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import Any, Generic, TypeVar

J = TypeVar("J")

GRACE = 5.0
"""Seconds beyond its deadline that a thread waits for its call: only a dead I/O thread lets it wait so long."""


class LaneFull(Exception):
    """So many calls wait that one more would only make it worse."""


class Call(Generic[J]):
    """One caller's job, and the way its outcome gets back to that caller's event loop or thread.

    Args:
        job: what to do.
        timeout: seconds after which the caller is told that it did not happen in time.
        loop: the caller's, None if the caller is a plain thread.
        report: called with the outcome, on the I/O loop, in place of a caller who waits for it.
    """

    __slots__ = ("deadline", "error", "future", "job", "loop", "report", "result", "settled", "since", "started")

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
        self.future: asyncio.Future[None] | threading.Event | None = None
        if report is None:
            self.future = loop.create_future() if loop else threading.Event()
        self.started = False
        self.settled = False
        self.result: Any = None
        self.error: BaseException | None = None

    def start(self) -> bool:
        """Note that the job is about to be done; return False if nobody waits for it any more, so that it must not."""
        if self.settled or (isinstance(self.future, asyncio.Future) and self.future.cancelled()):
            return False
        self.started = True
        return True

    def wait(self) -> Any:
        """Block the calling thread until the outcome; return the result or raise the error; None if that is reported.

        Raises:
            RuntimeError: there is no outcome, long after the deadline: the I/O thread is dead.
        """
        if isinstance(self.future, threading.Event) and not self.future.wait(
            max(0.0, self.deadline - time.monotonic()) + GRACE
        ):
            raise RuntimeError("The layer's I/O thread gives no sign of life.")
        return self._outcome()

    def __await__(self) -> Generator[Any, None, Any]:
        if isinstance(self.future, asyncio.Future):
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
        if isinstance(call.future, threading.Event):
            call.future.set()
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


class Lane(Generic[J]):
    """A queue of calls from any thread, run in batches on one event loop.

    Every call is settled by its deadline, however long its batch may take.

    Args:
        name: of its task.
        loop: where the batches run.
        run: does a batch: of the calls whose start() is true it sets each one's result or error.
        late: makes the error of a call whose deadline has passed.
        cost: of a job, in bytes; a batch ends where `budget` is reached.
        batch: the most calls that go together.
        limit: the most calls that may wait.
    """

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        run: Callable[[list[Call[J]]], Awaitable[None]],
        *,
        late: Callable[[Call[J]], BaseException],
        cost: Callable[[J], int] = lambda _job: 0,
        budget: int = 4 * 1024 * 1024,
        batch: int = 1000,
        limit: int = 100_000,
    ) -> None:
        self._name = name
        self._loop = loop
        self._run = run
        self._late = late
        self._cost = cost
        self._budget = budget
        self._batch = batch
        self._limit = limit
        self._waiting: deque[Call[J]] = deque()
        self._underway: list[Call[J]] = []
        self._lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._closed: BaseException | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, call: Call[J]) -> Call[J]:
        """Queue a call from any thread.

        Raises:
            LaneFull: too many wait.
            BaseException: the error that the lane was closed with.
        """
        with self._lock:
            if self._closed is not None:
                raise self._closed
            if len(self._waiting) >= self._limit:
                raise LaneFull(f"{len(self._waiting):,} calls wait in lane {self._name}")
            self._waiting.append(call)
            start, self._busy = not self._busy, True
            untimed = self._timer is None
        if start:
            self._loop.call_soon_threadsafe(self._start)
        elif untimed:  # the batch under way has been given up by all its callers, and may yet take long
            self._loop.call_soon_threadsafe(self._watch)
        return call

    async def close(self, error: BaseException, timeout: float) -> None:
        """Let what waits be done for `timeout` seconds; fail the rest, and all later calls, with the error."""
        with self._lock:
            self._closed = error
        await asyncio.sleep(0)  # _start may be on its way
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task], timeout=timeout)
            if self._task.cancel():
                await asyncio.wait([self._task])
        if self._timer is not None:
            self._timer.cancel()
        self._fail([*self._underway, *self._waiting], error)
        self._waiting.clear()

    def _watch(self) -> None:
        if self._timer is None and self._waiting:
            self._set_timer(self._waiting[0].deadline)

    def _start(self) -> None:
        self._task = self._loop.create_task(self._drain(), name=self._name)
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Go on if a batch let somebody's cancellation through: only close() may end a lane."""
        if task.cancelled() and self._closed is None:
            self._fail(self._underway, RuntimeError(f"A batch of {self._name} was cancelled."))
            self._start()

    async def _drain(self) -> None:
        while calls := self._next():
            self._underway = calls
            if self._timer is None:
                self._set_timer(calls[0].deadline)
            try:
                await self._run(calls)
            except Exception as error:  # noqa: BLE001 - whatever it is, the callers are told
                self._fail(calls, error)
            else:
                settle(calls)
            self._underway = []  # not when cancelled: then close() has a better error for them

    def _next(self) -> list[Call[J]]:
        calls: list[Call[J]] = []
        left = self._budget
        with self._lock:
            while self._waiting and len(calls) < self._batch and left > 0:
                calls.append(self._waiting.popleft())
                left -= self._cost(calls[-1].job)
            self._busy = bool(calls)
        return calls

    def _set_timer(self, deadline: float) -> None:
        self._timer = self._loop.call_later(max(0.0, deadline - time.monotonic()), self._expire)

    def _expire(self) -> None:
        """Settle what is late. Calls have equal timeouts, so the next to be late is the first that is left."""
        self._timer = None
        now = time.monotonic()
        with self._lock:
            late = [call for call in self._underway if call.deadline <= now]
            while self._waiting and self._waiting[0].deadline <= now:
                late.append(self._waiting.popleft())
            left = next((call for call in (*self._underway, *self._waiting) if call.deadline > now), None)
        for call in late:
            if not call.settled:
                call.error = self._late(call)
        settle(late)
        if left is not None:
            self._set_timer(left.deadline)

    @staticmethod
    def _fail(calls: list[Call[J]], error: BaseException) -> None:
        for call in calls:
            if not call.settled:
                call.error = call.error or error
        settle(calls)
