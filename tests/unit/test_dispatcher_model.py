"""The dispatcher in a world where everything may happen in any order, against what a channel layer promises.

The world has a table, a stream of notifications in the order of commits, and a node that does what the dispatcher asks
for, each thing in two steps (the statement, and its answer), between which anything else may happen.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from channels_pg_sa.entry import Entry
from channels_pg_sa.entry import Row as Told
from channels_pg_sa.names import node_of, queue_of, recipient_of
from channels_pg_sa.parcels import Parcel, parse
from channels_pg_sa.receiving.dispatcher import Dispatcher
from channels_pg_sa.receiving.localchannels import Effects

T = TypeVar("T")
Action = Callable[["World", int], None]

NODE = "0123456789ab"
A, B = OWN = [f"s.{NODE}!a", f"s.{NODE}!b"]
QUEUED = ["jobs", "w!x", "w!y"]
CHANNELS = OWN + QUEUED
PREFIXES = [f"s.{NODE}!", "w!"]
READABLE = CHANNELS + PREFIXES
GROUP = "g"
CAPACITIES = {B: 2}
LIFE = 10.0


@dataclass
class Row:
    """A row of the table of messages."""

    id: int
    recipient: str
    name: str
    grouped: bool
    expires: float

    @property
    def payload(self) -> bytes:
        """Its number, so that it is known when it comes."""
        return b"%d" % self.id


@dataclass
class Sent:
    """What became of a message: who must get it, who may, and who did."""

    row: Row
    must: set[str]
    may: set[str]
    got: Counter[str] = field(default_factory=Counter)
    excused: bool = False
    taken_elsewhere: bool = False


@dataclass(eq=False)
class Reader:
    """A receive() call, which waits as one future after the other."""

    channel: str
    future: object = None
    signalled: bool = False


Claimed = list[tuple[int, str, bytes, float]]


def chosen(options: Sequence[T], pick: int) -> T:
    """The option that a number stands for."""
    return options[pick % len(options)]


class World:
    """The table, the stream, and the node around the dispatcher. Its public methods are what may happen."""

    def __init__(self, *, bounded: bool) -> None:
        self._dispatcher = Dispatcher(CAPACITIES.get, bounded=bounded)
        self._now = 1000.0
        self._rows: dict[int, Row] = {}
        self._sent: dict[int, Sent] = {}
        self._members: dict[str, float] = {}
        self._stream: list[bytes] | None = []  # None: nobody listens
        self._recovering = False  # LISTENing again, but the table has not been read
        self._read: tuple[list[Parcel], list[tuple[str, str, float]] | None] | None = None
        self._marks = 0
        self._fetch_todo: list[Told] = []
        self._fetching: tuple[list[Told], dict[int, bytes]] | None = None
        self._delete_todo: list[Told] = []
        self._deleting: list[Told] | None = None
        self._claiming: Claimed | None = None
        self._flushes = self._flushes_before = 0
        self._returning: list[Told] = []
        self._returned: list[Told] | None = None
        self._reread_due = False
        self._in_order = True  # a claim whose answer was lost may be overtaken by the next
        self._last: dict[str, int] = {}
        self._readers: list[Reader] = []
        self._overfull: Counter[tuple[str, str]] = Counter()

    # Sending -------------------------------------------------------------------------------------

    def send(self, pick: int) -> None:
        channel = chosen(CHANNELS, pick)
        self._insert(recipient_of(channel), channel, {channel}, pick)

    def send_to_own(self, pick: int) -> None:
        channel = chosen(OWN, pick)
        self._insert(NODE, channel, {channel}, pick)

    def group_send(self, pick: int) -> None:
        if self._members:
            self._insert(NODE, GROUP, set(self._members), pick)

    def _insert(self, recipient: str, name: str, must: set[str], pick: int) -> None:
        number = len(self._sent) + 1
        row = self._rows[number] = Row(number, recipient, name, name == GROUP, self._now + LIFE)
        self._sent[number] = Sent(row, must, set(must))
        small = pick < 50
        if recipient == NODE:
            kind = ("Gg" if row.grouped else "Pp")[not small]
            content = " " + base64.b64encode(row.payload).decode() if small else ""
            self._notify(f"{kind}{number} {row.expires!r} {name}{content}")
        else:
            self._notify(f"Q{number} {recipient}")

    def _notify(self, frame: str) -> None:
        if self._stream is not None:
            self._stream.append(frame.encode())

    def join(self, pick: int) -> None:
        channel = chosen(OWN, pick)
        self._members[channel] = float("inf")
        self._notify(f"J1 {GROUP} {channel} Infinity")

    def leave(self, pick: int) -> None:
        channel = chosen(OWN, pick)
        if self._members.pop(channel, None):
            self._notify(f"L1 {GROUP} {channel}")

    def flush(self, _pick: int) -> None:
        self._rows.clear()
        for channel in self._members:
            self._notify(f"L1 {GROUP} {channel}")
        self._members.clear()
        self._excuse_all()
        self._notify("F1 topic")

    def _excuse_all(self) -> None:
        for sent in self._sent.values():
            sent.excused = True

    def rival_takes_from_a_queue(self, _pick: int) -> None:
        for number, row in self._rows.items():
            if row.recipient != NODE:
                del self._rows[number]
                self._sent[number].taken_elsewhere = True
                return

    # Hearing -------------------------------------------------------------------------------------

    def hear(self, pick: int) -> None:
        if self._stream and not self._recovering:
            count = 1 + pick % 4
            heard, self._stream[:] = self._stream[:count], self._stream[count:]
            for payload in heard:
                self._dispatcher.hear(parse(payload), self._now)
                if payload.startswith(b"F"):
                    self._flushes += 1
                    self._excuse_all()  # what is sent before every node has heard of it may be lost with the rest
            self._collect()

    def mark(self, _pick: int) -> None:
        self._marks += 1
        self._notify(f"B{self._marks}")

    def lose_the_connection_and_listen_again(self, _pick: int) -> None:
        self._stream = []
        self._recovering = True
        self._read = None
        self._dispatcher.rows.begin_recovery()

    def lose_the_connection(self, _pick: int) -> None:
        self._stream = None
        self._recovering = False
        self._read = None

    def read_the_mailbox(self, _pick: int) -> None:
        if self._read is None and self._stream is not None:
            mine = [row for row in self._rows.values() if row.recipient == NODE and row.expires > self._now]
            waiting = [Parcel(row.id, row.name, row.grouped, row.expires, None) for row in mine]
            members = [(GROUP, channel, end) for channel, end in self._members.items()]
            self._read = waiting, members if self._recovering else None
            self._reread_due = False

    def recover(self, _pick: int) -> None:
        if self._read is not None:
            (waiting, members), self._read = self._read, None
            if members is not None:
                self._dispatcher.members.replace(members)
                self._dispatcher.vanished(waiting)
            self._allow_for_memberships_out_of_step(waiting)
            self._dispatcher.recover(waiting, self._marks + 1, self._now)
            self._recovering = False
            self._collect()

    def _allow_for_memberships_out_of_step(self, waiting: list[Parcel]) -> None:
        """What was sent to a group before the table was read goes to those who are known for members after it."""
        heard = [frame for payload in self._stream or () for frame in parse(payload) if isinstance(frame, Parcel)]
        members = set(self._dispatcher.members.members(GROUP, self._now))
        for parcel in [*waiting, *heard]:
            if parcel.grouped:
                self._sent[parcel.id].must &= members
                self._sent[parcel.id].may |= members

    # What the dispatcher asks for ----------------------------------------------------------------

    def _collect(self) -> None:
        effects = self._dispatcher.collect() or Effects()
        by_future = {reader.future: reader for reader in self._readers}
        for future in effects.wake:
            by_future[future].signalled = True
        self._fetch_todo += [row for row in effects.fetch if row not in self._fetch_todo]
        self._delete_todo += [row for row in effects.delete if row not in self._delete_todo]
        overfull, self._dispatcher.overfull = self._dispatcher.overfull, Counter()
        self._overfull += overfull

    def fetch(self, pick: int) -> None:
        if self._fetching is not None:
            (asked, payloads), self._fetching = self._fetching, None
            self._dispatcher.fetched(asked, payloads)
            self._collect()
        elif self._fetch_todo:
            count = 1 + pick % 4
            asked, self._fetch_todo = self._fetch_todo[:count], self._fetch_todo[count:]
            self._fetching = asked, {row: self._rows[row].payload for row, _ in asked if self._is_mine(row)}

    def delete(self, _pick: int) -> None:
        if self._deleting is not None:
            rows, self._deleting = self._deleting, None
            self._dispatcher.rows.deleted(rows)
        elif self._delete_todo:
            self._deleting, self._delete_todo = self._delete_todo, []
            for row, _ in self._deleting:
                if self._is_mine(row):
                    del self._rows[row]

    def claim(self, pick: int) -> None:
        if self._claiming is not None:
            rows, self._claiming = self._claiming, None
            if self._flushes == self._flushes_before:
                self._dispatcher.claimed(rows)
            else:
                self._reread_due = True
                self._in_order = False
            self._collect()
        elif self._returned is None:
            channel = chosen([*QUEUED, "w!"], pick)
            self._claim_for(channel, self._dispatcher.waiting(channel))

    def _claim_for(self, channel: str, count: int) -> None:
        queue = queue_of(channel)
        waiting = [row for row in self._rows.values() if row.recipient == queue and row.expires > self._now]
        found = [row for row in waiting if channel in {queue, row.name}][:count]
        for row in found:
            row.recipient = NODE
        if count:
            self._flushes_before = self._flushes
            # RETURNING promises no order
            self._claiming = [(row.id, row.name, row.payload, row.expires) for row in reversed(found)]

    def lose_the_answer_of_a_claim(self, _pick: int) -> None:
        if self._claiming is not None:
            self._in_order = self._in_order and not self._claiming
            self._claiming = None
            self._reread_due = True

    def give_back(self, _pick: int) -> None:
        rows = self._dispatcher.claimed_unread()
        self._returning += rows
        self._collect()
        names = {self._sent[row].row.name for row, _ in rows}
        assert not names & {reader.channel for reader in self._readers}, "somebody waits for it here"
        assert not {queue_of(name) for name in names if "!" in name} & {reader.channel for reader in self._readers}

    def put_back(self, _pick: int) -> None:
        if self._returned is not None:
            rows, self._returned = self._returned, None
            for row, _ in rows:
                name = self._sent[row].row.name
                self._last[name] = min(self._last.get(name, 0), row - 1)
            self._dispatcher.rows.returned(rows)
        elif self._returning and self._claiming is None:
            self._returned, self._returning = self._returning, []
            for number, _ in self._returned:
                if self._is_mine(number):
                    self._rows[number].recipient = queue_of(self._rows[number].name)

    def _is_mine(self, row: int) -> bool:
        return row in self._rows and self._rows[row].recipient == NODE

    def time_passes(self, pick: int) -> None:
        self._now += 4.0 if pick % 2 else 0.5
        self._dispatcher.expire(self._now)
        self._collect()

    def tidy(self, _pick: int) -> None:
        self._dispatcher.tidy()

    def time_passes_unnoticed(self, _pick: int) -> None:
        self._now += 3.0

    def sweep(self, _pick: int) -> None:
        self._rows = {number: row for number, row in self._rows.items() if row.expires > self._now}

    # Reading -------------------------------------------------------------------------------------

    def receive(self, pick: int) -> None:
        self._attempt(Reader(chosen(READABLE, pick)))

    def receive_own(self, pick: int) -> None:
        self._attempt(Reader(chosen([*OWN, PREFIXES[0]], pick)))

    def go_on(self, pick: int) -> None:
        if signalled := self._signalled():
            self._attempt(chosen(signalled, pick))

    def _signalled(self) -> list[Reader]:
        return [reader for reader in self._readers if reader.signalled]

    def cancel(self, pick: int) -> None:
        if self._readers:
            self._leave(chosen(self._readers, pick))

    def _leave(self, reader: Reader) -> None:
        self._readers.remove(reader)
        self._dispatcher.remove_reader(reader.channel, reader.future)
        self._collect()

    def _attempt(self, reader: Reader) -> bool:
        """Take what there is, or wait, as Inbox does; return whether there was something."""
        before = {name: list(local.entries) for name, local in self._dispatcher.unread.items()}
        entry = self._dispatcher.take(reader.channel, self._now)
        if entry is None:
            if reader.future is None:
                self._readers.append(reader)
            before, reader.future = reader.future, object()
            reader.signalled = False
            self._dispatcher.wait(reader.channel, reader.future, instead_of=before)
        else:
            channel = self._channel_of(entry, before)
            if reader.future is not None:
                self._readers.remove(reader)
                self._dispatcher.served(reader.channel, reader.future)
            self._note(reader, channel, entry)
        self._collect()
        return entry is not None

    def _channel_of(self, entry: Entry, before: dict[str, list[Entry]]) -> str:
        known = self._dispatcher._locals
        (channel,) = (name for name, found in before.items() if entry in found and entry not in known[name].entries)
        return channel

    def _note(self, reader: Reader, channel: str, entry: Entry) -> None:
        """See that this message was due here and now."""
        assert channel == reader.channel or (reader.channel in PREFIXES and channel.startswith(reader.channel))
        sent = self._sent[int(entry.payload)]
        assert entry.id == sent.row.id or (entry.id is None and not self._is_mine(sent.row.id)), "its row is there"
        assert entry.expires == sent.row.expires > self._now
        assert channel in sent.may, "not for this channel"
        assert not sent.taken_elsewhere, "somebody else has it"
        sent.got[channel] += 1
        assert sent.got[channel] == 1, "handed over twice"
        if (channel in OWN or self._in_order) and not sent.excused:
            assert self._last.get(channel, 0) < sent.row.id, "out of order"
            self._last[channel] = sent.row.id

    # What always holds ---------------------------------------------------------------------------

    def check(self) -> None:
        """See that whoever could take something is woken, and that nobody waits whom the dispatcher forgot."""
        assert self._dispatcher.woken == {reader.future for reader in self._signalled()}
        assert set(self._dispatcher.every_reader()) == {reader.future for reader in self._readers}
        known = self._dispatcher._locals
        assert self._dispatcher.unread == {name: local for name, local in known.items() if local.entries}
        for channel, local in self._dispatcher.unread.items():
            ready = next((place for place, entry in enumerate(local.entries) if not entry.is_here), len(local.entries))
            own = [reader for reader in self._readers if reader.channel == channel]
            shared = [
                reader for reader in self._readers if reader.channel in PREFIXES and channel.startswith(reader.channel)
            ]
            woken = sum(reader.signalled for reader in own + shared)
            # Those who read many channels pass it on: each that has taken something wakes the next.
            assert woken >= min(ready, max(1, len(own)), len(own + shared)), f"{channel} has something"

    # The end -------------------------------------------------------------------------------------

    def end(self) -> None:
        """Finish all that is under way, read everything, and see that nothing was lost and nothing is left."""
        if self._stream is None:
            self.lose_the_connection_and_listen_again(0)
        for _ in range(3):
            self.recover(0)
            if self._recovering or self._reread_due:
                self.read_the_mailbox(0)
                self.recover(0)
            self._settle()
            for channel in CHANNELS:
                self._drain(channel)
        self.time_passes(0)
        self.mark(0)
        self._settle()
        for reader in list(self._readers):
            self._leave(reader)
        self._see_that_nothing_was_lost()
        self._see_that_nothing_is_left()

    def _settle(self) -> None:
        for _ in range(300):
            due: list[tuple[object, Callable[[int], None]]] = [
                (self._claiming is not None, self.claim),
                (self._returned is not None or self._returning, self.put_back),
                (self._fetching is not None or self._fetch_todo, self.fetch),
                (self._deleting is not None or self._delete_todo, self.delete),
                (self._signalled(), self.go_on),
                (self._stream, self.hear),
            ]
            step = next((step for is_due, step in due if is_due), None)
            if step is None:
                return
            step(0)
        pytest.fail("it never comes to rest")

    def _drain(self, channel: str) -> None:
        """Read a channel until it is empty."""
        while True:
            reader = Reader(channel)
            if not self._attempt(reader):
                if node_of(channel) is None:
                    self._claim_for(channel, 5)
                self._settle()
                if reader in self._readers:
                    self._leave(reader)
                    return

    def _see_that_nothing_was_lost(self) -> None:
        for sent in self._sent.values():
            if sent.excused or sent.taken_elsewhere or sent.row.expires <= self._now:
                continue
            for channel in sent.must - set(sent.got):
                assert self._overfull[channel, GROUP] > 0, f"{sent} never came to {channel}"
                self._overfull[channel, GROUP] -= 1

    def _see_that_nothing_is_left(self) -> None:
        dispatcher = self._dispatcher
        dispatcher.tidy()
        assert dispatcher._locals == dispatcher.unread == dispatcher._prefix_readers == {}
        assert dispatcher.woken == set()
        assert dispatcher._unfetched == {}
        assert dispatcher.rows._gone == set()
        assert dispatcher.rows._expires == {}
        left = [row for row in self._rows.values() if row.expires > self._now and not self._sent[row.id].excused]
        assert left == []


def nothing(_world: World, _pick: int) -> None:
    """What a failing example is reduced to."""


OFTEN = [
    World.send,
    World.send_to_own,
    World.send_to_own,
    World.group_send,
    World.hear,
    World.hear,
    World.fetch,
    World.delete,
    World.claim,
    World.claim,
    World.receive,
    World.receive_own,
    World.go_on,
    World.cancel,
]
SELDOM = [
    World.join,
    World.join,
    World.leave,
    World.flush,
    World.mark,
    World.mark,
    World.rival_takes_from_a_queue,
    World.lose_the_connection,
    World.lose_the_connection_and_listen_again,
    World.read_the_mailbox,
    World.read_the_mailbox,
    World.recover,
    World.recover,
    World.lose_the_answer_of_a_claim,
    World.give_back,
    World.put_back,
    World.put_back,
    World.time_passes,
    World.time_passes_unnoticed,
    World.tidy,
    World.sweep,
]
ACTIONS = st.sampled_from([nothing, *OFTEN, *OFTEN, *SELDOM])
STEPS = st.lists(st.tuples(ACTIONS, st.integers(0, 99)), min_size=60, max_size=60)


@given(bounded=st.booleans(), steps=STEPS)
@settings(max_examples=300)
def test_the_dispatcher_keeps_its_promises(
    bounded: bool, steps: list[tuple[Callable[[World, int], None], int]]
) -> None:
    """At most once, nothing lost, in order, everybody woken in time, and nothing left behind."""
    world = World(bounded=bounded)
    note(" ".join(f"{action.__name__}({pick})" for action, pick in steps if action is not nothing))
    for action, pick in steps:
        action(world, pick)
        if action is not World.time_passes_unnoticed:
            world.check()
    world.end()
