"""Reads the queues that this node's readers share with other nodes: hears their doorbells, and claims rows."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator

import psycopg

from channels_pg_sa.claims import ANYWHERE, Claim, ClaimBook
from channels_pg_sa.config import Settings
from channels_pg_sa.connections.database import Database
from channels_pg_sa.connections.fate import Fate, fate, log_level
from channels_pg_sa.entry import Row
from channels_pg_sa.errors import words_of
from channels_pg_sa.iothread import Spawn
from channels_pg_sa.logs import Logger
from channels_pg_sa.names import queue_of
from channels_pg_sa.statements.queries import Claimed, Queries
from channels_pg_sa.topics import Topics

from .backlog import Backlog
from .inbox import Inbox
from .listener import Listener

logger = Logger(__name__)

MOST = 1000
"""Rows that one claim takes; fewer after claims whose answers were lost, since over a slow line they were too large."""
_NO_CHANNEL = ""
"""In place of a channel to claim for: only what was claimed and not read is to be returned."""


class QueueReader:
    """Claim rows of queues for readers who wait, and return what nobody has read; lives on the I/O loop.

    Args:
        settings: of the layer.
        database: lends connections.
        queries: the layer's statements.
        inbox: whose dispatcher decides.
        listener: hears the doorbells.
        topics: on which they come.
        reread: reads the node's mailbox again, because something may be in it that nobody knows of.
        spawn: starts a task and holds it.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        queries: Queries,
        inbox: Inbox,
        *,
        listener: Listener,
        topics: Topics,
        reread: Callable[[], Awaitable[None]],
        spawn: Spawn,
    ) -> None:
        self.book = ClaimBook()
        self._settings = settings
        self._database = database
        self._queries = queries
        self._inbox = inbox
        self._listener = listener
        self._topics = topics
        self._reread = reread
        self._doubtful_until = 0.0
        self._is_unread = False
        self._flushes = 0
        self._idle: set[str] = set()
        self._returning: set[Row] = set()
        self._refusal = ""  # why they could not be returned the last time
        self._most = MOST
        make = functools.partial(Backlog[str], spawn=spawn, level=log_level, batch=100)
        self.claims = make("channels_pg_sa claims", run=self._claim)
        self.listens = make("channels_pg_sa doorbells", run=self._hear_doorbells)
        self.rereads: Backlog[None] = Backlog(
            "channels_pg_sa mailbox", spawn=spawn, level=log_level, batch=1, run=lambda _: reread()
        )

    @property
    def queues(self) -> list[str]:
        """The queues whose doorbells this node must hear."""
        return sorted(self.book.queues)

    # What happens --------------------------------------------------------------------------------

    def on_reader(self, channel: str) -> None:
        """A reader waits for a channel that other nodes may read as well."""
        if self.book.open(channel):
            self.listens.add([queue_of(channel)])
        else:
            self.claims.add([channel])

    def on_ring(self, queue: str, first: int, last: int | None = None) -> None:
        """A queue has a new row, or rows from a first to a last one."""
        self.claims.add(self.book.ring(queue, first, last))

    def on_filled(self, queues: Iterable[str]) -> None:
        """Rows wait in these queues, whether their doorbells were heard or not."""
        for queue in queues:
            self.on_ring(queue, *ANYWHERE)

    def on_listening(self, queues: Iterable[str]) -> None:
        """These queues' doorbells are listened for from now on."""
        for queue in queues:
            self.claims.add(self.book.listening(queue))

    def on_flush(self) -> None:
        """All rows were deleted: what a claim under way returns may be among them."""
        self._flushes += 1

    # What to do ----------------------------------------------------------------------------------

    def listen_to_late(self) -> None:
        """Listen for queues that were wanted while there was no connection to listen on."""
        self.listens.add(self.book.deaf)

    def give_back(self) -> None:
        """Return what was claimed here and nobody here reads."""
        with self._inbox.decisions() as dispatcher:
            self._returning.update(dispatcher.claimed_unread())
        if self._returning:
            self.claims.add([_NO_CHANNEL])  # by the same task as claims, so that no row goes both ways at once

    def reread_if_doubtful(self) -> None:
        """Look for what a claim may have moved that the server did not finish before it was given up."""
        if time.monotonic() < self._doubtful_until:
            self.rereads.add([None])

    def rest(self) -> None:
        """Stop listening for queues without readers in two successive calls."""
        with self._inbox.decisions() as dispatcher:
            idle = {channel for channel in self.book.channels if not dispatcher.is_read(channel)}
        before = self.book.queues
        for channel in idle & self._idle:
            self.book.close(channel)
        self._idle = idle
        self.listens.add(before - self.book.queues)

    async def finish(self, timeout: float) -> None:
        """Wait until nothing is left to claim or return, but no longer than so many seconds."""
        await self.claims.finish(timeout)

    # Parts ---------------------------------------------------------------------------------------

    async def _hear_doorbells(self, queues: list[str]) -> None:
        """Listen to the doorbells of those that have readers, and no more to others."""
        read = self.book.queues.intersection(queues)
        if unread := sorted(set(queues) - read):
            await self._listen(unread, stop=True)
        if read and await self._listen(sorted(read)):
            self.on_listening(read)
        # Otherwise the listener is on its way, and will LISTEN to all queues of the book.

    async def _listen(self, queues: list[str], *, stop: bool = False) -> bool:
        topics = self._topics.of_queues(queues)
        return await self._listener.change(lambda connection: self._queries.listen(connection, topics, stop=stop))

    async def _claim(self, channels: list[str]) -> None:
        await self._return_if_allowed()
        if self._is_unread:
            # What the last claim may have moved comes before what this one will.
            await self._reread()
            self._is_unread = False
        claims = self._start_claims(channels)
        if not claims:
            return
        flushes = self._flushes
        with self._outcome_known(claims):
            async with self._database.connection(self._settings.send_timeout) as connection:
                got = await self._queries.claim(connection, claims)
        self._take_in(claims, got, is_current=flushes == self._flushes)

    def _start_claims(self, channels: list[str]) -> list[Claim]:
        with self._inbox.decisions() as dispatcher:
            readers = {channel: dispatcher.waiting(channel) for channel in channels if channel != _NO_CHANNEL}
            started = (self.book.start(channel, min(count, self._most)) for channel, count in readers.items())
            claims = [claim for claim in started if claim is not None]
            if claims:
                dispatcher.rows.begin_query()
        return claims

    def _take_in(self, claims: list[Claim], got: list[Claimed], *, is_current: bool) -> None:
        """Hand over what claims have got, unless a flush came between; go on where more may wait."""
        queues = Counter(claim.queue for claim in claims)
        outcomes = list(zip(claims, got, strict=True))
        shared = {claim.queue for claim, claimed in outcomes if claimed.rows and queues[claim.queue] > 1}
        with self._inbox.decisions() as dispatcher:
            for claim, claimed in outcomes:
                self.book.finish(claim, [row[0] for row in claimed.rows], claimed.end)
                if is_current:
                    dispatcher.claimed(claimed.rows)
            dispatcher.rows.end_query()
            for claim in claims:
                if claim.queue in shared:  # several may have picked the same rows, of which one has got them
                    self.book.ring(claim.queue, claim.first, claim.last)
            channels = [claim.channel for claim in claims]
            due = [channel for channel in channels if self.book.is_due(channel) and dispatcher.waiting(channel)]
        if not is_current:
            self.rereads.add([None])
        self.claims.add(due)

    @contextlib.contextmanager
    def _outcome_known(self, claims: list[Claim]) -> Iterator[None]:
        """See to it that rows which were claimed by a statement whose answer was lost are found again."""
        try:
            yield
            self._most = min(MOST, self._most + 1)
        except BaseException as error:
            for claim in claims:
                self.book.fail(claim)
            with self._inbox.decisions() as dispatcher:
                dispatcher.rows.end_query()
            if isinstance(error, psycopg.Error) and fate(error) is Fate.UNKNOWN:
                self._most = max(1, max(claim.count for claim in claims) // 2)
                self._doubtful_until = time.monotonic() + self._settings.expiry
                self._is_unread = True
            raise

    async def _return_if_allowed(self) -> None:
        """Return rows. What the server refuses for certain, which somebody must mend, keeps no others from going on."""
        try:
            await self._return_rows()
            self._refusal = ""
        except psycopg.Error as error:
            if fate(error) is not Fate.REFUSED:
                raise
            reason = words_of(error)
            level = logging.DEBUG if reason == self._refusal else logging.ERROR
            logger.log(level, "Messages that nobody here reads cannot go back to their queues: %s", reason)
            self._refusal = reason

    async def _return_rows(self) -> None:
        if self._returning:
            async with self._database.connection(self._settings.send_timeout) as connection:
                rows = sorted(self._returning)
                await self._queries.put_back(connection, rows)
            self._returning.difference_update(rows)
            with self._inbox.decisions() as dispatcher:
                dispatcher.rows.returned(rows)
            # Before their doorbell comes, a claim could pass over them.
            for queue in self.book.queues:
                self.on_ring(queue, rows[0][0], rows[-1][0])
