"""Things to break: a server that can be restarted, a proxy that swallows, a role with limits; and counting messages."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from channels_pg_sa.statements.queries import Queries
from tests.support.databases import AWAITED, TestServer, query
from tests.support.layers import Message, PostgresLayer
from tests.support.proxy import Proxy
from tests.support.temp_postgres import TempPostgres
from tests.support.waiting import eventually_async

if TYPE_CHECKING:
    from typing_extensions import LiteralString

PATIENCE = 20.0
"""Seconds that a receive() may take while everything around it breaks."""

WAITING = "SELECT count(*) FROM channels_pg_sa_message"
SEEN = "SELECT seen_at FROM channels_pg_sa_node WHERE id = %s"
BLOCKED = f"{AWAITED} AND relation = 'channels_pg_sa_message'::regclass"


class FragileServer(TestServer):
    """A test server that may be restarted: the administrative connection is made anew.

    Args:
        postgres: the server, which listens on TCP.
    """

    def __init__(self, postgres: TempPostgres) -> None:
        super().__init__(postgres.tcp_url)
        self.postgres = postgres

    def run(self, query: sql.Composed | LiteralString, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run a statement on the administrative connection, or on a new one if that is gone."""
        try:
            return super().run(query, parameters)
        except psycopg.OperationalError:
            self._connection.close()
            self._connection = psycopg.connect(self.url, autocommit=True, application_name="tests")
            return super().run(query, parameters)


class SwallowingProxy(Proxy):
    """A proxy that can also forget connections, as a firewall does: they stay open, and nothing passes any more."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._forgotten: set[Any] = set()

    def forget(self) -> None:
        """Swallow from now on what is sent over the connections that are open; new ones work."""
        self._call(self._forget())

    async def _forget(self) -> None:
        self._forgotten |= self._writers

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        await super()._pump(_Source(source, lambda: sink in self._forgotten), sink)  # type: ignore[arg-type]


class _Source:
    """A stream whose data vanish once it is forgotten."""

    def __init__(self, source: asyncio.StreamReader, is_forgotten: Callable[[], bool]) -> None:
        self._source = source
        self._is_forgotten = is_forgotten

    async def read(self, size: int) -> bytes:
        data = await self._source.read(size)
        while data and self._is_forgotten():
            data = await self._source.read(size)
        return data


class CountingProxy(Proxy):
    """A proxy that counts the statements which pass it unencrypted: what the server is to answer with ReadyForQuery.

    https://www.postgresql.org/docs/current/protocol-message-formats.html
    """

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._clients: set[Any] = set()
        self._counters: list[_Counted] = []

    @property
    def statements(self) -> list[int]:
        """How many have passed on each connection."""
        return [counter.statements for counter in self._counters]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        super()._accept(reader, writer)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        if sink in self._clients:
            await super()._pump(source, sink)
        else:
            self._counters.append(_Counted(source))
            await super()._pump(self._counters[-1], sink)  # type: ignore[arg-type]


class _Counted:
    """A stream of a client's messages in which the statements are counted."""

    def __init__(self, source: asyncio.StreamReader) -> None:
        self._source = source
        self._data = bytearray()
        self._kind = 0  # bytes; what comes before the session has started has none
        self.statements = 0

    async def read(self, size: int) -> bytes:
        data = await self._source.read(size)
        self._data += data
        while len(self._data) > 8 and len(self._data) >= (end := self._kind + self._number(self._kind)):
            self.statements += self._kind and self._data[0] in b"QS"
            if not self._kind:
                self._kind = self._number(4) >> 16 == 3  # the startup message gives the protocol's version
            del self._data[:end]
        return data

    def _number(self, place: int) -> int:
        return int.from_bytes(self._data[place : place + 4], "big")


class Tally:
    """Count messages: sent for certain, perhaps sent, received once, twice, lost, out of order."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []
        self.perhaps: set[tuple[str, int]] = set()
        self.received: defaultdict[str, list[int]] = defaultdict(list)
        self._came: set[tuple[str, int]] = set()

    async def send(self, sender: str, number: int, send: Callable[[Message], Any]) -> None:
        """Send one message; again, if it certainly was not sent."""
        from channels_pg_sa import SendError

        message = {"type": "test.message", "sender": sender, "number": number, "text": "x" * (number % 50 == 9) * 9000}
        while True:
            try:
                await send(message)
            except SendError as error:
                if not error.maybe_sent:
                    continue
                self.perhaps.add((sender, number))
            else:
                self.sent.append((sender, number))
            return

    def receive(self, message: Message) -> None:
        """Note a message."""
        self.received[message["sender"]].append(message["number"])
        self._came.add((message["sender"], message["number"]))

    async def read(self, layer: PostgresLayer, channel: str) -> None:
        """Note what a channel gets, until cancelled."""
        while True:
            self.receive(await layer.receive(channel))

    @property
    def lost(self) -> list[tuple[str, int]]:
        """What was sent and has not come."""
        return sorted(set(self.sent) - self._came)

    async def settle(self) -> None:
        """Wait until nothing is lost, or nothing has come for a while: a busy machine needs its time for thousands."""
        with contextlib.suppress(AssertionError):
            while not self._came.issuperset(self.sent):
                await eventually_async(functools.partial(self._has_more_than, len(self._came)), within=PATIENCE)

    async def _has_more_than(self, count: int) -> bool:
        return len(self._came) > count

    @property
    def twice(self) -> list[tuple[str, int]]:
        """What came more than once."""
        return sorted(
            (sender, number)
            for sender, numbers in self.received.items()
            for number, times in Counter(numbers).items()
            if times > 1
        )

    @property
    def disordered(self) -> list[tuple[str, int]]:
        """What was sent for certain and came after a later one of its sender."""
        late = []
        for sender, numbers in self.received.items():
            sure = [number for number in numbers if (sender, number) not in self.perhaps]
            late += [(sender, number) for before, number in itertools.pairwise(sure) if number < before]
        return late


@contextlib.contextmanager
def locked_messages(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Lock the message table, as a migration would; commit or leave the block to release it."""
    with psycopg.connect(url, application_name="tests") as locker:
        locker.execute("LOCK TABLE channels_pg_sa_message IN ACCESS EXCLUSIVE MODE")
        yield locker


async def until_blocked(url: str, count: int = 1) -> None:
    """Wait until so many statements wait for the message table."""

    async def look() -> bool:
        return bool(query(url, BLOCKED)[0][0] >= count)

    await eventually_async(look)


def make_role(server: TestServer, url: str, password: str, *, limit: int = -1) -> str:
    """Create a role that may use the layer's tables in the database of the URI and is no superuser; return its name."""
    name = url.rsplit("/", 1)[1] + "_role"
    server.run(
        sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} CONNECTION LIMIT {}").format(
            sql.Identifier(name), sql.Literal(password), sql.Literal(limit)
        )
    )
    with psycopg.connect(url, autocommit=True) as connection:
        for kind in ("TABLES", "SEQUENCES"):
            connection.execute(
                sql.SQL("GRANT ALL ON ALL {} IN SCHEMA public TO {}").format(sql.SQL(kind), sql.Identifier(name))
            )
    return name


def url_as(server: FragileServer, url: str, role: str, password: str = "secret") -> str:
    """Return the URI of the same database for a role, in place of its owner's."""
    return url.replace("//postgres:", f"//{role}:").replace(server.postgres.password, password)


async def take(layer: PostgresLayer, channel: str, count: int) -> list[Message]:
    """Receive so many messages, or fail."""
    return [await asyncio.wait_for(layer.receive(channel), PATIENCE) for _ in range(count)]


def text(number: int) -> Message:
    """Return a small message that carries a number."""
    return {"type": "test.message", "number": number}


async def warm(layer: PostgresLayer) -> str:
    """Use the layer once, so that it listens and has connections; return a channel of it."""
    channel = await layer.new_channel()
    await layer.send(channel, text(-1))
    assert await take(layer, channel, 1) == [text(-1)]
    await until_listening(layer)  # a message that was there before it listened is read a moment before that
    return channel


def layer_is_listening(layer: PostgresLayer) -> bool:
    """Tell whether notifications flow."""
    return " listening" in repr(layer)


async def until_listening(layer: PostgresLayer) -> None:
    """Wait until notifications flow."""

    async def look() -> bool:
        return layer_is_listening(layer)

    await eventually_async(look, within=20)


async def come_back(layer: PostgresLayer) -> None:
    """Have the listener make a new connection, and wait until it listens again."""
    outages, listener = inside(layer)._outages, inside(layer)._listener
    before = outages.ended
    inside(layer)._thread.loop.call_soon_threadsafe(listener.restart, "as if it were lost")

    async def is_back() -> bool:
        return bool(outages.ended > before)

    await eventually_async(is_back, within=20)


class Gate:
    """Holds the deletions of a node up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        forget = Queries.forget

        async def late(queries: Queries, connection: Any, rows: Any) -> int:
            await asyncio.to_thread(self._open.wait, 20)
            return await forget(queries, connection, rows)

        monkeypatch.setattr(Queries, "forget", late)

    async def open(self, layer: PostgresLayer) -> None:
        """Let them go on, and wait until they are done, those that failed too."""
        self._open.set()
        await within(layer, inside(layer)._courier.finish(10))


def inside(layer: PostgresLayer) -> Any:
    """Return the layer's receiving half, for what no test can see from outside: its sockets, and what it remembers."""
    return layer._node._reception  # type: ignore[attr-defined]


def unhurried(*layers: PostgresLayer) -> None:
    """Let beats be answered late: a busy machine would have the listener make a new connection."""
    for layer in layers:
        inside(layer)._listener._patience = PATIENCE


@contextlib.contextmanager
def impatient(layer: PostgresLayer, seconds: float) -> Iterator[None]:
    """Within the block the layer's calls have so many seconds, in which a busy machine could not even connect."""
    outbox = layer._node._outbox  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patched:
        for part in (outbox, outbox._attempts, outbox.memberships, outbox.memberships._leaves):
            patched.setattr(part, "_timeout", seconds)
        patched.setattr(outbox._fast_path, "_limit", seconds)
        # What is given up is cancelled all the same, though a busy machine may take more than a second for that.
        patched.setattr("channels_pg_sa.connections.connection.CANCEL", PATIENCE)
        yield


async def within(layer: PostgresLayer, work: Coroutine[Any, Any, Any]) -> Any:
    """Do something on the layer's I/O loop."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, inside(layer)._thread.loop))


async def until_beats(layer: PostgresLayer, url: str, count: int) -> None:
    """Wait until the layer has given so many more signs of life, as its database shows."""

    async def seen() -> list[tuple[Any, ...]]:
        return query(url, SEEN, [layer.node])

    for _ in range(count):
        last = await seen()

        async def has_changed(last: list[tuple[Any, ...]] = last) -> bool:
            return await seen() not in ([], last)

        await eventually_async(has_changed)


async def until_nothing_is_remembered(layer: PostgresLayer) -> None:
    """Wait until no id is kept of rows that are gone, as it is after a recovery until its mark comes round."""
    rows = inside(layer).inbox._dispatcher.rows

    async def look() -> bool:
        return (rows._barrier, rows._expires, rows._gone) == (None, {}, set())

    await eventually_async(look)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end; one that has failed fails the test."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
