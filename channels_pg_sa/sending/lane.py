"""Natural batching: while one batch runs, the calls that arrive wait for the next, and go together."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from channels_pg_sa.call import Call, settle

from .callqueue import CallQueue

J = TypeVar("J")

Over = Callable[[bool], None]

BUDGET = 4 * 1024 * 1024
"""Bytes at which a batch ends."""
ROUND = 0.1
"""Seconds that a batch waits at most for the end of a round of a caller's loop, and between two looks at deadlines."""


class Lane(Generic[J]):
    """A queue of calls from any thread, run in batches on one event loop.

    Every call is settled by its deadline, however long its batch may take.

    With a fast path, a batch need not wait for the lane's loop: the calling thread begins it, if the call finds the
    lane at rest and the last batch was of one call. More calls than one at a time are better gathered.

    Args:
        name: of its task.
        loop: where the batches run.
        run: does a batch: of the calls whose start() is true it sets each one's result or error.
        late: makes the error of a call whose deadline has passed.
        fast_path: begins a batch of started calls, from any thread, and returns True; or False if that cannot be done
            now. When it is over it calls the given function on the lane's loop: with True if the results and errors
            are set, with False if `run` shall do what has not been settled.
        at_rest: calls a function on the lane's loop as soon as the fast path has no batch under way.
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
        fast_path: Callable[[list[Call[J]], Over], bool] | None = None,
        at_rest: Callable[[Callable[[], None]], None] = lambda function: function(),
        cost: Callable[[J], int] = lambda _job: 0,
        budget: int = BUDGET,
        batch: int = 1000,
        limit: int = 100_000,
    ) -> None:
        self._name = name
        self._loop = loop
        self._run = run
        self._late = late
        self._fast_path = fast_path
        self._at_rest = at_rest
        self._calls: CallQueue[J] = CallQueue(cost=cost, budget=budget, batch=batch, limit=limit)
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._quiet = asyncio.Event()

    def __len__(self) -> int:
        return len(self._calls)

    # From any thread -----------------------------------------------------------------------------

    def submit(self, call: Call[J]) -> Call[J]:
        """Queue a call.

        Raises:
            SendError: too many wait.
            BaseException: the error that the lane was closed with.
        """
        try:
            if (loop := self._calls.enter(call)) is not None:
                loop.call_soon(self._gathered)
                self._watch_soon()  # the end of the round may never come
            elif call.leads:
                self._lead()
            elif not self._calls.is_gathering:
                self._watch_soon()  # all before it may have been given up, and the batch lasts
            elif self._calls.is_worth_a_batch(call):
                self._gathered()
        except BaseException:  # a KeyboardInterrupt, for example, which may come anywhere
            if call.leads:
                # Not beside a batch that it may have begun.
                self._soon(self._at_rest, functools.partial(self._go_on_after, call))
                self._watch_soon()
            raise
        return call

    def _lead(self) -> None:
        """Begin the next batch here, or have it begun."""
        if self._calls.alone and self._begin():
            self._watch_soon()
        else:
            self._soon(self._start)

    def _gathered(self) -> None:
        if self._calls.is_gathering:
            with contextlib.suppress(RuntimeError):  # the lane was closed meanwhile, and its loop
                self._loop.call_soon_threadsafe(self._start_gathered)

    def _watch_soon(self) -> None:
        """See to it that the deadlines of calls are kept."""
        if self._timer is None:
            self._soon(self._watch)

    def _soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have something done on the lane's loop; if that has ended, raise what the lane was closed with."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self._calls.check()
            raise

    def _begin(self) -> bool:
        """Begin the next batch by the fast path, where the last ends, or where a call leads.

        Returns:
            False if it has to be run instead.
        """
        if self._fast_path is None:
            return False
        calls = self._take()
        live = self._calls.start(calls)
        if not calls or (live and self._fast_path(live, functools.partial(self._over, calls))):
            return True
        self._calls.put_back(calls)
        return False

    def _take(self) -> list[Call[J]]:
        calls = self._calls.take()
        if not calls and self._calls.is_finished:
            self._soon(self._quiet.set)
        return calls

    # On the lane's loop --------------------------------------------------------------------------

    async def close(self, error: BaseException, timeout: float) -> None:
        """Let what waits be done for `timeout` seconds; fail the rest, and all later calls, with the error."""
        if self._calls.close(error):
            self._quiet.set()
        self._start_gathered()
        try:
            await asyncio.wait([quiet := asyncio.ensure_future(self._quiet.wait())], timeout=timeout)
            quiet.cancel()
            if self._task is not None and self._task.cancel():
                await asyncio.wait([self._task])
        finally:  # also if the node gives up waiting, and ends the loop
            self._fail(self._calls.clear(), error)

    def _start_gathered(self) -> None:
        if self._calls.stop_gathering():
            self._start()

    def _start(self) -> None:
        self._calls.clear_leader()
        if self._begin_here():
            self._watch()
        else:
            self._run_next()

    def _begin_here(self) -> bool:
        """Begin the next batch where nobody but its calls can be told of an error."""
        try:
            return self._begin()
        except Exception as error:  # noqa: BLE001 - whatever it is
            self._fail(self._calls.underway, error)
            return False

    def _run_next(self) -> None:
        self._task = self._loop.create_task(self._drain(), name=self._name)
        self._task.add_done_callback(self._ended)

    async def _drain(self) -> None:
        while calls := self._take():
            self._watch()
            try:
                await self._run(calls)
            except Exception as error:  # noqa: BLE001 - whatever it is, the callers are told
                self._fail(calls, error)
            else:
                settle(calls)
            if self._begin_here():
                return

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Go on if a batch let somebody's cancellation through: only close() may end a lane."""
        if task.cancelled() and not self._calls.is_closed:
            self._fail(self._calls.underway, RuntimeError(f"A batch of {self._name} was cancelled."))
            self._start()

    def _over(self, calls: list[Call[J]], done: bool) -> None:
        """Go on after a batch of the fast path, unless the lane has been closed meanwhile."""
        if self._calls.underway is not calls:
            return
        if done:
            try:
                self._start()  # before its callers run, who would hold it up
            finally:
                settle(calls)
        else:
            self._calls.clear_leader()
            self._calls.put_back(calls)
            self._run_next()

    def _go_on_after(self, call: Call[J]) -> None:
        """Do what a caller was about to do when it was interrupted, unless it had done it already."""
        go_on, unclear = self._calls.take_over(call)
        if go_on:
            for begun in unclear:
                begun.error = begun.error or self._late(begun)
            settle(unclear)
            self._start()

    # Deadlines -----------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._timer is None and (first := self._calls.first_deadline()) is not None:
            self._set_timer(first)

    def _set_timer(self, deadline: float) -> None:
        self._timer = self._loop.call_later(min(ROUND, max(0.0, deadline - time.monotonic())), self._expire)

    def _expire(self) -> None:
        self._timer = None
        late, following = self._calls.give_up(time.monotonic(), self._late)
        settle(late)
        if following is not None:
            self._set_timer(following)
        self._start_gathered()

    @staticmethod
    def _fail(calls: list[Call[J]], error: BaseException) -> None:
        for call in calls:
            if not call.settled:
                call.error = call.error or error
        settle(calls)
