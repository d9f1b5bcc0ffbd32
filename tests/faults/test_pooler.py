"""Behind a real PgBouncer: sends go through it, and a listener that would hear nothing is refused with the way out."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from channels_pg_sa import PoolerError, SendError
from tests.support.databases import query
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.urls import with_address, with_database
from tests.support.waiting import eventually, eventually_async

from .breaking import (
    BLOCKED,
    WAITING,
    FragileServer,
    Tally,
    end,
    impatient,
    inside,
    locked_messages,
    take,
    text,
    unhurried,
    until_beats,
    until_blocked,
)

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")

INI = """
[databases]
* = host=127.0.0.1 port={server} user=postgres password={password}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
admin_users = postgres
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 100
server_idle_timeout = 60
{more}
"""


class Pooler:
    """A running PgBouncer before a database.

    Args:
        folder: for its configuration.
        server: the PostgreSQL it connects to.
        url: of the database there.
        mode: "transaction" or "session".
    """

    def __init__(self, folder: Path, server: FragileServer, url: str, mode: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # It reads its configuration as root, and then becomes somebody else: as root it refuses to run.
        more = "user = nobody" if os.geteuid() == 0 else ""
        ini = folder / f"pgbouncer-{port}.ini"
        ini.write_text(
            INI.format(
                server=server.postgres.port,
                password=server.postgres.password,
                port=port,
                mode=mode,
                size=10 if mode == "session" else 3,
                more=more,
            )
        )
        self.url = with_address(url, "127.0.0.1", port)
        self._process = subprocess.Popen([str(PGBOUNCER), "-q", str(ini)], stdin=subprocess.DEVNULL)
        eventually(self._answers)

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"pgbouncer ended with {self._process.returncode}")
        try:
            return query(self.url, "SELECT 1") == [(1,)]
        except psycopg.OperationalError:
            return False

    def connections(self, _url: str, application: str = "channels_pg_sa%") -> list[int]:
        """Return the clients whose application name begins so, as TestServer does of backends."""
        with psycopg.connect(with_database(self.url, "pgbouncer"), autocommit=True) as console:
            cursor = console.execute("SHOW CLIENTS")
            names = [column.name for column in cursor.description or ()]
            clients = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return [client["port"] for client in clients if client["application_name"].startswith(application.strip("%"))]

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)


Poolers = Callable[[str], Pooler]


@pytest.fixture
def start_pooler(tmp_path: Path, fragile: FragileServer, fragile_url: str) -> Iterator[Poolers]:
    """Start a PgBouncer in a mode before the test's database."""
    started: list[Pooler] = []

    def start(mode: str) -> Pooler:
        started.append(Pooler(tmp_path, fragile, fragile_url, mode))
        return started[-1]

    yield start
    for pooler in started:
        pooler.close()


@pytest_asyncio.fixture
async def behind(start_pooler: Poolers) -> AsyncIterator[Callable[..., PostgresLayer]]:
    """Build layers behind a pooler of a mode; none may leave a client there."""
    factories: dict[str, LayerFactory] = {}

    def make(mode: str, **config: Any) -> PostgresLayer:
        if mode not in factories:
            pooler = start_pooler(mode)
            factories[mode] = LayerFactory(pooler, pooler.url, "asgi")  # type: ignore[arg-type]
        return factories[mode](**config)

    yield make
    for factory in factories.values():
        await factory.close()


Behind = Callable[..., PostgresLayer]


async def test_sends_work_through_a_pooler(make_fragile: LayerFactory, behind: Behind) -> None:
    """Peer defect 25: every statement of a sender does, whichever session of the server it meets."""
    sender, layer = behind("transaction"), make_fragile()
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await sender.group_add("jobs-group", "jobs")
    for number in range(0, 60, 3):
        await asyncio.gather(
            sender.send(channel, text(number)),
            sender.group_send("group", text(number + 1)),
            sender.group_send("jobs-group", text(number)),
            sender.send("large", {"value": "x" * 100_000}),
            asyncio.to_thread(sender.send_sync, channel, text(number + 2)),
        )
    assert sorted(message["number"] for message in await take(layer, channel, 60)) == list(range(60))
    assert [message["number"] for message in await take(layer, "jobs", 20)] == list(range(0, 60, 3))
    assert await take(layer, "large", 20) == [{"value": "x" * 100_000}] * 20
    await sender.group_discard("jobs-group", "jobs")
    await sender.group_send("jobs-group", text(99))
    await sender.send("jobs", text(100))
    assert await take(layer, "jobs", 1) == [text(100)]


async def test_listening_through_it_is_refused(behind: Behind) -> None:
    """Peer defect 25: LISTEN through PgBouncer in transaction mode silently hears nothing; each process is told."""
    for _ in range(2):
        layer = behind("transaction")
        channel = await layer.new_channel()
        with pytest.raises(PoolerError, match="listen_url"):
            await take(layer, channel, 1)
        with pytest.raises(PoolerError, match="listen_url"):
            await take(layer, "jobs", 1)
        with pytest.raises(PoolerError, match="listen_url"):
            await layer.group_add("group", channel)


async def test_with_listen_url_all_works(behind: Behind, fragile_url: str) -> None:
    """Sends, receives, groups, large messages and flush, with all statements but LISTEN through the pooler."""
    layers = [behind("transaction", listen_url=fragile_url) for _ in range(3)]
    channels = [await layer.new_channel() for layer in layers]
    for layer, channel in zip(layers, channels, strict=True):
        await layer.group_add("group", channel)
    tally = Tally()
    readers = [
        asyncio.create_task(tally.read(layer, name))
        for layer, channel in zip(layers, channels, strict=True)
        for name in (channel, "jobs")
    ]

    async def stream(sender: PostgresLayer, channel: str, place: int) -> None:
        for number in range(60):
            await tally.send(f"to {channel}", number, lambda message: sender.send(channel, message))
            await tally.send(f"jobs of {place}", number, lambda message: sender.send("jobs", message))

    pairs = zip(layers, channels[1:] + channels[:1], range(3), strict=True)
    await asyncio.gather(*(stream(sender, channel, place) for sender, channel, place in pairs))

    async def all_done() -> bool:
        return not tally.lost and query(fragile_url, WAITING) == [(0,)]

    await eventually_async(all_done)
    await end(*readers)
    assert (tally.lost, tally.twice, tally.perhaps) == ([], [], set())
    await layers[0].group_send("group", {"value": "x" * 500_000})
    for layer, channel in zip(layers, channels, strict=True):
        assert await take(layer, channel, 1) == [{"value": "x" * 500_000}]
    await layers[1].group_discard("group", channels[0])
    await layers[1].send(channels[2], text(1))
    await layers[0].flush()
    await layers[1].group_send("group", text(2))
    for layer, channel in zip(layers, channels, strict=True):
        await layer.send(channel, text(3))
        assert await take(layer, channel, 1) == [text(3)]


async def test_a_server_lost_behind_the_pooler(
    fragile: FragileServer, fragile_url: str, make_fragile: LayerFactory, behind: Behind
) -> None:
    """The pooler's own words for a lost server are not taken for the server's: nothing is lost or sent twice."""
    sender, layer = behind("transaction"), make_fragile()
    tally = Tally()
    reader = asyncio.create_task(tally.read(layer, "jobs"))
    await tally.send("first", 0, lambda message: sender.send("jobs", message))
    for number in range(5):
        with locked_messages(fragile_url) as locker:
            sending = asyncio.create_task(tally.send("locked", number, lambda message: sender.send("jobs", message)))
            await until_blocked(fragile_url)
            fragile.run(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted AND database = "
                "(SELECT oid FROM pg_database WHERE datname = %s)",
                [fragile_url.rsplit("/", 1)[1]],
            )
            locker.commit()
        await sending

    async def all_here() -> bool:
        return not tally.lost and query(fragile_url, WAITING) == [(0,)]

    await eventually_async(all_here)
    await end(reader)
    assert tally.twice == []


async def test_a_send_in_vain_tells_why_the_pooler_lets_nobody_through(fragile: FragileServer, behind: Behind) -> None:
    """It lets clients in as long as it runs itself."""
    sender = behind("transaction", send_timeout=6)
    await sender.send("jobs", text(1))
    fragile.postgres._end_server(signal.SIGINT)
    try:
        with pytest.raises(SendError):  # over a connection that the pooler keeps waiting
            await sender.send("jobs", text(2))
        with pytest.raises(SendError, match=r"Nothing was done, .*server login has been failing"):
            await sender.send("jobs", text(3))
    finally:
        fragile.postgres._launch()


@pytest.mark.parametrize("mode", ["transaction", "session"])
async def test_a_long_lock_piles_up_no_sessions_behind_it(behind: Behind, fragile_url: str, mode: str) -> None:
    """The pooler passes on to the server that a statement is given up, as long as its client is there to ask."""
    layer = behind(mode, listen_url=fragile_url)
    await layer.send("others", text(0))
    with locked_messages(fragile_url), impatient(layer, 0.5):
        for _ in range(4):
            with pytest.raises(SendError):
                await layer.send("jobs", text(1))
        await eventually_async(lambda: asyncio.to_thread(lambda: query(fragile_url, BLOCKED) == [(0,)]))
    assert query(fragile_url, "SELECT count(*) FROM channels_pg_sa_message WHERE channel = 'jobs'") == [(0,)]


async def test_capacity_through_a_pooler(behind: Behind, fragile_url: str) -> None:
    """Statements with a capacity, and the transaction of a group's, do not depend on the session either."""
    layer = behind("transaction", listen_url=fragile_url, capacity=3)
    await layer.group_add("group", "jobs")
    for number in range(3):
        await layer.send("jobs", text(number))
    with pytest.raises(layer.ChannelFull):
        await layer.send("jobs", text(3))
    await layer.group_send("group", text(4))
    assert [message["number"] for message in await take(layer, "jobs", 3)] == [0, 1, 2]
    await layer.group_send("group", text(5))
    assert await take(layer, "jobs", 1) == [text(5)]


async def test_session_mode_needs_no_listen_url(behind: Behind, fragile_url: str) -> None:
    """A pooler that keeps the session is none to complain of: it passes notifications on, and heartbeats."""
    layers = [behind("session", heartbeat=0.5, lease=5) for _ in range(2)]
    channels = [await layer.new_channel() for layer in layers]
    for layer, channel in zip(layers, channels, strict=True):
        await layer.group_add("group", channel)
    await layers[0].group_send("group", text(1))
    await layers[0].send(channels[1], text(2))
    await layers[1].send("jobs", text(3))
    assert await take(layers[0], channels[0], 1) == [text(1)]
    assert await take(layers[1], channels[1], 2) == [text(1), text(2)]
    assert await take(layers[0], "jobs", 1) == [text(3)]
    unhurried(*layers)
    listener = inside(layers[0])._listener._connection
    await until_beats(layers[0], fragile_url, 3)
    assert inside(layers[0])._listener._connection is listener
