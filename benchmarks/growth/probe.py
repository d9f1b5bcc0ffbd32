"""Runs the layer's own statements, and real layers, against a server, and tells what each costs it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import psycopg

from benchmarks.growth.counters import Cost, Meter, counted, middle
from benchmarks.growth.crowd import PREFIX, Crowd, node_id
from benchmarks.growth.model import Load
from channels_pg_sa.config import Settings
from channels_pg_sa.connections.connection import SETTINGS
from channels_pg_sa.entry import Row
from channels_pg_sa.layer import Layer
from channels_pg_sa.statements.compiled import compiled
from channels_pg_sa.statements.jobs import GroupSend, Send
from channels_pg_sa.statements.queries import Queries

REST, WAKING = 0.005, 60e-6
"""Seconds between statements: at least so many, and for each connection that one wakes so many more."""
_SPARE = 8
"""Connections left to the superuser, to the probe itself and to autovacuum."""


class Probe:
    """One sending connection, a crowd of listening ones, and the counters of the server."""

    def __init__(self, url: str, connection: psycopg.AsyncConnection[Any], crowd: Crowd, meter: Meter) -> None:
        self.url = url
        self.crowd = crowd
        self._connection = connection
        self._meter = meter
        self._queries = Queries(Settings(connect=dict, listen=dict, prefix=PREFIX), node_id(0))
        self._groups: set[str] = set()

    async def room(self) -> int:
        """Return how many connections may listen beside the probe's own and everybody's else."""
        limit = int(await self._value("SELECT current_setting('max_connections')"))
        others = int(await self._value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"))
        return max(0, limit - others + len(self.crowd) - _SPARE)

    async def version(self) -> str:
        """Return PostgreSQL's version."""
        return str(await self._value("SELECT current_setting('server_version')")).split()[0]

    async def measure(self, load: Load, *, times: int, repeat: int, members: int = 1, pause: float = 1.0) -> Cost:
        """Return what a statement that sends costs.

        Args:
            load: what it sends, and to whom.
            times: statements in a repetition.
            repeat: repetitions, of which the median counts.
            members: of each receiver in the group.
            pause: 0 for none between statements; else the server is idle again before the next.
        """
        self.crowd.resize(load.listeners)
        jobs = await self._jobs(load, members)
        rest = pause * (REST + load.listeners * WAKING)
        costs = []
        for _ in range(repeat):
            await self._tidy()
            await self._publish(jobs)  # VACUUM has made the server plan it again
            costs.append(await self._cost(times, lambda: self._publish(jobs), rest))
        return middle(costs)

    async def together(self, load: Load, *, senders: int, times: int, repeat: int) -> Cost:
        """Return what a statement costs when so many connections send at the same time, as fast as they can."""
        self.crowd.resize(load.listeners)
        jobs = await self._jobs(load, 1)

        async def send(connection: psycopg.AsyncConnection[Any], count: int) -> None:
            for _ in range(count):
                await self._publish(jobs, connection)

        costs = []
        async with contextlib.AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(await _connect(self.url)) for _ in range(senders)]
            for _ in range(repeat):
                await self._tidy()
                await asyncio.gather(*(send(connection, 1) for connection in opened))
                all_of_them = await self._cost(
                    1, lambda: asyncio.gather(*(send(connection, times) for connection in opened)), 0.0
                )
                costs.append(all_of_them.shared(senders * times))
        return middle(costs)

    async def bare(self, listeners: int, *, times: int, repeat: int) -> Cost:
        """Return what a NOTIFY costs that nobody listens for, with so many connections that listen to others."""
        self.crowd.resize(listeners)
        rest = REST + listeners * WAKING

        async def notify() -> None:
            await self._execute("SELECT pg_notify('growth_nobody', '')")

        return middle([await self._cost(times, notify, rest) for _ in range(repeat)])

    async def deletion(self, rows: int, *, times: int, repeat: int, size: int = 100) -> Cost:
        """Return what a statement costs that deletes so many rows of a mailbox."""
        return middle([await self._taking(self._queries.forget, rows, times, size) for _ in range(repeat)])

    async def fetching(self, size: int, *, times: int, repeat: int) -> Cost:
        """Return what it costs to fetch a message that did not fit into its notification."""
        return middle([await self._taking(self._queries.fetch, 1, times, size) for _ in range(repeat)])

    async def _taking(self, take: Callable[..., Awaitable[Any]], rows: int, times: int, size: int) -> Cost:
        waiting = iter(await self._fill(rows * (times + 1), size))
        batches = iter([list(itertools.islice(waiting, rows)) for _ in range(times + 1)])

        async def work() -> None:
            await take(self._connection, next(batches))

        await work()
        return await self._cost(times, work, REST)

    async def life(self, load: Load, *, times: int) -> Cost:
        """Return what sending a statement's messages and deleting their rows again costs; of interest is the WAL."""
        self.crowd.resize(load.listeners)
        jobs = await self._jobs(load, 1)
        await self._tidy()
        await self._publish(jobs)

        async def live() -> None:
            await self._publish(jobs)
            found = await self._queries.waiting(self._connection)
            await self._queries.forget(self._connection, [(parcel.id, parcel.expires) for parcel in found])

        await live()
        return await self._cost(times, live, 0.0)

    async def room_of_dead_rows(self, rows: int, *, size: int = 100) -> list[int]:
        """Return the bytes of the table and its indexes after so many messages came and went, and again after VACUUM.

        Twice: the second number of each pair shows whether the room is used again.
        """
        await self._execute("ALTER TABLE channels_pg_sa_message SET (autovacuum_enabled = off)")
        await self._execute("TRUNCATE channels_pg_sa_message")
        sizes = []
        for _ in range(2):
            for _ in range(rows // 250):
                found = await self._fill(250, size, tidy=False)
                await self._queries.forget(self._connection, found)
            sizes.append(int(await self._value("SELECT pg_total_relation_size('channels_pg_sa_message')")))
            await self._execute("VACUUM (TRUNCATE false) channels_pg_sa_message")
        await self._execute("ALTER TABLE channels_pg_sa_message RESET (autovacuum_enabled)")
        return sizes

    async def vacuuming(self, rows: int, *, size: int = 100) -> Cost:
        """Return what VACUUM costs for each of so many dead rows."""
        found = await self._fill(rows, size)
        await self._queries.forget(self._connection, found)
        await self._execute("ANALYZE channels_pg_sa_message")
        cost = await self._cost(1, lambda: self._execute("VACUUM (TRUNCATE false) channels_pg_sa_message"), 0.0)
        return cost.shared(rows)

    async def idling(self, layers: int, *, heartbeat: float, seconds: float) -> tuple[Cost, float]:
        """Return what a heartbeat costs, and how many statements it takes."""
        self.crowd.resize(0)
        await asyncio.sleep(0.5)
        quiet = await self._rate(seconds / 4)
        async with self.layers(layers, heartbeat=heartbeat):
            await asyncio.sleep(2 * heartbeat)
            before, began = await self._counters(), time.monotonic()
            with counted() as statements:
                await asyncio.sleep(seconds)
            lasted, after = time.monotonic() - began, await self._counters()
        beats = statements[compiled(None)["beat"].sql]
        cpu, wal = (late - early for late, early in zip(after, before, strict=True))
        each = (cpu - quiet * lasted) * 1e6 / beats
        return Cost(beats, each, wal / beats, beats / lasted), sum(statements.values()) / beats

    async def living(self, load: Load, *, others: int, times: int, pause: float, heartbeat: float) -> Cost:
        """Return what a group send costs with real layers, each of which receives and deletes; heartbeats included.

        Args:
            load: one message to a group of so many processes; the sender listens too.
            others: connections of the crowd, which only listen.
            times: messages.
            pause: seconds between them, long enough that each is deleted by itself.
            heartbeat: of the layers, in seconds.
        """
        self.crowd.resize(others)
        message = {"type": "growth", "body": b"x" * (load.size - 20)}
        async with self.layers(load.receivers, heartbeat=heartbeat) as (sender, readers):
            for _ in range(2):
                await sender.group_send("growth", message)
                await asyncio.gather(*(reader.receive(channel) for reader, channel in readers.items()))
            hearing = [asyncio.create_task(_hear(*each, times)) for each in readers.items()]
            await asyncio.sleep(1.0)
            cost = await self._cost(times, lambda: sender.group_send("growth", message), pause)
            await asyncio.gather(*hearing)
        return cost

    @contextlib.asynccontextmanager
    async def layers(self, count: int, *, heartbeat: float) -> AsyncIterator[tuple[Layer, dict[Layer, str]]]:
        """Open real layers, each with one member of a group; the first of them is to send."""
        made = [Layer(url=self.url, prefix=PREFIX, heartbeat=heartbeat, lease=60.0) for _ in range(count)]
        try:
            channels = {layer: await layer.new_channel() for layer in made}
            for layer, channel in channels.items():
                await layer.group_add("growth", channel)
            yield made[0], channels
        finally:
            for layer in made:
                await layer.close()

    async def _cost(self, times: int, work: Callable[[], Awaitable[Any]], rest: float) -> Cost:
        await asyncio.sleep(0.05)
        before, began = await self._counters(), time.monotonic()
        for number in range(times):
            await work()
            if rest:
                await asyncio.sleep(max(0.0, began + (number + 1) * rest - time.monotonic()) or rest / 2)
        lasted = time.monotonic() - began
        await asyncio.sleep(0.05 + rest)
        after = await self._counters()
        cpu, wal = ((late - early) / times for late, early in zip(after, before, strict=True))
        return Cost(times, cpu * 1e6, wal, times / lasted)

    async def _rate(self, seconds: float) -> float:
        """Return the CPU seconds a second of the server with nothing to do."""
        before = self._meter.seconds()
        await asyncio.sleep(seconds)
        return (self._meter.seconds() - before) / seconds

    async def _counters(self) -> tuple[float, float]:
        wal = float(await self._value("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))
        return self._meter.seconds(), wal

    async def _jobs(self, load: Load, members: int) -> list[Send | GroupSend]:
        payload = os.urandom(load.size)
        if load.group:
            return [GroupSend(await self._group(load.receivers, members), payload)] * load.messages
        nodes = [node_id(number % load.receivers) for number in range(load.messages)]
        return [Send(node, f"specific.{node}!1", payload) for node in nodes]

    async def _group(self, receivers: int, members: int) -> str:
        name = f"of{receivers}x{members}"
        if name not in self._groups:
            await self._execute(
                "INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel) SELECT %s, %s,"
                " lpad(to_hex(n), 12, '0'), 'specific.' || lpad(to_hex(n), 12, '0') || '!' || m"
                " FROM generate_series(0, %s - 1) n, generate_series(1, %s) m",
                (PREFIX, name, receivers, members),
            )
            self._groups.add(name)
        return name

    async def _publish(
        self, jobs: list[Send | GroupSend], connection: psycopg.AsyncConnection[Any] | None = None
    ) -> None:
        if isinstance(jobs[0], Send):
            await self._queries.send(connection or self._connection, cast("list[Send]", jobs))
        else:
            await self._queries.publish(connection or self._connection, jobs)

    async def _fill(self, rows: int, size: int, *, tidy: bool = True) -> list[Row]:
        """Put so many messages into the mailbox and return them."""
        if tidy:
            await self._tidy()
        job = Send(node_id(0), f"specific.{node_id(0)}!1", os.urandom(size))
        for first in range(0, rows, 250):
            await self._queries.send(self._connection, [job] * min(250, rows - first))
        return [(parcel.id, parcel.expires) for parcel in await self._queries.waiting(self._connection)]

    async def _tidy(self) -> None:
        """Leave no rows, but the room of many: a table that is used for a while does not grow with each message."""
        await self._execute("DELETE FROM channels_pg_sa_message")
        await self._execute("VACUUM (TRUNCATE false) channels_pg_sa_message, channels_pg_sa_membership")

    async def _value(self, query: str) -> Any:
        row = await (await self._connection.execute(query.encode())).fetchone()
        return row[0] if row else None

    async def _execute(self, query: str, parameters: tuple[Any, ...] | None = None) -> None:
        await self._connection.execute(query.encode(), parameters)


async def _hear(layer: Layer, channel: str, times: int) -> None:
    for _ in range(times):
        await layer.receive(channel)


async def _connect(url: str) -> psycopg.AsyncConnection[Any]:
    connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
    await connection.execute(SETTINGS)
    return connection


@contextlib.asynccontextmanager
async def probe(url: str) -> AsyncIterator[Probe]:
    """Open a probe of a database that has the tables; nobody else may use it meanwhile."""
    async with await _connect(url) as connection:
        row = await (await connection.execute("SELECT secret FROM channels_pg_sa_installation")).fetchone()
        meter = Meter(connection.info.backend_pid)
        with contextlib.closing(Crowd(url, row[0] if row else "")) as crowd:
            yield Probe(url, connection, crowd, meter)
