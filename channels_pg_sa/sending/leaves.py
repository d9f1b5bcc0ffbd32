"""Leaves that failed, or whose callers gave up: done all the same, or their channels would stay members for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import psycopg

from channels_pg_sa.call import Call
from channels_pg_sa.statements.jobs import Join, Leave, Membership


class Leaves:
    """Remember leaves until they are done, or the channel joins again.

    For channels of this node alone: of others another process may know better whether they are members.

    Args:
        timeout: seconds that another attempt may take.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._calls: dict[tuple[str, str], Call[Membership]] = {}
        self._unsure: set[tuple[str, str]] = set()  # done, and to be done once more

    def __len__(self) -> int:
        return len(self._calls)

    def note(self, call: Call[Membership]) -> None:
        """Take note of a caller who wants a channel to leave."""
        with self._lock:
            self._calls[call.job.key] = call

    def forget(self, job: Join) -> None:
        """Take note that a channel is about to join: what it left before is not to be done any more."""
        with self._lock:
            self._calls.pop(job.key, None)
            self._unsure.discard(job.key)

    def tried(self, calls: Iterable[Call[Membership]]) -> None:
        """Forget the leaves that a batch has done."""
        with self._lock:
            for call in calls:
                if isinstance(call.job, Leave) and is_done(call) and self.is_wanted(call):
                    del self._calls[call.job.key]
                    self._unsure.discard(call.job.key)

    def redo(self, leaves: Iterable[Leave]) -> None:
        """Take note that leaves have to be done once more, although their callers have been told that they are done."""
        with self._lock:
            self._unsure.update(leave.key for leave in leaves)

    def is_wanted(self, call: Call[Membership]) -> bool:
        """Tell whether nobody has asked for anything else since."""
        return self._calls.get(call.job.key) is call

    def again(self) -> list[Call[Membership]]:
        """Return new calls for the leaves that were not done."""
        with self._lock:
            over = [call for call in self._calls.values() if call.settled]
            for call in over:  # also one that was done before note() saw it
                del self._calls[call.job.key]
            open_ = [call.job for call in over if _is_open(call) or call.job.key in self._unsure]
            again: list[Call[Membership]] = [_Again(job, self._timeout, self) for job in open_]
            self._calls.update({call.job.key: call for call in again})
            self._unsure.difference_update(call.job.key for call in over)  # note() may be still to come for others
        return again


class _Again(Call[Membership]):
    """Another attempt, that nobody waits for."""

    __slots__ = ("_leaves",)

    def __init__(self, job: Membership, timeout: float, leaves: Leaves) -> None:
        super().__init__(job, timeout, None)
        self._leaves = leaves

    def start(self) -> bool:
        return self._leaves.is_wanted(self) and super().start()


def is_done(call: Call[Membership]) -> bool:
    """Tell whether a call that was tried has succeeded."""
    return call.started and call.error is None


def _is_open(call: Call[Membership]) -> bool:
    """Tell whether it is still to be done; not by a role that may not, of which the caller has been told."""
    cause = None if call.error is None else call.error.__cause__
    return not is_done(call) and not isinstance(cause, psycopg.errors.InsufficientPrivilege)
