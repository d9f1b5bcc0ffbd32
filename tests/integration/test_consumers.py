"""Channels' generic consumers work on the layer as they do on InMemoryChannelLayer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from channels.layers import get_channel_layer
from channels.testing import ApplicationCommunicator, WebsocketCommunicator

from tests.support.databases import TestServer, query
from tests.support.layers import LISTENER, Message
from tests.support.waiting import PATIENCE, eventually

from .conftest import POSTGRES, LayerSettings
from .consumers import AsyncChat, AsyncEcho, AsyncListener, OtherLayerChat, SyncChat, SyncEcho, SyncListener


async def connect(consumer: Any, count: int = 1) -> list[WebsocketCommunicator]:
    """Connect so many sockets to consumers of this class."""
    sockets = [WebsocketCommunicator(consumer.as_asgi(), "/") for _ in range(count)]
    for socket in sockets:
        accepted, _ = await socket.connect(timeout=PATIENCE)
        assert accepted
    return sockets


@pytest.mark.parametrize("consumer", [AsyncChat, SyncChat])
async def test_a_chat(default_layer: str, consumer: Any) -> None:
    """Each socket of a group sees what any of them says, once and in order, until it leaves."""
    one, two, three = await connect(consumer, 3)
    for number in range(5):
        await one.send_json_to({"number": number})
    for socket in (one, two, three):
        for number in range(5):
            assert await socket.receive_json_from(PATIENCE) == {"number": number}
    await three.disconnect(timeout=PATIENCE)
    await two.send_json_to({"text": "\u65e5\u672c <b>"})
    for socket in (one, two):
        assert await socket.receive_json_from(PATIENCE) == {"text": "\u65e5\u672c <b>"}
    await one.disconnect(timeout=PATIENCE)
    await two.disconnect(timeout=PATIENCE)


@pytest.mark.parametrize("consumer", [AsyncListener, SyncListener])
async def test_groups_on_a_consumer_class(default_layer: str, consumer: Any) -> None:
    """Channels joins a class's `groups` for each socket, and leaves them when it closes."""
    layer = get_channel_layer()
    one, two = await connect(consumer, 2)
    await layer.group_send("news", {"type": "news.flash", "text": "hear"})
    await layer.group_send("weather", {"type": "news.flash", "text": "rain"})
    for socket in (one, two):
        assert [await socket.receive_from(PATIENCE) for _ in range(2)] == ["hear", "rain"]
    await one.disconnect(timeout=PATIENCE)
    await layer.group_send("news", {"type": "news.flash", "text": None, "bytes": b"\x00\xff"})
    assert await two.receive_from(PATIENCE) == b"\x00\xff"
    await two.disconnect(timeout=PATIENCE)


@pytest.mark.parametrize("consumer", [AsyncEcho, SyncEcho])
async def test_an_application_communicator(default_layer: str, consumer: Any) -> None:
    """A consumer without a socket receives through the channel of its own."""
    communicator = ApplicationCommunicator(consumer.as_asgi(), {"type": "order"})
    await communicator.send_input({"type": "order.name"})
    name = (await communicator.receive_output(PATIENCE))["name"]
    for number in range(3):
        await get_channel_layer().send(name, {"type": "order.done", "number": number})
        assert await communicator.receive_output(PATIENCE) == {"type": "done", "number": number}
    communicator.stop(exceptions=False)


async def test_two_hundred_sockets(default_layer: str) -> None:
    """A crowd in one group: each socket gets each message."""
    sockets = await connect(AsyncChat, 200)
    await sockets[0].send_json_to({"number": 1})
    await sockets[-1].send_json_to({"number": 2})
    for socket in sockets:
        seen = [(await socket.receive_json_from(PATIENCE))["number"] for _ in range(2)]
        assert sorted(seen) == [1, 2]
    await asyncio.gather(*(socket.disconnect(timeout=PATIENCE) for socket in sockets))


async def test_a_consumer_on_another_layer(layer_settings: LayerSettings, layer_url: str) -> None:
    """`channel_layer_alias` picks the layer, and the default one hears nothing of it."""
    config = {"url": layer_url}
    layer_settings.use(
        default={"BACKEND": POSTGRES, "CONFIG": {**config, "prefix": "one"}},
        other={"BACKEND": POSTGRES, "CONFIG": {**config, "prefix": "two"}},
    )
    (default,), (other,) = await connect(AsyncChat), await connect(OtherLayerChat)
    await default.send_json_to({"from": "default"})
    await other.send_json_to({"from": "other"})
    assert await default.receive_json_from(PATIENCE) == {"from": "default"}
    assert await other.receive_json_from(PATIENCE) == {"from": "other"}
    await get_channel_layer("other").group_send("chat", {"type": "chat.said", "content": "more"})
    assert await other.receive_json_from(PATIENCE) == "more"
    await default.disconnect(timeout=PATIENCE)
    await other.disconnect(timeout=PATIENCE)


@pytest.fixture
def postgres(layer_settings: LayerSettings, layer_url: str) -> str:
    """Make ours the default layer, on a database of the test's own; returns its URI."""
    layer_settings.use(default={"BACKEND": POSTGRES, "CONFIG": {"url": layer_url}})
    return layer_url


async def test_sockets_survive_a_killed_listener(postgres: str, server: TestServer) -> None:
    """Peer defect 5: connected sockets go on hearing the group after the listening connection was killed."""
    one, two = await connect(AsyncChat, 2)
    for number in range(3):
        server.terminate(eventually(lambda: server.connections(postgres, LISTENER)))
        await one.send_json_to({"number": number})
        for socket in (one, two):
            assert await socket.receive_json_from(PATIENCE) == {"number": number}
    await one.disconnect(timeout=PATIENCE)
    await two.disconnect(timeout=PATIENCE)


async def test_a_bad_message_kills_no_consumer(postgres: str) -> None:
    """Peer defect 16: a message that could not be read killed the consumer; the socket stays and hears the next."""
    communicator = ApplicationCommunicator(AsyncEcho.as_asgi(), {"type": "order"})
    await communicator.send_input({"type": "order.name"})
    name = (await communicator.receive_output(PATIENCE))["name"]
    node = name.partition("!")[0].rpartition(".")[2]
    query(
        postgres,
        "INSERT INTO channels_pg_sa_message (recipient, channel, payload) VALUES (%s, %s, %s)",
        (node, name, b"\xc1\xff"),
    )
    await get_channel_layer().send(name, {"type": "order.done", "number": 7})
    assert await communicator.receive_output(PATIENCE) == {"type": "done", "number": 7}
    communicator.stop(exceptions=False)


SAID, FLASH = {"type": "chat.said", "content": "words"}, {"type": "news.flash", "text": "words"}


@pytest.mark.parametrize(
    ("consumer", "group", "message"),
    [
        (AsyncChat, "chat", SAID),
        (SyncChat, "chat", SAID),
        (AsyncListener, "news", FLASH),
        (SyncListener, "news", FLASH),
    ],
)
async def test_a_closed_socket_leaves_nothing(postgres: str, consumer: Any, group: str, message: Message) -> None:
    """Peer defect 27: a consumer's end is seen: no membership, no reader and no message of it is left."""
    sockets = await connect(consumer, 20)
    await get_channel_layer().group_send(group, message)
    for socket in sockets:
        assert "words" in await socket.receive_from(PATIENCE)
        await socket.disconnect(timeout=PATIENCE)
    assert query(postgres, "SELECT count(*) FROM channels_pg_sa_membership") == [(0,)]
    assert "0 waiting, 0 unread" in repr(get_channel_layer())
    eventually(lambda: query(postgres, "SELECT count(*) FROM channels_pg_sa_message") == [(0,)])
