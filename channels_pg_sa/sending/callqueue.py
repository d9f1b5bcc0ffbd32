"""The calls of a lane: which wait, which are under way, and who has to begin the next batch. Does no I/O."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from channels_pg_sa.call import Call
from channels_pg_sa.errors import SendError

J = TypeVar("J")

ENOUGH = 32
"""Calls that are worth a batch: when so many wait it is begun at once, and it is not halved below that."""


class CallQueue(Generic[J]):
    """Take calls from any thread, and give them out in batches, in the order in which they came.

    It is at rest until a call leads: whoever made that has to see to it that a batch is taken, and whoever has taken
    one that the next is, until there is none and the queue is at rest again.

    ========== ===== ========== ============ ==========================================================================
    State      busy  leader     gathering    Who moves on
    ========== ===== ========== ============ ==========================================================================
    at rest    no    any        none         the next call, which leads
    led        yes   that call  none         its thread, which begins a batch or has the lane's loop begin it
    gathering  yes   that call  a loop       the end of that loop's round, ENOUGH calls, a call from elsewhere, a timer
    running    yes   any        none         whoever began the batch, when it is over
    ========== ===== ========== ============ ==========================================================================

    A leader who has begun its batch stays the leader until the loop goes on by itself, so that the lane can tell
    whether a caller was interrupted before or after.

    A coroutine that was woken together with others is mostly not the only one to call. So where the last batch was of
    several calls, the first of the next waits for those which its loop wakes in the same round: they gather. Not so the
    call of one who does not wait for its outcome, and may do something else for long before the round ends.

    Of many whose callers wait for the outcome a batch takes half: these come again while the server does the others. If
    it took all, they and the server would wait for each other in turns.

    Args:
        cost: of a job, in bytes; a batch ends where `budget` is reached.
        batch: the most calls that go together.
        limit: the most calls that may wait.
    """

    def __init__(self, *, cost: Callable[[J], int], budget: int, batch: int, limit: int) -> None:
        self._cost = cost
        self._budget = budget
        self._batch = batch
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[Call[J]] = deque()
        self._underway: list[Call[J]] = []
        self._busy = False
        self._leader: Call[J] | None = None  # who has to begin the next batch, or begins it
        self._gathering: asyncio.AbstractEventLoop | None = None  # whose round is waited for
        self._closed: BaseException | None = None
        self.alone = False
        """Whether the last batch was of one call."""

    def __len__(self) -> int:
        return len(self._waiting)

    # From any thread -----------------------------------------------------------------------------

    def enter(self, call: Call[J]) -> asyncio.AbstractEventLoop | None:
        """Queue a call, and note whether it leads; return the loop whose round others have to gather behind it.

        Raises:
            SendError: too many wait.
            BaseException: the error that the queue was closed with.
        """
        with self._lock:
            self.check()
            if len(self._waiting) >= self._limit:
                call.error = SendError(
                    maybe_sent=False, waited=0.0, reason=f"{len(self._waiting):,} calls wait already"
                )
                call.settled = True
                raise call.error
            call.leads = not self._busy
            if call.leads:
                self._leader = call
            self._waiting.append(call)
            self._busy = True
            if call.leads and not self.alone and call.report is None:
                self._gathering = call.loop
            return self._gathering if call.leads else None

    @property
    def is_gathering(self) -> bool:
        """Whether the next batch waits for the end of a loop's round."""
        return self._gathering is not None

    def is_worth_a_batch(self, call: Call[J]) -> bool:
        """Whether with this call enough have gathered.

        The end of the round may never come, if the loop is stopped in the middle: other callers do not wait for it.
        """
        return len(self._waiting) == ENOUGH or call.loop is not self._gathering

    def take(self) -> list[Call[J]]:
        """Begin the next batch, and return its calls; if there are none, all is at rest."""
        calls: list[Call[J]] = []
        left = self._budget
        with self._lock:
            most = self._most()
            self._underway = calls  # before they leave the queue: its thread may be interrupted
            while self._waiting and len(calls) < most and left > 0:
                calls.append(self._waiting[0])
                self._waiting.popleft()
                left -= self._cost(calls[-1].job)
            self._busy = bool(calls)
            if calls:
                self.alone = len(calls) == 1
        return calls

    def _most(self) -> int:
        """How many calls the next batch may take; with the lock held."""
        if not self._waiting or self._waiting[0].report is not None:
            return self._batch
        return min(self._batch, max(ENOUGH, len(self._waiting) // 2))

    def start(self, calls: Sequence[Call[J]]) -> list[Call[J]]:
        """Note that the jobs of a batch are about to be done; return the calls that are still waited for."""
        with self._lock:
            return [call for call in calls if call.start()]

    def put_back(self, calls: Sequence[Call[J]]) -> None:
        """Return the calls of a batch that was not done."""
        with self._lock:
            for call in calls:
                call.started = False
            self._waiting.extendleft(reversed(calls))
            self._underway = []

    # By the lane's loop alone --------------------------------------------------------------------

    @property
    def underway(self) -> list[Call[J]]:
        """The calls of the batch that was taken last."""
        return self._underway

    def clear_leader(self) -> None:
        """Note that the loop goes on by itself: whoever led has seen to that, and need not be replaced."""
        with self._lock:
            self._leader = None

    def stop_gathering(self) -> bool:
        """Let the next batch wait no longer; return whether it did, so that it has to be begun."""
        with self._lock:
            gathering, self._gathering = self._gathering, None
        return gathering is not None

    def take_over(self, call: Call[J]) -> tuple[bool, list[Call[J]]]:
        """Take over from a caller who was interrupted while it led, if it leads still.

        Returns:
            Whether the next batch has to be begun, and the calls of one that may have been.
        """
        with self._lock:
            if self._leader is not call:
                return False, []
            begun, self._underway = self._underway, []
            self._leader = self._gathering = None
            self._busy = True
            return True, begun

    def first_deadline(self) -> float | None:
        """Return the deadline of the call that came first."""
        with self._lock:
            return next((call.deadline for call in itertools.chain(self._underway, self._waiting)), None)

    def give_up(self, now: float, error: Callable[[Call[J]], BaseException]) -> tuple[list[Call[J]], float | None]:
        """Give up the calls whose deadline has passed: from here on they cannot be started.

        They have equal timeouts, so the next to be late is the first that is left.

        Returns:
            Those calls, with their errors, and the next deadline.
        """
        with self._lock:
            late = [call for call in self._underway if call.deadline <= now]
            while self._waiting and self._waiting[0].deadline <= now:
                late.append(self._waiting.popleft())
            for call in late:
                if not call.settled:
                    call.error = error(call)
            left = (call for call in itertools.chain(self._underway, self._waiting) if call.deadline > now)
            return late, next((call.deadline for call in left), None)

    def close(self, error: BaseException) -> bool:
        """Take no more calls; return whether all is at rest."""
        with self._lock:
            self._closed = error
            return not self._busy

    def check(self) -> None:
        """Raise the error that it was closed with, if it was."""
        if self._closed is not None:
            raise self._closed.with_traceback(None)  # the same for all: it must not remember each

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more calls."""
        return self._closed is not None

    @property
    def is_finished(self) -> bool:
        """Whether it takes no more calls, and is at rest."""
        with self._lock:
            return self._closed is not None and not self._busy

    def clear(self) -> list[Call[J]]:
        """Remove and return all that was not done."""
        with self._lock:
            left = [*self._underway, *self._waiting]
            self._underway = []
            self._waiting.clear()
        return left
