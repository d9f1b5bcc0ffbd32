"""Which channels of a node are in which groups."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from channels_pg_sa.members import MemberIndex

NAMES = st.sampled_from(["a", "b", "c"])
TIMES = st.sampled_from([5.0, 10.0, math.inf])
MEMBERS = st.tuples(NAMES, NAMES, TIMES)
CHANGES = st.one_of(
    st.tuples(st.just("join"), MEMBERS),
    st.tuples(st.just("leave"), st.tuples(NAMES, NAMES)),
    st.tuples(st.just("replace"), st.tuples(st.lists(MEMBERS, max_size=4))),
)


@given(changes=st.lists(CHANGES, max_size=30), now=st.sampled_from([0.0, 5.0, 7.0, 10.0]))
def test_the_index_is_what_a_dict_of_sets_would_be(changes: list[tuple[str, tuple[object, ...]]], now: float) -> None:
    """After any joins, renewals, leaves and replacements."""
    index, model = MemberIndex(), dict[tuple[object, object], float]()
    for verb, arguments in changes:
        getattr(index, verb)(*arguments)
        if verb == "join":
            group, channel, expires = arguments
            model[group, channel] = expires  # type: ignore[assignment]
        elif verb == "leave":
            model.pop(arguments, None)  # type: ignore[call-overload]
        else:
            model = {(group, channel): expires for group, channel, expires in arguments[0]}  # type: ignore[attr-defined]
    assert sorted(index) == sorted((*key, expires) for key, expires in model.items())
    assert len(index) == len(model)
    for group in "abc":
        alive = {channel for (name, channel), expires in model.items() if name == group and expires > now}
        members = index.members(group, now)
        assert set(members) == alive
        assert len(members) == len(alive)
    assert set(index._groups) == {group for group, _ in model}, "no empty group is kept"


def join_unheard(index: MemberIndex, channels: str, expires: float) -> None:
    """Do joins, of which the index is still to hear."""
    index.watch([("g", channel) for channel in channels])
    for channel in channels:
        index.expect("g", channel, expires)


def test_members_stand_in_the_order_in_which_they_joined() -> None:
    """A renewal does not change it; a new membership begins at the end."""
    index = MemberIndex()
    for channel in "abc":
        index.join("g", channel, 10.0)
    index.join("g", "a", 20.0)
    assert index.members("g", 15.0) == ["a"]
    assert index.members("g", 0.0) == ["a", "b", "c"]
    index.leave("g", "a")
    index.join("g", "a", 20.0)
    assert index.members("g", 0.0) == ["b", "c", "a"]


def test_a_membership_ends_at_its_time() -> None:
    """Not a moment later."""
    index = MemberIndex()
    index.join("g", "a", 10.0)
    assert index.members("g", 9.9) == ["a"]
    assert index.members("g", 10.0) == []


def test_a_membership_that_the_database_does_not_know_is_not_restored() -> None:
    """Until something is heard of it, or all is read anew."""
    index = MemberIndex()
    for channel in "abcd":
        index.join("g", channel, math.inf)
    for channel in "abce":
        index.doubt("g", channel)
    assert index.to_restore() == [("g", "d", math.inf)]
    index.join("g", "a", 10.0)
    index.leave("g", "b")
    index.join("g", "e", 10.0)
    assert index.to_restore() == [("g", "a", 10.0), ("g", "d", math.inf), ("g", "e", 10.0)]
    index.replace([("g", "c", 10.0)])
    assert index.to_restore() == [("g", "c", 10.0)]


def test_nothing_is_remembered_of_memberships_that_are_over() -> None:
    """Neither a doubt about one, nor about what never was one."""
    index = MemberIndex()
    for channel in "ab":
        index.join("g", channel, math.inf)
        index.doubt("g", channel)
    index.doubt("g", "c")
    index.leave("g", "a")
    assert index._absent == {("g", "b")}
    index.replace([])
    assert (index._absent, index._groups) == (set(), {})


def test_a_membership_that_ended_before_it_was_heard_of_is_not_restored() -> None:
    """Unless the channel has joined again since."""
    index = MemberIndex()
    join_unheard(index, "abc", 20.0)
    for channel in "bc":
        index.doubt("g", channel)
    join_unheard(index, "c", 20.0)
    assert index.to_restore() == [("g", "a", 20.0), ("g", "c", 20.0)]
    for channel in "abc":
        index.join("g", channel, 10.0)
    assert index.to_restore() == [("g", "a", 10.0), ("g", "c", 10.0)]
    join_unheard(index, "b", 20.0)
    assert index.to_restore() == [("g", "a", 10.0), ("g", "b", 20.0), ("g", "c", 10.0)]


def test_a_doubt_about_what_was_not_heard_of_ends_with_a_leave_or_when_all_is_read_anew() -> None:
    """And nothing that is expected is remembered once it has been heard of."""
    index = MemberIndex()
    join_unheard(index, "ab", 20.0)
    for channel in "ab":
        index.doubt("g", channel)
    index.join("g", "a", 10.0)
    index.leave("g", "a")
    assert (index._absent, index._coming) == (set(), {("g", "b"): None})
    index.replace([])
    index.join("g", "b", 10.0)
    assert index.to_restore() == [("g", "b", 10.0)]
    index.watch([("g", "b")])
    index.join("g", "b", 10.0)
    index.expect("g", "b", 20.0)
    assert index._coming == {}


def test_a_join_that_was_heard_of_before_it_was_done_is_not_expected() -> None:
    """Even if others have ended it already, or if that was before all was read anew."""
    index = MemberIndex()
    index.watch([("g", "a"), ("g", "b")])
    index.join("g", "a", 10.0)
    index.leave("g", "a")
    index.replace([])
    for channel in "ab":
        index.expect("g", channel, 20.0)
    assert index.to_restore() == []
    index.watch([("g", "a")])
    index.watch([("g", "b")])
    index.expect("g", "a", 20.0)
    assert index.to_restore() == []


def test_an_older_join_that_is_heard_of_is_not_the_one_under_way() -> None:
    """Whether the channel left between the two or not, of the second we are still to hear."""
    index = MemberIndex()
    join_unheard(index, "ab", 10.0)
    index.doubt("g", "b")
    index.watch([("g", "a"), ("g", "b")])
    for channel in "ab":
        index.join("g", channel, 10.0)
        index.expect("g", channel, 20.0)
    assert index.to_restore() == [("g", "a", 20.0), ("g", "b", 20.0)]
    index.doubt("g", "a")
    for channel in "ab":
        index.join("g", channel, 20.0)
    assert index.to_restore() == [("g", "b", 20.0)]


def test_a_renewal_that_ended_before_it_was_heard_of_is_not_restored() -> None:
    """And one that has not ended is restored once, for as long as it is to last."""
    index = MemberIndex()
    for channel in "abc":
        index.join("g", channel, 10.0)
    join_unheard(index, "abc", 20.0)
    assert index.to_restore() == [("g", channel, 20.0) for channel in "abc"]
    for channel in "ab":
        index.doubt("g", channel)
    assert index.to_restore() == [("g", "c", 20.0)]
    index.leave("g", "a")  # of the older one
    for channel in "abc":
        index.join("g", channel, 19.0)
    assert index.to_restore() == [("g", "c", 19.0)]


def test_memberships_are_restored_in_the_order_of_their_keys() -> None:
    """Two who insert the same rows in different orders would wait for each other."""
    index = MemberIndex()
    for group, channel in ("hb", "gc", "ha", "gd"):
        index.join(group, channel, math.inf)
    assert [member[:2] for member in index.to_restore()] == [("g", "c"), ("g", "d"), ("h", "a"), ("h", "b")]


def test_a_membership_without_a_name_is_none() -> None:
    """SQL may have written one; a message to its group is nobody's, and not one that is unread until it expires."""
    index = MemberIndex()
    index.join("g", "", math.inf)
    index.replace([("g", "", math.inf)])
    assert (len(index), index.members("g", 0.0), index._groups) == (0, [], {})
