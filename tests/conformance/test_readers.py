"""Readers that compete, are cancelled, poll with deadlines, or end."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.layers import Layer, Message
from tests.support.waiting import PATIENCE, eventually_async

from .backends import Conversation, Maker, in_memory_breaks, not_in_memory, numbers, text

ONE_PROCESS = "it lives in one process, and has no second layer on the same messages"


async def collect(layer: Layer, channel: str, into: list[Message]) -> None:
    """Receive for ever."""
    while True:
        into.append(await layer.receive(channel))


async def stop(*readers: asyncio.Task[None]) -> None:
    """Cancel readers and wait until they have ended."""
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


async def test_competing_readers_in_one_process(make: Maker, talk: Conversation) -> None:
    """Only a single reader gets each message of a normal channel."""
    layer = make(capacity=1000)
    received: list[Message] = []
    readers = [asyncio.create_task(collect(layer, "jobs", received)) for _ in range(6)]
    await asyncio.gather(*(layer.send("jobs", text(number)) for number in range(200)))
    await eventually_async(lambda: enough(received, 200))
    await stop(*readers)
    assert sorted(numbers(received)) == list(range(200))


async def enough(received: list[Message], count: int) -> bool:
    """Tell whether so many messages have arrived."""
    return len(received) >= count


async def test_concurrent_first_receives_share_one_message(make: Maker, talk: Conversation) -> None:
    """Peer defect 3: six concurrent first receives delivered one message six times."""
    layer = make()
    readers = [asyncio.create_task(layer.receive("jobs")) for _ in range(6)]
    await layer.send("jobs", text(0))
    done, waiting = await asyncio.wait(readers, timeout=talk.patience, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [text(0)]
    for number in range(1, 6):
        await layer.send("jobs", text(number))
    rest = await asyncio.wait_for(asyncio.gather(*waiting), talk.patience)
    assert sorted(numbers(rest)) == [1, 2, 3, 4, 5]


@not_in_memory(ONE_PROCESS)
async def test_competing_layers_share_the_work(make: Maker) -> None:
    """Peer defect 22: broadcast to every worker, or doubled: with four layers each message is worked on once."""
    sender, workers = make(), [make() for _ in range(4)]
    received: list[Message] = []
    readers = [asyncio.create_task(collect(layer, "jobs", received)) for layer in workers]
    await asyncio.gather(*(sender.send("jobs", text(number)) for number in range(2000)))
    await eventually_async(lambda: enough(received, 2000), within=4 * PATIENCE)
    await stop(*readers)
    assert sorted(numbers(received)) == list(range(2000))


@not_in_memory(ONE_PROCESS)
async def test_each_of_two_slow_workers_gets_a_share(make: Maker, talk: Conversation) -> None:
    """Peer defect 8: of two workers on one channel one got everything; here each takes only what it is ready for."""
    first, second = make(), make()
    one, other = asyncio.create_task(first.receive("jobs")), asyncio.create_task(second.receive("jobs"))
    await first.send("jobs", text(0))
    await first.send("jobs", text(1))
    both = await asyncio.wait_for(asyncio.gather(one, other), talk.patience)
    assert sorted(numbers(both)) == [0, 1]


@not_in_memory(ONE_PROCESS)
async def test_the_other_worker_gets_the_rest_when_one_closes(make: Maker, talk: Conversation) -> None:
    """Peer defect 8: when one worker ended the other got nothing."""
    sender, first, second = make(), make(), make()
    for number in range(100):
        await sender.send("jobs", text(number))
    received = await talk.take(first, "jobs", 10) + await talk.take(second, "jobs", 10)
    await first.close()
    for number in range(100, 150):
        await sender.send("jobs", text(number))
    received += await talk.take(second, "jobs", 130)
    assert sorted(numbers(received)) == list(range(150))


@not_in_memory(ONE_PROCESS)
async def test_a_worker_takes_no_more_than_it_reads(make: Maker, talk: Conversation) -> None:
    """Peer defect 6: what nobody here receives stays in the database, for others."""
    first, second = make(), make()
    for number in range(50):
        await first.send("jobs", text(number))
        await first.send(f"other-{number}", text(number))
    assert numbers(await talk.take(first, "jobs", 1)) == [0]
    assert sorted(numbers(await talk.take(second, "jobs", 49))) == list(range(1, 50))
    for number in range(50):
        assert await talk.next(second, f"other-{number}") == text(number)


async def test_a_cancelled_receive_loses_nothing(layer: Layer, talk: Conversation) -> None:
    """The message goes to the next receive() when the first was cancelled before it came."""
    for channel in (await layer.new_channel(), "normal"):
        reader = asyncio.create_task(layer.receive(channel))
        await asyncio.wait([reader], timeout=0)
        await stop(reader)  # type: ignore[arg-type]
        await layer.send(channel, text(1))
        assert await talk.next(layer, channel) == text(1)


async def test_a_receive_cancelled_on_arrival_keeps_the_order(make: Maker, talk: Conversation) -> None:
    """Peer defect 23: the order was wrong after a cancelled receive(); cancelled at every moment around the arrival."""
    layer = make(capacity=1000)
    channel = await layer.new_channel()
    for rounds in range(60):
        reader = asyncio.create_task(layer.receive(channel))
        sends = asyncio.gather(*(layer.send(channel, text(number)) for number in range(3)))
        for _ in range(rounds % 20):
            await asyncio.sleep(0)
        reader.cancel()
        await sends
        outcome = (await asyncio.gather(reader, return_exceptions=True))[0]
        first = [] if isinstance(outcome, BaseException) else [outcome]
        rest = await talk.take(layer, channel, 3 - len(first))
        assert numbers(first + rest) == [0, 1, 2]


async def test_a_receive_cancelled_after_arrival_takes_no_message(make: Maker, talk: Conversation) -> None:
    """Peer defect 23: a reader that was handed a message and cancelled in the same moment leaves it to the next."""
    layer = make(capacity=1000)
    channel = await layer.new_channel()
    await layer.send(channel, text(0))
    await layer.send(channel, text(1))
    await layer.send(channel, text(2))
    received: list[Message] = []
    while len(received) < 3:
        reader = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        reader.cancel()
        outcome = (await asyncio.gather(reader, return_exceptions=True))[0]
        if isinstance(outcome, dict):
            received.append(outcome)
            continue
        received.append(await talk.next(layer, channel))
    assert numbers(received) == [0, 1, 2]


async def poll(layer: Layer, channel: str, patience: float, count: int) -> list[Message]:
    """Receive so many messages with receive() calls that give up after so many seconds."""
    received: list[Message] = []
    while len(received) < count:
        try:
            received.append(await asyncio.wait_for(layer.receive(channel), patience))
        except asyncio.TimeoutError:
            # With no patience at all the loop would never get its turn.
            await asyncio.sleep(0)
    return received


@pytest.mark.parametrize("patience", [0.0001, 0.002, 0.02])
@pytest.mark.parametrize("kind", ["own", "normal"])
async def test_polling_with_wait_for_loses_nothing(make: Maker, kind: str, patience: float) -> None:
    """Peer defect 23: messages were lost when receive() was polled with wait_for()."""
    layer = make(capacity=1000)
    channel = "normal" if kind == "normal" else await layer.new_channel()
    sends = asyncio.gather(*(layer.send(channel, text(number)) for number in range(200)))
    received = await asyncio.wait_for(poll(layer, channel, patience, 200), 4 * PATIENCE)
    await sends
    assert numbers(received) == list(range(200))


async def test_polling_without_patience_loses_nothing(make: Maker) -> None:
    """A deadline of 0 takes what is there at once or nothing, and what it leaves is there for the next receive()."""
    layer = make(capacity=1000)
    channel = await layer.new_channel()
    received: list[Message] = []
    for number in range(50):
        await layer.send(channel, text(number))
        try:
            received.append(await asyncio.wait_for(layer.receive(channel), 0))
        except asyncio.TimeoutError:
            received.append(await asyncio.wait_for(layer.receive(channel), PATIENCE))
    assert numbers(received) == list(range(50))


@not_in_memory(ONE_PROCESS)
async def test_what_a_cancelled_reader_claimed_reaches_another_layer_at_last(make: Maker, talk: Conversation) -> None:
    """A layer that claimed a job for a reader that went away gives it back when it closes."""
    first, second = make(), make()
    for number in range(20):
        await first.send("jobs", text(number))
    received: list[Message] = []
    for _ in range(20):
        reader = asyncio.create_task(first.receive("jobs"))
        await asyncio.sleep(0)
        reader.cancel()
        outcome = (await asyncio.gather(reader, return_exceptions=True))[0]
        received += [outcome] if isinstance(outcome, dict) else []
    await first.close()
    received += await talk.take(second, "jobs", 20 - len(received))
    assert sorted(numbers(received)) == list(range(20))


@in_memory_breaks("a reader that is cancelled throws away the queue that the other still waits at")
async def test_a_cancelled_reader_leaves_the_other_alone(layer: Layer, talk: Conversation) -> None:
    """Of two readers that wait the one that stays gets the message."""
    channel = await layer.new_channel()
    gone, stays = asyncio.create_task(layer.receive(channel)), asyncio.create_task(layer.receive(channel))
    await asyncio.wait([gone, stays], timeout=0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await layer.send(channel, text(1))
    done, _ = await asyncio.wait([stays], timeout=talk.patience)
    stays.cancel()
    await asyncio.gather(stays, return_exceptions=True)
    assert done
    assert stays.result() == text(1)


@not_in_memory(ONE_PROCESS)
async def test_the_channel_of_another_process_is_refused(make: Maker, talk: Conversation) -> None:
    """Nothing would ever come; its prefix, which ends with the mark, is the other's as well."""
    first, second = make(), make()
    channel = await first.new_channel()
    for name in (channel, channel[: channel.index("!") + 1]):
        with pytest.raises(ValueError, match="belongs to another process or layer"):
            await asyncio.wait_for(second.receive(name), talk.patience)
        await second.send(channel, text(1))
        assert await talk.next(first, name) == text(1)


@not_in_memory(ONE_PROCESS)
async def test_reading_a_channel_named_like_a_node_takes_nothing_of_the_node_s(make: Maker, talk: Conversation) -> None:
    """A node's id is no secret, and is a valid name of a normal channel."""
    first, second = make(capacity=10), make(capacity=10)
    channel = await first.new_channel()
    node = channel.partition("!")[0].rpartition(".")[2]
    thief = asyncio.create_task(second.receive(node))
    for number in range(5):
        await first.send(channel, text(number))
    await second.send("other", text(9))
    assert await talk.next(second, "other") == text(9)
    assert numbers(await talk.take(first, channel, 5)) == list(range(5))
    thief.cancel()
    await asyncio.gather(thief, return_exceptions=True)


@not_in_memory("it keeps each full name apart, so that nothing arrives at the prefix")
async def test_readers_of_a_name_and_of_its_prefix_claim_at_once(make: Maker, talk: Conversation) -> None:
    """Two claims of one statement may pick the same row; who goes empty asks again, before the next heartbeat."""
    reader, sender = make(heartbeat=30, lease=90), make()
    for _ in range(5):
        readers = [asyncio.create_task(talk.next(reader, name)) for name in ("hub!a", "hub!")]
        await asyncio.sleep(0)
        await asyncio.gather(sender.send("hub!a", text(1)), sender.send("hub!a", text(2)))
        assert sorted(numbers(await asyncio.gather(*readers))) == [1, 2]
