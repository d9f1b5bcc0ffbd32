"""Does what the dispatcher decides: fetches, claims, returns and deletes rows."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import psycopg

from .backlog import Backlog
from .claims import Claim, ClaimBook
from .database import Database
from .dispatcher import Dispatcher
from .fate import Fate, fate, level
from .mailboxes import Effects
from .names import queue_of
from .queries import Queries

MOST = 1000
"""Rows that one claim takes; fewer after claims whose answers were lost, since over a slow line they were too large."""

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]


class Courier:
    """Carry messages between the tables and the dispatcher; lives on the I/O loop.

    Args:
        database: lends connections.
        queries: the layer's statements.
        decisions: opens the dispatcher for a block, and afterwards does what it has decided.
        listen: LISTENs to the doorbells of queues, or stops; tells whether it could.
        deleted: is told how many rows were deleted.
        reread: reads the node's mailbox again, because something may be in it that nobody knows of.
        spawn: starts a task and holds it.
        patience: seconds a statement may take.
        expiry: seconds a message may wait.
        bounded: whether senders count the rows of unread messages.
    """

    def __init__(
        self,
        database: Database,
        queries: Queries,
        *,
        decisions: Callable[[], contextlib.AbstractContextManager[Dispatcher]],
        listen: Callable[[list[str], bool], Coroutine[Any, Any, bool]],
        deleted: Callable[[int], None],
        reread: Callable[[], Awaitable[None]],
        spawn: Spawn,
        patience: float,
        expiry: float,
        bounded: bool,
    ) -> None:
        self.book = ClaimBook()
        self.is_current = True
        """Whether ids mean what they meant: after a crash of the server others' rows may have them, until recovery."""
        self._database = database
        self._queries = queries
        self._decisions = decisions
        self._listen = listen
        self._deleted = deleted
        self._reread = reread
        self._patience = patience
        self._expiry = expiry
        self._doubtful_until = 0.0
        self._is_unread = False
        self._flushes = 0
        self._idle: set[str] = set()
        self._returning: dict[int, float] = {}
        self._most = MOST
        make = functools.partial(Backlog, spawn=spawn, level=level)
        # Deleting can wait, so that more rows go together: nobody waits for it but senders who count what is unread.
        pause = 0.02 if bounded else 0.1
        self.deletions: Backlog[int] = make("channels_pg_sa deletions", run=self._delete, batch=5000, pause=pause)
        self.fetches: Backlog[int] = make("channels_pg_sa fetches", run=self._fetch, batch=32)
        self.claims: Backlog[str] = make("channels_pg_sa claims", run=self._claim, batch=100)
        self.rereads: Backlog[None] = make("channels_pg_sa mailbox", run=lambda _: reread(), batch=1)
        self.doorbells: Backlog[str] = make("channels_pg_sa doorbells", run=self._hear_doorbells, batch=100)

    def work(self, effects: Effects) -> None:
        """Do what the dispatcher has decided."""
        self.fetches.add(effects.fetch)
        self.deletions.add(effects.delete)
        for ring in effects.rings:
            self.ring(ring.queue, ring.id)

    def want(self, channel: str) -> None:
        """A reader waits for a channel that other nodes may read as well."""
        if self.book.open(channel):
            self.doorbells.add([queue_of(channel)])
        else:
            self.claims.add([channel])

    def ring(self, queue: str, row: int) -> None:
        """A queue has rows from this id on."""
        self.claims.add(self.book.ring(queue, row))

    def hears(self, queues: list[str]) -> None:
        """These queues' doorbells are listened for from now on."""
        for queue in queues:
            self.claims.add(self.book.listening(queue))

    def listen_to_late(self) -> None:
        """Listen for queues that were wanted while there was no connection to listen on."""
        self.doorbells.add(self.book.deaf)

    def overlooked(self, queues: list[str]) -> None:
        """Rows wait in these queues, whether their doorbells were heard or not."""
        for queue in queues:
            self.ring(queue, 0)

    def vanished(self, rows: set[int]) -> None:
        """Rows are gone that a server lost which crashed: what was to be done to them is not done to others."""
        self.deletions.drop(rows)
        for row in rows:
            self._returning.pop(row, None)

    def flushed(self) -> None:
        """All rows were deleted: what a claim under way returns may be among them."""
        self._flushes += 1

    def give_back(self) -> None:
        """Return what was claimed here and nobody here reads."""
        with self._decisions() as dispatcher:
            rows = dispatcher.claimed_unread()
        if rows:
            self._returning.update(rows)
            self.claims.add([""])  # by the same task as claims, so that no row goes both ways at once

    async def rest(self) -> None:
        """Stop listening for the queues of channels that nobody here has read for two rounds of this.

        And look for what a claim may have moved that the server did not finish before it was given up.
        """
        if time.monotonic() < self._doubtful_until:
            self.rereads.add([None])
        with self._decisions() as dispatcher:
            idle = {channel for channel in self.book.channels if not dispatcher.is_read(channel)}
        before = self.book.queues
        for channel in idle & self._idle:
            self.book.close(channel)
        self._idle = idle
        if gone := before - self.book.queues:
            await self._listen(sorted(gone), True)
            self.doorbells.add(gone & self.book.queues)  # a reader came while we stopped listening

    async def finish(self, timeout: float) -> None:
        """Wait until nothing is left to do, but no longer than so many seconds."""
        end = time.monotonic() + timeout
        for backlog in (self.claims, self.deletions):
            await backlog.finish(max(0.0, end - time.monotonic()))

    async def _hear_doorbells(self, queues: list[str]) -> None:
        if await self._listen(queues, False):
            self.hears(queues)
        # Otherwise the listener is on its way, and will LISTEN to all queues of the book.

    async def _fetch(self, rows: list[int]) -> None:
        async with self._database.connection(self._patience) as connection:
            self._check_current()
            found = await self._queries.fetch(connection, rows)
        payloads = {row: payload for row, payload in found.items() if payload is not None}
        left = found.keys() - payloads.keys()
        with self._decisions() as dispatcher:
            dispatcher.fetched([row for row in rows if row not in left], payloads)
        self.fetches.add(sorted(left))

    async def _delete(self, batch: list[int]) -> None:
        async with self._database.connection(self._patience) as connection:
            self._check_current()
            rows = [row for row in batch if row in self.deletions.underway]
            await self._queries.forget(connection, rows)
        self._deleted(len(rows))
        with self._decisions() as dispatcher:
            dispatcher.deleted(rows)

    def _check_current(self) -> None:
        if not self.is_current:
            raise psycopg.OperationalError("the mailbox is about to be read anew")

    async def _claim(self, channels: list[str]) -> None:
        await self._return_rows()
        if self._is_unread:
            # What the last claim may have moved comes before what this one will.
            await self._reread()
            self._is_unread = False
        claims = self._start_claims(channels)
        if not claims:
            return
        queues = Counter(claim.queue for claim in claims)
        flushes = self._flushes
        with self._outcome_known(claims):
            async with self._database.connection(self._patience) as connection:
                got = await self._queries.claim(connection, claims)
        again = []
        with self._decisions() as dispatcher:
            for claim, rows in zip(claims, got, strict=True):
                self.book.finish(claim, [row[0] for row in rows])
                if rows and queues[claim.queue] > 1:  # another claim of this batch may have picked the same rows
                    self.book.ring(claim.queue, claim.floor)
                again.append(claim.channel)
                if flushes == self._flushes:
                    dispatcher.claimed(rows)
        if flushes != self._flushes:
            self.rereads.add([None])
        self.claims.add(channel for channel in again if self._may_claim(channel))

    def _start_claims(self, channels: list[str]) -> list[Claim]:
        with self._decisions() as dispatcher:
            readers = {channel: dispatcher.waiting(channel) for channel in channels if channel}
        started = (self.book.start(channel, min(count, self._most)) for channel, count in readers.items())
        return [claim for claim in started if claim is not None]

    def _may_claim(self, channel: str) -> bool:
        with self._decisions() as dispatcher:
            return self.book.is_due(channel) and dispatcher.waiting(channel) > 0

    @contextlib.contextmanager
    def _outcome_known(self, claims: list[Claim]) -> Iterator[None]:
        """See to it that rows which were claimed by a statement whose answer was lost are found again."""
        try:
            yield
            self._most = min(MOST, self._most + 1)
        except BaseException as error:
            for claim in claims:
                self.book.fail(claim)
            if isinstance(error, psycopg.Error) and fate(error) is Fate.UNKNOWN:
                self._most = max(1, max(claim.count for claim in claims) // 2)
                self._doubtful_until = time.monotonic() + self._expiry
                self._is_unread = True
            raise

    async def _return_rows(self) -> None:
        if self._returning:
            async with self._database.connection(self._patience) as connection:
                rows = dict(self._returning)
                await self._queries.put_back(connection, rows)
            for row in rows:
                self._returning.pop(row, None)
            with self._decisions() as dispatcher:
                dispatcher.returned(rows)
            for queue in self.book.queues if rows else ():  # before their doorbell comes, a claim could pass over them
                self.ring(queue, min(rows))
