"""Capacity: ChannelFull for a sender, silence for a group."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from channels_pg_sa.statements.queries import Queries
from tests.support.layers import Layer, LayerFactory
from tests.support.waiting import eventually_async

from .backends import Conversation, Maker, in_memory_breaks, not_in_memory, numbers, text


async def fill(layer: Layer, channel: str, count: int) -> None:
    """Send so many messages, numbered from 0."""
    for number in range(count):
        await layer.send(channel, text(number))


async def accepts(layer: Layer, channel: str) -> bool:
    """Send one message; tell whether the channel took it."""
    try:
        await layer.send(channel, text(-1))
    except ChannelFull:
        return False
    return True


async def test_a_full_channel_refuses(make: Maker, talk: Conversation) -> None:
    """ChannelFull at capacity, and what was accepted before arrives."""
    layer = make(capacity=3)
    for channel in (await layer.new_channel(), "normal"):
        await fill(layer, channel, 3)
        with pytest.raises(ChannelFull):
            await layer.send(channel, text(3))
        assert numbers(await talk.take(layer, channel, 3)) == [0, 1, 2]
        await eventually_async(lambda channel=channel: accepts(layer, channel))  # type: ignore[misc]


async def test_a_full_channel_refuses_plain_functions(make_layer: LayerFactory) -> None:
    """By the same exception, which has its facts, and without a loop of their own."""
    layer = make_layer(capacity=1)
    await asyncio.to_thread(layer.send_sync, "jobs", text(0))
    with pytest.raises(layer.ChannelFull, match=r"jobs.*: 1") as refused:
        await asyncio.to_thread(layer.send_sync, "jobs", text(1))
    assert isinstance(refused.value, ChannelFull)
    assert (refused.value.channel, refused.value.capacity) == ("jobs", 1)
    assert await Conversation(patience=10).next(layer, "jobs") == text(0)


@not_in_memory("it lives in one process")
async def test_capacity_counts_what_other_layers_sent(make: Maker, talk: Conversation) -> None:
    """A channel is full for every sender, not for each by itself."""
    reader, senders = make(capacity=4), [make(capacity=4) for _ in range(2)]
    channel = await reader.new_channel()
    await fill(senders[0], channel, 2)
    await fill(senders[1], channel, 2)
    for sender in (*senders, reader):
        with pytest.raises(ChannelFull):
            await sender.send(channel, text(9))
    assert numbers(await talk.take(reader, channel, 4)) == [0, 1, 0, 1]


@in_memory_breaks("it counts each full name by itself")
async def test_channels_of_one_process_share_its_capacity(make: Maker, talk: Conversation) -> None:
    """Process-local channels apply their capacity on the part up to and including the `!`."""
    layer = make(capacity=4)
    first, second = await layer.new_channel(), await layer.new_channel()
    await fill(layer, first, 2)
    await fill(layer, second, 2)
    for channel in (first, second):
        with pytest.raises(ChannelFull):
            await layer.send(channel, text(9))
    assert numbers(await talk.take(layer, first, 2)) == [0, 1]


async def test_no_capacity_for_one_channel_leaves_others_open(make: Maker, talk: Conversation) -> None:
    """A full channel holds up no other."""
    layer = make(capacity=2)
    await fill(layer, "full", 2)
    await layer.send("empty", text(7))
    assert await talk.next(layer, "empty") == text(7)


@in_memory_breaks("it looks at `capacity` alone", before="4.2")
async def test_capacity_by_glob(make: Maker) -> None:
    """`channel_capacity` sets it by name, and the first match counts."""
    layer = make_with_patterns(make, {"http.*": 1, "http.request": 3, "big-?": 2})
    for channel, capacity in (("http.request", 1), ("big-1", 2), ("big-12", 5), ("other", 5)):
        await fill(layer, channel, capacity)
        with pytest.raises(ChannelFull):
            await layer.send(channel, text(9))


@in_memory_breaks("it looks at `capacity` alone", before="4.2")
async def test_capacity_by_regex(make: Maker) -> None:
    """A compiled expression stands for itself."""
    layer = make_with_patterns(make, {re.compile(r"^jobs-\d+$"): 1, re.compile(r"^specific\.[^!]*!"): 2})
    for channel, capacity in (("jobs-17", 1), ("jobs-x", 5), (await layer.new_channel(), 2)):
        await fill(layer, channel, capacity)
        with pytest.raises(ChannelFull):
            await layer.send(channel, text(9))


def make_with_patterns(make: Maker, patterns: dict[object, int]) -> Layer:
    """Build a layer with a capacity of 5 and these exceptions."""
    layer = make(capacity=5, channel_capacity=patterns)
    if make.backend.in_memory:
        # It keeps the dict as it is given, and then cannot use it.
        layer.channel_capacity = layer.compile_capacities(patterns)  # type: ignore[attr-defined]
    return layer


async def test_who_is_refused_takes_no_room(make_own_layer: LayerFactory) -> None:
    """Channels of one queue may have capacities of their own, and be sent to in one batch."""
    layer = make_own_layer(channel_capacity={"hub!small": 1, "hub!large": 5})
    await layer.send("hub!other", text(0))
    small = [layer.send("hub!small", text(number)) for number in range(6)]
    large = [layer.send("hub!large", text(number)) for number in range(4)]
    outcomes = await asyncio.gather(*small, *large, return_exceptions=True)
    assert all(isinstance(outcome, ChannelFull) for outcome in outcomes[:6])
    assert outcomes[6:] == [None] * 4


async def test_sends_to_channels_and_groups_keep_their_order(make_layer: LayerFactory) -> None:
    """Each kind is asked for room by a statement of its own, also when both wait for the same batch."""
    layer = make_layer(capacity=100)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    kinds = itertools.cycle([layer.send, layer.group_send, layer.group_send])
    names = {layer.send: channel, layer.group_send: "group"}
    await asyncio.gather(*(send(names[send], text(number)) for number, send in zip(range(30), kinds, strict=False)))
    assert numbers(await Conversation(patience=10).take(layer, channel, 30)) == list(range(30))


async def test_a_full_member_is_left_out_of_a_group_send(make: Maker, talk: Conversation) -> None:
    """Sending to a group never raises ChannelFull, and members with room get the message."""
    layer = make(capacity=2)
    for channel in ("full", "roomy"):
        await layer.group_add("group", channel)
    await fill(layer, "full", 2)
    await layer.group_send("group", text(7))
    assert await talk.next(layer, "roomy") == text(7)
    assert numbers(await talk.take(layer, "full", 2)) == [0, 1]


async def test_each_member_has_its_own_capacity(make_layer: LayerFactory) -> None:
    """The exceptions by name hold for group sends too."""
    layer = make_layer(capacity=2, channel_capacity={"small": 1, "large": 3})
    capacities = {"small": 1, "normal": 2, "large": 3}
    for channel in capacities:
        await layer.group_add("group", channel)
    for number in range(4):
        await layer.group_send("group", text(number))
    assert layer.counters["over_capacity"] == 3 + 2 + 1
    for channel, capacity in capacities.items():
        assert numbers(await Conversation(patience=10).take(layer, channel, capacity)) == list(range(capacity))


async def test_large_messages_to_many_channels_go_in_parts(
    make_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each member has a copy; all at once, they took longer than a call may last, and may not even fit into one."""
    layer, sizes, send = make_layer(capacity=1), list[int](), Queries.send
    channels = [f"channel-{number}" for number in range(10)]
    for channel in channels:
        await layer.group_add("group", channel)
    full = {3, 5, 8}  # of which one has its place in the first part, and another the same in the second
    for number in full:
        await fill(layer, channels[number], 1)

    async def measured(self: Queries, connection: Any, sends: Any) -> set[int]:
        sizes.append(sum(len(each.payload) for each in sends))
        return await send(self, connection, sends)

    monkeypatch.setattr(Queries, "send", measured)
    large = {"value": "x" * 1_000_000}
    await layer.group_send("group", large)
    assert sum(sizes) > 10_000_000
    assert max(sizes) < 6_000_000
    assert len(sizes) == 2
    assert layer.counters["over_capacity"] == 3
    talk = Conversation(patience=10)
    for number, channel in enumerate(channels):
        assert await talk.next(layer, channel) == (text(0) if number in full else large)
    await layer.close()  # which tells of what has not been told yet
    assert {number for number, channel in enumerate(channels) if said_of(caplog, f"for {channel},")} == full


async def test_many_group_sends_never_raise(make: Maker, talk: Conversation) -> None:
    """However many: the first ones arrive, the rest is dropped, and the channel works again once it is read."""
    layer = make(capacity=5)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    for number in range(50):
        await layer.group_send("group", text(number))
    assert numbers(await talk.take(layer, channel, 5)) == [0, 1, 2, 3, 4]


@not_in_memory("it drops in silence")
async def test_drops_are_counted_and_logged(make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """Peer defect 26: silent drops; they are counted, and logged with the group or channel, but not one by one."""
    layer = make(capacity=1)
    await layer.group_add("crowd", "full")
    with caplog.at_level(logging.WARNING, "channels_pg_sa"):
        for number in range(21):
            await layer.group_send("crowd", text(number))
        await eventually_async(lambda: said(caplog, "crowd"))
    assert sum(layer.counters.values()) >= 20  # type: ignore[attr-defined]
    assert 1 <= len([record for record in caplog.records if "crowd" in record.getMessage()]) <= 5


async def test_drops_of_one_batch_are_told_of_each_group(
    make_layer: LayerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is counted, and of the group that it was sent to."""
    layer = make_layer(capacity=1)
    await layer.group_add("crowd", "full")
    with caplog.at_level(logging.WARNING, "channels_pg_sa"):
        await asyncio.gather(*(layer.group_send(group, text(0)) for group in ["empty", "empty", "crowd", "crowd"] * 5))
        assert layer.counters["over_capacity"] == 9
        await layer.close()  # which tells of what has not been told yet
    assert said_of(caplog, "crowd")
    assert not said_of(caplog, "empty")


def said_of(caplog: pytest.LogCaptureFixture, word: str) -> bool:
    """Tell whether a warning with this word was logged."""
    return any(word in record.getMessage() for record in caplog.records)


async def said(caplog: pytest.LogCaptureFixture, word: str) -> bool:
    """Tell it to one who waits for it."""
    return said_of(caplog, word)


@not_in_memory("its default is 100")
async def test_capacity_is_unlimited_unless_set(make: Maker, talk: Conversation) -> None:
    """None means that no sender is ever refused."""
    layer = make()
    assert layer.capacity is None
    await fill(layer, "jobs", 150)
    assert numbers(await talk.take(layer, "jobs", 150)) == list(range(150))


async def test_flush_makes_room(make: Maker) -> None:
    """A flushed channel is empty, so it accepts as many as before."""
    layer = make(capacity=2)
    await fill(layer, "full", 2)
    await layer.flush()
    await fill(layer, "full", 2)
    with pytest.raises(ChannelFull):
        await layer.send("full", text(9))


async def test_expiry_makes_room(make: Maker, talk: Conversation) -> None:
    """What has expired no longer counts."""
    layer = make(capacity=2, expiry=3)
    await fill(layer, "full", 2)
    assert not await accepts(layer, "full")

    async def room() -> bool:
        if make.backend.in_memory:
            layer._clean_expired()  # type: ignore[attr-defined]
        return await accepts(layer, "full")

    await eventually_async(room)
