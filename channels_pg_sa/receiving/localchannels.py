"""The channels of this process: their unread messages and pending readers, and whom to wake. Does no I/O."""

from __future__ import annotations

import itertools
from asyncio import Future
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field

from channels_pg_sa.entry import Entry, Row
from channels_pg_sa.names import node_of, queue_of
from channels_pg_sa.parcels import Acknowledged, Flushed, Ring

Reader = Future[None]
"""A pending receive(), which is woken at most once. If it then finds nothing, it waits anew as another one."""


@dataclass(slots=True)
class Effects:
    """What the node has to do: decisions since they were last collected."""

    wake: list[Reader] = field(default_factory=list)
    fetch: list[Row] = field(default_factory=list)
    delete: list[Row] = field(default_factory=list)
    rings: list[Ring] = field(default_factory=list)
    flushes: list[Flushed | Acknowledged] = field(default_factory=list)


_NO_ENTRIES: deque[Entry] = deque()
"""Shared by all channels that are empty for long: a deque of its own costs 624 bytes, and most channels only wait."""


@dataclass(slots=True, eq=False)
class LocalChannel:
    """The unread messages of a channel, oldest first, and its readers, longest waiting first."""

    entries: deque[Entry] = field(default_factory=lambda: _NO_ENTRIES)
    readers: list[Reader] = field(default_factory=list)


class LocalChannels:
    """Keep what is unread, and who waits for it.

    Args:
        capacity_of: gives the most unread messages of a channel, None for no limit.
        bounded: whether any channel has a limit.
    """

    def __init__(self, capacity_of: Callable[[str], int | None], *, bounded: bool) -> None:
        self.counters: Counter[str] = Counter()
        self.overfull: Counter[tuple[str, str]] = Counter()  # by channel and group
        self.unread: dict[str, LocalChannel] = {}  # by channel; those that have entries
        self.woken: set[Reader] = set()  # and not come yet
        self.effects: Effects | None = None  # None: nothing is to be done
        self._locals: dict[str, LocalChannel] = {}  # by channel; those of channels that are not in use stay for a while
        self._prefix_readers: Counter[str] = Counter()  # readers of channels that end with "!"
        self._capacity_of = capacity_of
        self._bounded = bounded

    # Who reads -----------------------------------------------------------------------------------

    def take(self, channel: str, now: float) -> Entry | None:
        """Return the next message of the channel, or of any channel that begins so if it ends with `!`."""
        if channel[-1] == "!":
            channel = self._oldest(channel, now) or channel
        local = self.unread.get(channel)
        if local is None:
            return None
        entries = local.entries
        entry = entries[0]
        if entry.expires <= now:
            self._expire(channel, now)
            if not entries:
                return None
            entry = entries[0]
        if entry.encoded is None and entry.content is None:
            return None
        entries.popleft()
        if not entries:
            del self.unread[channel]
        if entry.keeps_row:
            self._delete_row(entry)
        return entry

    def wait(self, channel: str, reader: Reader, *, instead_of: Reader | None = None) -> None:
        """Enter a reader; in the place of another, if that still waits."""
        local = self._locals.get(channel)
        if local is None:
            local = self._locals[channel] = LocalChannel()
        if instead_of is not None and instead_of in local.readers:
            local.readers[local.readers.index(instead_of)] = reader
            self.woken.discard(instead_of)
        else:
            local.readers.append(reader)
            if channel[-1] == "!":
                self._prefix_readers[channel] += 1

    def served(self, channel: str, reader: Reader) -> None:
        """Remove a reader that has taken a message; it mostly comes again, so its channel stays. Wake the next."""
        local = self._locals.get(channel)
        if local is None or reader not in local.readers:
            return
        local.readers.remove(reader)
        self.woken.discard(reader)
        if channel[-1] == "!":
            self._prefix_readers -= Counter((channel,))
            for name in self._under(channel):
                self._wake(name, self.unread[name])
        elif local.entries:
            self._wake(channel, local)

    def remove_reader(self, channel: str, reader: Reader) -> None:
        """Remove a reader that gave up; if there is something left to read, wake the next."""
        self.served(channel, reader)
        local = self._locals.get(channel)
        if local is not None and not local.readers and not local.entries:
            del self._locals[channel]

    def remove_readers(self, readers: Iterable[Reader]) -> None:
        """Remove readers, whatever they read."""
        gone = set(readers)
        for channel, local in list(self._locals.items()) if gone else ():
            for reader in gone.intersection(local.readers):
                self.remove_reader(channel, reader)

    def waiting(self, channel: str) -> int:
        """Return how many readers have neither a message nor the promise of one."""
        local = self._locals.get(channel)
        if local is None or not local.readers:
            return 0
        promised = len(local.entries)
        if channel[-1] == "!":
            others = (self.unread[name] for name in self._under(channel))
            promised += sum(max(0, len(other.entries) - len(other.readers)) for other in others)
        return max(0, len(local.readers) - promised)

    def is_read(self, channel: str) -> bool:
        """Tell whether a reader waits for the channel."""
        local = self._locals.get(channel)
        return local is not None and bool(local.readers)

    def every_reader(self) -> list[Reader]:
        """Return all readers, to be woken because the layer failed or closes."""
        return [reader for local in self._locals.values() for reader in local.readers]

    @property
    def reader_count(self) -> int:
        """How many receive() calls are pending."""
        return sum(len(local.readers) for local in self._locals.values())

    @property
    def unread_count(self) -> int:
        """How many messages wait to be read; one to a group counts once for each member."""
        return sum(len(local.entries) for local in self.unread.values())

    # What is unread ------------------------------------------------------------------------------

    def put(self, channels: Iterable[str], entry: Entry, group: str | None = None) -> None:
        """Append a message to each channel; one that came through a group only where there is room."""
        known, unread, woken = self._locals, self.unread, self.woken
        for channel in channels:
            local = known.get(channel)
            if local is None:
                local = known[channel] = LocalChannel()
            entries, readers = local.entries, local.readers
            if not entries:
                if entries is _NO_ENTRIES:
                    entries = local.entries = deque()
                unread[channel] = local
            elif group is not None and self._bounded and self._is_full(channel, len(entries)):
                self.overfull[channel, group] += 1
                continue
            entries.append(entry)
            if len(readers) == 1 == len(entries) and entry.encoded is not None:  # as mostly, and _wake is slow
                self._call(readers[0])
            elif self._prefix_readers or not woken.issuperset(readers):
                self._wake(channel, local)

    def expire(self, now: float) -> None:
        """Free what was not read in time."""
        for channel in list(self.unread):
            self._expire(channel, now)

    def tidy(self) -> None:
        """Free the channels that are not in use, and the room in those that are empty."""
        for channel, local in list(self._locals.items()):
            if not local.entries:
                local.entries = _NO_ENTRIES
                if not local.readers:
                    del self._locals[channel]

    def collect(self) -> Effects | None:
        """Return what is to be done, if anything, and begin a new list."""
        effects, self.effects = self.effects, None
        return effects

    # Parts ---------------------------------------------------------------------------------------

    def _to_do(self) -> Effects:
        if self.effects is None:
            self.effects = Effects()
        return self.effects

    def _is_full(self, channel: str, unread: int) -> bool:
        capacity = self._capacity_of(channel)
        return capacity is not None and unread >= capacity

    def _wake(self, channel: str, local: LocalChannel) -> None:
        """Wake as many readers as there are messages to take, those included that were woken and have not come yet."""
        for reader, entry in zip(self._readers(channel, local), local.entries, strict=False):
            if not entry.is_here and not entry.is_gone:
                break
            self._call(reader)

    def _call(self, reader: Reader) -> None:
        if reader not in self.woken:
            self.woken.add(reader)
            self._to_do().wake.append(reader)

    def _readers(self, channel: str, local: LocalChannel) -> Iterable[Reader]:
        """Return the readers of the channel, and then those of all channels that begin as it does up to its `!`."""
        if not self._prefix_readers or "!" not in channel or channel[-1] == "!":
            return local.readers
        shared = self._locals.get(queue_of(channel))
        return local.readers if shared is None else itertools.chain(local.readers, shared.readers)

    def _expire(self, channel: str, now: float) -> None:
        local = self.unread[channel]
        entries, before = local.entries, len(local.entries)
        while entries and entries[0].expires <= now:
            entry = entries.popleft()
            if not entry.is_gone:
                self.counters["expired"] += 1
                self._delete_row(entry)
        if not entries:
            del self.unread[channel]
        elif len(entries) < before:
            self._wake(channel, local)  # what is next may have been here for a while

    def _under(self, start: str) -> Iterator[str]:
        return (name for name in list(self.unread) if name.startswith(start))

    def _oldest(self, start: str, now: float) -> str | None:
        ready: list[tuple[int, str]] = []
        for name in self._under(start):
            self._expire(name, now)
            local = self.unread.get(name)
            if local is not None and local.entries[0].is_here:
                ready.append((local.entries[0].id or 0, name))
        return min(ready)[1] if ready else None

    def _delete_row(self, entry: Entry) -> None:
        """Have the row of a message deleted that is over, unless that was done on its arrival."""
        if entry.keeps_row and entry.id is not None:
            self._to_do().delete.append((entry.id, entry.expires))

    def _forget_unread(
        self, is_theirs: Callable[[str, LocalChannel], bool], spared: Container[int | None] = ()
    ) -> list[Entry]:
        """Drop the messages of some channels, but for those of the rows that are spared, and return them."""
        dropped: list[Entry] = []
        for channel, local in list(self.unread.items()):
            if is_theirs(channel, local):
                entries = list(local.entries)
                local.entries.clear()
                for entry in entries:
                    (local.entries if entry.id in spared else dropped).append(entry)
                if local.entries:
                    self._wake(channel, local)  # what is next may have been here for a while
                else:
                    del self.unread[channel]
        return dropped

    def _is_left_over(self, channel: str, local: LocalChannel) -> bool:
        """Whether others may read the channel, and nobody here does."""
        return node_of(channel) is None and not any(self._readers(channel, local))
