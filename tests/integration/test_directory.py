"""Reading who is in which group, and which processes are alive."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from channels_pg_sa import Layer, LayerClosed, LiveNode, Publisher, SendError, __version__
from tests.support.databases import AWAITED, TestServer, query
from tests.support.engines import async_engine_on, engine_on
from tests.support.layers import LayerFactory
from tests.support.proxy import Proxy
from tests.support.schema import SCHEMA
from tests.support.waiting import eventually, eventually_async

OLDER = "UPDATE channels_pg_sa_node SET started_at = started_at - %s::interval WHERE id = %s"
READERS = ["layer", "publisher", "engine", "async_engine"]


@pytest_asyncio.fixture(params=READERS)
async def reader(request: pytest.FixtureRequest, layer_url: str) -> AsyncIterator[Any]:
    """Whatever can read the layer, on the test's own database."""
    if request.param == "layer":
        layer = Layer(url=layer_url)
        yield layer
        await layer.close()
    elif request.param == "publisher":
        publisher = Publisher(url=layer_url)
        yield publisher
        await publisher.close()
    elif request.param == "engine":
        with engine_on(layer_url) as engine:
            yield Publisher(engine=engine)
    else:
        async with async_engine_on(layer_url) as async_engine:
            yield Publisher(engine=async_engine)


async def test_groups_and_nodes(make_own_layer: LayerFactory, reader: Any) -> None:
    """Members of every process and of none, in the order of their names; nodes from the oldest on."""
    here, there = make_own_layer(), make_own_layer()
    mine, theirs = await here.new_channel(), await there.new_channel()
    await here.group_add("group", mine)
    await there.group_add("group", theirs)
    for group, channel in (("group", "jobs"), ("group", "hub!x"), ("other", mine), ("other", "jobs")):
        await here.group_add(group, channel)
    assert await reader.group_channels("group") == sorted([mine, theirs, "jobs", "hub!x"])
    assert await reader.group_count("group") == 4
    assert await reader.groups_of(mine) == ["group", "other"]
    assert await reader.groups_of("jobs") == ["group", "other"]
    assert await reader.groups_of("hub!x") == ["group"]
    assert await reader.groups_of("nobody") == []
    assert await reader.group_channels("nothing") == []
    assert await reader.group_count("nothing") == 0
    await here.group_discard("group", mine)
    assert await reader.groups_of(mine) == ["other"]
    first, second = await reader.nodes()
    assert [first.id, second.id] == [here.node, there.node]
    assert isinstance(first, LiveNode)
    assert (first.host, first.pid, first.version) == (socket.gethostname(), os.getpid(), __version__)
    now = dt.datetime.now(dt.timezone.utc)
    assert now - dt.timedelta(minutes=1) < first.started_at <= first.seen_at < now + dt.timedelta(minutes=1)


async def test_the_order_is_not_that_of_the_rows(make_own_layer: LayerFactory, layer_url: str, reader: Any) -> None:
    """Nor that of an index: groups and members come by their names, nodes from the oldest on."""
    older, younger = make_own_layer(), make_own_layer()
    channel, last = await older.new_channel("a"), await younger.new_channel("z")
    for group in ("b", "c", "a"):
        for layer, member in ((younger, last), (older, channel), (older, "jobs")):
            await layer.group_add(group, member)
    # In the order in which they must not come: a row that is written anew is the last.
    for layer, age in ((younger, "1 h"), (older, "2 h")):
        query(layer_url, OLDER, [age, layer.node])
    assert await reader.groups_of(channel) == ["a", "b", "c"]
    assert await reader.groups_of("jobs") == ["a", "b", "c"]
    assert await reader.group_channels("a") == [channel, "jobs", last]
    assert [node.id for node in await reader.nodes()] == [older.node, younger.node]


async def test_reading_without_a_loop(make_own_layer: LayerFactory, layer_url: str) -> None:
    """The same from threads and scripts."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    publisher = Publisher(url=layer_url)
    with engine_on(layer_url) as engine:
        for reader in (layer, publisher, Publisher(engine=engine)):
            read: Any = reader
            assert await asyncio.to_thread(read.group_channels_sync, "group") == [channel]
            assert await asyncio.to_thread(read.group_count_sync, "group") == 1
            assert await asyncio.to_thread(read.groups_of_sync, channel) == ["group"]
            assert [node.id for node in await asyncio.to_thread(read.nodes_sync)] == [layer.node]
    await publisher.close()


async def test_what_has_ended_does_not_count(make_own_layer: LayerFactory, layer_url: str, reader: Any) -> None:
    """Neither a membership that has expired, nor a process that gave no sign of life, nor what it was a member of."""
    alive, dead, buried, brief = make_own_layer(), make_own_layer(), make_own_layer(), make_own_layer(group_expiry=0.01)
    channels = {layer: await layer.new_channel() for layer in (alive, dead, buried, brief)}
    for layer, channel in channels.items():
        await layer.group_add("group", channel)
    await brief.group_add("group", "jobs")
    for layer in (dead, buried, brief):
        await layer.close()  # Their rows are put back below, as a process leaves them that was killed.
    query(
        layer_url,
        """INSERT INTO channels_pg_sa_node (id, prefix, pid, lease_until) VALUES
        (%s, 'asgi', 1, now() - interval '1 s'), (%s, 'asgi', NULL, now() + interval '1 h'),
        (%s, 'asgi', 1, now() + interval '1 h')""",
        (dead.node, buried.node, brief.node),
    )
    query(
        layer_url,
        """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel, expires_at) VALUES
        ('asgi', 'group', %s, %s, 'infinity'), ('asgi', 'group', %s, %s, 'infinity'),
        ('asgi', 'group', %s, %s, now() - interval '1 s'),
        ('asgi', 'group', 'ffffffffffff', 'a.ffffffffffff!b', 'infinity')
        """,
        (dead.node, channels[dead], buried.node, channels[buried], brief.node, channels[brief]),
    )
    assert await reader.group_channels("group") == [channels[alive]]
    assert await reader.group_count("group") == 1
    for layer in (dead, buried, brief):
        assert await reader.groups_of(channels[layer]) == []
    assert await reader.groups_of("jobs") == []
    assert [node.id for node in await reader.nodes()] == [alive.node, brief.node]


async def test_prefixes_and_schemas_stay_apart(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Each layer sees its own."""
    configs: list[dict[str, Any]] = [{}, {"prefix": "other"}, {"schema": SCHEMA}]
    configs.append({"schema": SCHEMA, "prefix": "other"})
    layers: list[Any] = [make_own_layer(**config) for config in configs]
    channels = [await layer.new_channel() for layer in layers]
    for layer, channel in zip(layers, channels, strict=True):
        await layer.group_add("group", channel)
    for layer, channel in zip(layers, channels, strict=True):
        assert await layer.group_channels("group") == [channel]
        assert await layer.group_count("group") == 1
        assert await layer.groups_of(channel) == ["group"]
        assert [node.id for node in await layer.nodes()] == [layer.node]
        assert [await layer.groups_of(other) for other in channels if other != channel] == [[], [], []]


async def test_an_engine_reads_what_is_of_its_prefix_and_schema(make_own_layer: LayerFactory, layer_url: str) -> None:
    """As a layer does, with a loop and without one."""
    configs: list[Any] = [{}, {"prefix": "other"}, {"schema": SCHEMA}, {"schema": SCHEMA, "prefix": "other"}]
    layers: list[Any] = [make_own_layer(**config) for config in configs]
    channels = [await layer.new_channel() for layer in layers]
    for layer, channel in zip(layers, channels, strict=True):
        await layer.group_add("group", channel)
    with engine_on(layer_url) as engine:
        async with async_engine_on(layer_url) as async_engine:
            for config, layer, channel in zip(configs, layers, channels, strict=True):
                for publisher in (Publisher(engine=async_engine, **config), Publisher(engine=engine, **config)):
                    assert await publisher.group_channels("group") == [channel]
                    assert [node.id for node in await publisher.nodes()] == [layer.node]
                assert await asyncio.to_thread(publisher.group_channels_sync, "group") == [channel]


async def test_names_are_checked(reader: Any) -> None:
    """As by every verb of the layer; where a statement is made, then."""
    for verb in ("group_channels", "group_count", "groups_of"):
        with pytest.raises(TypeError, match="name must be a string"):
            await getattr(reader, verb)("not a name")
        with pytest.raises(TypeError, match="name must be a string"):
            await asyncio.to_thread(getattr(reader, f"{verb}_sync"), "not a name")
        with pytest.raises(TypeError, match="name must be a string"):
            getattr(reader, f"{verb}_statement")("not a name")


def test_groups_are_counted_by_the_index(layer_url: str) -> None:
    """A group among many costs what its own members cost."""
    query(
        layer_url,
        """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel)
        SELECT 'asgi', 'group' || number % 1000, '', number FROM generate_series(1, 20000) number""",
    )
    query(layer_url, "VACUUM ANALYZE channels_pg_sa_membership")
    with engine_on(layer_url) as engine, engine.connect() as connected:
        publisher = Publisher(engine=engine)
        for statement in (publisher.group_count_statement("group7"), publisher.group_channels_statement("group7")):
            compiled = statement.compile(engine, compile_kwargs={"literal_binds": True})
            plan = "\n".join(connected.exec_driver_sql(f"EXPLAIN {compiled}").scalars())
            assert "pk_channels_pg_sa_membership" in plan
            assert "Seq Scan on channels_pg_sa_membership" not in plan


async def test_reading_outlasts_a_lost_connection(
    server: TestServer, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """It is asked again on another connection."""
    layer: Any = make_own_layer()
    await layer.group_add("group", "jobs")
    assert await layer.group_count("group") == 1
    server.terminate(eventually(lambda: server.connections(layer_url, "channels_pg_sa")))
    assert await layer.group_count("group") == 1


async def test_reading_has_a_deadline(make_own_layer: LayerFactory, proxy: Proxy) -> None:
    """While the database is away it fails, in its time, as a send does."""
    layer: Any = make_own_layer(url=proxy.url, send_timeout=0.3)

    async def has_joined() -> bool:
        with contextlib.suppress(SendError):  # there may not even be a connection within that time
            await layer.group_add("group", "jobs")
            return True
        return False

    await eventually_async(has_joined)
    proxy.cut()
    with pytest.raises(SendError, match="Nothing was done"):
        await layer.group_count("group")
    with pytest.raises(SendError, match="Nothing was done"):
        await asyncio.to_thread(layer.nodes_sync)
    proxy.heal()


async def test_reading_ends_with_the_layer(make_own_layer: LayerFactory, proxy: Proxy) -> None:
    """Who waits for an answer when the layer closes is told so, and does not wait for ever."""
    layer: Any = make_own_layer(url=proxy.url)
    await layer.group_add("group", "jobs")
    proxy.cut()
    reading = asyncio.create_task(layer.group_count("group"))
    await asyncio.sleep(0)
    await layer.close()
    with pytest.raises((LayerClosed, SendError)):
        await reading
    proxy.heal()


async def test_a_reader_may_be_cancelled(server: TestServer, make_own_layer: LayerFactory, layer_url: str) -> None:
    """In the middle of its statement; and the layer reads on for others."""
    layer: Any = make_own_layer()
    await layer.group_add("group", "jobs")
    with psycopg.connect(layer_url, application_name="tests") as other:
        other.execute("LOCK TABLE channels_pg_sa_membership")
        reading = asyncio.create_task(layer.group_count("group"))
        await asyncio.to_thread(eventually, lambda: waits_for_lock(layer_url))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert await layer.group_count("group") == 1


def waits_for_lock(url: str) -> bool:
    """Tell whether a connection of ours waits for a lock."""
    return query(url, f"{AWAITED} AND application_name = 'channels_pg_sa'") != [(0,)]
