"""Keys: who can read what, rotation, and what happens to what nobody can read."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest

from tests.support.databases import query
from tests.support.layers import LayerFactory, PostgresLayer

from .backends import Conversation, text

TALK = Conversation(patience=10)


async def test_keys_rotate(make_layer: LayerFactory) -> None:
    """The first key encrypts and all decrypt: a layer with the new key first reads what the old ones still send."""
    old = make_layer(symmetric_encryption_keys=["old"])
    both = make_layer(symmetric_encryption_keys=["new", "old"])
    new = make_layer(symmetric_encryption_keys=["new"])
    channel = await both.new_channel()
    await old.send(channel, text(1))
    await new.send(channel, text(2))
    assert await TALK.take(both, channel, 2) == [text(1), text(2)]
    await both.send("normal", text(3))
    assert await TALK.next(new, "normal") == text(3)


@pytest.mark.parametrize("size", [10, 100_000], ids=["small", "large"])
@pytest.mark.parametrize("kind", ["own", "normal", "group"])
async def test_what_cannot_be_decrypted_is_dropped_and_counted(
    make_layer: LayerFactory, caplog: pytest.LogCaptureFixture, kind: str, size: int
) -> None:
    """Peer defect 16: a message that could not be decrypted raised out of receive() and killed the consumer."""
    reader, stranger = make_layer(symmetric_encryption_keys=["right"]), make_layer(symmetric_encryption_keys=["wrong"])
    friend = make_layer(symmetric_encryption_keys=["right"])
    channel = "normal" if kind == "normal" else await reader.new_channel()
    await reader.group_add("group", channel)
    waiting = asyncio.create_task(TALK.next(reader, channel))
    with caplog.at_level(logging.WARNING, "channels_pg_sa"):
        for sender, number in ((stranger, 1), (friend, 2), (stranger, 3), (friend, 4)):
            message = {"number": number, "text": "x" * size}
            await (sender.group_send("group", message) if kind == "group" else sender.send(channel, message))
        assert (await waiting)["number"] == 2
        assert (await TALK.next(reader, channel))["number"] == 4
    assert sum(reader.counters.values()) >= 2
    assert any(record.levelno >= logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
async def test_an_encrypting_layer_refuses_plain_messages(make_layer: LayerFactory, serializer: str) -> None:
    """Whoever can write to the table but lacks the key cannot forge a message."""
    reader, plain = make_layer(symmetric_encryption_keys=["right"]), make_layer(serializer=serializer)
    channel = await reader.new_channel()
    await plain.send(channel, text(1))
    await reader.send(channel, text(2))
    assert await TALK.next(reader, channel) == text(2)


@pytest.mark.parametrize("allowed", ["jobs", re.compile("jobs")], ids=["glob", "compiled"])
async def test_only_the_names_that_are_allowed_may_be_plain(make_layer: LayerFactory, allowed: Any) -> None:
    """The whole name counts, and not a part of it."""
    reader = make_layer(symmetric_encryption_keys=["right"], allow_unencrypted=["others", allowed])
    plain = make_layer(serializer="json")  # as SQL sends
    for channel, taken in (("jobs", True), ("my-jobs", False), ("jobs-2", False)):
        await plain.send(channel, text(1))
        await reader.send(channel, text(2))
        assert await TALK.next(reader, channel) == text(1 if taken else 2)


async def test_a_plain_layer_drops_what_is_encrypted(make_layer: LayerFactory) -> None:
    """Peer defect 16: bytes that are no message are dropped, and the next message arrives."""
    reader, secret = make_layer(), make_layer(symmetric_encryption_keys=["right"])
    channel = await reader.new_channel()
    await secret.send(channel, text(1))
    await reader.send(channel, text(2))
    assert await TALK.next(reader, channel) == text(2)


async def test_the_database_sees_no_clear_text(make_own_layer: LayerFactory, layer_url: str) -> None:
    """An encrypted payload holds nothing of the message, and the same message never looks the same twice."""
    layer = make_own_layer(symmetric_encryption_keys=["key"])
    for _ in range(2):
        await layer.send("normal", {"text": "very secret words"})
    rows = query(layer_url, "SELECT payload FROM channels_pg_sa_message")
    assert len({bytes(payload) for (payload,) in rows}) == 2
    assert not any(b"secret" in bytes(payload) for (payload,) in rows)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"{", b"[1]", b"\x93\x01\x02\x03", b"null", b"\xff" * 50])
async def test_a_damaged_payload_is_dropped(make_own_layer: LayerFactory, layer_url: str, payload: bytes) -> None:
    """Peer defect 16: whatever a row holds, receive() goes on to the next message."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    node = channel.partition("!")[0].rpartition(".")[2]
    waiting = asyncio.create_task(TALK.next(layer, channel))
    for recipient, name in ((node, channel), ("normal", "normal")):
        query(
            layer_url,
            "INSERT INTO channels_pg_sa_message (recipient, channel, payload) VALUES (%s, %s, %s)",
            (recipient, name, payload),
        )
    await layer.send(channel, text(1))
    await layer.send("normal", text(2))
    assert await waiting == text(1)
    assert await TALK.next(layer, "normal") == text(2)


async def test_a_row_that_vanished_holds_up_nothing(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Peer defect 16: a message whose row vanished raised out of receive(); here its announcement is skipped."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.send(channel, text(0))
    assert await TALK.next(layer, channel) == text(0)
    node = channel.partition("!")[0].rpartition(".")[2]
    for recipient, name in ((node, channel), ("normal", "normal")):
        announce_and_delete(layer_url, recipient, name)
    await layer.send(channel, text(1))
    await layer.send("normal", text(2))
    assert await TALK.next(layer, channel) == text(1)
    assert await TALK.next(layer, "normal") == text(2)


def announce_and_delete(url: str, recipient: str, channel: str) -> None:
    """Insert a row too large for its notification and delete it in the same transaction."""
    query(
        url,
        f"""DO $$ BEGIN
            INSERT INTO channels_pg_sa_message (recipient, channel, payload)
            VALUES ('{recipient}', '{channel}', decode(repeat('ab', 50000), 'hex'));
            DELETE FROM channels_pg_sa_message;
        END $$""",
    )


async def test_json_and_msgpack_are_told_apart(make_layer: LayerFactory) -> None:
    """A layer reads both, so that a change of `serializer` loses nothing, and SQL may write JSON."""
    json, msgpack = make_layer(serializer="json"), make_layer(serializer="msgpack")
    for sender, reader in ((json, msgpack), (msgpack, json)):
        channel = await reader.new_channel()
        await sender.send(channel, {"bytes": b"\x00\xff", "text": "\uffff"})
        assert await TALK.next(reader, channel) == {"bytes": b"\x00\xff", "text": "\uffff"}


def test_repr_tells_no_secret(make_layer: LayerFactory) -> None:
    """Neither keys nor passwords appear, whatever happens to be logged."""
    layer: PostgresLayer = make_layer(symmetric_encryption_keys=["hush-hush"])
    assert "hush" not in repr(layer)
    assert repr(layer).startswith("<PostgresChannelLayer")
