"""Which leaves are still to be done, decided without a database."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from channels_pg_sa import SendError
from channels_pg_sa.call import Call
from channels_pg_sa.sending.leaves import Leaves
from channels_pg_sa.statements.jobs import Join, Leave

NODE = "0123456789ab"


def call(channel: str = "c") -> Call[Any]:
    """Return a thread's call for a leave."""
    return Call(Leave("group", NODE, channel), 10.0, None)


def over(ended: Call[Any], *, started: bool = True, error: Exception | None = None) -> Call[Any]:
    """Have a call ended."""
    ended.started, ended.error, ended.settled = started, error, True
    return ended


def test_what_is_done_is_forgotten() -> None:
    """By the batch that did it; or later, if that was over before anybody took note of the call."""
    leaves = Leaves(5.0)
    in_time, late = call("a"), over(call("b"))
    leaves.note(in_time)
    assert len(leaves) == 1
    leaves.tried([over(in_time), late])
    assert len(leaves) == 0
    leaves.note(late)
    assert leaves.again() == []
    assert len(leaves) == 0


def test_what_was_not_done_is_tried_again_once_at_a_time() -> None:
    """Whether it failed, or nobody waited for it any more before it was begun."""
    leaves = Leaves(5.0)
    failed, cancelled, waits = over(call("a"), error=OSError()), over(call("b"), started=False), call("c")
    for asked in (failed, cancelled, waits):
        leaves.note(asked)
    leaves.tried([failed, cancelled])
    again = leaves.again()
    assert [attempt.job for attempt in again] == [failed.job, cancelled.job]
    assert leaves.again() == []  # those are under way
    over(again[0], error=OSError())
    assert [attempt.job for attempt in leaves.again()] == [failed.job]


def test_what_the_role_may_not_do_is_not_tried_again() -> None:
    """The caller has been told, and nobody else would be."""
    leaves = Leaves(5.0)
    error = SendError(maybe_sent=False, waited=0.0)
    error.__cause__ = psycopg.errors.InsufficientPrivilege("permission denied")
    leaves.note(over(call(), error=error))
    assert leaves.again() == []
    assert len(leaves) == 0


def test_what_the_role_may_not_do_is_done_once_more_at_most() -> None:
    """Where it was done, in vain perhaps, before the role lost the right."""
    leaves, left = Leaves(5.0), over(call())
    leaves.note(left)
    leaves.redo([left.job])
    (attempt,) = leaves.again()
    error = SendError(maybe_sent=False, waited=0.0)
    error.__cause__ = psycopg.errors.InsufficientPrivilege("permission denied")
    leaves.tried([over(attempt, error=error)])
    assert leaves.again() == []


def test_another_attempt_ends_it() -> None:
    """As the first would have."""
    leaves = Leaves(5.0)
    leaves.note(over(call(), error=OSError()))
    (attempt,) = leaves.again()
    assert attempt.start()
    leaves.tried([attempt])
    assert len(leaves) == 0


def test_what_was_done_in_vain_perhaps_is_done_once_more() -> None:
    """Although its caller has been told that it is done; but not if the channel joins again."""
    leaves = Leaves(5.0)
    stays, again = over(call("a")), over(call("b"))
    for left in (stays, again):
        leaves.note(left)
    leaves.redo([stays.job, again.job])
    leaves.forget(Join("group", NODE, "a"))
    (attempt,) = leaves.again()
    assert attempt.job == again.job
    leaves.tried([over(attempt)])
    assert leaves.again() == []
    assert len(leaves) == 0


@pytest.mark.parametrize("between", ["a join", "a leave"])
def test_what_was_done_in_vain_perhaps_says_nothing_of_a_later_leave(between: str) -> None:
    """The channel has joined since, or left for certain; what it leaves after that is done once."""
    leaves, certain = Leaves(5.0), call()
    leaves.redo([certain.job])
    if between == "a join":
        leaves.forget(Join("group", NODE, "c"))
    else:
        leaves.note(certain)
        leaves.tried([over(certain)])
    leaves.note(over(call()))
    assert leaves.again() == []


def test_who_joins_meanwhile_does_not_leave() -> None:
    """An attempt that waits is not begun any more; one of another channel is."""
    leaves = Leaves(5.0)
    for channel in "ab":
        leaves.note(over(call(channel), error=OSError()))
    attempts = leaves.again()
    leaves.forget(Join("group", NODE, "a"))
    assert [attempt.start() for attempt in attempts] == [False, True]
    for attempt in attempts:
        attempt.settled = True
    leaves.tried(attempts)
    assert len(leaves) == 0


def test_a_leave_that_is_asked_for_again_is_the_callers() -> None:
    """The outcome of an earlier one says nothing of it."""
    leaves = Leaves(5.0)
    earlier, later = call(), call()
    leaves.note(earlier)
    leaves.note(later)
    leaves.tried([over(earlier)])
    assert len(leaves) == 1
    over(later, error=OSError())
    assert len(leaves.again()) == 1


def test_a_leave_to_be_done_once_more_is_not_forgotten_before_its_caller_has_noted_it() -> None:
    """The caller's thread stood still between submitting and noting it, while the I/O thread did all the rest."""
    leaves, left = Leaves(5.0), over(call())
    leaves.redo([left.job])
    assert leaves.again() == []
    leaves.note(left)
    assert [attempt.job for attempt in leaves.again()] == [left.job]
    assert leaves.again() == []
