"""A connection on which any thread may start a statement, so that a lone call need not go through the I/O thread.

A statement that waits for nobody else's is handed to libpq by the thread that wants it; the I/O thread reads the
answer. So the connection stays with the one loop that no caller can take along, and a caller's loop that stands still
holds nobody up.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

from channels_pg_sa.call import Call, resolve
from channels_pg_sa.connections.connection import give_up, sever, time_limit
from channels_pg_sa.connections.database import KEPT, Database
from channels_pg_sa.connections.fate import OUTAGE, needs_other_connection
from channels_pg_sa.connections.held import Held
from channels_pg_sa.logs import Logger
from channels_pg_sa.statements.prepared import Bound, Prepared

logger = Logger(__name__)

REFUSED = 60.0
"""Seconds until another attempt where the role may not do what these statements do; the slow path needs less."""

Done = Callable[[psycopg.Error | None, list[PGresult]], None]
GoOn = Callable[[PGresult], bool]


def _always(_result: PGresult) -> bool:
    return True


class FastPath:
    """Run prepared statements one by one on a connection that is held while they follow each other closely.

    What it does not do for certain, it leaves to whoever asked: it never waits for a connection, and never does a
    statement again.

    Args:
        loop: the I/O loop.
        database: lends the connection.
        prepared: the statements.
        limit: seconds that statements which follow each other may take; then the connection is broken off.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, database: Database, prepared: Prepared, *, limit: float
    ) -> None:
        self._loop = loop
        self._database = database
        self._prepared = prepared
        self._limit = limit
        self._lock = threading.Lock()  # of the connection, of which libpq allows one user at a time
        self._held: Held | None = None  # the connection, while statements may be begun on it
        self._socket = -1  # its twin, which the loop watches
        self._done: Done | None = None  # whom to tell of the statement under way; None while there is none
        self._following: list[Bound] = []  # what is to be run after it
        self._go_on: GoOn = _always  # whether that is begun
        self._at_rest: list[Callable[[], None]] = []  # what waits for all that to be over
        self._error: psycopg.Error | None = None  # what has come of the answers
        self._results: list[PGresult] = []
        self._since = 0.0  # when it, or the last, began
        self._leaving = False  # whether the connection is given back after that
        self._left: asyncio.Future[None] = loop.create_future()  # done when the connection is wanted no more
        self._slow_at = float("-inf")  # when calls last took the slow path
        self._not_before = float("-inf")  # when a connection may be held again
        self._task: asyncio.Task[None] | None = None  # which holds the connection
        database.when_wanted = self.release_soon

    # From any thread -----------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as one can tell without asking."""
        return self._held is not None

    def run(self, statements: Sequence[Bound], done: Done, go_on: GoOn = _always) -> bool:
        """Start statements, one after the other; return False, with nothing begun, if that cannot be done here and now.

        Args:
            statements: some of the prepared. Each commits by itself, and none is begun after one that failed.
            done: called on the I/O loop with the error, None if there was none, and the results of what was begun.
            go_on: called on the I/O loop with the result of a statement that another follows; tells whether that is
                begun.
        """
        with self._lock:
            held = self._held
            if held is None or self._leaving or self._done is not None:
                return False
            if held.doubted or held.has_news():  # the I/O thread finds out what it is
                return False
            try:
                self._done, self._since = done, time.monotonic()
                self._error, self._results = None, []
                self._following, self._go_on = list(statements), go_on
                self._send_next(held)
            except psycopg.Error as error:
                sever(held.driver)  # whatever has gone out of it, nothing may follow
                self._error = error
                self._loop.call_soon_threadsafe(self._conclude, held)
            except BaseException:  # a thread may be interrupted anywhere: libpq has all of the statement, or nothing
                if held.driver.pgconn.transaction_status == TransactionStatus.IDLE:
                    self._done, self._following = None, []
                else:
                    self._loop.call_soon_threadsafe(self._write_rest, held)
                raise
        return True

    def _send_next(self, held: Held) -> None:
        """Hand the next statement to libpq; with the lock held."""
        statement, pgconn = self._following.pop(0), held.driver.pgconn
        formats = [Format.BINARY] * len(statement.values)
        pgconn.send_query_prepared(statement.name, statement.values, formats)
        if pgconn.flush():
            self._loop.call_soon_threadsafe(self._write_rest, held)

    # On the I/O loop -----------------------------------------------------------------------------

    def note_calls(self, calls: Iterable[Call[Any]]) -> None:
        """Note calls that took the slow path: hold a connection if all is well and they follow each other closely."""
        if any(call.error is not None for call in calls):
            return
        now = time.monotonic()
        closely, self._slow_at = now - self._slow_at < KEPT, now
        if closely and self._task is None and now > self._not_before and not self._database.is_exhausted:
            self._task = self._loop.create_task(self._hold(), name="channels_pg_sa fast path")
            self._task.add_done_callback(self._ended)

    def release_soon(self) -> None:
        """Give the connection back, when the statement under way is done: others wait for one."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + KEPT)
            self._leaving = True
            if self._done is None:
                self._release()

    def when_at_rest(self, function: Callable[[], None]) -> None:
        """Call a function as soon as no statement is under way, after whoever waits for that has been told."""
        with self._lock:
            if self._done is not None:
                self._at_rest.append(function)
                return
        function()

    async def close(self) -> None:
        """Give the connection back, and hold none any more; a statement that is under way is broken off."""
        self._not_before = float("inf")
        with self._lock:
            held = self._held if self._done is not None else None
            self._leaving, self._following = True, []
        if held is not None:
            await give_up(held.driver)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _hold(self) -> None:
        self._left, self._leaving = self._loop.create_future(), False
        async with self._database.hold() as held:
            if held.driver.prepare_threshold is None:  # a pooler stands in between, which shares sessions
                self._not_before = float("inf")
                return
            with held.driver.twin() as self._socket:
                prepared = await self._execute(held, self._prepared.prepare)
                self._prepared.learn(await prepared.fetchone())
                with self._watching(held):
                    await self._until_left(held)
                if held.is_alive():
                    await self._execute(held, self._prepared.deallocate)

    async def _execute(self, held: Held, statements: str) -> psycopg.AsyncCursor[Any]:
        """Run statements; a cancellation waits for them.

        On an error, but that of a role that may not do it at all, the connection is broken off, so that no session
        keeps some of what they prepare.
        """
        executing = asyncio.ensure_future(held.driver.execute(statements))
        async with time_limit(held.driver, self._database.check_timeout):
            try:
                return await asyncio.shield(executing)
            except psycopg.errors.InsufficientPrivilege:  # of the first, which reads the secret: none was prepared
                raise
            except psycopg.Error:
                sever(held.driver)
                held.is_alive()  # libpq sees the end, so that nobody takes it for a connection to use
                raise
            except asyncio.CancelledError:
                with contextlib.suppress(psycopg.Error):
                    await executing
                raise

    @contextlib.contextmanager
    def _watching(self, held: Held) -> Iterator[None]:
        self._loop.add_reader(self._socket, self._readable, held)
        try:
            with self._lock:
                self._since = time.monotonic()
                self._held = None if self._leaving else held
            yield
        finally:
            self._break_off(held)
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)

    async def _until_left(self, held: Held) -> None:
        """Wait until the connection is not wanted any more: for a while, by others, or at all."""
        pause = min(KEPT, self._limit)
        while not self._left.done():
            await asyncio.wait([self._left], timeout=pause)
            with self._lock:
                quiet = time.monotonic() - self._since
                if self._done is None and quiet >= KEPT:
                    self._release()
                late = self._done is not None and quiet >= self._limit
                if late:  # nothing begins on it that would be given up too
                    self._leaving, self._following = True, []
                pause = max(0.01, min(KEPT, self._limit - quiet))
            if late:
                self._database.doubt()
                await give_up(held.driver)
                return  # whether the loop sees the end of a socket or not, the caller is told

    def _break_off(self, held: Held) -> None:
        """Leave no statement under way, and no caller without an answer."""
        with self._lock:
            self._held = None
            if self._done is None:
                return
            sever(held.driver)
            held.doubted = True
            self._error = psycopg.OperationalError("the connection was broken off")
        self._conclude(held)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._not_before = time.monotonic() + (REFUSED if _is_refused(error) else KEPT)
            if not isinstance(error, OUTAGE):
                logger.error("The task %s died", task.get_name(), exc_info=error)

    def _readable(self, held: Held) -> None:
        with self._lock:
            answered = self._read(held.driver.pgconn)
            if answered and self._done is None:
                if self._error is not None:
                    self._release()  # it ended while nothing was under way
                return  # once the lock is released, a new statement may begin
        if answered and not (self._following and self._error is None and self._begins_next(held)):
            self._conclude(held)

    def _read(self, pgconn: PGconn) -> bool:
        """Take what has arrived; return whether nothing more is to come."""
        try:
            pgconn.consume_input()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    return True
                self._results.append(result)
                if result.status == ExecStatus.FATAL_ERROR:
                    self._error = error_from_result(result)
        except psycopg.OperationalError as error:
            self._error = self._error or error
            return True
        return False

    def _begins_next(self, held: Held) -> bool:
        """Begin the statement that follows, if it is still wanted; return whether it was begun."""
        wanted = self._go_on(self._results[-1])
        with self._lock:
            if not wanted:
                return False
            try:
                self._send_next(held)
            except psycopg.Error as error:
                sever(held.driver)
                self._error = error
                return False
        return True

    def _conclude(self, held: Held) -> None:
        """Tell of the statement's outcome; after an error the connection is not used here again."""
        with self._lock:
            done, self._done, self._following = self._done, None, []
            error, results = self._error, self._results
            if (error is not None or self._leaving) and self._held is held:
                self._release()
            if error is not None and _is_refused(error):
                self._not_before = max(self._not_before, time.monotonic() + REFUSED)
            if error is not None and needs_other_connection(error):
                held.driver.pgconn.finish()
        if done is not None:
            done(error, results)
        at_rest, self._at_rest = self._at_rest, []
        for function in at_rest:
            function()

    def _release(self) -> None:
        """Let go of the connection; with the lock held, from any thread."""
        self._held = None
        self._loop.call_soon_threadsafe(resolve, [self._left])

    def _write_rest(self, held: Held) -> None:
        if self._held is held:
            self._loop.add_writer(self._socket, self._writable, held)

    def _writable(self, held: Held) -> None:
        with self._lock:
            try:
                unsent = held.driver.pgconn.flush()
            except psycopg.Error:  # the reader is told too
                unsent = 0
        if not unsent:
            self._loop.remove_writer(self._socket)


def _is_refused(error: BaseException) -> bool:
    return isinstance(error, psycopg.errors.InsufficientPrivilege)
