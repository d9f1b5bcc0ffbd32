"""What receive() waits for: hands messages to pending receive() calls of any thread and event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator

from channels_pg_sa.call import resolve
from channels_pg_sa.drops import DropLog
from channels_pg_sa.entry import Entry
from channels_pg_sa.errors import LayerClosed

from .clock import Clock
from .dispatcher import Dispatcher
from .localchannels import Effects, Reader


class Inbox:
    """Guard the dispatcher, wake the readers it chooses, and pass on what else it has decided.

    Args:
        dispatcher: decides.
        clock: the database's.
        work: called, from any thread, with decisions that need the database.
        want: called with the channel, from any thread, when a reader waits that rows may have to be claimed for.
    """

    def __init__(
        self, dispatcher: Dispatcher, clock: Clock, *, work: Callable[[Effects], None], want: Callable[[str], None]
    ) -> None:
        self.failure: Exception | None = None
        self._dispatcher = dispatcher
        self._unread = dispatcher.unread
        self._woken: set[Reader] = set()
        self._abandoned: deque[Reader] = deque()
        self._clock = clock
        self._work = work
        self._want = want
        # Taken by `with` alone: between acquire() and `try` a signal's handler may raise, and nobody would release it.
        self._lock = threading.Lock()

    def take(self, channel: object) -> Entry | None:
        """Return the next message of a channel, None if there is none or it takes more to tell."""
        if not isinstance(channel, str) or channel not in self._unread:  # whoever misses one by a hair will be woken
            return None
        dispatcher = self._dispatcher
        with self._lock:
            entry = dispatcher.take(channel, self._clock.now()) if self.failure is None else None
            effects = None if dispatcher.effects is None else dispatcher.collect()
        if effects is not None:
            self._act(effects)
        return entry

    async def receive(self, channel: str, *, shared: bool) -> Entry:
        """Wait for the next message of a channel.

        A message stays in its place until the reader, awake and not cancelled, takes it: nothing is ever put back.

        Args:
            channel: a name, or what names begin with up to their `!`.
            shared: whether other nodes may read it too.
        """
        reader: Reader | None = None
        try:
            while not isinstance(found := self._take_or_wait(channel, reader), Entry):
                reader = found
                if shared:
                    self._want(channel)
                await reader
        except GeneratorExit:
            # A coroutine may be freed in any thread, at any moment, under the lock too: then nobody may take it.
            if reader is not None:
                self._abandoned.append(reader)
            raise
        except BaseException:
            if reader is not None:
                self._give_up(channel, reader)
            raise
        return found

    def check(self) -> None:
        """Raise the reason why nobody can be served, if there is one."""
        failure = self.failure  # which another thread may take away meanwhile
        if failure is not None:
            raise failure.with_traceback(None)  # the same for all: it must not remember each

    @contextlib.contextmanager
    def decisions(self) -> Iterator[Dispatcher]:
        """Open the dispatcher for a block, from any thread, and afterwards do what it has decided.

        What it had decided when the block raised is done by the next.
        """
        with self._lock:
            yield self._dispatcher
            effects = self._dispatcher.collect()
        self._act(effects)

    def fail(self, error: Exception) -> None:
        """Serve nobody any more, and wake those who wait, to see for themselves."""
        with self._lock:
            if not self.is_closed:
                self.failure = error
            readers = self._dispatcher.every_reader()
        self._act(Effects(wake=readers))

    def serve(self) -> None:
        """Serve again, unless the layer was closed."""
        with self._lock:
            if not self.is_closed:
                self.failure = None

    @property
    def is_closed(self) -> bool:
        """Whether the layer was closed, so that nobody will be served again."""
        return isinstance(self.failure, LayerClosed)

    def dismiss(self) -> None:
        """Remove all readers, who have been told of the failure, so that messages meant for them count as unread."""
        with self.decisions() as dispatcher:
            dispatcher.remove_readers(dispatcher.every_reader())

    def keep_house(self, drops: DropLog, *, thoroughly: bool) -> None:
        """Free what was not read in time; tell what was dropped; see to it that no reader holds the next one up."""
        with self.decisions() as dispatcher:
            dispatcher.expire(self._clock.now())
            overfull, dispatcher.overfull = dispatcher.overfull, Counter()
            # Woken a round ago, and not come: the loop is blocked, or stopped just then.
            gone, woken = self._woken & dispatcher.woken, set(dispatcher.woken)
            while self._abandoned:
                gone.add(self._abandoned.popleft())
            if thoroughly:
                gone.update(reader for reader in dispatcher.every_reader() if reader.get_loop().is_closed())
                dispatcher.tidy()
        self._woken = woken
        self._wake(gone)  # once more: whoever chose them may have been interrupted before it told them
        self._act(self._remove(gone))
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
            return f"{self._dispatcher.reader_count} waiting, {self._dispatcher.unread_count} unread"

    def _take_or_wait(self, channel: str, reader: Reader | None) -> Entry | Reader:
        """Return the next message, or, in place of a reader that was woken, one that will be when there is one."""
        dispatcher = self._dispatcher
        found: Entry | Reader | None = None
        with self._lock:
            if self.failure is not None:  # under the lock: whoever sets the reason wakes all readers afterwards
                self.check()
            if channel in self._unread or channel[-1] == "!":
                found = dispatcher.take(channel, self._clock.now())
            if found is None:
                found = asyncio.get_running_loop().create_future()
                dispatcher.wait(channel, found, instead_of=reader)
            elif reader is not None:
                dispatcher.served(channel, reader)
            effects = None if dispatcher.effects is None else dispatcher.collect()
        if effects is not None:
            self._act(effects)
        return found

    def _give_up(self, channel: str, reader: Reader) -> None:
        with self._lock:  # not by decisions(): a generator that a signal's handler interrupts may live on, and keep it
            self._dispatcher.remove_reader(channel, reader)
            effects = self._dispatcher.collect()
        self._act(effects)

    def _remove(self, readers: Collection[Reader]) -> Effects | None:
        """Remove readers, so that the next in line have their turn; none that is kept here is freed under the lock."""
        with self._lock:
            self._dispatcher.remove_readers(readers)
            return self._dispatcher.collect()

    def _act(self, effects: Effects | None) -> None:
        while effects is not None:
            stuck = self._wake(effects.wake)
            if effects.fetch or effects.delete or effects.rings or effects.flushes:
                self._work(effects)
            effects = self._remove(stuck) if stuck else None

    def _wake(self, readers: Iterable[Reader]) -> list[Reader]:
        """Wake readers; return those whose loop does not run, so that they hold nobody up."""
        loops: defaultdict[asyncio.AbstractEventLoop, list[Reader]] = defaultdict(list)
        for reader in readers:
            loops[reader.get_loop()].append(reader)
        stuck: list[Reader] = []
        for loop, woken in loops.items():
            with contextlib.suppress(RuntimeError):  # the loop was closed with these readers pending
                loop.call_soon_threadsafe(resolve, woken)
            if not loop.is_running():  # if it ever does again, they look for themselves
                stuck += woken
        return stuck
