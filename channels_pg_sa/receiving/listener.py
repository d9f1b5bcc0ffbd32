"""The one connection that LISTENs: it comes back by itself, and first reads what it may have missed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg
from psycopg.pq import PGnotify

from channels_pg_sa.address import Connector
from channels_pg_sa.backoff import Backoff
from channels_pg_sa.connections.connection import (
    DEFAULTS,
    SETTINGS,
    CleanConnection,
    Connection,
    is_farewell,
    sever,
    time_limit,
)
from channels_pg_sa.errors import words_of

T = TypeVar("T")

PATIENCE = 15.0
"""Seconds that connecting to a host, or a statement of the listener's own, may take."""
# Nothing is heard while a statement waits for the lock of an operator or a migration. For the session, because a lock
# on a table is waited for before anything in the statement could set it; LISTEN needs the session to be ours anyway.
# And it is idle for as long as a heartbeat. (PostgreSQL 13 does not know that setting.)
LENT = f"""{SETTINGS}; SET lock_timeout = '100ms';
    SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'"""  # noqa: S608
"""Settings of the session once it has recovered, when it is lent for statements as well."""


class ConnectionLost(Exception):
    """The connection ended, shows no sign of life, or hears nothing any more."""


class Listener:
    """Hear notifications, over all the connections there have to be one after the other.

    Args:
        connect: gives the libpq parameters of a new connection.
        patience: seconds that a statement may take while the connection listens, if that is less than it has anyway.
        recover: called with each new connection before anything that it hears is passed on; it must LISTEN first,
            and then read from the tables what has happened meanwhile. It has 15 s, and as much again each time that
            it calls its second argument, `progressed`.
        hear: takes the payloads of notifications, in their order.
        up: called when notifications flow.
        down: called with the reason when they flow no longer, and with that of each attempt that fails.
    """

    def __init__(
        self,
        connect: Connector,
        patience: float,
        *,
        recover: Callable[[Connection, Callable[[], None]], Awaitable[None]],
        hear: Callable[[list[bytes]], None],
        up: Callable[[], None],
        down: Callable[[Exception], None],
    ) -> None:
        self._connect = connect
        self._patience = min(patience, PATIENCE)
        self._recover = recover
        self._hear = hear
        self._up = up
        self._down = down
        self._connection: Connection | None = None
        self._lost: asyncio.Future[Exception] | None = None
        self._lock = asyncio.Lock()
        self._heard: list[bytes] = []
        self._farewell: str | None = None  # why the server ended the connection, if it said so
        self.is_listening = False
        """Whether notifications flow."""
        self._watched: int | None = None

    async def run(self) -> None:
        """Listen until cancelled."""
        backoff = Backoff()
        while True:
            try:
                await self._session(backoff)
            except Exception as error:  # noqa: BLE001 - a callable PASSWORD may raise anything; it is asked again
                self._down(error if self._farewell is None else ConnectionLost(self._farewell))
            await asyncio.sleep(backoff.next())

    async def hears(self, connection: Connection, payload: bytes, patience: float) -> bool:
        """Tell whether a notification arrives on a connection that `recover` was given, within so many seconds."""
        end = time.monotonic() + patience
        while payload not in self._heard:
            if time.monotonic() > end:
                return False
            await connection.execute("SELECT 1")
            await asyncio.sleep(0.02)
        return True

    async def change(self, listen: Callable[[Connection], Awaitable[None]]) -> bool:
        """Have the connection LISTEN to more, or less; return False if there is none, or a new one is needed."""
        try:
            await self.lend(listen)
        except ConnectionLost:
            return False
        except psycopg.Error as error:
            self.restart(words_of(error))
            return False
        return True

    async def lend(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Use the connection for a statement between notifications; what comes meanwhile is heard when it is done.

        Raises:
            ConnectionLost: there is none, or there was no answer in time: then a new one is made.
            psycopg.Error: the server refused the statement, and listening goes on.
        """
        async with self._lock:
            connection = self._connection
            if connection is None or not self.is_listening:
                raise ConnectionLost("not listening")
            self._pause()
            late = f"no answer within {self._patience:g} s"
            timer = asyncio.get_running_loop().call_later(self._patience, self.restart, late)
            try:
                return await work(connection)
            except (psycopg.Error, OSError) as error:
                if isinstance(error, psycopg.Error) and not connection.closed:
                    raise
                self._end(error)
                raise ConnectionLost(words_of(error)) from error
            finally:
                timer.cancel()
                self._resume(connection)

    def restart(self, reason: str) -> None:
        """Give up the connection and make a new one."""
        if self._connection is not None:
            sever(self._connection)
        self._end(ConnectionLost(reason))

    async def _session(self, backoff: Backoff) -> None:
        loop = asyncio.get_running_loop()
        self._farewell = None
        connection = await self._new_connection()
        try:
            self._heard = []
            connection.pgconn.notify_handler = self._collect
            connection.add_notice_handler(self._heed)
            self._lost = loop.create_future()
            self._connection = connection
            async with time_limit(connection, PATIENCE) as progressed:
                await self._recover(connection, progressed)
                await connection.execute(LENT)
            backoff.reset()
            self.is_listening = True
            self._up()
            self._pass_on()
            self._resume(connection)
            raise await self._lost
        finally:
            sever(connection)  # whoever has it at this moment is told at once, and gives it back
            async with self._lock:
                self._pause()
                self._connection = None
                self.is_listening = False
            await connection.close()

    async def _new_connection(self) -> Connection:
        parameters = {**DEFAULTS, **self._connect(), "application_name": "channels_pg_sa listener", "autocommit": True}
        connecting = asyncio.create_task(CleanConnection.connect(**parameters))
        try:
            # Not wait_for(), which before Python 3.12 lets a cancellation get lost if it comes with the connection.
            hosts = max(str(parameters.get(key) or "").count(",") + 1 for key in ("host", "hostaddr"))
            patience = PATIENCE * hosts
            await asyncio.wait([connecting], timeout=patience)
            if not connecting.done():
                raise ConnectionLost(f"no connection within {patience:g} s")  # noqa: TRY301 - it is cleaned up below
            return connecting.result()
        except BaseException:
            # Cancelled in the middle, it would keep its socket open until the garbage collector comes by.
            await asyncio.wait([connecting], timeout=1.0)
            if not connecting.cancel() and connecting.exception() is None:
                await connecting.result().close()
            raise

    def _collect(self, notification: PGnotify) -> None:
        """Take a notification, from wherever psycopg met it: by itself, or between a statement and its answer."""
        self._heard.append(notification.extra)

    def _heed(self, notice: psycopg.errors.Diagnostic) -> None:
        """Keep why the server ends the connection: the error that follows knows only that it has ended, and guesses."""
        if is_farewell(notice):
            self._farewell = notice.message_primary

    def _readable(self, connection: Connection) -> None:
        pgconn = connection.pgconn
        try:
            pgconn.consume_input()
            while (notification := pgconn.notifies()) is not None:
                self._heard.append(notification.extra)
        except psycopg.Error as error:
            self._pause()
            self._end(error)
        self._pass_on()

    def _pass_on(self) -> None:
        if self._heard and self.is_listening:
            heard, self._heard = self._heard, []
            self._hear(heard)

    def _resume(self, connection: Connection) -> None:
        """Watch the socket between statements; psycopg watches it during them."""
        loop = asyncio.get_running_loop()
        try:
            self._watched = connection.fileno()
        except psycopg.Error as error:
            self._end(error)
            return
        loop.add_reader(self._watched, self._readable, connection)
        # What came while psycopg was reading will make no socket readable again.
        loop.call_soon(self._pass_on)

    def _pause(self) -> None:
        """Watch it no longer; by its number, which is free for others once libpq has closed the socket."""
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = None

    def _end(self, error: Exception) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(error)
