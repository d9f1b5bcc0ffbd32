"""Unread messages and pending readers by channel: who may take what, and which reader to wake. Does no I/O."""

from __future__ import annotations

import base64
import binascii
import itertools
from asyncio import Future
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from .names import node_of, queue_of
from .parcels import Acknowledged, Beat, Flushed, Ring

Reader = Future[None]
"""A pending receive(), which is woken at most once. If it then finds nothing, it waits anew as another one."""


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


@dataclass(slots=True)
class Effects:
    """What the node has to do: decisions since they were last collected."""

    wake: list[Reader] = field(default_factory=list)
    fetch: list[int] = field(default_factory=list)
    delete: list[int] = field(default_factory=list)
    rings: list[Ring] = field(default_factory=list)
    controls: list[Beat | Flushed | Acknowledged] = field(default_factory=list)


class Mailboxes:
    """Keep what is unread, oldest first, and who waits for it, longest waiting first.

    Args:
        capacity_of: gives the most unread messages of a channel, None for no limit.
        bounded: whether any channel has a limit.
    """

    def __init__(self, capacity_of: Callable[[str], int | None], *, bounded: bool) -> None:
        self.counters: Counter[str] = Counter()
        self.overfull: Counter[tuple[str, str]] = Counter()  # by channel and group
        self._capacity_of = capacity_of
        self._bounded = bounded
        self.unread: dict[str, deque[Entry]] = {}  # by channel; never empty
        self.woken: set[Reader] = set()  # and not come yet
        self._readers: dict[str, list[Reader]] = {}  # by channel; never empty
        self._channels: dict[Reader, str] = {}
        self._prefixes: set[str] = set()  # channels with readers that end with "!"
        self._effects: Effects | None = None

    # Who reads -----------------------------------------------------------------------------------

    def take(self, channel: str, now: float) -> Entry | None:
        """Return the next message of the channel, or of any channel that begins so if it ends with `!`."""
        if channel[-1] == "!":
            channel = self._oldest(channel, now) or channel
        entries = self.unread.get(channel)
        if entries is None:
            return None
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
        if entry.keeps_row and entry.id is not None:
            self._to_do().delete.append(entry.id)
        return entry

    def wait(self, channel: str, reader: Reader, *, instead_of: Reader | None = None) -> None:
        """Enter a reader; in the place of another, if that still waits."""
        if instead_of in self._channels:
            del self._channels[instead_of]
            self.woken.discard(instead_of)
            readers = self._readers[channel]
            readers[readers.index(instead_of)] = reader
        elif channel in self._readers:
            self._readers[channel].append(reader)
        else:
            self._readers[channel] = [reader]
            if channel[-1] == "!":
                self._prefixes.add(channel)
        self._channels[reader] = channel

    def leave(self, reader: Reader) -> None:
        """Remove a reader; if there is something left to read, wake the next."""
        channel = self._channels.pop(reader, None)
        if channel is None:
            return
        self.woken.discard(reader)
        readers = self._readers[channel]
        if len(readers) > 1:
            readers.remove(reader)
        else:
            del self._readers[channel]
            self._prefixes.discard(channel)
        if channel[-1] == "!":
            for name in self._under(channel):
                self._wake(name)
        elif channel in self.unread:
            self._wake(channel)

    def is_waiting(self, reader: Reader) -> bool:
        """Tell whether a reader has been entered, and neither left nor been removed."""
        return reader in self._channels

    def waiting(self, channel: str) -> int:
        """Return how many readers have neither a message nor the promise of one."""
        readers = len(self._readers.get(channel, ()))
        if not readers:
            return 0
        promised = len(self.unread.get(channel, ()))
        if channel[-1] == "!":
            others = (name for name in self._under(channel) if name != channel)
            promised += sum(max(0, len(self.unread[name]) - len(self._readers.get(name, ()))) for name in others)
        return max(0, readers - promised)

    def is_read(self, channel: str) -> bool:
        """Tell whether a reader waits for the channel."""
        return channel in self._readers

    def every_reader(self) -> list[Reader]:
        """Return all readers, to be woken because the layer failed or closes."""
        return list(self._channels)

    @property
    def reader_count(self) -> int:
        """How many receive() calls are pending."""
        return len(self._channels)

    @property
    def unread_count(self) -> int:
        """How many messages wait to be read; one to a group counts once for each member."""
        return sum(map(len, self.unread.values()))

    # What is unread ------------------------------------------------------------------------------

    def put(self, channel: str, entry: Entry, group: str | None = None) -> None:
        """Append a message; one that came through a group only if the channel has room."""
        entries = self.unread.get(channel)
        if entries is None:
            self.unread[channel] = deque((entry,))
            readers = self._readers.get(channel)
            if readers is not None and entry.encoded is not None:  # as it mostly is; the rest is for _wake
                self._call(readers[0])
                return
        elif group is not None and self._bounded and self._is_full(channel, len(entries)):
            self.overfull[channel, group] += 1
            return
        else:
            entries.append(entry)
        if channel in self._readers or self._prefixes:
            self._wake(channel)

    def expire(self, now: float) -> None:
        """Free what was not read in time."""
        for channel in list(self.unread):
            self._expire(channel, now)

    def collect(self) -> Effects | None:
        """Return what is to be done, if anything, and begin a new list."""
        effects, self._effects = self._effects, None
        return effects

    # Parts ---------------------------------------------------------------------------------------

    def _to_do(self) -> Effects:
        if self._effects is None:
            self._effects = Effects()
        return self._effects

    def _is_full(self, channel: str, unread: int) -> bool:
        capacity = self._capacity_of(channel)
        return capacity is not None and unread >= capacity

    def _wake(self, channel: str) -> None:
        """Wake as many readers as there are messages to take, those included that were woken and have not come yet."""
        for reader, entry in zip(self._readers_of(channel), self.unread[channel], strict=False):
            if entry.encoded is None and entry.content is None and entry.expires:
                break
            self._call(reader)

    def _call(self, reader: Reader) -> None:
        if reader not in self.woken:
            self.woken.add(reader)
            self._to_do().wake.append(reader)

    def _readers_of(self, channel: str) -> Iterable[Reader]:
        """Return the readers of the channel, and then those of all channels that begin as it does up to its `!`."""
        readers: Sequence[Reader] = self._readers.get(channel, ())
        if self._prefixes and "!" in channel and channel[-1] != "!":
            return itertools.chain(readers, self._readers.get(queue_of(channel), ()))
        return readers

    def _expire(self, channel: str, now: float) -> None:
        entries = self.unread[channel]
        before = len(entries)
        while entries and entries[0].expires <= now:
            entry = entries.popleft()
            if entry.expires:
                self.counters["expired"] += 1
                if entry.keeps_row and entry.id is not None:
                    self._to_do().delete.append(entry.id)
        if not entries:
            del self.unread[channel]
        elif len(entries) < before:
            self._wake(channel)  # what is next may have been here for a while

    def _under(self, start: str) -> Iterator[str]:
        return (name for name in list(self.unread) if name.startswith(start))

    def _oldest(self, start: str, now: float) -> str | None:
        ready: list[tuple[int, str]] = []
        for name in self._under(start):
            self._expire(name, now)
            entries = self.unread.get(name)
            if entries and entries[0].is_here:
                ready.append((entries[0].id or 0, name))
        return min(ready)[1] if ready else None

    def _forget_unread(self, is_theirs: Callable[[str], bool]) -> list[Entry]:
        """Drop the messages of some channels, and return them."""
        names = [channel for channel in self.unread if is_theirs(channel)]
        return [entry for channel in names for entry in self.unread.pop(channel)]

    def _is_unclaimed(self, channel: str) -> bool:
        return node_of(channel) is None and not any(self._readers_of(channel))
