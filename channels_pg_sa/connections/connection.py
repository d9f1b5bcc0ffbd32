"""A connection to the server: what it is told, how it ends, and whether a pooler stands in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import capabilities
from psycopg.pq import ConnStatus
from psycopg_pool import AsyncConnectionPool

if TYPE_CHECKING:
    from typing_extensions import Self

Connection = psycopg.AsyncConnection[Any]

# A network that went away is noticed within a minute, and not after the kernel's two hours.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-KEEPALIVES
DEFAULTS: dict[str, Any] = {
    "connect_timeout": 5,  # for each of several hosts
    "client_encoding": "utf8",
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

CANCEL = 1.0
"""Seconds that it may take to ask the server to give up a statement."""

# Planning the shortest statements costs more than running them. Each looks its rows up in an index, whatever it is
# given, and must still do so when a table that was empty at the time of planning has filled.
# No commit of ours need wait for a disk or a standby: what a crash may cost is restored from memory, or unlogged. And
# rows are told by their times, which a notification has in full.
# https://www.postgresql.org/docs/current/runtime-config-query.html
SETTINGS = """SELECT set_config(name, value, false) FROM (VALUES
    ('plan_cache_mode', 'force_generic_plan'), ('enable_seqscan', 'off'), ('jit', 'off'), ('synchronous_commit', 'off'),
    ('extra_float_digits', '1')) AS wanted (name, value)"""


def sever(connection: Connection) -> None:
    """Break a connection off, so that whoever waits for its answer is told at once; works on a dead network too."""
    if connection.pgconn.status == ConnStatus.OK:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.pgconn.socket)) as twin:
            twin.shutdown(socket.SHUT_RDWR)


async def give_up(connection: Connection) -> None:
    """Break the connection off, and ask the server to give up the statement that is under way on it.

    A server does not notice that its client is gone while it waits for a lock: without this, each try during a long
    lock would leave one more session that waits. And what was given up might be done after what followed it.
    """
    try:
        await asyncio.wait([asyncio.ensure_future(_cancel(connection))])
    finally:
        sever(connection)  # not before: a pooler forgets whom to cancel when it sees its client go


async def _cancel(connection: Connection) -> None:
    """Ask by a connection of its own, if libpq can do so without blocking; it may be that nobody can be reached.

    https://www.postgresql.org/docs/current/libpq-cancel.html
    """
    if capabilities.has_cancel_safe():
        with contextlib.suppress(psycopg.Error, OSError):
            await connection.cancel_safe(timeout=CANCEL)


@contextlib.asynccontextmanager
async def time_limit(
    connection: Connection, seconds: float, *, late: Callable[[], None] = lambda: None
) -> AsyncIterator[Callable[[], None]]:
    """Give the connection up if the statements in the block take longer; yield what makes the time begin anew.

    Args:
        connection: which they run on.
        seconds: that they may take.
        late: called when they have taken longer.
    """
    given_up: list[asyncio.Future[None]] = []
    loop = asyncio.get_running_loop()

    def end() -> None:
        late()
        given_up.append(asyncio.ensure_future(give_up(connection)))

    def start() -> asyncio.TimerHandle:
        return loop.call_later(seconds, end)

    timer = start()

    def renew() -> None:
        nonlocal timer
        timer.cancel()
        timer = start()

    try:
        yield renew
    finally:
        timer.cancel()
        if given_up:
            await asyncio.wait(given_up)


class CleanConnection(psycopg.AsyncConnection[Any]):
    """A connection that goes back to the pool it is from, and leaves no open socket: where connecting failed, or in a
    child process that was forked.
    """

    borrower: asyncio.Task[Any] | None = None
    """The task that takes it out of the engine, None once it has it, or it has gone back."""

    def __init__(self, *arguments: Any, **parameters: Any) -> None:
        super().__init__(*arguments, **parameters)
        self._process = os.getpid()
        self._identity = _identity(self.pgconn.socket)
        self._twins: set[int] = set()
        _CONNECTIONS.add(self)

    @classmethod
    async def connect(cls, *arguments: Any, **parameters: Any) -> Self:
        """Connect as psycopg does, whose errors hold the socket until the garbage collector comes by.

        Args:
            arguments: psycopg's.
            parameters: psycopg's, and `refused`, called with what prevents it: a pool tells that to its log alone.
        """
        refused: Callable[[Exception], None] | None = parameters.pop("refused", None)
        try:
            return await super().connect(*arguments, **parameters)
        except Exception as error:
            if refused is not None:
                refused(error)
            cause: BaseException | None = error
            while cause is not None:
                traceback.clear_frames(cause.__traceback__)
                cause = cause.__context__
            raise

    async def close(self) -> None:
        """Return the connection to the pool that lent it, which counts one that has ended too; else close it.

        https://www.psycopg.org/psycopg3/docs/advanced/pool.html#pool-sqlalchemy; the option close_returns needs
        psycopg 3.3, and does not return one that has ended.
        """
        self.borrower = None
        pool: AsyncConnectionPool[Any] | None = getattr(self, "_pool", None)
        await (super().close() if pool is None else pool.putconn(self))

    @contextlib.contextmanager
    def twin(self) -> Iterator[int]:
        """Duplicate its socket, for a loop to watch.

        libpq closes its own in whatever thread it meets the end, and the number is free for others at once.
        """
        twin = os.dup(self.fileno())
        self._twins.add(twin)
        try:
            yield twin
        finally:
            self._twins.discard(twin)
            os.close(twin)

    def _let_go(self, nothing: int) -> None:
        """Put something else in the place of its sockets; their numbers, by which they are known, stay taken."""
        numbers = set(self._twins)
        with contextlib.suppress(psycopg.Error):  # it has ended
            numbers.add(self.pgconn.socket)
        for number in numbers:
            with contextlib.suppress(OSError):
                if _identity(number) == self._identity:  # and no file of a child that has closed all it had
                    os.dup2(nothing, number, inheritable=False)

    @classmethod
    def let_go_of_parents(cls) -> None:
        """Let go of what a process that was forked has of its parent's connections: they end with the parent.

        A child that lives longer would keep its sessions, and the one that LISTENs would be read by nobody, until the
        server's queue of notifications is full. One that is just being made is not known here.
        """
        with contextlib.suppress(OSError, RuntimeError), Path(os.devnull).open("r+b", buffering=0) as nothing:
            for connection in list(_CONNECTIONS):
                if connection._process != os.getpid():  # noqa: SLF001 - of the same class
                    connection._let_go(nothing.fileno())  # noqa: SLF001
                    _CONNECTIONS.discard(connection)


def _identity(number: int) -> tuple[int, int]:
    """Tell one open file from another that has its number."""
    found = os.fstat(number)
    return found.st_dev, found.st_ino


_CONNECTIONS: weakref.WeakSet[CleanConnection] = weakref.WeakSet()


def is_farewell(notice: psycopg.errors.Diagnostic) -> bool:
    """Tell whether a server ends the connection with this: told between two statements it is a notice, not an error.

    One that crashes, or is stopped at once, takes leave with a warning.
    """
    return notice.severity_nonlocalized == "FATAL" or (notice.sqlstate or "").startswith("57P")


async def is_pooled(connection: Connection) -> bool:
    """Tell whether a pooler stands in between: then it is not the server's process id that the client was given."""
    cursor = await connection.execute("SELECT pg_backend_pid()")
    row = await cursor.fetchone()
    return row is not None and row[0] != connection.info.backend_pid
