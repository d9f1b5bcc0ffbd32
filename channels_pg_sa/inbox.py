"""What readers wait for: hands messages to pending receive() calls of any thread and event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from .clock import Clock
from .dispatcher import NOTHING, Dispatcher, Effects, Entry
from .drops import DropLog
from .lane import resolve


class Reader:
    """A pending receive().

    Args:
        channel: which it reads.
        loop: on which it waits.
    """

    __slots__ = ("channel", "future", "late", "loop", "waits", "woken")

    def __init__(self, channel: str, loop: asyncio.AbstractEventLoop) -> None:
        self.channel = channel
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.waits = False
        self.woken = False
        self.late = False


class Inbox:
    """Guard the dispatcher, wake the readers it chooses, and pass on what else it has decided.

    Args:
        dispatcher: decides.
        clock: the database's.
        work: called, from any thread, with decisions that need the database.
        check: raises the reason why nobody can be served, if there is one.
        want: called with the channel, from any thread, when a reader waits that rows may have to be claimed for.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        clock: Clock,
        *,
        work: Callable[[Effects], None],
        check: Callable[[], None],
        want: Callable[[str], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._clock = clock
        self._work = work
        self._check = check
        self._want = want
        self._lock = threading.Lock()

    def receive(self, channel: str, *, shared: bool) -> bytes | Awaitable[bytes]:
        """Return the payload of the next message of a channel, or what to await for it, at once.

        A message stays in its place until the reader, awake and not cancelled, takes it: nothing is ever put back.

        Args:
            channel: a name, or what names begin with up to their `!`.
            shared: whether other nodes may read it too.
        """
        with self._lock:
            self._check()  # under the lock: who sets the reason wakes all readers afterwards
            entry = self._dispatcher.take(channel, self._clock.now())
            found: Entry | Reader = self._enter(channel) if entry is None else entry
            effects = self._dispatcher.collect()
        self._act(effects)
        if isinstance(found, Entry):
            return found.payload
        if shared:
            self._want(channel)
        return self._wait(found, shared=shared)

    def _enter(self, channel: str) -> Reader:
        reader = Reader(channel, asyncio.get_running_loop())
        reader.waits = True
        self._dispatcher.wait(channel, reader)
        return reader

    async def _wait(self, reader: Reader, *, shared: bool) -> bytes:
        try:
            while True:
                await reader.future
                payload = self._take(reader, shared=shared)
                if payload is not None:
                    return payload
        finally:
            if reader.waits:  # who was removed may be freed in any thread, at any moment: then no lock may be taken
                self._leave(reader)

    @contextlib.contextmanager
    def decisions(self) -> Iterator[Dispatcher]:
        """Open the dispatcher for a block, from any thread, and afterwards do what it has decided."""
        with self._lock:
            try:
                yield self._dispatcher
            finally:
                effects = self._dispatcher.collect()
        self._act(effects)

    def wake_all(self) -> None:
        """Wake every reader, to look for itself why."""
        with self._lock:
            readers = self._dispatcher.every_reader()
        self._wake(readers)

    def keep_house(self, drops: DropLog) -> None:
        """Free what was not read in time; tell what was dropped; see to it that no reader holds the next one up."""
        with self.decisions() as dispatcher:
            dispatcher.expire(self._clock.now())
            overfull, dispatcher.overfull = dispatcher.overfull, Counter()
            readers = [reader for reader in dispatcher.every_reader() if isinstance(reader, Reader)]
            # Woken a round ago, and not come: the loop is blocked, or stopped just then.
            gone = [reader for reader in readers if reader.late or reader.loop.is_closed()]
            for reader in readers:
                reader.late = reader.woken
        self._leave(*gone)
        for (channel, group), count in overfull.items():
            drops.over_capacity(channel, group, count)

    @property
    def counters(self) -> Counter[str]:
        """What has been received and dropped so far, and why."""
        with self._lock:
            return Counter(self._dispatcher.counters)

    @property
    def state(self) -> str:
        """How many wait, and how much waits."""
        with self._lock:
            return f"{self._dispatcher.readers} waiting, {self._dispatcher.unread} unread"

    def _take(self, reader: Reader, *, shared: bool) -> bytes | None:
        """Return the next payload, or have the reader woken anew when there is one."""
        with self._lock:
            self._check()
            entry = self._dispatcher.take(reader.channel, self._clock.now())
            if entry is not None:
                if reader.waits:
                    self._dispatcher.leave(reader.channel, reader)
            else:
                if reader.future.done():
                    reader.future = reader.loop.create_future()
                self._dispatcher.wait(reader.channel, reader)
            reader.waits, reader.late = entry is None, False
            effects = self._dispatcher.collect()
        self._act(effects)
        if entry is not None:
            return entry.payload
        if shared:
            self._want(reader.channel)
        return None

    def _leave(self, *readers: Reader) -> None:
        """Remove readers, so that the next in line have their turn; none that is kept here is freed under the lock."""
        with self.decisions() as dispatcher:
            for reader in readers:
                reader.waits = False
                dispatcher.leave(reader.channel, reader)

    def _act(self, effects: Effects) -> None:
        if effects is NOTHING:
            return
        if effects.wake:
            self._wake(effects.wake)
        if effects.fetch or effects.delete or effects.rings or effects.controls:
            self._work(effects)

    def _wake(self, readers: Iterable[Any]) -> None:
        loops: defaultdict[asyncio.AbstractEventLoop, list[Reader]] = defaultdict(list)
        for reader in readers:
            loops[reader.loop].append(reader)
        for loop, woken in loops.items():
            try:
                loop.call_soon_threadsafe(resolve, [reader.future for reader in woken])
            except RuntimeError:  # the loop was closed with these readers pending
                self._leave(*woken)
            else:
                if not loop.is_running():  # if it ever does again, they look for themselves
                    self._leave(*woken)
