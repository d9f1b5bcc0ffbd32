"""Natural batching: while one batch runs, the calls that arrive wait for the next, and go together."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from .call import Call, settle

J = TypeVar("J")

Over = Callable[[bool], None]

ENOUGH = 32
"""Calls for which a batch is begun at once; so that of hundreds the next are made while the first are done."""


class LaneFull(Exception):
    """So many calls wait that one more would only make it worse."""


class Lane(Generic[J]):
    """A queue of calls from any thread, run in batches on one event loop.

    Every call is settled by its deadline, however long its batch may take.

    A coroutine that was woken together with others is mostly not the only one to call. So where the last batch was of
    several calls, the next begins when the caller's loop has given each of them its turn, or ENOUGH have called.

    With a shortcut, a batch need not wait for the lane's loop: the calling thread begins it, if the call finds the lane
    at rest and the last batch was of one call.

    Args:
        name: of its task.
        loop: where the batches run.
        run: does a batch: of the calls whose start() is true it sets each one's result or error.
        late: makes the error of a call whose deadline has passed.
        shortcut: begins a batch of started calls, from any thread, and returns True; or False if that cannot be done
            now. When it is over it calls the given function on the lane's loop: with True if the results and errors
            are set, with False if nothing was done and `run` shall do it.
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
        shortcut: Callable[[list[Call[J]], Over], bool] | None = None,
        cost: Callable[[J], int] = lambda _job: 0,
        budget: int = 4 * 1024 * 1024,
        batch: int = 1000,
        limit: int = 100_000,
    ) -> None:
        self._name = name
        self._loop = loop
        self._run = run
        self._late = late
        self._shortcut = shortcut
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
        self._alone = False
        self._gathering: asyncio.AbstractEventLoop | None = None  # whose round is waited for
        self._quiet = asyncio.Event()
        self._closed: BaseException | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, call: Call[J]) -> Call[J]:
        """Queue a call from any thread.

        Raises:
            LaneFull: too many wait.
            BaseException: the error that the lane was closed with.
        """
        try:
            self._enter(call)
            if call.leads:
                self._lead(call)
            elif self._gathering is not None:
                # The end of the round may never come, if the loop is stopped in the middle: others do not wait for it.
                if len(self._waiting) == ENOUGH or call.loop is not self._gathering:
                    self._gathered()
            else:  # all before it may have been given up, and the batch lasts
                self._watch_soon()
        except BaseException:  # a KeyboardInterrupt, for example, which may come anywhere
            if call.leads:
                self._loop.call_soon_threadsafe(self._go_on_after, call)
            raise
        return call

    def _enter(self, call: Call[J]) -> None:
        with self._lock:
            if self._closed is not None:
                raise self._closed
            if len(self._waiting) >= self._limit:
                raise LaneFull(f"{len(self._waiting):,} calls wait in lane {self._name}")
            call.leads = not self._busy
            self._waiting.append(call)
            self._busy = True
            if call.leads and not self._alone:
                self._gathering = call.loop

    def _lead(self, call: Call[J]) -> None:
        """Begin the next batch, or see to it that it is begun."""
        if not self._alone and call.loop is not None:
            call.loop.call_soon(self._gathered)
        elif self._alone and self._begin():
            self._watch_soon()
        else:
            self._loop.call_soon_threadsafe(self._start)

    def _gathered(self) -> None:
        """Wait no longer for the end of a loop's round, from any thread."""
        if self._gathering is not None:
            self._loop.call_soon_threadsafe(self._start_gathered)

    def _start_gathered(self) -> None:
        with self._lock:
            gathering, self._gathering = self._gathering, None
        if gathering is not None:
            self._start()

    async def close(self, error: BaseException, timeout: float) -> None:
        """Let what waits be done for `timeout` seconds; fail the rest, and all later calls, with the error."""
        with self._lock:
            self._closed = error
            if not self._busy:
                self._quiet.set()
        self._start_gathered()
        await asyncio.wait([quiet := asyncio.ensure_future(self._quiet.wait())], timeout=timeout)
        quiet.cancel()
        if self._task is not None and self._task.cancel():
            await asyncio.wait([self._task])
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            left = [*self._underway, *self._waiting]
            self._underway = []
            self._waiting.clear()
        self._fail(left, error)

    def _watch_soon(self) -> None:
        """See to it, from any thread, that the deadlines of calls are kept."""
        if self._timer is None:
            self._loop.call_soon_threadsafe(self._watch)

    def _watch(self) -> None:
        with self._lock:
            first = next(itertools.chain(self._underway, self._waiting), None)
        if self._timer is None and first is not None:
            self._set_timer(first.deadline)

    def _begin(self) -> bool:
        """Begin the next batch by the shortcut; from any thread, by whoever made the lane busy, or was told of its end.

        Returns:
            False if it has to be run instead.
        """
        if self._shortcut is None:
            return False
        calls = self._next()
        with self._lock:
            live = [call for call in calls if call.start()]
        if not calls or (live and self._shortcut(live, functools.partial(self._over, calls))):
            return True
        self._put_back(calls)
        return False

    def _go_on_after(self, call: Call[J]) -> None:
        """Take over from a caller who was interrupted while it made the lane busy, or began a batch, its call first."""
        with self._lock:
            begun = self._underway if self._underway[:1] == [call] else []
            is_next = not self._underway and bool(self._waiting) and self._waiting[0] is call
            is_running = self._task is not None and not self._task.done()
            go_on = bool(begun or is_next) and not is_running
            if go_on:
                self._gathering = None
                self._busy = True
                self._underway = []
                for unclear in begun:
                    unclear.error = unclear.error or self._late(unclear)
        if go_on:
            settle(begun)
            self._start()

    def _over(self, calls: list[Call[J]], done: bool) -> None:
        """Go on after a batch of the shortcut's, unless the lane has been closed meanwhile."""
        if self._underway is not calls:
            return
        if done:
            try:
                self._start()  # before its callers run, who would hold it up
            finally:
                settle(calls)
        else:
            self._put_back(calls)
            self._run_next()

    def _put_back(self, calls: list[Call[J]]) -> None:
        with self._lock:
            for call in calls:
                call.started = False
            self._waiting.extendleft(reversed(calls))
            self._underway = []

    def _start(self) -> None:
        if not self._begin_here():
            self._run_next()

    def _begin_here(self) -> bool:
        """Begin the next batch from the lane's own loop, where nobody but its calls can be told of an error."""
        try:
            return self._begin()
        except Exception as error:  # noqa: BLE001 - whatever it is
            self._fail(self._underway, error)
            return False

    def _run_next(self) -> None:
        self._task = self._loop.create_task(self._drain(), name=self._name)
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Go on if a batch let somebody's cancellation through: only close() may end a lane."""
        if task.cancelled() and self._closed is None:
            self._fail(self._underway, RuntimeError(f"A batch of {self._name} was cancelled."))
            self._start()

    async def _drain(self) -> None:
        while calls := self._next():
            if self._timer is None:
                self._set_timer(calls[0].deadline)
            try:
                await self._run(calls)
            except Exception as error:  # noqa: BLE001 - whatever it is, the callers are told
                self._fail(calls, error)
            else:
                settle(calls)
            self._underway = []  # not when cancelled: then close() has a better error for them
            if self._begin_here():
                return

    def _next(self) -> list[Call[J]]:
        calls: list[Call[J]] = []
        left = self._budget
        with self._lock:
            while self._waiting and len(calls) < self._batch and left > 0:
                calls.append(self._waiting.popleft())
                left -= self._cost(calls[-1].job)
            self._busy = bool(calls)
            self._underway = calls
            if calls:
                self._alone = len(calls) == 1
            elif self._closed is not None:
                self._loop.call_soon_threadsafe(self._quiet.set)
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
            left = next((call for call in itertools.chain(self._underway, self._waiting) if call.deadline > now), None)
            for call in late:
                if not call.settled:
                    call.error = self._late(call)  # from here on it cannot be started
        settle(late)
        if left is not None:
            self._set_timer(left.deadline)

    @staticmethod
    def _fail(calls: list[Call[J]], error: BaseException) -> None:
        for call in calls:
            if not call.settled:
                call.error = call.error or error
        settle(calls)
