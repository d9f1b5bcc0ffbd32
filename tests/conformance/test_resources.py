"""What a layer costs: memory, locks, rows and connections, in a process and on the server."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

from tests.support.databases import TestServer, query
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.waiting import PATIENCE, eventually

from .backends import Conversation, numbers, text

TALK = Conversation(patience=10)

LOCKS = """SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
MEMBERS = """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel)
    SELECT 'asgi', 'group-' || n % 2000, node, 'specific.' || node || '!' || n
    FROM (SELECT n, lpad(to_hex(n % 50), 12, '0') AS node FROM generate_series(1, 200000) n) AS numbers"""
SCANS = """SELECT seq_scan, idx_scan FROM pg_stat_user_tables
    WHERE relname = 'channels_pg_sa_membership' AND schemaname = 'public'"""


def used_memory() -> int:
    """Return the bytes in use that Python has allocated since tracing began."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def test_starting_takes_nothing_that_is_not_asked_for(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Peer defect 6: any process that started took every pending message of every channel into its memory."""
    sender, asleep = make_own_layer(), make_own_layer()
    channel = await asleep.new_channel()
    await asyncio.gather(*(sender.send(f"jobs-{number}", {"value": "x" * 20_000}) for number in range(500)))
    await asyncio.gather(*(sender.send(channel, {"value": "x" * 20_000}) for number in range(100)))
    await sender.send("mine", text(1))
    tracemalloc.start()
    try:
        before = used_memory()
        layer = make_own_layer()
        assert await TALK.next(layer, "mine") == text(1)
        assert used_memory() - before < 2_000_000
    finally:
        tracemalloc.stop()
    assert query(layer_url, "SELECT count(*) >= 500 FROM channels_pg_sa_message") == [(True,)]


async def test_channels_cost_no_locks(make_own_layer: LayerFactory, server: TestServer, layer_url: str) -> None:
    """Peer defect 9: one advisory lock a channel; at 8,960 channels the server refused connections."""
    layer = make_own_layer()
    channels = [await layer.new_channel() for _ in range(10_000)]
    readers = [asyncio.create_task(layer.receive(channel)) for channel in channels]
    await layer.send(channels[-1], text(1))
    assert await asyncio.wait_for(readers.pop(), PATIENCE) == text(1)
    assert query(layer_url, LOCKS) == [(0,)]
    assert len(server.connections(layer_url)) <= 6
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


async def test_many_normal_channels_at_once(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Peer defect 9: waiting on a thousand normal channels is a matter of course."""
    layer, sender = make_own_layer(), make_own_layer()
    readers = [asyncio.create_task(TALK.next(layer, f"jobs-{number}")) for number in range(1000)]
    await asyncio.gather(*(sender.send(f"jobs-{number}", text(number)) for number in range(1000)))
    assert numbers(await asyncio.gather(*readers)) == list(range(1000))
    assert query(layer_url, LOCKS) == [(0,)]


async def test_a_sender_keeps_nothing(make_own_layer: LayerFactory) -> None:
    """Peer defect 10: a process that only sent kept a queue for each channel."""
    sender, reader = make_own_layer(), make_own_layer()
    await sender.send("warm", text(0))
    tracemalloc.start()
    try:
        before = used_memory()
        for start in range(0, 10_000, 1000):
            names = [f"jobs-{number}" for number in range(start, start + 1000)]
            await asyncio.gather(*(sender.send(name, text(1)) for name in names))
            await asyncio.gather(*(sender.group_send(name, text(1)) for name in names))
        assert used_memory() - before < 1_500_000
    finally:
        tracemalloc.stop()
    assert await TALK.next(reader, "jobs-9999") == text(1)


async def test_channels_that_are_done_with_are_forgotten(make_own_layer: LayerFactory) -> None:
    """Peer defect 10: queues were never freed; here a socket that has come and gone leaves nothing."""
    layer = make_own_layer()

    async def one_socket() -> None:
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        await layer.send(channel, text(1))
        assert await TALK.next(layer, channel) == text(1)
        reader = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        await layer.group_discard("group", channel)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)

    await asyncio.gather(*(one_socket() for _ in range(200)))
    tracemalloc.start()
    try:
        before = used_memory()
        for _ in range(20):
            await asyncio.gather(*(one_socket() for _ in range(200)))
        assert used_memory() - before < 1_000_000
    finally:
        tracemalloc.stop()


async def test_unread_messages_are_freed_when_they_expire(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Peer defect 27: unread channels leaked memory; what nobody reads is gone after its expiry, here and there."""
    layer = make_own_layer(expiry=1, heartbeat=0.3, lease=2)
    channels = [await layer.new_channel() for _ in range(20)]
    for channel in channels:
        await layer.group_add("group", channel)
    tracemalloc.start()
    try:
        before = used_memory()
        await asyncio.gather(*(layer.send(channels[0], {"text": "x" * 5000, "n": n}) for n in range(1000)))
        await asyncio.gather(*(layer.group_send("group", {"text": "x" * 5000, "n": n}) for n in range(200)))
        await layer.send("jobs", text(1))
        eventually(lambda: query(layer_url, "SELECT count(*) FROM channels_pg_sa_message") == [(0,)])
        await asyncio.to_thread(eventually, lambda: used_memory() - before < 1_500_000)
    finally:
        tracemalloc.stop()
    await make_own_layer().send(channels[0], text(2))  # which lives longer
    assert await TALK.next(layer, channels[0]) == text(2)


async def test_a_group_of_strangers_expires(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Peer defect 13: expired rows stayed for ever unless group_discard() was called."""
    layer = make_own_layer(group_expiry=1, heartbeat=0.3, lease=2)
    for number in range(50):
        await layer.group_add(f"group-{number}", await layer.new_channel())
        await layer.group_add(f"group-{number}", "jobs")
    eventually(lambda: query(layer_url, "SELECT count(*) FROM channels_pg_sa_membership") == [(0,)])
    await layer.group_send("group-1", text(1))
    assert await TALK.is_empty(layer, "jobs")


async def test_a_group_send_reads_the_index_only(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str
) -> None:
    """Peer defect 13: 39 ms a group_send at 200,000 memberships, for want of an index; here no scan of the table."""
    query(layer_url, MEMBERS)
    query(layer_url, "ANALYZE channels_pg_sa_membership")
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("group-7", channel)
    await settle(layer, server, layer_url)
    ((scans, lookups),) = query(layer_url, SCANS)
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("group-7", channel)
    for number in range(20):
        await layer.group_send("group-7", text(number))
    assert numbers(await TALK.take(layer, channel, 20)) == list(range(20))
    await layer.group_discard("group-7", channel)
    await settle(layer, server, layer_url)
    # Before version 15 the server's collector counts a moment later.
    eventually(lambda: query(layer_url, SCANS)[0][1] - lookups >= 20)
    assert query(layer_url, SCANS)[0][0] == scans


async def settle(layer: PostgresLayer, server: TestServer, url: str) -> None:
    """Close the layer and wait until its backends are gone: they report their statistics as they end."""
    await layer.close()
    eventually(lambda: not server.connections(url))


async def test_a_group_send_costs_one_row_a_node(make_own_layer: LayerFactory, layer_url: str) -> None:
    """However many members a process has, it is sent one message."""
    reader, sender = make_own_layer(), make_own_layer()
    channels = [await reader.new_channel() for _ in range(100)]
    await asyncio.gather(*(reader.group_add("group", channel) for channel in channels))
    query(layer_url, "CREATE TABLE seen AS SELECT 0 AS rows")
    query(
        layer_url,
        """CREATE FUNCTION count_rows() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN UPDATE seen SET rows = rows + 1; RETURN NULL; END'""",
    )
    query(
        layer_url,
        """CREATE TRIGGER counting AFTER INSERT ON channels_pg_sa_message
        FOR EACH ROW EXECUTE FUNCTION count_rows()""",
    )
    await sender.group_send("group", text(1))
    for channel in channels:
        assert await TALK.next(reader, channel) == text(1)
    assert query(layer_url, "SELECT rows FROM seen") == [(1,)]


async def test_read_messages_leave_no_rows(make_own_layer: LayerFactory, layer_url: str) -> None:
    """A table that only grows is how others reached 60 GB: what was received is deleted soon after."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    for number in range(0, 60, 3):
        await layer.send(channel, text(number))
        await layer.group_send("group", {"number": number + 1, "text": "x" * 20_000})
        await layer.send(channel, {"number": number + 2, "text": "x" * 20_000})
        await layer.send("jobs", text(number))
        assert await TALK.next(layer, "jobs") == text(number)
    assert numbers(await TALK.take(layer, channel, 60)) == list(range(60))
    eventually(lambda: query(layer_url, "SELECT count(*) FROM channels_pg_sa_message") == [(0,)])


async def test_layers_on_two_databases(make_layer: LayerFactory, make_own_layer: LayerFactory) -> None:
    """Peer defect 12: a second alias with another database's name wrote to the first database."""
    one, other = make_layer(prefix="same"), make_own_layer(prefix="same")
    await one.send("jobs", text(1))
    await other.send("jobs", text(2))
    assert await TALK.next(other, "jobs") == text(2)
    assert await TALK.next(one, "jobs") == text(1)
