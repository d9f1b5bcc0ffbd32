"""The connections that statements run on, lent by an AsyncEngine over a psycopg_pool."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from channels_pg_sa.backoff import Backoff
from channels_pg_sa.config import Settings
from channels_pg_sa.errors import LayerClosed, words_of

from .connection import DEFAULTS, SETTINGS, CleanConnection, Connection, give_up, is_pooled, sever, time_limit
from .fate import needs_other_connection
from .held import Held

POOL_DEFAULTS: dict[str, Any] = {
    "name": "channels_pg_sa", "min_size": 0, "max_size": 2, "reconnect_timeout": 0.5, "timeout": 2.0,
}  # fmt: skip
POLL = 0.005
"""Seconds between two looks at the pool while it is closed."""
KEPT = 1.0
"""Seconds that a connection is kept at hand after its last statement, before it goes back to the pool."""
CHECK = 2.0
"""Seconds that a connection which rested in the pool may take to show that it is still one."""
SET_UP = 5.0
"""Seconds that a new connection may take for what it is told and asked before its first use."""


class Database:
    """Lend connections, a bounded number of them; belongs to one event loop.

    Taking one out of engine and pool costs more than the shortest statements do, so what was just used is kept at
    hand for a moment.

    Args:
        settings: of the layer.
    """

    def __init__(self, settings: Settings) -> None:
        self.trouble: str | None = None
        """Why the latest connection that somebody wanted could not be made, or set up; None if there was one since."""
        self.when_wanted: Callable[[], None] = lambda: None
        """Called as soon as somebody waits for a connection that is lent."""
        self.check_timeout = min(CHECK, settings.send_timeout / 4)
        """Seconds that a connection may take to show that it is still one."""
        self._settings = settings
        self._set_up_timeout = min(SET_UP, settings.send_timeout / 2)
        self._closed = False
        self._pool = self._make_pool()
        self._engine: AsyncEngine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=self._lend,
            poolclass=NullPool,
            pool_reset_on_return=None,  # psycopg_pool does it
            use_native_hstore=False,
        )
        self._slots = asyncio.Semaphore(self._pool.max_size)
        self._wanting = 0  # tasks that look for a connection
        self._lent: set[Held] = set()
        self._kept: deque[Held] = deque()  # at hand, the last used last
        self._offers: deque[asyncio.Future[Held | None]] = deque()  # to those who wait for one that is lent
        self._lending: dict[asyncio.Task[Any] | None, tuple[CleanConnection, asyncio.TimerHandle]] = {}  # to SQLAlchemy
        self._resting: set[asyncio.Task[None]] = set()  # tasks that give connections back

    async def open(self) -> None:
        """Start the pool; connects to nothing yet unless it has a min_size."""
        await self._pool.open()

    async def close(self, patience: float = 1.0) -> None:
        """Close every connection; one that is still lent after so many seconds is broken off."""
        self._closed = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._until_returned(), patience)
        await asyncio.gather(*(give_up(held.driver) for held in self._lent))
        while self._kept:
            await self._kept.pop().give_back()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._until_made(), patience)
        await self._engine.dispose()
        await self._pool.close(timeout=1.0)

    @contextlib.asynccontextmanager
    async def connection(self, timeout: float) -> AsyncIterator[Connection]:
        """Lend a connection in autocommit mode; waits for the server as long as it takes.

        Args:
            timeout: seconds that the statements on it may take; then the connection is broken off.
        """
        async with self.hold() as held, time_limit(held.driver, timeout, late=self.doubt):
            yield held.driver

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[Held]:
        """Lend a connection for many statements; `when_wanted` is called as soon as others wait for one."""
        if self.is_exhausted:
            self.when_wanted()
        async with self._slots:
            held = await self._take()
            self._lent.add(held)
            try:
                yield held
            except psycopg.Error as error:
                if needs_other_connection(error):
                    held.driver.pgconn.finish()
                raise
            finally:
                self._lent.discard(held)
                if held.driver.pgconn.transaction_status == TransactionStatus.ACTIVE:
                    held.driver.pgconn.finish()  # cancelled twice, before the server has answered: no use to anybody
                await self._put(held)

    @property
    def is_exhausted(self) -> bool:
        """Whether whoever wants a connection now has to wait for one that is lent."""
        return self._slots.locked() or bool(self._offers)

    @property
    def is_away(self) -> bool:
        """Whether the server cannot be reached. It can be while we have a connection, though it may give us no more."""
        return self.trouble is not None and not self._lent and not self._kept

    def doubt(self) -> None:
        """Ask every connection for a sign of life before its next use: another has been lost, perhaps in silence."""
        for held in (*self._kept, *self._lent):
            held.doubted = True

    async def _until_made(self) -> None:
        """Wait for connections that the pool is making: cancelled, they would stay until the garbage collector ran."""
        while self._is_making():  # noqa: ASYNC110 - the pool tells nobody
            await asyncio.sleep(POLL)

    def _is_making(self) -> bool:
        return self._pool.get_stats()["pool_size"] > self._idle()

    def _idle(self) -> int:
        """How many connections are in the pool, and not lent."""
        return self._pool.get_stats().get("pool_available", 0)

    async def _until_returned(self) -> None:
        for _ in range(self._pool.max_size):
            await self._slots.acquire()

    async def _take(self) -> Held:
        backoff = Backoff()
        self._wanting += 1
        try:
            while not self._closed:
                held = await self._at_hand() or await self._connect() or await self._left_over(backoff.next())
                if held is not None:
                    self.trouble = None
                    return held
        finally:
            self._wanting -= 1
        raise LayerClosed("The layer is closed.")

    async def _at_hand(self) -> Held | None:
        while self._kept:
            held = self._kept.pop()
            if held.timer is not None:
                held.timer.cancel()
            if held.is_alive() and not held.doubted:
                return held
            if await self._is_good(held):
                return held
        return None

    async def _left_over(self, seconds: float) -> Held | None:
        """Wait, but take a connection that another has done with: the server may allow no more of them.

        If that one is in doubt, wait no longer: it is kept at hand, and has to be asked for a sign of life first.
        """
        if self._kept:  # since we looked there
            return None
        self.when_wanted()
        offer: asyncio.Future[Held | None] = asyncio.get_running_loop().create_future()
        self._offers.append(offer)
        try:
            await asyncio.wait([offer], timeout=seconds)
        except asyncio.CancelledError:
            if offer.done():
                await self._put(offer.result())
            raise
        finally:
            if offer in self._offers:
                self._offers.remove(offer)
        return offer.result() if offer.done() else None

    async def _put(self, held: Held | None) -> None:
        """Hand a connection to whoever has waited longest, or keep it at hand.

        For one in doubt they have to look there; in place of one that has ended the server may grant another.
        """
        if held is not None and (self._closed or held.driver.closed):
            await held.give_back()
            held = None
        elif held is not None and (held.doubted or not self._offers):
            self._keep(held)
            held = None
        if self._offers:
            self._offers.popleft().set_result(held)

    def _keep(self, held: Held) -> None:
        self._kept.append(held)
        held.timer = asyncio.get_running_loop().call_later(KEPT, self._rest, held)

    def _rest(self, held: Held) -> None:
        if held in self._kept:
            self._kept.remove(held)
            self._spawn(held.give_back())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._resting.add(task)
        task.add_done_callback(self._resting.discard)

    async def _connect(self) -> Held | None:
        """Take a connection out of the engine; None if there is none to be had now."""
        # In trouble the server is asked directly: the pool tells its reasons to its log, again at each attempt. Not if
        # one has gone back to it meanwhile: the server may allow no more of them.
        if self.trouble is not None and not self._idle() and not await self._can_connect():
            return None
        try:
            sa_connection = await self._engine.connect()
            raw = await sa_connection.get_raw_connection()
        except (DBAPIError, psycopg.Error, OSError):  # SQLAlchemy wraps psycopg_pool's
            await self._take_back()
            if self.trouble is None:
                await self._can_connect()
            return None
        except (asyncio.CancelledError, Exception):
            await self._take_back()
            raise
        finally:
            self._end_limit()
        driver = raw.driver_connection
        if not isinstance(driver, CleanConnection):
            raise TypeError(f"The engine's connection is not the pool's but of type {type(driver).__name__}.")
        driver.borrower = None
        held = Held(sa_connection, driver)
        return held if await self._is_good(held) else None

    async def _lend(self) -> CleanConnection:
        """Give SQLAlchemy a connection of the pool's, for a limited time: it asks the first what server that is."""
        # Not to wait longer than by default: after an outage the pool lets whoever waits do so until their time is
        # over. Nor so long that no time is left to find out why.
        connection = await self._pool.getconn(min(self._pool.timeout, POOL_DEFAULTS["timeout"], self._set_up_timeout))
        connection.borrower = asyncio.current_task()
        timer = asyncio.get_running_loop().call_later(self._set_up_timeout, sever, connection)
        self._lending[connection.borrower] = connection, timer
        return connection

    def _end_limit(self) -> CleanConnection | None:
        """End the time limit of the connection that this task was lent, if any, and return that."""
        connection, timer = self._lending.pop(asyncio.current_task(), (None, None))
        if timer is not None:
            timer.cancel()
        return connection

    async def _take_back(self) -> None:
        """Give back a connection that this task was lent in vain: before version 2.1 SQLAlchemy forgets it."""
        connection = self._end_limit()
        if connection is not None and connection.borrower is asyncio.current_task():
            sever(connection)
            await self._pool.putconn(connection)

    def _make_pool(self) -> AsyncConnectionPool[CleanConnection]:
        options = {**_sized(self._settings.pool), "configure": self._configure}
        for name in ("configure", "check", "reset"):
            if (work := options.get(name)) is not None:
                options[name] = self._limited(work)
        return AsyncConnectionPool(connection_class=CleanConnection, kwargs=self._parameters, open=False, **options)

    def _limited(self, work: Callable[[Connection], Awaitable[None]]) -> Callable[[Connection], Awaitable[None]]:
        """Return the work with a time limit: the pool, which waits for it, makes no other connection meanwhile."""

        async def limited(connection: Connection) -> None:
            async with time_limit(connection, self._set_up_timeout):
                await work(connection)

        return limited

    async def _is_good(self, held: Held) -> bool:
        """Tell whether the server is still at the other end: a firewall that forgets a connection tells nobody.

        If it is not, or nobody waits for the answer any more, the connection is given back.
        """

        def end() -> None:
            self.doubt()
            sever(held.driver)
            self._spawn(self._pool.drain())  # else each that rests there would be asked in turn

        answers = False
        timer = asyncio.get_running_loop().call_later(self.check_timeout, end)
        try:
            with contextlib.suppress(psycopg.Error):
                await AsyncConnectionPool.check_connection(held.driver)
                held.doubted, answers = False, held.is_alive()  # a thread that stood still may have severed it
        finally:
            timer.cancel()
            if not answers:
                await held.give_back()
        return answers

    async def _can_connect(self) -> bool:
        """Tell whether the server lets us in; if it does not, `trouble` says why."""
        try:
            await (await CleanConnection.connect(**self._parameters())).close()
        except Exception as error:  # noqa: BLE001 - a callable PASSWORD may raise anything
            self._blame(error)
            return False
        return True

    def _parameters(self) -> dict[str, Any]:
        own = self._settings.connect()
        return {**DEFAULTS, "application_name": "channels_pg_sa", **own, "autocommit": True, "refused": self._blame}

    def _blame(self, error: Exception) -> None:
        """Note why there is no connection; not for one that the pool makes for later: all who wanted one have it."""
        if self._wanting:
            self.trouble = words_of(error)

    async def _configure(self, connection: Connection) -> None:
        """Set a new connection up; remember what refuses that: a pooler lets clients in before it asks the server."""
        try:
            await self._set_up_session(connection)
            self.trouble = None
        except Exception as error:
            if isinstance(error, psycopg.OperationalError) and not error.sqlstate:
                self.trouble = None  # broken off, but let in: what prevented others before does so no more
            else:
                self._blame(error)
            connection.pgconn.finish()  # the pool leaves that to the garbage collector
            raise

    async def _set_up_session(self, connection: Connection) -> None:
        """Have statements planned once, or, behind a pooler, which shares sessions, do without prepared statements."""
        if (own := self._settings.pool.get("configure")) is not None:
            await own(connection)
        if await is_pooled(connection):
            connection.prepare_threshold = None
        else:
            await connection.execute(SETTINGS)


def _sized(given: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a pool's options by ours: the largest size never stays below a smallest one that stands alone."""
    options = {**POOL_DEFAULTS, **given}
    if "max_size" not in given or (options["max_size"] is None and options["min_size"] == 0):
        options["max_size"] = max(options["min_size"], POOL_DEFAULTS["max_size"])
    return options
