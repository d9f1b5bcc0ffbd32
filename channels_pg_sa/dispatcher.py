"""Who waits for what: mailboxes, unread messages, and which reader to wake. Decides; does no I/O."""

from __future__ import annotations

import base64
import binascii
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from .members import MemberIndex
from .names import MAX_LENGTH, node_of, queue_of
from .parcels import Acknowledged, Beat, Flushed, Frame, Joined, Left, Parcel, Ring


class Reader(Protocol):
    """A pending receive(). The dispatcher asks for it to be woken at most once until it waits anew."""

    woken: bool


@dataclass(slots=True, eq=False)
class Entry:
    """An unread message; a group's is shared by its members.

    Args:
        id: of its row; None for what never had one.
        expires: Unix time by the database's clock.
        content: the payload.
        encoded: the payload in base64, until somebody wants it. With neither, it has yet to be fetched.
        keeps_row: whether the row is deleted when the message is taken, rather than on arrival.
    """

    id: int | None
    expires: float
    content: bytes | None = None
    encoded: bytes | None = None
    keeps_row: bool = False

    # Members of a group in several threads share an entry and decode it without a lock. So `encoded` is read once and
    # first, and goes last: whoever finds it gone finds the content.

    @property
    def is_here(self) -> bool:
        """Whether there is a payload to take."""
        return self.encoded is not None or self.content is not None

    @property
    def payload(self) -> bytes:
        """The payload's bytes; b"" for what cannot be decoded, which no codec takes for a message."""
        encoded = self.encoded
        if encoded is not None:
            try:
                self.content = base64.b64decode(encoded)
            except binascii.Error:
                self.content = b""
            self.encoded = None
        return self.content or b""


_NO_ENTRIES: deque[Entry] = deque()
"""Shared by all channels that have had no message: a deque of its own costs 624 bytes, and most channels only wait."""


@dataclass(slots=True)
class Mailbox:
    """The unread messages of a channel, oldest first, and its readers, longest waiting first."""

    entries: deque[Entry] = field(default_factory=lambda: _NO_ENTRIES)
    readers: list[Reader] = field(default_factory=list)

    def append(self, entry: Entry) -> None:
        """Put an entry behind the others."""
        if self.entries is _NO_ENTRIES:
            self.entries = deque()
        self.entries.append(entry)


@dataclass(slots=True)
class Effects:
    """What the node has to do: the dispatcher's decisions since they were last collected."""

    wake: list[Reader] = field(default_factory=list)
    fetch: list[int] = field(default_factory=list)
    delete: list[int] = field(default_factory=list)
    rings: list[Ring] = field(default_factory=list)
    controls: list[Beat | Flushed | Acknowledged] = field(default_factory=list)


NOTHING = Effects()
"""What there is to do most of the time; nobody adds to it."""


class Dispatcher:
    """Take in what a node hears, and hand it to the readers of its channels.

    Args:
        capacity_of: gives the most unread messages of a channel, None for no limit.
        bounded: whether senders count the rows of unread messages, so that these must stay until they are read.
    """

    def __init__(self, capacity_of: Callable[[str], int | None], *, bounded: bool) -> None:
        self.members = MemberIndex()
        self.counters: Counter[str] = Counter()
        self.overfull: Counter[tuple[str, str]] = Counter()  # by channel and group
        self._capacity_of = capacity_of
        self._bounded = bounded
        self._boxes: dict[str, Mailbox] = {}
        self._known: set[int] = set()
        self._unfetched: dict[int, tuple[Entry, list[str]]] = {}
        self._barrier: int | None = None
        self._gone: set[int] = set()
        self._effects = Effects()

    # What is heard -------------------------------------------------------------------------------

    def hear(self, frames: Iterable[Frame | None], now: float) -> None:
        """Take in frames in the order in which the database sent them."""
        for frame in frames:
            if isinstance(frame, Parcel):
                self._arrive(frame, now)
            elif isinstance(frame, Ring):
                self._effects.rings.append(frame)
            elif isinstance(frame, Joined):
                self.members.join(frame.group, frame.channel, frame.expires)
            elif isinstance(frame, Left):
                self.members.leave(frame.group, frame.channel)
            elif frame is None:
                self.counters["malformed"] += 1
            else:
                if isinstance(frame, Flushed):
                    self.clear()
                elif isinstance(frame, Beat) and self._barrier is not None and frame.number >= self._barrier:
                    self._end_recovery()
                self._effects.controls.append(frame)

    def recover(self, waiting: Iterable[Parcel], barrier: int, now: float) -> None:
        """Take in what the node's mailbox holds.

        Args:
            waiting: its rows, as doorbells.
            barrier: the number of a beat that is sent after the table was read. What it showed may still be notified
                of before that beat, so until then even the ids of deleted rows are remembered.
            now: Unix time by the database's clock.
        """
        self._barrier = barrier
        self.hear(waiting, now)

    def _end_recovery(self) -> None:
        self._barrier = None
        self._known -= self._gone
        self._gone.clear()

    def _arrive(self, parcel: Parcel, now: float) -> None:
        if parcel.id in self._known:  # read from the table after a reconnect, and heard of as well
            return
        self._known.add(parcel.id)
        if len(parcel.name) >= MAX_LENGTH:
            self._refuse(parcel.id)
            return
        if parcel.grouped:
            channels = self.members.members(parcel.name, now)
            kept = False
        else:
            channels = [parcel.name]
            kept = self._bounded or node_of(parcel.name) is None
        if parcel.expires <= now or not channels:
            self.counters["expired" if channels else "no_member"] += 1
            self._effects.delete.append(parcel.id)
            return
        entry = Entry(parcel.id, parcel.expires, encoded=parcel.content, keeps_row=kept)
        if parcel.content is None:
            self._unfetched[parcel.id] = (entry, channels)
            self._effects.fetch.append(parcel.id)
        elif not kept:
            self._effects.delete.append(parcel.id)
        self.counters["received"] += len(channels)
        group = parcel.name if parcel.grouped else None
        for channel in channels:
            self._put(channel, entry, group)

    def _refuse(self, row: int) -> None:
        """Drop a row that somebody wrote under a name which no reader can have; it may be too long for an index."""
        self.counters["malformed"] += 1
        self._effects.delete.append(row)

    def fetched(self, asked: Iterable[int], payloads: dict[int, bytes]) -> None:
        """Fill in the content of doorbells; those whose row is gone are dropped."""
        for row in asked:
            entry, channels = self._unfetched.pop(row, (None, ()))
            if entry is None:
                continue
            entry.content = payloads.get(row)
            if entry.content is None:
                entry.expires = 0.0
                self.counters["vanished"] += 1
                self._known.discard(row)  # from its queue, where it may be again, it can still come to us
            elif not entry.keeps_row:
                self._effects.delete.append(row)
            for channel in channels:
                if channel in self._boxes:
                    self._wake(channel, self._boxes[channel])

    def claimed(self, rows: Iterable[tuple[int, str, bytes, float]]) -> None:
        """Take in rows of queues that are now this node's: id, channel, payload, expiry."""
        for row, channel, payload, expires in sorted(rows):
            if row in self._unfetched:  # the mailbox was read meanwhile
                self.fetched([row], {row: payload})
            elif row not in self._known:
                self._known.add(row)
                if len(channel) >= MAX_LENGTH:
                    self._refuse(row)
                    continue
                self.counters["received"] += 1
                self._put(channel, Entry(row, expires, payload, keeps_row=True))

    def deleted(self, rows: Iterable[int]) -> None:
        """Forget ids whose rows are gone."""
        if self._barrier is not None:
            self._gone.update(rows)
            return
        self._known.difference_update(rows)

    def announce(self, payload: bytes, expires: float) -> None:
        """Put a message of the layer's own into the mailbox of each channel that is read or in a group here."""
        channels = {channel for _, channel, _ in self.members}
        channels.update(name for name, box in self._boxes.items() if box.readers and not name.endswith("!"))
        for channel in channels:
            self._put(channel, Entry(None, expires, payload), group="")

    def clear(self) -> None:
        """Forget all unread messages and all memberships; readers go on waiting."""
        self.members.replace(())
        self._effects.delete.extend(self._unfetched)
        self._unfetched.clear()
        for channel, box in list(self._boxes.items()):
            self._effects.delete.extend(e.id for e in box.entries if e.id is not None and e.keeps_row)
            box.entries.clear()
            self._drop_if_idle(channel, box)

    def expire(self, now: float) -> None:
        """Free what was not read in time."""
        for channel in list(self._boxes):
            self._living(channel, now)

    # Who reads -----------------------------------------------------------------------------------

    def take(self, channel: str, now: float) -> Entry | None:
        """Return the next message of the channel, or of any channel that begins so if it ends with `!`."""
        if channel[-1] == "!":
            channel = self._oldest(channel, now) or channel
        box = self._boxes.get(channel)
        if box is None or not box.entries:
            return None
        if box.entries[0].expires <= now:
            self._living(channel, now)
        if not box.entries or not box.entries[0].is_here:
            return None
        entry = box.entries.popleft()
        if entry.keeps_row and entry.id is not None:
            self._effects.delete.append(entry.id)
        self._drop_if_idle(channel, box)
        return entry

    def wait(self, channel: str, reader: Reader) -> None:
        """Enter a reader; one that waits already keeps its place."""
        box = self._boxes.get(channel)
        if box is None:
            box = self._boxes[channel] = Mailbox()
        reader.woken = False
        if reader not in box.readers:
            box.readers.append(reader)

    def leave(self, channel: str, reader: Reader) -> None:
        """Remove a reader; if there is something left to read, wake the next."""
        box = self._boxes.get(channel)
        if box is None or reader not in box.readers:
            return
        box.readers.remove(reader)
        if channel.endswith("!"):
            for name in self._under(channel):
                self._wake(name, self._boxes[name])
        elif box.entries:
            self._wake(channel, box)
        self._drop_if_idle(channel, box)

    def waiting(self, channel: str) -> int:
        """Return how many readers have neither a message nor the promise of one."""
        box = self._boxes.get(channel)
        if box is None or not box.readers:
            return 0
        promised = len(box.entries)
        if channel.endswith("!"):
            others = (self._boxes[name] for name in self._under(channel) if name != channel)
            promised += sum(max(0, len(other.entries) - len(other.readers)) for other in others)
        return max(0, len(box.readers) - promised)

    def is_read(self, channel: str) -> bool:
        """Tell whether a reader waits for the channel."""
        box = self._boxes.get(channel)
        return box is not None and bool(box.readers)

    @property
    def readers(self) -> int:
        """How many receive() calls are pending."""
        return sum(len(box.readers) for box in self._boxes.values())

    @property
    def unread(self) -> int:
        """How many messages wait to be read; one to a group counts once for each member."""
        return sum(len(box.entries) for box in self._boxes.values())

    def claimed_unread(self) -> list[int]:
        """Return the rows of queues that this node has claimed and nobody here waits for, and drop their messages.

        Their ids stay known until `returned` tells that they are in their queues again.
        """
        rows: list[int] = []
        for channel, box in list(self._boxes.items()):
            if box.entries and node_of(channel) is None and not any(self._readers(channel, box)):
                rows.extend(entry.id for entry in box.entries if entry.id is not None)
                box.entries.clear()
                self._drop_if_idle(channel, box)
        for row in rows:
            self._unfetched.pop(row, None)
        return rows

    def returned(self, rows: Iterable[int]) -> None:
        """Forget the ids of rows that are in their queues again, so that they may be claimed again."""
        self._known.difference_update(rows)

    def collect(self) -> Effects:
        """Return what is to be done, and begin a new list; NOTHING if that is all."""
        effects = self._effects
        if not (effects.wake or effects.delete or effects.fetch or effects.rings or effects.controls):
            return NOTHING
        self._effects = Effects()
        return effects

    def every_reader(self) -> list[Reader]:
        """Return all readers, to be woken because the layer failed or closes."""
        return [reader for box in self._boxes.values() for reader in box.readers]

    # Parts ---------------------------------------------------------------------------------------

    def _put(self, channel: str, entry: Entry, group: str | None = None) -> None:
        """Append an entry; one that came through a group only if the channel has room."""
        box = self._boxes.get(channel)
        if box is None:
            box = self._boxes[channel] = Mailbox()
        elif group is not None and self._bounded:
            capacity = self._capacity_of(channel)
            if capacity is not None and len(box.entries) >= capacity:
                self.overfull[channel, group] += 1
                return
        box.append(entry)
        if len(box.readers) == 1 == len(box.entries) and entry.is_here:  # as it mostly is; the rest is for _wake
            self._call(box.readers[0])
        else:
            self._wake(channel, box)

    def _call(self, reader: Reader) -> None:
        if not reader.woken:
            reader.woken = True
            self._effects.wake.append(reader)

    def _wake(self, channel: str, box: Mailbox) -> None:
        """Wake as many readers as there are messages to take, those included that were woken and have not come yet."""
        readers = box.readers if len(box.readers) >= len(box.entries) else self._readers(channel, box)
        for reader, entry in zip(readers, box.entries, strict=False):
            if not entry.is_here and entry.expires:
                break
            self._call(reader)

    def _readers(self, channel: str, box: Mailbox) -> Iterable[Reader]:
        """Return the readers of the channel, and then those of all channels that begin as it does up to its `!`."""
        if "!" in channel and not channel.endswith("!") and (shared := self._boxes.get(queue_of(channel))):
            return itertools.chain(box.readers, shared.readers)
        return box.readers

    def _living(self, channel: str, now: float) -> Mailbox | None:
        """Return the channel's mailbox, None if it is idle, after freeing what was not read in time."""
        box = self._boxes.get(channel)
        if box is None:
            return None
        entries, before = box.entries, len(box.entries)
        while entries and entries[0].expires <= now:
            entry = entries.popleft()
            if entry.expires:
                self.counters["expired"] += 1
                if entry.keeps_row and entry.id is not None:
                    self._effects.delete.append(entry.id)
        if len(entries) < before:
            self._wake(channel, box)  # what is next may have been here for a while
            self._drop_if_idle(channel, box)
        return box

    def _under(self, start: str) -> Iterator[str]:
        return (name for name in list(self._boxes) if name.startswith(start))

    def _oldest(self, start: str, now: float) -> str | None:
        ready: list[tuple[int, str]] = []
        for name in self._under(start):
            box = self._living(name, now)
            if box is not None and box.entries and box.entries[0].is_here:
                ready.append((box.entries[0].id or 0, name))
        return min(ready)[1] if ready else None

    def _drop_if_idle(self, channel: str, box: Mailbox) -> None:
        if not box.entries and not box.readers and self._boxes.get(channel) is box:
            del self._boxes[channel]
