"""When rows of shared queues are claimed: never twice at once, never skipping one, and all of them in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import example, given, note, settings
from hypothesis import strategies as st

from channels_pg_sa.claims import ANYWHERE, Claim, ClaimBook
from channels_pg_sa.names import queue_of


def heard(*channels: str) -> ClaimBook:
    """A book in which these channels are read, and their queues were looked into and found empty."""
    book = ClaimBook()
    for channel in channels:
        assert book.open(channel)
        book.listening(queue_of(channel))
    for channel in channels:
        claim = book.start(channel, 1)
        assert claim is not None
        book.finish(claim, [])
    return book


def test_a_claim_says_what_to_take() -> None:
    """All rows of its queue, or, for a full name with a local part, only its own."""
    for channel, queue, only in (("jobs", "jobs", None), ("w!", "w!", None), ("w!x", "w!", "w!x")):
        claim = Claim(channel, *ANYWHERE, 1)
        assert (claim.queue, claim.only) == (queue, only)


def test_nothing_is_claimed_before_the_doorbell_is_listened_for() -> None:
    """What came before is found then; what comes later rings."""
    book = ClaimBook()
    assert book.open("jobs")
    assert not book.open("jobs")
    assert book.deaf == book.queues == {"jobs"}
    assert book.start("jobs", 1) is None
    assert book.ring("jobs", 7) == ["jobs"]
    assert book.start("jobs", 1) is None
    assert book.listening("jobs") == ["jobs"]
    assert book.deaf == set()
    assert book.start("jobs", 3) == Claim("jobs", *ANYWHERE, 3)


def test_an_empty_queue_is_not_asked_again_until_it_rings() -> None:
    """Fewer rows than asked for mean that there are no more."""
    book = heard("jobs")
    assert not book.is_due("jobs")
    assert book.start("jobs", 1) is None
    book.ring("jobs", 9)
    book.ring("jobs", 7)
    assert book.is_due("jobs")
    assert book.start("jobs", 2) == Claim("jobs", 7, 9, 2)


def test_a_claim_that_got_all_it_asked_for_is_followed_by_another() -> None:
    """From behind its last row on, or from a lower one that rang meanwhile."""
    book = heard("jobs")
    book.ring("jobs", 5, 9)
    claim = book.start("jobs", 2)
    assert claim is not None
    book.finish(claim, [6, 5])
    claim = book.start("jobs", 1)
    assert claim == Claim("jobs", 7, 9, 1)
    book.ring("jobs", 3)
    book.finish(claim, [8])
    assert book.start("jobs", 1) == Claim("jobs", 3, 9, 1)


def test_a_claim_that_got_the_last_row_is_not_followed_by_another() -> None:
    """Whatever came since has not been heard of, nor what may have to come before it."""
    book = heard("jobs")
    book.ring("jobs", 5, 9)
    claim = book.start("jobs", 2)
    assert claim is not None
    book.finish(claim, [7, 9])
    assert not book.is_due("jobs")


def test_what_was_sent_behind_a_commit_does_not_overtake_it() -> None:
    """Row 5 is of a transaction that lasted, row 7 was sent after its commit: of both we hear in this order."""
    book = heard("jobs")
    book.ring("jobs", 6)
    claim = book.start("jobs", 1)
    assert claim is not None
    book.finish(claim, [6])
    assert book.start("jobs", 1) is None
    book.ring("jobs", 5)
    book.ring("jobs", 7)
    assert book.start("jobs", 1) == Claim("jobs", 5, 7, 1)


def test_a_higher_row_that_rang_meanwhile_does_not_hide_what_a_full_claim_has_left() -> None:
    """The next claim begins behind the last row, however far above it that one is."""
    book = heard("jobs")
    book.ring("jobs", 5, 9)
    claim = book.start("jobs", 2)
    assert claim is not None
    book.ring("jobs", 20)
    book.finish(claim, [5, 6])
    assert book.start("jobs", 1) == Claim("jobs", 7, 20, 1)


def test_a_ring_while_a_claim_is_under_way_is_not_forgotten() -> None:
    """The claim may have looked before the row was there."""
    book = heard("jobs")
    book.ring("jobs", 5)
    claim = book.start("jobs", 2)
    assert claim is not None
    book.ring("jobs", 6)
    assert book.start("jobs", 2) is None
    assert not book.is_due("jobs")
    book.finish(claim, [5])
    assert book.start("jobs", 2) == Claim("jobs", 6, 6, 2)


def test_without_readers_nothing_is_claimed_and_nothing_forgotten() -> None:
    """The row waits for a reader."""
    book = heard("jobs")
    book.ring("jobs", 5)
    assert book.start("jobs", 0) is None
    assert book.start("jobs", 1) == Claim("jobs", 5, 5, 1)


def test_after_a_claim_with_an_unknown_outcome_everything_may_wait() -> None:
    """The next one looks from the beginning."""
    book = heard("jobs")
    book.ring("jobs", 5)
    claim = book.start("jobs", 1)
    assert claim is not None
    book.fail(claim)
    assert book.start("jobs", 1) == Claim("jobs", *ANYWHERE, 1)


def test_a_ring_reaches_every_channel_of_the_queue_and_no_other() -> None:
    """The local parts of one queue share its doorbell."""
    book = heard("w!x", "w!y", "w!", "v!x")
    assert book.ring("w!", 3) == ["w!x", "w!y", "w!"]
    assert book.ring("nobody", 3) == []
    assert book.start("v!x", 1) is None
    assert book.start("w!y", 1) == Claim("w!y", 3, 3, 1)
    assert book.queues == {"w!", "v!"}


def test_a_closed_channel_is_forgotten() -> None:
    """Its queue is heard as long as another channel needs it."""
    book = heard("w!x", "w!y")
    book.close("w!x")
    book.close("nobody's")
    assert (book.channels, book.queues) == (["w!y"], {"w!"})
    assert book.ring("w!", 1) == ["w!y"]
    assert not book.is_due("w!x")
    assert book.start("w!x", 1) is None
    book.close("w!y")
    assert (book.channels, book.queues, book.deaf) == ([], set(), set())
    assert book.open("w!x")
    assert book.deaf == {"w!"}


def test_a_channel_is_not_forgotten_under_its_claim() -> None:
    """Opened anew meanwhile, it could claim a second time at once, and the old outcome would end the new claim."""
    book = heard("jobs")
    book.ring("jobs", 1)
    claim = book.start("jobs", 1)
    assert claim is not None
    book.close("jobs")
    assert book.channels == ["jobs"]
    assert not book.open("jobs")
    book.ring("jobs", 2)
    assert book.start("jobs", 1) is None
    book.finish(claim, [])
    assert book.start("jobs", 1) == Claim("jobs", 2, 2, 1)
    book.finish(claim, [])
    book.close("jobs")
    assert book.channels == []


# A world of queues --------------------------------------------------------------------------------

QUEUED = ["jobs", "w!x", "w!y"]
READ = [*QUEUED, "w!"]


@dataclass
class Row:
    """A row of a queue.

    Args:
        announced: its doorbell was heard, or whoever heard none knows that it must look.
        rung: it has a doorbell, which was heard, or will be.
        before: the rows that were committed before it was sent.
    """

    id: int
    channel: str
    announced: bool = False
    rung: bool = False
    locked: bool = False
    before: frozenset[int] = frozenset()


class World:
    """Queues, a node with readers, and rivals."""

    def __init__(self) -> None:
        self._book = ClaimBook()
        self._rows: dict[int, Row] = {}
        self._ids = 100
        self._uncommitted: list[Row] = []
        self._rings: list[Row] = []
        self._claims: dict[str, tuple[Claim, list[int], int | None]] = {}
        self._taken: set[int] = set()

    def begin_to_send(self, pick: int) -> None:
        self._ids += 1
        self._uncommitted.append(Row(self._ids, QUEUED[pick % 3], before=frozenset(self._rows)))

    def commit(self, pick: int) -> None:
        if self._uncommitted:
            row = self._uncommitted.pop(pick % len(self._uncommitted))
            self._rows[row.id] = row
            if queue_of(row.channel) in self._book.queues - self._book.deaf:
                row.rung = True
                self._rings.append(row)

    def hear(self, _pick: int) -> None:
        if self._rings:
            row = self._rings.pop(0)
            row.announced = True
            self._book.ring(queue_of(row.channel), row.id)

    def open(self, pick: int) -> None:
        self._book.open(READ[pick % 4])

    def listen(self, _pick: int) -> None:
        for queue in self._book.deaf:
            self._look_everywhere(queue, self._book.listening)

    def heartbeat(self, _pick: int) -> None:
        for queue in {queue_of(row.channel) for row in self._rows.values()}:
            self._look_everywhere(queue, lambda queue: self._book.ring(queue, *ANYWHERE))

    def _look_everywhere(self, queue: str, tell: Callable[[str], object]) -> None:
        for row in self._rows.values():
            row.announced = row.announced or queue_of(row.channel) == queue
        tell(queue)

    def close(self, pick: int) -> None:
        channel = READ[pick % 4]
        self._book.close(channel)
        if queue_of(channel) not in self._book.queues:
            for row in self._rows.values():
                row.announced = row.announced and queue_of(row.channel) != queue_of(channel)

    def start(self, pick: int) -> None:
        channel, readers = READ[pick % 4], pick // 4 % 3
        before = self._book.is_due(channel)
        claim = self._book.start(channel, readers)
        if claim is None:
            return
        assert before
        assert channel not in self._claims, "two claims at once"
        assert claim.count == readers > 0
        waiting = [row for row in self._rows.values() if not row.locked and self._fits(claim, row)]
        assert all(claim.first <= row.id <= claim.last for row in waiting if row.announced), "a row is skipped"
        ids = [row.id for row in self._rows.values() if queue_of(row.channel) == claim.queue]
        end = max(ids) if ids and claim.last == ANYWHERE[1] else None
        found = sorted(row.id for row in waiting if claim.first <= row.id <= claim.last)[: claim.count]
        for number in found:
            self._check_order(claim, self._rows[number], waiting)
            self._take(number)
        self._claims[channel] = claim, found, end

    @staticmethod
    def _check_order(claim: Claim, row: Row, waiting: list[Row]) -> None:
        """Of rows with doorbells those that were committed before another was sent come before it."""
        if row.rung:
            assert not [other for other in waiting if other.rung and other.id in row.before and other.id < claim.first]

    @staticmethod
    def _fits(claim: Claim, row: Row) -> bool:
        return queue_of(row.channel) == claim.queue and claim.only in {None, row.channel}

    def _take(self, number: int) -> None:
        assert number not in self._taken
        self._taken.add(number)
        del self._rows[number]

    def finish(self, pick: int) -> None:
        if self._claims:
            self._book.finish(*self._claims.pop(list(self._claims)[pick % len(self._claims)]))

    def fail(self, pick: int) -> None:
        if self._claims:
            claim, *_ = self._claims.pop(list(self._claims)[pick % len(self._claims)])
            self._book.fail(claim)

    def rival_locks(self, pick: int) -> None:
        if self._rows:
            list(self._rows.values())[pick % len(self._rows)].locked = True

    def rival_takes(self, _pick: int) -> None:
        self._rows = {number: row for number, row in self._rows.items() if not row.locked}

    def rival_fails(self, _pick: int) -> None:
        for row in self._rows.values():
            if row.locked:
                row.locked = row.announced = row.rung = False  # nobody rings for it again

    def end(self) -> None:
        """See that whatever rang, for a channel that is read, is claimed."""
        while self._uncommitted:
            self.commit(0)
        while self._rings:
            self.hear(0)
        self.listen(0)
        while self._claims:
            self.finish(0)
        for _ in range(100):
            for pick in range(8):
                self.start(pick)
            if not self._claims:
                break
            while self._claims:
                self.finish(0)
        left = [row for row in self._rows.values() if row.announced and not row.locked]
        assert not [row for row in left if {row.channel, queue_of(row.channel)} & set(self._book.channels)]
        assert not any(self._book.is_due(channel) for channel in self._book.channels)


def nothing(_world: World, _pick: int) -> None:
    """What a failing example is reduced to."""


ACTIONS = [nothing] + [method for name, method in vars(World).items() if not name.startswith("_") and name != "end"]
BUSY = [World.begin_to_send, World.commit, World.hear, World.open, World.start, World.start, World.finish]
STEPS = st.lists(st.tuples(st.sampled_from(ACTIONS + BUSY), st.integers(0, 11)), min_size=50, max_size=50)

# One row is sent and another before it is committed, and claimed; a third is sent behind that commit.
OVERTAKING: list[tuple[Callable[[World, int], None], int]] = [
    *((World.open, 0), (World.listen, 0), (World.start, 4), (World.finish, 0)),
    *((World.begin_to_send, 0), (World.begin_to_send, 0), (World.commit, 1), (World.hear, 0)),
    *((World.start, 4), (World.finish, 0), (World.commit, 0)),
    *((World.begin_to_send, 0), (World.commit, 0), (World.start, 4)),
]


@given(steps=STEPS)
@example(steps=OVERTAKING)
@settings(max_examples=300)
def test_every_row_is_claimed_once(steps: list[tuple[Callable[[World, int], None], int]]) -> None:
    """Never two claims of one channel at once, no row skipped or overtaken, and what rang is claimed in the end."""
    note(" ".join(f"{action.__name__}({pick})" for action, pick in steps if action is not nothing))
    world = World()
    for action, pick in steps:
        action(world, pick)
    world.end()
