"""Groups: joining, leaving, sending, within one layer and across layers."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.layers import Layer, Message

from .backends import Conversation, Maker, not_in_memory, numbers, text

ONE_PROCESS = "it lives in one process"


async def test_each_member_gets_the_message(layer: Layer, talk: Conversation) -> None:
    """A group send reaches every member once, and nobody else."""
    members = [await layer.new_channel() for _ in range(20)]
    outsider = await layer.new_channel()
    for channel in members:
        await layer.group_add("group", channel)
    await layer.group_send("group", text(1))
    for channel in members:
        assert await talk.next(layer, channel) == text(1)
        assert await talk.is_empty(layer, channel)
    assert await talk.is_empty(layer, outsider)


async def test_joining_twice_delivers_once(layer: Layer, talk: Conversation) -> None:
    """Peer defect 15: group_add() was not idempotent, and delivered twice."""
    channel = await layer.new_channel()
    for _ in range(3):
        await layer.group_add("group", channel)
    await asyncio.gather(*(layer.group_add("group", channel) for _ in range(5)))
    await layer.group_send("group", text(1))
    assert await talk.next(layer, channel) == text(1)
    assert await talk.is_empty(layer, channel)


async def test_leaving_ends_delivery(layer: Layer, talk: Conversation) -> None:
    """After group_discard() nothing more comes, however often the channel had joined."""
    channel, other = await layer.new_channel(), await layer.new_channel()
    for member in (channel, channel, other):
        await layer.group_add("group", member)
    await layer.group_discard("group", channel)
    await layer.group_send("group", text(1))
    assert await talk.next(layer, other) == text(1)
    assert await talk.is_empty(layer, channel)


async def test_leaving_and_joining_again(layer: Layer, talk: Conversation) -> None:
    """The last word counts."""
    channel = await layer.new_channel()
    for _ in range(10):
        await layer.group_add("group", channel)
        await layer.group_discard("group", channel)
    await layer.group_send("group", text(1))
    await layer.group_add("group", channel)
    await layer.group_send("group", text(2))
    assert await talk.next(layer, channel) == text(2)


async def test_leaving_what_one_is_not_in(layer: Layer) -> None:
    """group_discard() does nothing if the channel is no member, or the group unknown."""
    channel = await layer.new_channel()
    assert await layer.group_discard("unknown", channel) is None  # type: ignore[func-returns-value]
    await layer.group_add("group", channel)
    assert await layer.group_discard("group", await layer.new_channel()) is None  # type: ignore[func-returns-value]


async def test_sending_to_an_empty_group(layer: Layer, talk: Conversation) -> None:
    """Nobody gets it, nobody is told, and later members do not find it."""
    await layer.group_send("nobody", text(1))
    channel = await layer.new_channel()
    await layer.group_add("nobody", channel)
    assert await talk.is_empty(layer, channel)


async def test_groups_do_not_mix(layer: Layer, talk: Conversation) -> None:
    """A channel in several groups gets what each is sent; names that differ in case or dots are different groups."""
    channel, other = await layer.new_channel(), await layer.new_channel()
    for group in ("one", "two"):
        await layer.group_add(group, channel)
    for group in ("One", "one.", "on"):
        await layer.group_add(group, other)
    await layer.group_send("one", text(1))
    await layer.group_send("two", text(2))
    assert numbers(await talk.take(layer, channel, 2)) == [1, 2]
    assert await talk.is_empty(layer, other)


async def test_a_normal_channel_is_a_member(layer: Layer, talk: Conversation) -> None:
    """A group may hold a channel that any process reads: one of its readers gets each message."""
    own = await layer.new_channel()
    for channel in ("jobs", own, "hub!local"):
        await layer.group_add("group", channel)
    await layer.group_send("group", text(1))
    for channel in ("jobs", own, "hub!local"):
        assert await talk.next(layer, channel) == text(1)
        assert await talk.is_empty(layer, channel)


@pytest.mark.parametrize("message", [{"number": 1, "text": "x"}, {"number": 1, "items": [{"number": 1}]}])
async def test_what_one_member_does_to_its_message_no_other_sees(
    layer: Layer, talk: Conversation, message: Message
) -> None:
    """Members in one process get messages of their own."""
    members = [await layer.new_channel() for _ in range(3)]
    for channel in members:
        await layer.group_add("group", channel)
    await layer.group_send("group", message)
    for channel in members:
        got = await talk.next(layer, channel)
        assert got == message
        got["number"] = 2
        for item in got.get("items", ()):
            item.clear()


async def test_a_large_message_reaches_a_group(layer: Layer, talk: Conversation) -> None:
    """Peer defect 32: of messages of 900 kB three in four were lost; here each of 20 members gets them."""
    members = [await layer.new_channel() for _ in range(20)]
    for channel in members:
        await layer.group_add("group", channel)
    messages = [{"number": number, "value": "x" * 900_000} for number in range(5)]
    for message in messages:
        await layer.group_send("group", message)
    for channel in members:
        assert await talk.take(layer, channel, 5) == messages


async def test_order_within_a_group(make: Maker, talk: Conversation) -> None:
    """Each member sees one sender's messages in order, large and small."""
    layer = make(capacity=1000)
    members = [await layer.new_channel() for _ in range(5)]
    for channel in members:
        await layer.group_add("group", channel)
    sent = [{"number": number, "text": "x" * (20_000 if number % 7 == 0 else 5)} for number in range(70)]
    await asyncio.gather(*(layer.group_send("group", message) for message in sent))
    for channel in members:
        assert await talk.take(layer, channel, len(sent)) == sent


@not_in_memory(ONE_PROCESS)
async def test_members_in_several_layers(make: Maker, talk: Conversation) -> None:
    """One send reaches the members of every process, each once."""
    layers = [make() for _ in range(3)]
    members = [(layer, await layer.new_channel()) for layer in layers for _ in range(10)]
    await asyncio.gather(*(layer.group_add("group", channel) for layer, channel in members))
    for sender in layers:
        await sender.group_send("group", text(1))
    for layer, channel in members:
        assert await talk.take(layer, channel, 3) == [text(1)] * 3
        assert await talk.is_empty(layer, channel)


@not_in_memory(ONE_PROCESS)
async def test_a_send_after_a_join_sees_it(make: Maker, talk: Conversation) -> None:
    """Once group_add() has returned, a group_send() from any process reaches the channel; after leaving, none does."""
    here, there = make(), make()
    channel = await here.new_channel()
    for number in range(30):
        await here.group_add("group", channel)
        await there.group_send("group", text(number))
        assert await talk.next(here, channel) == text(number)
        await here.group_discard("group", channel)
        await there.group_send("group", text(-1))
    assert await talk.is_empty(here, channel)


@not_in_memory(ONE_PROCESS)
async def test_one_layer_adds_the_channel_of_another(make: Maker, talk: Conversation) -> None:
    """Any process may make any channel a member, and remove it."""
    here, there = make(), make()
    channel = await here.new_channel()
    await there.group_add("group", channel)
    await there.group_send("group", text(1))
    assert await talk.next(here, channel) == text(1)
    await there.group_discard("group", channel)
    await here.group_send("group", text(2))
    assert await talk.is_empty(here, channel)


@not_in_memory(ONE_PROCESS)
async def test_a_normal_member_is_one_member_for_all_layers(make: Maker, talk: Conversation) -> None:
    """Joined by two processes and read by two, it gets one message a send."""
    first, second = make(), make()
    for layer in (first, second):
        await layer.group_add("group", "jobs")
    await first.group_send("group", text(1))
    assert await talk.next(second, "jobs") == text(1)
    assert await talk.is_empty(first, "jobs")
    assert await talk.is_empty(second, "jobs")
