"""Leaves that failed, or whose callers gave up: done all the same, or their channels would stay members for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import psycopg

from .call import Call
from .queries import Join, Leave


class Leaves:
    """Remember leaves until they are done, or the channel joins again.

    For channels of this node alone: of others another process may know better whether they are members.

    One that finds no membership in the database, though this node has heard of no end, is not done either: the node was
    swept, does not know it yet, and will restore what it remembers.

    Args:
        timeout: seconds that another attempt may take.
        is_member: whether a channel is a member of a group, as far as this node has heard.
    """

    def __init__(self, timeout: float, is_member: Callable[[str, str], bool]) -> None:
        self._timeout = timeout
        self._is_member = is_member
        self._lock = threading.Lock()
        self._calls: dict[tuple[str, str], Call[Any]] = {}
        self._absent: set[tuple[str, str]] = set()  # of those, who were no members when they left

    def __len__(self) -> int:
        return len(self._calls)

    def note(self, call: Call[Any]) -> None:
        """Take note of a caller who wants a channel to leave."""
        with self._lock:
            self._calls[_key(call.job)] = call
            self._absent.discard(_key(call.job))

    def forget(self, job: Join) -> None:
        """Take note that a channel is about to join: what it left before is not to be done any more."""
        with self._lock:
            self._drop(_key(job))

    def tried(self, calls: Iterable[Call[Any]], *, absent: bool) -> None:
        """Forget the leaves that a batch has done; absent: whether some were of no member."""
        with self._lock:
            for call in calls:
                if isinstance(call.job, Leave) and _is_done(call) and self.is_wanted(call):
                    if absent:
                        self._absent.add(_key(call.job))
                    else:
                        self._drop(_key(call.job))

    def is_wanted(self, call: Call[Any]) -> bool:
        """Tell whether nobody has asked for anything else since."""
        return self._calls.get(_key(call.job)) is call

    def again(self) -> list[Call[Any]]:
        """Return new calls for the leaves that were not done."""
        with self._lock:
            over = [call for call in self._calls.values() if call.settled]
            again: list[Call[Any]] = [_Again(call.job, self._timeout, self) for call in over if self._is_open(call)]
            for call in over:  # also one that was done before note() saw it
                self._drop(_key(call.job))
            self._calls.update({_key(call.job): call for call in again})
        return again

    def _drop(self, key: tuple[str, str]) -> None:
        self._calls.pop(key, None)
        self._absent.discard(key)

    def _is_open(self, call: Call[Any]) -> bool:
        """Tell whether it is still to be done; not by a role that may not, of which the caller has been told."""
        if _is_done(call):
            key = _key(call.job)
            return key in self._absent and self._is_member(*key)
        cause = None if call.error is None else call.error.__cause__
        return not isinstance(cause, psycopg.errors.InsufficientPrivilege)


class _Again(Call[Leave]):
    """Another attempt, that nobody waits for."""

    __slots__ = ("_leaves",)

    def __init__(self, job: Leave, timeout: float, leaves: Leaves) -> None:
        super().__init__(job, timeout, None)
        self._leaves = leaves

    def start(self) -> bool:
        return self._leaves.is_wanted(self) and super().start()


def _key(job: Join | Leave) -> tuple[str, str]:
    return job.group, job.channel


def _is_done(call: Call[Any]) -> bool:
    return call.started and call.error is None
