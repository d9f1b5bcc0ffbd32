"""Who is handed what, and who is woken, case by case."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

import pytest

from channels_pg_sa.entry import Entry, Row
from channels_pg_sa.names import MAX_LENGTH
from channels_pg_sa.parcels import Acknowledged, Flushed, Joined, Left, Mark, Parcel, Ring
from channels_pg_sa.receiving.dispatcher import Dispatcher
from channels_pg_sa.receiving.localchannels import Effects

NODE = "0123456789ab"
OWN = f"s.{NODE}!a"
OTHER = f"s.{NODE}!b"
ALL = f"s.{NODE}!"
NOW = 100.0
LATER = 200.0


class Reader:
    """A pending receive(): for the dispatcher any object will do."""


def parcel(row: int, name: str = OWN, *, grouped: bool = False, expires: float = LATER) -> Parcel:
    """A message that carries its number."""
    return Parcel(row, name, grouped, expires, base64.b64encode(b"%d" % row))


def doorbell(row: int, name: str = OWN, *, grouped: bool = False, expires: float = LATER) -> Parcel:
    """A message that must be fetched."""
    return Parcel(row, name, grouped, expires, None)


def dispatcher(capacity: int | None = None, *, bounded: bool = False) -> Dispatcher:
    """One whose channels have a capacity, if given."""
    return Dispatcher(lambda _: capacity, bounded=bounded or capacity is not None)


def effects(of: Dispatcher) -> Effects:
    """What is to be done, if anything."""
    return of.collect() or Effects()


def rows(*numbers: int, expires: float = LATER) -> list[Row]:
    """Rows of messages that expire at the same time."""
    return [(number, expires) for number in numbers]


def ids(of: list[Row]) -> list[int]:
    """The ids of rows."""
    return [row for row, _ in of]


def waiting(of: Dispatcher, channel: str = OWN) -> Reader:
    """A reader who found nothing and waits."""
    assert of.take(channel, NOW) is None
    reader = Reader()
    of.wait(channel, reader)
    return reader


def vanished(of: Dispatcher, shown: list[Parcel]) -> None:
    """A recovery misses in the mailbox what was there before."""
    of.rows.begin_recovery()
    of.vanished(shown)


def taken(of: Dispatcher, channel: str = OWN, now: float = NOW) -> list[int]:
    """The numbers of all that can be taken now."""
    found = []
    while (entry := of.take(channel, now)) is not None:
        found.append(int(entry.payload))
    return found


def test_a_message_to_an_own_channel_is_handed_over_and_its_row_deleted_on_arrival() -> None:
    """Once, however often its row is heard of."""
    it = dispatcher()
    it.hear([parcel(1), parcel(1)], NOW)
    assert ids(effects(it).delete) == [1]
    assert taken(it) == [1]
    it.hear([parcel(1)], NOW)
    assert taken(it) == []


def test_where_capacity_counts_rows_a_row_is_deleted_when_its_message_is_taken() -> None:
    """Until then it takes up room."""
    it = dispatcher(10)
    it.hear([parcel(1), doorbell(2)], NOW)
    it.fetched(rows(2), {2: b"2"})
    assert ids(effects(it).delete) == []
    assert taken(it) == [1, 2]
    assert ids(effects(it).delete) == [1, 2]


def test_a_group_message_goes_to_the_members_of_this_moment() -> None:
    """One entry is shared by all of them, and one row deleted."""
    it = dispatcher()
    it.hear([Joined("g", OWN, math.inf), Joined("g", OTHER, math.inf), parcel(1, "g", grouped=True)], NOW)
    it.hear([Left("g", OTHER), parcel(2, "g", grouped=True)], NOW)
    assert ids(effects(it).delete) == [1, 2]
    assert taken(it, OWN) == [1, 2]
    assert taken(it, OTHER) == [1]


def test_members_in_several_threads_may_decode_their_message_at_the_same_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither gets it decoded twice, and at no moment does it seem not to be there."""
    entry = Entry(1, LATER, encoded=base64.b64encode(b"abcd"))
    decode, inner = base64.b64decode, list[bytes]()

    def slow(text: bytes) -> bytes:
        monkeypatch.setattr("channels_pg_sa.entry.base64.b64decode", decode)
        inner.append(entry.payload)  # another reader comes while this one decodes
        assert entry.is_here
        return decode(text)

    monkeypatch.setattr("channels_pg_sa.entry.base64.b64decode", slow)
    assert entry.payload == b"abcd"
    assert inner == [b"abcd"]
    assert entry.payload == b"abcd"


def test_what_is_not_base64_is_an_empty_payload() -> None:
    """Which no codec takes for a message."""
    it = dispatcher()
    it.hear([Parcel(1, OWN, False, LATER, b"a")], NOW)
    entry = it.take(OWN, NOW)
    assert entry is not None
    assert entry.payload == b""


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (parcel(1, expires=NOW), "expired"),
        (doorbell(1, expires=NOW), "expired"),
        (parcel(1, "g", grouped=True), "no_member"),
        (doorbell(1, "g", grouped=True), "no_member"),
    ],
)
def test_what_nobody_can_get_is_counted_and_deleted(sent: Parcel, reason: str) -> None:
    """It is not even fetched."""
    it = dispatcher()
    it.hear([sent], NOW)
    assert effects(it) == Effects(delete=rows(1, expires=sent.expires))
    assert it.counters[reason] == 1
    assert it.unread_count == 0


@pytest.mark.parametrize("kind", [parcel, doorbell])
def test_what_came_under_a_name_that_is_too_long_is_dropped(kind: Callable[..., Parcel]) -> None:
    """SQL that writes into the table itself may do that; no reader can have the name."""
    it = dispatcher()
    it.hear([kind(1, OWN.rjust(MAX_LENGTH, "x"))], NOW)
    assert effects(it) == Effects(delete=rows(1))
    assert it.counters == {"malformed": 1}
    assert it.unread_count == 0
    it.hear([kind(2, OWN.rjust(MAX_LENGTH - 1, "x"))], NOW)
    assert it.unread_count == 1


def test_a_doorbell_keeps_its_place_until_it_is_fetched() -> None:
    """Nobody is woken for what stands behind it, and nobody can take that."""
    it = dispatcher()
    reader = waiting(it)
    it.hear([doorbell(1), parcel(2)], NOW)
    assert effects(it) == Effects(fetch=rows(1), delete=rows(2))
    assert reader not in it.woken
    assert it.take(OWN, NOW) is None
    it.fetched(rows(1), {1: b"1"})
    assert effects(it) == Effects(wake=[reader], delete=rows(1))
    assert taken(it) == [1, 2]


def test_a_doorbell_whose_row_is_gone_gives_way() -> None:
    """Whoever waits is woken for what stands behind it."""
    it = dispatcher()
    reader = waiting(it)
    it.hear([doorbell(1), parcel(2)], NOW)
    effects(it)
    it.fetched(rows(1), {})
    assert effects(it).wake == [reader]
    assert it.counters["vanished"] == 1
    assert taken(it) == [2]
    assert it.counters["expired"] == 0


def test_behind_an_expired_doorbell_the_next_message_is_not_kept_waiting() -> None:
    """The reader is woken when the doorbell expires, not when its fetch is answered: the database may be away."""
    it = dispatcher()
    reader = waiting(it)
    it.hear([doorbell(1, expires=NOW + 1), parcel(2)], NOW)
    assert effects(it).wake == []
    it.expire(NOW + 2)
    assert effects(it).wake == [reader]
    assert taken(it, now=NOW + 2) == [2]
    it.fetched(rows(1), {1: b"1"})
    assert taken(it, now=NOW + 2) == []


def test_whoever_comes_first_after_an_expiry_wakes_the_others() -> None:
    """A new reader takes what the expired doorbell held up; the waiting one learns of the rest."""
    it = dispatcher()
    reader = waiting(it)
    it.hear([doorbell(1, expires=NOW + 1), parcel(2), parcel(3)], NOW)
    effects(it)
    entry = it.take(OWN, NOW + 2)
    assert entry is not None
    assert entry.payload == b"2"
    assert effects(it).wake == [reader]


def test_a_reader_is_woken_once_until_it_waits_again() -> None:
    """And then anew."""
    it = dispatcher()
    reader = waiting(it)
    it.hear([parcel(1)], NOW)
    it.hear([parcel(2)], NOW)
    assert effects(it).wake == [reader]
    assert taken(it) == [1, 2]
    anew = Reader()
    it.wait(OWN, anew, instead_of=reader)
    it.hear([parcel(3)], NOW)
    assert effects(it).wake == [anew]
    assert it.reader_count == 1


def test_as_many_are_woken_as_there_are_messages_longest_waiting_first() -> None:
    """A reader that waits again keeps its place."""
    it = dispatcher()
    first, second, third = (waiting(it) for _ in range(3))
    anew = Reader()
    it.wait(OWN, anew, instead_of=first)
    it.hear([parcel(1), parcel(2)], NOW)
    assert effects(it).wake == [anew, second]
    assert third not in it.woken


def test_a_woken_reader_that_leaves_passes_its_turn_on() -> None:
    """The message was never taken out of its place."""
    it = dispatcher()
    first, second = waiting(it), waiting(it)
    it.hear([parcel(1)], NOW)
    assert effects(it).wake == [first]
    it.remove_reader(OWN, first)
    assert effects(it).wake == [second]
    it.remove_reader(OWN, first)  # twice is as good as once
    assert taken(it) == [1]


def test_many_readers_leave_together() -> None:
    """Whatever they read; those who stay have their turn."""
    it = dispatcher()
    gone = [waiting(it), waiting(it), waiting(it, OTHER), waiting(it, ALL)]
    stays = waiting(it)
    it.hear([parcel(1)], NOW)
    assert effects(it).wake == gone[:1]
    it.remove_readers(gone)
    assert it.every_reader() == [stays]
    assert effects(it).wake[-1:] == [stays]
    assert it.woken == {stays}


def test_a_reader_of_a_prefix_takes_the_oldest_of_all_its_channels() -> None:
    """By the order of their rows."""
    it = dispatcher()
    it.hear([parcel(2, OTHER), parcel(3, OWN), parcel(1, OWN), parcel(4, OTHER)], NOW)
    assert taken(it, ALL) == [2, 3, 1, 4]
    assert taken(it, "s.ffffffffffff!") == []


def test_a_reader_of_a_prefix_passes_its_turn_on_in_whatever_channel_something_is() -> None:
    """Cancelled, it wakes the next of its kind, or the reader of the one channel."""
    it = dispatcher()
    first, second = waiting(it, ALL), waiting(it, ALL)
    it.hear([parcel(1)], NOW)
    assert effects(it).wake == [first]
    it.remove_reader(ALL, first)
    assert effects(it).wake == [second]
    single = waiting(it, OTHER)
    it.hear([parcel(2, OTHER)], NOW)
    assert effects(it).wake == [single]
    it.remove_reader(OTHER, single)
    assert taken(it, ALL) == [1, 2]


def test_readers_of_the_channel_itself_come_before_those_of_a_prefix() -> None:
    """These are woken for what is left over."""
    it = dispatcher()
    shared, own = waiting(it, ALL), waiting(it, OWN)
    it.hear([parcel(1)], NOW)
    assert effects(it).wake == [own]
    it.hear([parcel(2)], NOW)
    assert effects(it).wake == [shared]


# Queues -------------------------------------------------------------------------------------------


def test_claimed_rows_are_read_in_their_order_and_deleted_when_taken() -> None:
    """In whatever order the statement returns them, and once, however often it does."""
    it = dispatcher()
    reader = waiting(it, "jobs")
    it.claimed([(3, "jobs", b"3", LATER), (1, "jobs", b"1", LATER)])
    it.claimed([(3, "jobs", b"3", LATER)])
    assert effects(it) == Effects(wake=[reader])
    assert taken(it, "jobs") == [1, 3]
    assert ids(effects(it).delete) == [1, 3]


def test_a_claimed_row_under_a_name_that_is_too_long_is_dropped() -> None:
    """As in a mailbox; what was claimed with it is read."""
    it = dispatcher()
    it.claimed([(1, "j" * MAX_LENGTH, b"1", LATER), (2, "jobs", b"2", LATER)])
    assert effects(it) == Effects(delete=rows(1))
    assert it.counters["malformed"] == 1
    assert taken(it, "jobs") == [2]
    assert it.unread_count == 0


def test_rings_are_passed_on() -> None:
    """Whether to claim is not decided here."""
    it = dispatcher()
    it.hear([Ring(5, "jobs")], NOW)
    assert effects(it).rings == [Ring(5, "jobs")]


def test_readers_without_a_promise_are_counted() -> None:
    """Each message waiting is promised to one."""
    it = dispatcher()
    assert it.waiting("jobs") == 0
    for _ in range(3):
        waiting(it, "jobs")
    assert it.waiting("jobs") == 3
    it.claimed([(1, "jobs", b"1", LATER)])
    assert it.waiting("jobs") == 2
    it.claimed([(row, "jobs", b"", LATER) for row in range(2, 9)])
    assert it.waiting("jobs") == 0


def test_readers_of_a_prefix_are_promised_what_its_channels_have_beyond_their_own_readers() -> None:
    """Otherwise one node would claim rows that others could read."""
    it = dispatcher()
    waiting(it, "w!")
    waiting(it, "w!")
    waiting(it, "w!x")
    it.claimed([(1, "w!x", b"1", LATER)])
    assert (it.waiting("w!"), it.waiting("w!x")) == (2, 0)
    it.claimed([(2, "w!y", b"2", LATER)])
    assert it.waiting("w!") == 1
    it.claimed([(3, "w!x", b"3", LATER)])
    assert it.waiting("w!") == 0


def test_readers_of_a_channel_that_go_empty_promise_nothing_away() -> None:
    """Of its prefix no more is claimed than is waited for."""
    it = dispatcher()
    waiting(it, "w!")
    for _ in range(2):
        waiting(it, "w!x")
    it.claimed([(1, "w!x", b"1", LATER)])
    assert (it.waiting("w!"), it.waiting("w!x")) == (1, 1)


def test_what_nobody_here_reads_goes_back_and_may_come_again() -> None:
    """Neither what somebody waits for, nor what only this node can read."""
    it = dispatcher(bounded=True)
    waiting(it, "read")
    waiting(it, "w!")
    it.hear([parcel(4)], NOW)
    it.claimed([(1, "jobs", b"1", LATER), (2, "read", b"2", LATER), (3, "w!x", b"3", LATER)])
    effects(it)
    assert it.claimed_unread() == rows(1)
    assert ids(effects(it).delete) == []
    it.claimed([(1, "jobs", b"1", LATER)])
    assert taken(it, "jobs") == [], "it is on its way back"
    it.rows.returned(rows(1))
    it.claimed([(1, "jobs", b"1", LATER)])
    assert taken(it, "jobs") == [1]


def test_a_row_that_went_back_before_it_was_fetched_is_read_when_it_comes_again() -> None:
    """The late answer of the fetch is about its first stay."""
    it = dispatcher()
    it.recover([doorbell(1, "jobs")], 1, NOW)
    assert ids(effects(it).fetch) == [1]
    assert it.claimed_unread() == rows(1)
    it.rows.returned(rows(1))
    it.claimed([(1, "jobs", b"1", LATER)])
    it.fetched(rows(1), {})
    it.recover([doorbell(1, "jobs")], 2, NOW)
    assert taken(it, "jobs") == [1]


def test_a_claim_answers_the_fetch_of_a_row_that_was_read_meanwhile() -> None:
    """The mailbox was read between the claim and its answer; the fetch's own answer may be older."""
    it = dispatcher()
    reader = waiting(it, "jobs")
    it.recover([doorbell(1, "jobs")], 1, NOW)
    assert reader not in it.woken
    it.claimed([(1, "jobs", b"1", LATER)])
    assert reader in it.woken
    it.fetched(rows(1), {})
    assert taken(it, "jobs") == [1]
    assert it.counters["vanished"] == 0


def test_a_row_that_was_not_found_is_read_when_it_is_claimed_later() -> None:
    """It was back in its queue when the fetch looked."""
    it = dispatcher()
    it.recover([doorbell(1, "jobs")], 1, NOW)
    it.fetched(rows(1), {})
    it.claimed([(1, "jobs", b"1", LATER)])
    assert taken(it, "jobs") == [1]


def test_a_claimed_row_that_was_found_in_the_mailbox_stays_until_it_is_read() -> None:
    """Until then it may go back to its queue."""
    it = dispatcher()
    it.recover([doorbell(1, "jobs")], 1, NOW)
    assert effects(it) == Effects(fetch=rows(1))
    it.fetched(rows(1), {1: b"1"})
    assert effects(it) == Effects()
    assert taken(it, "jobs") == [1]
    assert effects(it) == Effects(delete=rows(1))


# Recovery -----------------------------------------------------------------------------------------


def test_what_was_read_from_the_table_is_not_taken_again_when_it_is_notified_late() -> None:
    """Even if its row is deleted meanwhile; until the mark that was sent after reading comes round."""
    it = dispatcher()
    it.recover([doorbell(1)], 5, NOW)
    it.fetched(rows(1), {1: b"1"})
    assert taken(it) == [1]
    it.rows.deleted(rows(1))
    it.hear([Mark(4), parcel(1)], NOW)
    assert taken(it) == []
    it.hear([Mark(5)], NOW)
    assert (it.rows._expires, it.rows._gone) == ({}, set())
    it.rows.deleted(rows(1))
    assert it.rows._gone == set()


def test_what_was_handed_over_before_the_table_was_read_is_not_taken_again() -> None:
    """As long as its row may still be there."""
    it = dispatcher()
    it.hear([parcel(1)], NOW)
    assert taken(it) == [1]
    it.recover([doorbell(1)], 1, NOW)
    assert ids(effects(it).fetch) == []
    it.rows.deleted(rows(1))
    it.hear([Mark(1)], NOW)
    assert it.rows._expires == {}


def test_ids_of_rows_that_vanished_may_be_given_to_others() -> None:
    """What had come before can still be read, and then does not delete a stranger's row."""
    it = dispatcher(10)
    it.hear([parcel(1), parcel(2)], NOW)
    vanished(it, [parcel(2)])
    assert list(it.rows._expires) == [2]
    it.hear([parcel(1), parcel(2)], NOW)
    assert taken(it) == [1, 2, 1]
    assert ids(effects(it).delete) == [2, 1]


def test_a_doorbell_whose_row_vanished_holds_nothing_up() -> None:
    """What stands behind it is read at once; the late answer of its fetch is a stranger's row."""
    it = dispatcher()
    reader = waiting(it)
    it.hear([doorbell(1)], NOW)
    it.rows.begin_recovery()
    it.hear([parcel(2)], NOW)
    effects(it)
    it.vanished([])
    assert list(it.rows._expires) == [2]
    assert effects(it) == Effects(wake=[reader])
    it.fetched(rows(1), {1: b"1"})
    assert taken(it) == [2]


def test_an_id_that_is_a_stranger_s_row_already_is_told_by_its_end() -> None:
    """The server lost the row, and others sent before this node had listened again."""
    it = dispatcher(10)
    it.hear([parcel(row, expires=NOW + 50) for row in (1, 2, 4)] + [parcel(3, expires=math.inf)], NOW)
    waiting = [doorbell(1, expires=NOW + 60), doorbell(2, expires=NOW + 50.00001), doorbell(3, expires=math.inf)]
    vanished(it, [*waiting, doorbell(4, expires=NOW + 50.01)])
    assert list(it.rows._expires) == [2, 3]


def test_another_message_with_a_known_id_is_told_by_its_end() -> None:
    """An operator has the table count anew, while a message that was numbered so before is still unread."""
    it = dispatcher(10)
    waiting(it)
    it.hear([parcel(1, expires=NOW + 50), parcel(2, expires=math.inf)], NOW)
    it.hear([parcel(1, expires=NOW + 50.00001), parcel(2, expires=math.inf)], NOW)
    assert it.unread_count == 2, "these are the same"
    it.hear([parcel(1, expires=NOW + 60)], NOW)
    assert it.unread_count == 3
    it.claimed([(2, OWN, b"2", math.inf), (1, OWN, b"4", NOW + 60), (1, OWN, b"5", NOW + 70)])
    assert taken(it) == [1, 2, 1, 5]


def test_a_later_recovery_waits_for_its_own_mark() -> None:
    """The one of the first says nothing about the second."""
    it = dispatcher()
    it.recover([doorbell(1)], 2, NOW)
    it.recover([doorbell(2)], 4, NOW)
    it.fetched(rows(1, 2), {1: b"1", 2: b"2"})
    it.rows.deleted(rows(1, 2))
    it.hear([Mark(3), parcel(2)], NOW)
    assert taken(it) == [1, 2]
    it.hear([Mark(4)], NOW)
    assert it.rows._expires == {}


def test_what_the_mailbox_showed_under_a_claim_is_not_taken_again_by_its_answer() -> None:
    """Though it is read and deleted before the answer comes, and another recovery finds no row of it."""
    it = dispatcher()
    it.rows.begin_query()
    it.recover([doorbell(1, "jobs")], 1, NOW)
    it.fetched(rows(1), {1: b"1"})
    assert taken(it, "jobs") == [1]
    it.rows.deleted(rows(1))
    it.hear([Mark(1)], NOW)
    vanished(it, [])
    it.claimed([(1, "jobs", b"1", LATER)])
    assert taken(it, "jobs") == []
    it.rows.end_query()
    assert (it.rows._expires, it.rows._gone) == ({}, set())


def test_a_query_that_ends_ends_no_other() -> None:
    """A claim and a reading of the mailbox may be under way at once, and each tell of what is gone."""
    it = dispatcher()
    it.rows.begin_query()
    it.rows.begin_query()
    it.claimed([(1, "jobs", b"1", LATER)])
    assert taken(it, "jobs") == [1]
    it.rows.deleted(rows(1))
    it.rows.end_query()
    it.recover([doorbell(1, "jobs")], 1, NOW)
    assert it.counters == {"received": 1}
    it.rows.end_query()
    it.hear([Mark(1)], NOW)
    assert (it.rows._expires, it.rows._gone) == ({}, set())


def test_a_claim_that_ends_ends_no_recovery() -> None:
    """Each of the two may yet tell of rows that are gone."""
    it = dispatcher()
    it.rows.begin_query()
    it.recover([doorbell(1)], 1, NOW)
    it.rows.deleted(rows(1))
    it.rows.end_query()
    it.hear([parcel(1)], NOW)
    assert it.counters["received"] == 1
    it.hear([Mark(1)], NOW)
    assert it.rows._expires == {}


def test_an_id_that_was_given_to_another_row_is_not_forgotten_for_the_first() -> None:
    """A server that crashed began to count again while this node had yet to forget the id of a row it had deleted."""
    it = dispatcher()
    it.recover([doorbell(1)], 1, NOW)
    it.fetched(rows(1), {1: b"1"})
    assert taken(it) == [1]
    it.rows.deleted(rows(1))
    vanished(it, [doorbell(1, expires=LATER + 5)])
    it.recover([doorbell(1, expires=LATER + 5)], 2, NOW)
    it.hear([Mark(2)], NOW)
    assert it.rows._expires == {1: LATER + 5}


def test_what_others_answer_to_a_flush_ends_no_recovery() -> None:
    """It has a number as well, which is no mark's."""
    it = dispatcher()
    it.recover([doorbell(1)], 2, NOW)
    effects(it)
    it.rows.deleted(rows(1))
    it.hear([Acknowledged("9", NODE), parcel(1)], NOW)
    assert effects(it).flushes == [Acknowledged("9", NODE)]
    assert it.counters["received"] == 1


# Capacity, expiry, flush --------------------------------------------------------------------------


def test_a_member_over_its_capacity_is_left_out_and_counted() -> None:
    """By channel and group; messages to the channel itself were measured by their sender."""
    it = dispatcher(2)
    it.hear([Joined("g", OWN, math.inf), parcel(1), parcel(2), parcel(3)], NOW)
    it.hear([parcel(4, "g", grouped=True), doorbell(5, "g", grouped=True)], NOW)
    assert it.overfull == {(OWN, "g"): 2}
    it.fetched(rows(5), {5: b"5"})
    assert taken(it) == [1, 2, 3]
    assert ids(effects(it).delete).count(5) == 1
    it.hear([parcel(6, "g", grouped=True)], NOW)
    assert taken(it) == [6]


def test_what_is_not_read_in_time_is_freed() -> None:
    """With its row, where that is kept."""
    for bounded, deleted in ((True, [1]), (False, [])):
        it = dispatcher(bounded=bounded)
        it.hear([parcel(1, expires=NOW + 1), parcel(2)], NOW)
        effects(it)
        it.expire(NOW + 1)
        assert ids(effects(it).delete) == deleted
        assert (it.unread_count, it.counters["expired"]) == (1, 1)
        assert taken(it, now=NOW + 1) == [2]
        assert it.unread == {}


def test_what_is_not_read_in_time_is_not_handed_over() -> None:
    """Whether housekeeping has come by or not."""
    it = dispatcher()
    it.hear([parcel(1, expires=NOW + 1)], NOW)
    assert it.take(OWN, NOW + 1) is None
    it.hear([parcel(2, expires=NOW + 1)], NOW)
    assert it.take(ALL, NOW + 1) is None
    assert it.unread == {}


def test_flush_forgets_messages_but_no_reader_and_no_member() -> None:
    """Rows are deleted once more, so that their ids are forgotten. Of memberships that are gone each is told of."""
    it = dispatcher(10)
    reader = waiting(it)
    it.hear([Joined("g", OWN, math.inf), doorbell(1), parcel(2), Flushed("n", "t")], NOW)
    done = effects(it)
    assert done.flushes == [Flushed("n", "t")]
    assert sorted(set(ids(done.delete))) == [1, 2]
    it.fetched(rows(1), {1: b"1"})
    it.rows.deleted(done.delete)
    assert (it.unread_count, it.reader_count, len(it.members), it.rows._expires) == (0, 1, 1, {})
    it.hear([parcel(3)], NOW)
    assert reader in it.woken


def test_flushes_are_passed_on_and_nonsense_is_counted() -> None:
    """In their order; a mark is for the dispatcher alone, and what was no frame is counted."""
    it = dispatcher()
    frames: list[Any] = [Mark(3), None, Acknowledged("n", NODE), None]
    it.hear(frames, NOW)
    assert effects(it).flushes == [Acknowledged("n", NODE)]
    assert it.counters["malformed"] == 2


def test_a_message_without_a_channel_is_refused() -> None:
    """No reader can have it; SQL may have written it, and a membership too, which no announcement can go to."""
    it = dispatcher()
    it.hear([parcel(1, ""), Joined("g", "", math.inf)], NOW)
    it.claimed([(2, "", b"2", LATER)])
    assert ids(effects(it).delete) == [1, 2]
    assert it.counters["malformed"] == 2
    it.hear([parcel(3, "g", grouped=True)], NOW)
    assert it.counters["no_member"] == 1
    it.announce(b"4", LATER)
    assert it.unread_count == 0


def test_an_announcement_reaches_channels_that_are_read_or_in_a_group() -> None:
    """Each once, within its capacity, and no row is deleted for it."""
    it = dispatcher(1)
    reader = waiting(it)
    waiting(it, ALL)
    it.hear([Joined("g", OWN, math.inf), Joined("g", OTHER, math.inf), Joined("h", OTHER, math.inf)], NOW)
    it.announce(b"1", LATER)
    it.announce(b"2", LATER)
    assert reader in effects(it).wake
    assert taken(it, OWN) == [1]
    assert taken(it, OTHER) == [1]
    assert ids(effects(it).delete) == []
    assert it.take("jobs", NOW) is None


def test_an_announcement_reaches_a_reader_that_has_just_been_served() -> None:
    """A consumer is between two receive() calls for a moment, and would miss what is announced then."""
    it = dispatcher()
    reader = waiting(it)
    it.hear([parcel(1)], NOW)
    assert taken(it) == [1]
    it.served(OWN, reader)
    it.announce(b"2", LATER)
    assert taken(it) == [2]


def test_an_announcement_does_not_reach_the_channels_of_a_prefix() -> None:
    """Who reads it would get one for each."""
    it = dispatcher()
    waiting(it, ALL)
    it.hear([parcel(1), parcel(2, OTHER)], NOW)
    assert taken(it, ALL) == [1, 2]
    it.announce(b"3", LATER)
    assert taken(it, ALL) == []


def test_every_reader_is_found_when_the_layer_fails() -> None:
    """And whether a channel is read."""
    it = dispatcher()
    readers = [waiting(it), waiting(it, ALL), waiting(it, "jobs")]
    assert it.every_reader() == readers
    assert it.is_read("jobs")
    assert not it.is_read("jobs2")
    it.hear([parcel(1, OTHER)], NOW)
    assert not it.is_read(OTHER)


def test_a_reader_of_a_channel_takes_nothing_of_one_whose_name_begins_so() -> None:
    """Only `!` at the end makes a prefix of a name."""
    it = dispatcher()
    it.claimed([(1, "jobs2", b"1", LATER)])
    assert taken(it, "jobs") == []
    assert taken(it, "jobs2") == [1]


def test_what_is_read_by_a_prefix_is_ready() -> None:
    """A channel whose first message has yet to be fetched, or has expired, holds up no other."""
    it = dispatcher()
    it.hear([doorbell(1), parcel(2, OTHER)], NOW)
    assert taken(it, ALL) == [2]
    it = dispatcher()
    it.hear([parcel(1, expires=NOW + 1), parcel(2, OTHER)], NOW)
    assert taken(it, ALL, now=NOW + 2) == [2]


def test_a_reader_of_a_prefix_takes_an_announcement_beside_messages() -> None:
    """It has no row, and so no place in their order; it comes first."""
    it = dispatcher()
    reader = waiting(it, OTHER)
    it.announce(b"0", LATER)
    it.served(OTHER, reader)
    it.hear([parcel(1)], NOW)
    assert taken(it, ALL) == [0, 1]


def test_two_readers_are_woken_for_two_messages_that_come_one_by_one() -> None:
    """The first has not come yet when the second message is there."""
    it = dispatcher()
    first, second = waiting(it), waiting(it)
    it.hear([parcel(1)], NOW)
    assert effects(it).wake == [first]
    it.hear([parcel(2)], NOW)
    assert effects(it).wake == [second]


def test_a_reader_that_was_passed_over_waits_anew_as_the_last() -> None:
    """It comes after all, and finds that it is no reader any more."""
    it = dispatcher()
    first, second = waiting(it), waiting(it)
    it.remove_readers([first])
    anew = Reader()
    it.wait(OWN, anew, instead_of=first)
    assert it.every_reader() == [second, anew]


def test_a_reader_that_was_woken_in_vain_is_forgotten() -> None:
    """Only those who are still to come are waited for."""
    it = dispatcher()
    reader = waiting(it)
    it.hear([parcel(1)], NOW)
    assert taken(it) == [1]
    it.wait(OWN, Reader(), instead_of=reader)
    assert it.woken == set()


def test_one_who_left_may_say_so_again_when_its_channel_is_forgotten() -> None:
    """Nothing is left of it after the first time."""
    it = dispatcher()
    reader = waiting(it)
    for _ in range(2):
        it.remove_reader(OWN, reader)
        assert it._locals == {}


def test_a_message_outlasts_the_reader_who_gave_up() -> None:
    """And keeps its place before what comes later."""
    it = dispatcher()
    reader = waiting(it)
    it.hear([parcel(1)], NOW)
    it.remove_reader(OWN, reader)
    it.hear([parcel(2)], NOW)
    assert taken(it) == [1, 2]


def test_what_is_promised_to_readers_of_a_longer_name_is_nobody_else_s() -> None:
    """A channel of a name that merely begins so is another."""
    it = dispatcher()
    waiting(it, "jobs")
    it.claimed([(1, "jobs2", b"1", LATER)])
    assert it.waiting("jobs") == 1


def test_nobody_is_woken_for_what_is_behind_a_message_that_is_still_fetched() -> None:
    """He would find nothing; when it has come, everybody is."""
    it = dispatcher()
    readers = [waiting(it), waiting(it)]
    it.hear([doorbell(1), parcel(2)], NOW)
    assert effects(it).wake == []
    it.fetched(rows(1), {1: b"1"})
    assert effects(it).wake == readers


def test_tidying_leaves_what_is_unread_and_who_waits() -> None:
    """Only channels that are neither are not in use."""
    it = dispatcher()
    it.hear([parcel(1)], NOW)
    reader = waiting(it, OTHER)
    it.tidy()
    effects(it)
    assert taken(it) == [1]
    it.hear([parcel(2, OTHER)], NOW)
    assert effects(it).wake == [reader]


def test_a_member_that_is_full_keeps_no_other_from_getting_the_message() -> None:
    """And who has room left gets it, though something is unread."""
    it = dispatcher(2)
    it.hear([Joined("g", OWN, math.inf), Joined("g", OTHER, math.inf), parcel(1), parcel(2), parcel(3, OTHER)], NOW)
    it.hear([parcel(4, "g", grouped=True)], NOW)
    assert it.overfull == {(OWN, "g"): 1}
    assert taken(it, OTHER) == [3, 4]


def test_what_is_deleted_while_the_table_is_read_does_not_come_again() -> None:
    """The table was read before, and shows it; it would be counted twice, and its channel wait for it."""
    it = dispatcher()
    it.hear([parcel(1)], NOW)
    effects(it)
    it.rows.begin_recovery()
    it.rows.deleted(rows(1))
    it.vanished([doorbell(1)])
    it.recover([doorbell(1)], 1, NOW)
    assert effects(it) == Effects()
    assert it.counters["received"] == 1
    it.hear([Mark(1)], NOW)
    assert it.rows._expires == {}


def test_what_was_claimed_while_the_table_was_read_has_not_vanished() -> None:
    """Only what was known before can be missed."""
    it = dispatcher()
    it.hear([parcel(1)], NOW)
    it.rows.begin_recovery()
    it.claimed([(2, "jobs", b"2", LATER)])
    it.vanished([])
    assert list(it.rows._expires) == [2]
    assert taken(it, "jobs") == [2]
    assert 2 in ids(effects(it).delete)


def test_what_would_never_have_expired_can_vanish_too() -> None:
    """Its row is gone with the others."""
    it = dispatcher(10)
    it.hear([parcel(1, expires=math.inf)], NOW)
    vanished(it, [])
    assert it.rows._expires == {}


def test_what_was_deleted_before_a_crash_is_not_deleted_again_after_it() -> None:
    """The id is a stranger's row already."""
    it = dispatcher()
    it.hear([parcel(1)], NOW)
    assert ids(effects(it).delete) == [1]
    it.rows.deleted(rows(1))
    vanished(it, [])
    assert taken(it) == [1]
    assert ids(effects(it).delete) == []


def test_an_answer_for_a_row_that_nobody_waits_for_does_not_hide_the_next() -> None:
    """It was claimed, flushed or lost meanwhile; those that were asked for with it are here."""
    it = dispatcher()
    it.recover([doorbell(1, "jobs"), doorbell(2)], 1, NOW)
    it.claimed([(1, "jobs", b"1", LATER)])
    it.fetched(rows(1, 2), {1: b"1", 2: b"2"})
    assert taken(it) == [2]


def test_a_name_of_one_letter_is_a_name() -> None:
    """Claimed as well as heard of; what is claimed is counted as received."""
    it = dispatcher()
    it.hear([parcel(1, "j")], NOW)
    it.claimed([(2, "j", b"2", LATER)])
    assert taken(it, "j") == [1, 2]
    assert it.counters == {"received": 2}


def test_an_announcement_reaches_a_reader_of_a_channel_under_a_prefix_that_is_read_too() -> None:
    """Who reads the channel itself is no reader of the prefix."""
    it = dispatcher()
    waiting(it, ALL)
    reader = waiting(it, OWN)
    it.announce(b"1", LATER)
    assert effects(it).wake == [reader]


def test_an_announcement_reaches_channels_whose_prefix_nobody_reads_any_more() -> None:
    """Neither does one who reads a name without `!` read a prefix."""
    it = dispatcher()
    for channel in (ALL, OWN):
        it.served(channel, waiting(it, channel))
    it.announce(b"1", LATER)
    assert taken(it, OWN) == [1]
    it = dispatcher()
    it.served("jobs", waiting(it, "jobs"))
    it.announce(b"1", LATER)
    assert taken(it, "jobs") == [1]


def test_a_flush_deletes_what_is_still_there_and_forgets_the_rest() -> None:
    """Not again what was deleted on arrival, nor an announcement, which has no row; a late fetch has lost nothing."""
    it = dispatcher()
    waiting(it, OTHER)
    it.hear([parcel(1), doorbell(2)], NOW)
    it.announce(b"3", LATER)
    effects(it)
    it.hear([Flushed("n", "t")], NOW)
    assert ids(effects(it).delete) == [2]
    it.fetched(rows(2), {})
    assert it.counters["vanished"] == 0


def test_an_announcement_that_nobody_reads_goes_into_no_queue() -> None:
    """It has no row that could go back."""
    it = dispatcher()
    it.served("jobs", waiting(it, "jobs"))
    it.announce(b"1", LATER)
    assert it.claimed_unread() == []


def test_a_reader_of_a_prefix_takes_nothing_of_other_channels() -> None:
    """Whatever waits in them."""
    it = dispatcher()
    it.hear([parcel(1)], NOW)
    assert it.take("w!", NOW) is None
    assert taken(it, OWN) == [1]


def test_a_channel_without_a_limit_beside_others_that_have_one_takes_all() -> None:
    """Messages to a group as well."""
    it = dispatcher(bounded=True)
    it.hear([Joined("g", OWN, math.inf), parcel(1, "g", grouped=True), parcel(2, "g", grouped=True)], NOW)
    assert taken(it) == [1, 2]


def test_a_claim_fills_no_stranger_s_doorbell() -> None:
    """The row of the one was lost with all others, and the other has its id."""
    it = dispatcher()
    it.hear([doorbell(5)], NOW)
    it.claimed([(5, "jobs", b"5", LATER + 5)])
    assert taken(it) == []
    assert taken(it, "jobs") == [5]


def test_what_was_returned_and_claimed_again_while_the_table_was_read_has_not_vanished() -> None:
    """It was missing in the mailbox then, and is there again; its deletion must not be forgotten."""
    it = dispatcher()
    it.claimed([(1, "jobs", b"1", LATER)])
    it.rows.begin_recovery()
    assert it.claimed_unread() == rows(1)
    it.rows.returned(rows(1))
    it.claimed([(1, "jobs", b"1", LATER)])
    it.vanished([])
    assert taken(it, "jobs") == [1]
    assert ids(effects(it).delete) == [1]


def test_a_flush_that_is_heard_after_the_table_was_read() -> None:
    """What the table showed was sent after it, if it is there; what had come before is flushed."""
    it = dispatcher(bounded=True)
    it.hear([doorbell(2), parcel(1)], NOW)
    it.recover([doorbell(3), doorbell(4), doorbell(6)], 1, NOW)
    it.fetched(rows(3), {3: b"3"})
    reader = waiting(it)
    effects(it)
    it.hear([Flushed("f", "topic"), Mark(1)], NOW)
    done = effects(it)
    assert set(ids(done.delete)) == {1, 2}
    assert done.wake == [reader]
    assert taken(it) == [3]
    it.fetched(rows(4), {4: b"4"})
    assert taken(it) == [4]
    it.hear([parcel(5), Flushed("g", "topic")], NOW)
    it.fetched(rows(6), {6: b"6"})
    assert taken(it) == []  # 6 either: since the mark has come round, a flush is of all that is known


@pytest.mark.parametrize("mailbox", [[], [doorbell(1)]])
def test_a_flush_that_is_heard_after_another_recovery(mailbox: list[Parcel]) -> None:
    """What one before had read, whose mark never came round, is flushed, though the table may have shown it again."""
    it = dispatcher(bounded=True)
    it.recover([doorbell(1)], 1, NOW)
    it.fetched(rows(1), {1: b"1"})
    vanished(it, mailbox)
    it.recover(mailbox, 2, NOW)
    it.hear([Flushed("f", "topic"), Mark(2)], NOW)
    assert taken(it) == []


def test_what_was_known_before_a_recovery_is_flushed_though_the_table_showed_it() -> None:
    """The flush came while the members were read, and the mailbox had been; a row that came since then may be newer."""
    it = dispatcher(10)
    it.hear([parcel(1)], NOW)
    it.rows.begin_recovery()
    it.claimed([(2, "jobs", b"2", LATER)])
    it.vanished([doorbell(1), doorbell(2, "jobs")])
    it.recover([doorbell(1), doorbell(2, "jobs")], 1, NOW)
    it.hear([Flushed("f", "topic"), Mark(1)], NOW)
    assert taken(it) == []
    assert taken(it, "jobs") == [2]


def test_what_was_claimed_is_flushed() -> None:
    """Its row is gone; only while a recovery reads may it have been sent after a flush that is heard late."""
    it = dispatcher()
    it.claimed([(1, "jobs", b"1", LATER)])
    it.hear([Flushed("f", "topic")], NOW)
    assert taken(it, "jobs") == []


@pytest.mark.parametrize("comes_by_claim", [False, True])
def test_a_doorbell_whose_id_is_given_to_another_holds_nothing_up(comes_by_claim: bool) -> None:
    """Its row is lost, and nothing that is still to be done to it is done to the other."""
    it = dispatcher()
    it.hear([doorbell(5), parcel(6)], NOW)
    effects(it)
    if comes_by_claim:
        it.claimed([(5, "jobs", b"5", LATER + 5)])
    else:
        it.hear([parcel(5, OTHER, expires=LATER + 5)], NOW)
    effects(it)
    assert taken(it) == [6]
    assert taken(it, "jobs" if comes_by_claim else OTHER) == [5]
    assert it.counters["vanished"] == 1


def test_what_is_claimed_with_another_s_id_while_the_table_is_read_has_not_vanished() -> None:
    """A crash, and then a claim, of which a recovery that had begun before knows nothing."""
    it = dispatcher()
    it.claimed([(5, "jobs", b"1", LATER)])
    it.rows.begin_recovery()
    it.claimed([(5, "jobs", b"2", LATER + 5)])
    it.vanished([doorbell(5, "jobs", expires=LATER + 5)])
    assert it.rows._expires == {5: LATER + 5}
    it.recover([doorbell(5, "jobs", expires=LATER + 5)], 1, NOW)
    effects(it)
    assert taken(it, "jobs") == [1, 2]
    assert ids(effects(it).delete) == [5]


def test_a_deletion_that_is_decided_is_not_done_to_another_with_the_id() -> None:
    """Of all that one round decides; nor is it forgotten that the other is there."""
    it = dispatcher(10)
    it.hear([parcel(5)], NOW)
    it.rows.begin_query()
    assert taken(it) == [5]
    it.rows.deleted(rows(5))
    it.hear([parcel(5, OTHER, expires=LATER + 5)], NOW)
    it.rows.end_query()
    assert it.rows._expires == {5: LATER + 5}
    assert taken(it, OTHER) == [5]
    assert effects(it).delete == [(5, LATER), (5, LATER + 5)]


def test_what_has_lost_its_row_gives_no_other_back() -> None:
    """Nobody reads its queue; the id is that of a message for somebody else."""
    it = dispatcher()
    it.claimed([(5, "jobs", b"1", LATER)])
    it.hear([doorbell(5, expires=LATER + 5)], NOW)
    assert it.claimed_unread() == []
    it.fetched(rows(5, expires=LATER + 5), {5: b"2"})
    assert taken(it) == [2]


def test_the_stream_tells_what_came_before_a_flush() -> None:
    """Though a recovery has read it as well."""
    it = dispatcher(bounded=True)
    it.rows.begin_recovery()
    it.hear([parcel(1)], NOW)
    it.vanished([doorbell(1), doorbell(2)])
    it.recover([doorbell(1), doorbell(2)], 1, NOW)
    it.fetched(rows(2), {2: b"2"})
    it.hear([parcel(2), Flushed("f", "topic"), Mark(1)], NOW)
    assert taken(it) == []


def test_a_look_at_the_mailbox_in_the_middle_of_a_recovery() -> None:
    """Whatever it has read, the recovery still knows what there was before."""
    it = dispatcher()
    it.hear([parcel(1)], NOW)
    it.rows.begin_recovery()
    it.recover([], 1, NOW)
    it.vanished([])
    assert it.rows._expires == {}


def test_what_was_deleted_and_vanished_at_once_hides_no_other() -> None:
    """A doorbell that expired before it was fetched; a crash, and another has its id before the mark has come round."""
    it = dispatcher()
    it.recover([doorbell(5, expires=NOW + 1)], 1, NOW)
    it.rows.deleted(rows(5, expires=NOW + 1))
    it.fetched(rows(5, expires=NOW + 1), {})
    it.hear([parcel(5), Mark(1)], NOW)
    assert it.rows._expires == {5: LATER}
