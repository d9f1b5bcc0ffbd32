"""First in, first out, and at most once."""

from __future__ import annotations

import asyncio

from channels_pg_sa.layer import TAKES
from tests.support.layers import Layer, LayerFactory, Message
from tests.support.waiting import eventually_async

from .backends import Conversation, Maker, in_memory_breaks, numbers, text


async def test_messages_arrive_in_the_order_sent(make: Maker, talk: Conversation) -> None:
    """One writer, one reader, a process-specific channel: perfect order."""
    layer = make(capacity=1000)
    channel = await layer.new_channel()
    for number in range(200):
        await layer.send(channel, text(number))
    assert numbers(await talk.take(layer, channel, 200)) == list(range(200))


async def test_concurrent_sends_keep_the_order_they_were_started_in(make: Maker, talk: Conversation) -> None:
    """Sends that share a statement do not overtake each other."""
    layer = make(capacity=1000)
    channel = await layer.new_channel()
    await asyncio.gather(*(layer.send(channel, text(number)) for number in range(500)))
    assert numbers(await talk.take(layer, channel, 500)) == list(range(500))


async def test_a_normal_channel_with_one_reader_keeps_the_order(make: Maker, talk: Conversation) -> None:
    """Order holds on a normal channel too, when there is one reader and one writer."""
    layer = make(capacity=1000)
    for number in range(200):
        await layer.send("normal", text(number))
    assert numbers(await talk.take(layer, "normal", 200)) == list(range(200))


async def test_small_messages_do_not_overtake_large_ones(make: Maker, talk: Conversation) -> None:
    """A message too large for a notification keeps its place before the small ones that follow."""
    layer = make(capacity=1000)
    channel = await layer.new_channel()
    sent = [{"number": number, "bytes": b"x" * (60_000 if number % 3 == 0 else 10)} for number in range(90)]
    for message in sent:
        await layer.send(channel, message)
    assert await talk.take(layer, channel, len(sent)) == sent


async def test_small_messages_do_not_overtake_large_ones_for_a_waiting_reader(make: Maker, talk: Conversation) -> None:
    """The same when the reader waits already, and when the sends share statements."""
    layer = make(capacity=1000)
    channel = await layer.new_channel()
    sent = [{"number": number, "bytes": b"x" * (200_000 if number % 5 == 0 else 10)} for number in range(50)]
    reader = asyncio.create_task(talk.take(layer, channel, len(sent)))
    await asyncio.gather(*(layer.send(channel, message) for message in sent))
    assert await reader == sent


async def test_group_sends_and_sends_of_one_writer_keep_their_order(layer: Layer, talk: Conversation) -> None:
    """Both kinds go through one line, so a member sees them as they were sent."""
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    for number in range(0, 60, 2):
        await layer.send(channel, text(number))
        await layer.group_send("group", text(number + 1))
    assert numbers(await talk.take(layer, channel, 60)) == list(range(60))


async def test_each_message_arrives_once(make: Maker, talk: Conversation) -> None:
    """At most once, with a reader that waits and one that comes late, small and large."""
    layer = make(capacity=1000)
    channel = await layer.new_channel()
    early = asyncio.create_task(talk.take(layer, channel, 50))
    for number in range(100):
        await layer.send(channel, {"number": number, "text": "x" * (number * 200)})
    received = await early + await talk.take(layer, channel, 50)
    assert numbers(received) == list(range(100))
    assert await talk.is_empty(layer, channel)


async def test_a_message_waits_for_the_first_receive(make: Maker, talk: Conversation) -> None:
    """Peer defect 2: a message sent before the first receive() was lost while its row sat in the table."""
    layer = make()
    channel = await layer.new_channel()
    await layer.send(channel, text(1))
    await layer.send("normal", text(2))
    assert await talk.next(layer, channel) == text(1)
    assert await talk.next(layer, "normal") == text(2)


async def test_channels_do_not_mix(layer: Layer, talk: Conversation) -> None:
    """Each of many channels gets its own messages, whatever the order they are read in."""
    channels = [await layer.new_channel() for _ in range(30)] + [f"normal-{number}" for number in range(10)]
    for number, channel in enumerate(channels):
        await layer.send(channel, text(number))
    for number, channel in reversed(list(enumerate(channels))):
        assert await talk.next(layer, channel) == text(number)


async def test_one_process_receives_on_many_channels_at_once(layer: Layer, talk: Conversation) -> None:
    """Hundreds of receive() calls wait together, and each gets what is meant for it."""
    channels = [await layer.new_channel() for _ in range(300)]
    readers = [asyncio.create_task(talk.next(layer, channel)) for channel in channels]
    await asyncio.gather(*(layer.send(channel, text(number)) for number, channel in enumerate(channels)))
    assert numbers(await asyncio.gather(*readers)) == list(range(300))


async def test_a_busy_channel_does_not_starve_a_quiet_one(make: Maker, talk: Conversation) -> None:
    """The specification's busy and quiet: a thousand unread messages of one channel do not hold up another."""
    layer = make(capacity=2000)
    busy, quiet = await layer.new_channel(), await layer.new_channel()
    await asyncio.gather(*(layer.send(busy, text(number)) for number in range(1000)))
    await layer.send(quiet, text(7))
    assert await talk.next(layer, quiet) == text(7)
    assert numbers(await talk.take(layer, busy, 1000)) == list(range(1000))


async def test_a_reader_that_never_has_to_wait_gives_others_a_turn(make_layer: LayerFactory) -> None:
    """Otherwise a loop would stand still for as long as there are messages."""
    layer = make_layer()
    channel = await layer.new_channel()
    await layer.send(channel, text(-1))
    assert await layer.receive(channel) == text(-1)
    await asyncio.gather(*(layer.send(channel, text(number)) for number in range(2 * TAKES)))

    async def all_are_here() -> bool:
        return f"{2 * TAKES} unread" in repr(layer)

    await eventually_async(all_are_here)
    others = asyncio.create_task(asyncio.sleep(0))
    for number in range(2 * TAKES):
        assert await layer.receive(channel) == text(number)
    assert others.done()


@in_memory_breaks("it keeps each full name apart, so that nothing arrives at the prefix")
async def test_receive_on_a_prefix_gets_each_channel_of_it(layer: Layer, talk: Conversation) -> None:
    """`receive("name!")` receives any message on any channel with that prefix, in order."""
    for number, local in enumerate(["one", "two", "one", "", "three"]):
        await layer.send("hub!" + local, text(number))
    assert numbers(await talk.take(layer, "hub!", 5)) == [0, 1, 2, 3, 4]


@in_memory_breaks("it keeps each full name apart, so that nothing arrives at the prefix")
async def test_receive_on_the_prefix_of_a_new_channel(layer: Layer, talk: Conversation) -> None:
    """The same on the prefix of channels that new_channel() made."""
    first, second = await layer.new_channel(), await layer.new_channel()
    prefix = first.partition("!")[0] + "!"
    assert second.startswith(prefix)
    sent: list[Message] = [text(number) for number in range(6)]
    for number, message in enumerate(sent):
        await layer.send((first, second)[number % 2], message)
    assert await talk.take(layer, prefix, 6) == sent


@in_memory_breaks("it keeps each full name apart, so that nothing arrives at the prefix")
async def test_a_prefix_keeps_the_order_of_large_and_small(layer: Layer, talk: Conversation) -> None:
    """A small message on one channel of the prefix does not overtake a large one on another."""
    first, second = await layer.new_channel(), await layer.new_channel()
    prefix = first.partition("!")[0] + "!"
    for number in range(30):
        channel, size = ((first, 100_000), (second, 10))[number % 2]
        await layer.send(channel, {"number": number, "text": "x" * size})
    assert numbers(await talk.take(layer, prefix, 30)) == list(range(30))


async def test_two_prefixes_do_not_mix(make: Maker, talk: Conversation) -> None:
    """A reader of one prefix hears nothing of another, nor of a normal channel of that name."""
    layer = make()
    await layer.send("one", text(0))
    await layer.send("one!x", text(1))
    await layer.send("two!x", text(2))
    assert await talk.next(layer, "two!x") == text(2)
    assert await talk.next(layer, "one") == text(0)
    assert await talk.next(layer, "one!x") == text(1)
