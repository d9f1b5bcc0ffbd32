"""Connections that are killed, cut, stalled or never come up: nothing the database still has is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql

from tests.support.databases import TestServer
from tests.support.layers import LayerFactory, Message, PostgresLayer
from tests.support.proxy import Proxy
from tests.support.waiting import eventually, eventually_async

from .backends import Conversation, numbers, text

TALK = Conversation(patience=20)

Kill = Callable[[PostgresLayer], list[int]]

FORGED = ["", "1:shutdown", "shutdown", "P", "Pjunk", "P1 2", "p1", "Q", "J1 a", "L", "\u00e9,,,", "x" * 7999]


async def warm(layer: PostgresLayer) -> str:
    """Use the layer once, so that it listens; return a channel of it."""
    channel = await layer.new_channel()
    await layer.send(channel, text(-1))
    assert await TALK.next(layer, channel) == text(-1)
    return channel


async def test_a_waiting_reader_survives_a_killed_listener(make_own_layer: LayerFactory, kill_listener: Kill) -> None:
    """Peer defect 5: pg_terminate_backend on the listener, and receives hung for ever."""
    layer = make_own_layer()
    channel = await warm(layer)
    readers = [asyncio.create_task(TALK.next(layer, name)) for name in (channel, "normal")]
    for number in range(3):
        kill_listener(layer)
        await layer.send(channel, text(number))
        await layer.send("normal", text(number))
        assert await asyncio.gather(*readers) == [text(number)] * 2
        readers = [asyncio.create_task(TALK.next(layer, name)) for name in (channel, "normal")]
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


async def test_a_killed_listener_is_logged(
    make_own_layer: LayerFactory, kill_listener: Kill, caplog: pytest.LogCaptureFixture
) -> None:
    """Peer defect 5: nothing was logged."""
    layer = make_own_layer()
    channel = await warm(layer)
    with caplog.at_level(logging.INFO, "channels_pg_sa"):
        kill_listener(layer)
        await layer.send(channel, text(1))
        assert await TALK.next(layer, channel) == text(1)
    assert any(record.levelno >= logging.WARNING for record in caplog.records)


async def test_groups_and_order_survive_killed_listeners(make_own_layer: LayerFactory, kill_listener: Kill) -> None:
    """Sends and group sends from another layer go on while the listeners of both are killed: all arrive, in order."""
    layer, sender = make_own_layer(), make_own_layer()
    channel = await warm(layer)
    await layer.group_add("group", channel)
    reader = asyncio.create_task(TALK.take(layer, channel, 600))
    for number in range(300):
        size = 30_000 if number % 10 == 0 else 10
        await sender.send(channel, {"number": 2 * number, "text": "x" * size})
        await sender.group_send("group", {"number": 2 * number + 1, "text": "x" * size})
        if number % 50 == 25:
            kill_listener(layer)
    assert numbers(await reader) == list(range(600))
    assert await TALK.is_empty(layer, channel)


async def test_workers_share_exactly_while_listeners_are_killed(
    make_own_layer: LayerFactory, kill_listener: Kill
) -> None:
    """Peer defect 22: replay after a lost connection doubled messages; here each job is done once."""
    sender, workers = make_own_layer(), [make_own_layer() for _ in range(4)]
    received: list[Message] = []

    async def work(layer: PostgresLayer) -> None:
        while True:
            received.append(await layer.receive("jobs"))

    async def all_done() -> bool:
        return len(received) >= 2000

    readers = [asyncio.create_task(work(layer)) for layer in workers]
    for start in range(0, 2000, 200):
        await asyncio.gather(*(sender.send("jobs", text(number)) for number in range(start, start + 200)))
        kill_listener(sender)
    await eventually_async(all_done, within=40)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    assert sorted(numbers(received)) == list(range(2000))


async def test_sends_survive_killed_connections(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str
) -> None:
    """Idle connections that the server has ended are noticed, and the next call goes through."""
    layer = make_own_layer()
    channel = await warm(layer)
    await layer.group_add("group", channel)
    for number in range(3):
        server.terminate(server.connections(layer_url))
        await layer.group_send("group", text(number))
        assert await TALK.next(layer, channel) == text(number)


async def test_a_first_connect_that_fails_is_made_up_for(make_own_layer: LayerFactory, proxy: Proxy) -> None:
    """Peer defect 5: a failed first connect left receives hanging; here receive() waits for the server to come."""
    proxy.cut()
    layer = make_own_layer(url=proxy.url)
    channel = await layer.new_channel()
    reader = asyncio.create_task(TALK.next(layer, channel))
    sends = asyncio.create_task(layer.send(channel, text(1)))
    await asyncio.wait([reader], timeout=0.2)
    assert not reader.done()
    proxy.heal()
    await sends
    assert await reader == text(1)


async def test_a_cut_network_loses_nothing(make_own_layer: LayerFactory, proxy: Proxy) -> None:
    """What others send while this process is cut off arrives when it is back."""
    layer, sender = make_own_layer(url=proxy.url), make_own_layer()
    channel = await warm(layer)
    await layer.group_add("group", channel)
    reader = asyncio.create_task(TALK.take(layer, channel, 20))
    for number in range(0, 20, 2):
        if number == 6:
            proxy.cut()
        await sender.send(channel, text(number))
        await sender.group_send("group", text(number + 1))
        if number == 14:
            proxy.heal()
    assert numbers(await reader) == list(range(20))
    assert await TALK.is_empty(layer, channel)


async def test_a_dropped_connection_is_replaced(make_own_layer: LayerFactory, proxy: Proxy) -> None:
    """Peer defect 5: connections that a load balancer resets are opened again without a lost message."""
    layer, sender = make_own_layer(url=proxy.url), make_own_layer()
    channel = await warm(layer)
    for number in range(5):
        proxy.drop()
        await sender.send(channel, text(number))
        assert await TALK.next(layer, channel) == text(number)
    await layer.send(channel, text(9))
    assert await TALK.next(layer, channel) == text(9)


async def test_send_gives_up_in_time_and_says_what_it_knows(make_own_layer: LayerFactory, proxy: Proxy) -> None:
    """A sender is never blocked for ever: SendError after `send_timeout` when the server cannot be reached."""
    from channels_pg_sa import SendError

    layer = make_own_layer(url=proxy.url, send_timeout=0.5)
    channel = await layer.new_channel()

    async def sent() -> bool:
        try:
            await layer.send(channel, text(1))
        except SendError:  # in that time there may not even be a connection
            return False
        return True

    await eventually_async(sent)
    assert await TALK.next(layer, channel) == text(1)
    proxy.cut()
    with pytest.raises(SendError):
        await asyncio.wait_for(layer.send(channel, text(2)), 10)
    proxy.heal()
    await eventually_async(sent)
    assert await TALK.next(layer, channel) == text(1)


async def test_callbacks_tell_of_a_lost_connection(make_own_layer: LayerFactory, kill_listener: Kill) -> None:
    """Peer defect 29: on_disconnect and on_reconnect were accepted and never called; consumers hear of both."""
    layer = make_own_layer(on_disconnect="layer.lost", on_reconnect="layer.back")
    channel = await warm(layer)
    reader = asyncio.create_task(TALK.take(layer, channel, 2))
    await asyncio.sleep(0)
    kill_listener(layer)
    assert [message["type"] for message in await reader] == ["layer.lost", "layer.back"]


@pytest.mark.parametrize("payload", FORGED)
async def test_a_forged_notification_stops_nobody(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str, payload: str
) -> None:
    """Peer defect 19: anyone could NOTIFY '1:shutdown' and stop every listener."""
    layer = make_own_layer()
    channel = await warm(layer)
    waiting = asyncio.create_task(TALK.next(layer, channel))
    before = make_own_layer.listeners(layer)
    with psycopg.connect(layer_url, autocommit=True) as connection:
        for topic in topics(connection, channel):
            connection.execute("SELECT pg_notify(%s, %s)", (topic, payload))
            connection.execute(sql.SQL("NOTIFY {}").format(sql.Identifier(topic)))
    await layer.send(channel, text(1))
    await layer.send("normal", text(2))
    assert await waiting == text(1)
    assert await TALK.next(layer, "normal") == text(2)
    assert make_own_layer.listeners(layer) == before


def topics(connection: psycopg.Connection[tuple[str]], channel: str) -> list[str]:
    """Return the NOTIFY channels that the layer of this channel may listen on."""
    from channels_pg_sa.names import node_of
    from channels_pg_sa.topics import topic

    (secret,) = connection.execute("SELECT secret FROM channels_pg_sa_installation").fetchone() or ("",)
    names = [("node", node_of(channel) or ""), ("queue", "normal")]
    return [topic(secret, kind, "asgi", name) for kind, name in names]


async def test_topics_cannot_be_guessed(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Peer defect 19: without the installation's secret, which is in a table, nobody knows where to NOTIFY."""
    channel = await warm(make_own_layer())
    with psycopg.connect(layer_url) as connection:
        known = topics(connection, channel)
        connection.execute("UPDATE channels_pg_sa_installation SET secret = 'another'")
        assert not set(known) & set(topics(connection, channel))
        connection.rollback()


async def test_a_session_that_was_killed_is_not_left_behind(
    make_own_layer: LayerFactory, kill_listener: Kill, server: TestServer, layer_url: str
) -> None:
    """After many reconnects there is one listener, and not one for each time."""
    layer = make_own_layer()
    channel = await warm(layer)
    for number in range(5):
        kill_listener(layer)
        await layer.send(channel, text(number))
        assert await TALK.next(layer, channel) == text(number)
    eventually(lambda: len(make_own_layer.listeners(layer)) == 1)  # the last that was killed may not be gone yet
    assert len(server.connections(layer_url)) <= 6
