"""Flush that everybody sees, and prefixes that keep applications apart."""

from __future__ import annotations

import asyncio

from tests.support.layers import Layer

from .backends import Conversation, Maker, not_in_memory, text

ONE_PROCESS = "it lives in one process"


async def test_flush_forgets_messages(layer: Layer, talk: Conversation) -> None:
    """After flush() no channel holds a message, small or large."""
    own = await layer.new_channel()
    for channel in (own, "normal", "hub!x"):
        await layer.send(channel, text(1))
        await layer.send(channel, {"value": "x" * 50_000})
    await layer.flush()
    for channel in (own, "normal", "hub!x"):
        assert await talk.is_empty(layer, channel)


async def test_flush_forgets_groups(layer: Layer, talk: Conversation) -> None:
    """After flush() no group has a member, and joining again works."""
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.flush()
    await layer.group_send("group", text(1))
    assert await talk.is_empty(layer, channel)
    await layer.group_add("group", channel)
    await layer.group_send("group", text(2))
    assert await talk.next(layer, channel) == text(2)


async def test_flush_leaves_the_layer_working(layer: Layer, talk: Conversation) -> None:
    """What is sent after flush() arrives, again and again."""
    channel = await layer.new_channel()
    for number in range(10):
        await layer.flush()
        await layer.send(channel, text(number))
        assert await talk.next(layer, channel) == text(number)


@not_in_memory("its readers wait at a queue that flush() throws away")
async def test_a_waiting_reader_survives_flush(layer: Layer, talk: Conversation) -> None:
    """A receive() that waits during flush() gets what is sent afterwards."""
    for channel in (await layer.new_channel(), "normal"):
        reader = asyncio.create_task(talk.next(layer, channel))
        await asyncio.sleep(0)
        await layer.flush()
        await layer.send(channel, text(1))
        assert await reader == text(1)


@not_in_memory(ONE_PROCESS)
async def test_every_layer_sees_a_flush(make: Maker, talk: Conversation) -> None:
    """Messages that another process holds in memory are gone too, and so are its groups."""
    here, there = make(), make()
    channel = await there.new_channel()
    await there.send(channel, text(0))
    assert await talk.next(there, channel) == text(0)
    await there.group_add("group", channel)
    await here.send(channel, text(1))
    await here.group_send("group", text(2))
    await here.send("normal", text(3))
    await here.flush()
    await here.group_send("group", text(4))
    assert await talk.is_empty(there, channel, through=channel)
    assert await talk.is_empty(there, "normal")


@not_in_memory(ONE_PROCESS)
async def test_a_flush_is_seen_before_what_follows_it(make: Maker, talk: Conversation) -> None:
    """Whatever is sent after flush() has returned arrives alone, from any process."""
    layers = [make() for _ in range(3)]
    channels = [await layer.new_channel() for layer in layers]
    for number in range(10):
        for sender in layers:
            for channel in channels:
                await sender.send(channel, text(-1))
        await layers[number % 3].flush()
        for channel in channels:
            await layers[0].send(channel, text(number))
        for layer, channel in zip(layers, channels, strict=True):
            assert await talk.next(layer, channel) == text(number)


@not_in_memory(ONE_PROCESS)
async def test_prefixes_share_no_message(make: Maker, talk: Conversation) -> None:
    """Peer defect 18: with another prefix another application received the job."""
    one, other = make(prefix="app-one"), make(prefix="app-two")
    await one.send("jobs", text(1))
    await other.send("jobs", text(2))
    assert await talk.next(other, "jobs") == text(2)
    assert await talk.is_empty(other, "jobs")
    assert await talk.next(one, "jobs") == text(1)


@not_in_memory(ONE_PROCESS)
async def test_prefixes_share_no_process_specific_channel(make: Maker, talk: Conversation) -> None:
    """Peer defect 18: knowing a channel's name is not enough to reach it from another prefix."""
    one, other = make(prefix="app-one"), make(prefix="app-two")
    channel = await one.new_channel()
    await other.send(channel, text(2))
    await one.send(channel, text(1))
    assert await talk.next(one, channel) == text(1)
    assert await talk.is_empty(one, channel)


@not_in_memory(ONE_PROCESS)
async def test_prefixes_share_no_group(make: Maker, talk: Conversation) -> None:
    """Peer defect 18: a group of the same name is another group."""
    one, other = make(prefix="app-one"), make(prefix="app-two")
    members = [(layer, await layer.new_channel()) for layer in (one, other)]
    for layer, channel in members:
        await layer.group_add("group", channel)
    await one.group_send("group", text(1))
    assert await talk.next(one, members[0][1]) == text(1)
    assert await talk.is_empty(other, members[1][1])


@not_in_memory(ONE_PROCESS)
async def test_prefixes_share_no_flush(make: Maker, talk: Conversation) -> None:
    """Peer defect 18: flush() emptied everybody's tables."""
    one, other = make(prefix="app-one"), make(prefix="app-two")
    channel = await other.new_channel()
    await other.group_add("group", channel)
    await other.send("jobs", text(1))
    await other.send(channel, text(2))
    await one.flush()
    await other.group_send("group", text(3))
    assert await talk.next(other, "jobs") == text(1)
    assert await talk.take(other, channel, 2) == [text(2), text(3)]


@not_in_memory(ONE_PROCESS)
async def test_prefixes_are_names_not_patterns(make: Maker, talk: Conversation) -> None:
    """Prefixes that begin alike, or look like a pattern, are different ones."""
    layers = [make(prefix=prefix) for prefix in ("app", "app%", "ap_", "App", "app:", "app'; --")]
    for number, layer in enumerate(layers):
        await layer.send("jobs", text(number))
    await layers[1].flush()
    for number, layer in enumerate(layers):
        if number != 1:
            assert await talk.next(layer, "jobs") == text(number)
        assert await talk.is_empty(layer, "jobs")
