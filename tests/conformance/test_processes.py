"""The same rules between processes of the operating system, some of which are killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from tests.support.databases import query
from tests.support.layers import LayerFactory, Message
from tests.support.processes import LayerProcess
from tests.support.waiting import PATIENCE, eventually

from .backends import Conversation, numbers, text

pytestmark = pytest.mark.processes

TALK = Conversation(patience=10)


class Processes:
    """Start layer processes on one database, several at a time."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self._url = url
        self._stack = stack

    async def start(self, count: int, **config: Any) -> list[LayerProcess]:
        """Start so many processes and wait until each has its layer."""
        made = [LayerProcess(url=self._url, **config) for _ in range(count)]
        await asyncio.gather(*(self._stack.enter_async_context(process) for process in made))
        return made


@pytest_asyncio.fixture
async def processes(layer_url: str, make_own_layer: LayerFactory) -> AsyncIterator[Processes]:
    """Start processes that end with the test, before its layers do: these look whether nobody is connected any more."""
    async with AsyncExitStack() as stack:
        yield Processes(layer_url, stack)


async def gather_events(workers: list[LayerProcess], count: int) -> list[Message]:
    """Wait until the workers together have reported so many messages."""
    seen: list[Message] = []

    async def watch(worker: LayerProcess) -> None:
        while True:
            seen.append(await worker.events.get())
            if len(seen) >= count:
                done.set()

    done = asyncio.Event()
    watchers = [asyncio.create_task(watch(worker)) for worker in workers]
    try:
        await asyncio.wait_for(done.wait(), 4 * PATIENCE)
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
    return seen


async def test_a_message_crosses_processes(processes: Processes, make_own_layer: LayerFactory) -> None:
    """Both ways, to process-specific and normal channels, small and large."""
    layer, (other,) = make_own_layer(), await processes.start(1)
    here, there = await layer.new_channel(), await other.call("new_channel")
    for message in (text(1), {"value": "x" * 500_000}):
        await layer.send(there, message)
        assert await other.call("receive", there) == message
        await other.call("send", here, message)
        assert await TALK.next(layer, here) == message
        await layer.send("normal", message)
        assert await other.call("receive", "normal") == message


async def test_workers_share_a_channel(processes: Processes, make_own_layer: LayerFactory) -> None:
    """Peer defect 22: doubled by replay; with four worker processes 2,000 jobs are done once each."""
    layer, workers = make_own_layer(), await processes.start(4)
    for worker in workers:
        worker.consume("jobs")
    await asyncio.gather(*(layer.send("jobs", text(number)) for number in range(2000)))
    seen = await gather_events(workers, 2000)
    assert sorted(numbers(seen)) == list(range(2000))


async def test_a_killed_worker_leaves_the_rest_to_the_other(processes: Processes, make_own_layer: LayerFactory) -> None:
    """Peer defect 8: when one of two workers died the other got nothing."""
    layer, (first, second) = make_own_layer(), await processes.start(2)
    for number in range(10):
        await layer.send("jobs", text(number))
    done = [await first.call("receive", "jobs") for _ in range(5)]
    first.start("receive", "jobs-of-nobody")
    await first.kill()
    second.consume("jobs")
    for number in range(10, 30):
        await layer.send("jobs", text(number))
    seen = await gather_events([second], 25)
    assert sorted(numbers(done + seen)) == list(range(30))


async def test_nothing_is_delivered_again_to_a_restarted_worker(
    processes: Processes, make_own_layer: LayerFactory
) -> None:
    """Peer defect 7: a small message that was delivered came again after a restart."""
    layer, (worker,) = make_own_layer(), await processes.start(1)
    waiting = worker.start("receive", "jobs")
    await layer.send("jobs", text(1))
    assert await asyncio.wait_for(waiting, PATIENCE) == text(1)
    await worker.kill()
    (again,) = await processes.start(1)
    waiting = again.start("receive", "jobs")
    await layer.send("jobs", text(2))
    assert await asyncio.wait_for(waiting, PATIENCE) == text(2)


async def test_a_group_spans_processes(processes: Processes, make_own_layer: LayerFactory) -> None:
    """Members in three processes each get what any of them sends, once."""
    layer, others = make_own_layer(), await processes.start(2)
    here = await layer.new_channel()
    await layer.group_add("group", here)
    channels = [await other.call("new_channel") for other in others]
    for other, channel in zip(others, channels, strict=True):
        await other.call("group_add", "group", channel)
    await layer.group_send("group", text(0))
    await others[0].call("group_send", "group", text(1))
    await others[1].call("group_send", "group", text(2))
    assert numbers(await TALK.take(layer, here, 3)) == [0, 1, 2]
    for other, channel in zip(others, channels, strict=True):
        assert [(await other.call("receive", channel))["number"] for _ in range(3)] == [0, 1, 2]
    await layer.send(here, text(9))
    assert await TALK.next(layer, here) == text(9)


async def test_flush_reaches_other_processes(processes: Processes, make_own_layer: LayerFactory) -> None:
    """What another process already holds in memory is forgotten there too."""
    layer, (other,) = make_own_layer(), await processes.start(1)
    channel = await other.call("new_channel")
    await other.call("group_add", "group", channel)
    await layer.send(channel, text(0))
    await layer.send(channel, text(1))
    assert await other.call("receive", channel) == text(0)
    await layer.flush()
    await layer.group_send("group", text(2))
    await layer.send(channel, text(3))
    assert await other.call("receive", channel) == text(3)


async def test_prefixes_keep_processes_apart(processes: Processes, make_own_layer: LayerFactory) -> None:
    """Peer defect 18: another application on the same database sees nothing of ours."""
    layer, (other,) = make_own_layer(prefix="ours"), await processes.start(1, prefix="theirs")
    theirs = other.start("receive", "jobs")
    await layer.send("jobs", text(1))
    await other.call("flush")
    await other.call("send", "jobs", text(2))
    assert await asyncio.wait_for(theirs, PATIENCE) == text(2)
    assert await TALK.next(layer, "jobs") == text(1)


@pytest.mark.parametrize("offset", [-7200, 7200])
async def test_clocks_may_differ(processes: Processes, make_own_layer: LayerFactory, offset: int) -> None:
    """Peer defect 20: a clock two hours off, at the sender or at the receiver, loses nothing."""
    layer, (other,) = make_own_layer(expiry=5), await processes.start(1, clock_offset=offset, expiry=5)
    here, there = await layer.new_channel(), await other.call("new_channel")
    await layer.group_add("group", here)
    await other.call("group_add", "group", there)
    await other.call("send", here, text(1))
    await layer.send(there, text(2))
    await other.call("group_send", "group", text(3))
    await layer.send("normal", text(4))
    assert await TALK.take(layer, here, 2) == [text(1), text(3)]
    assert [await other.call("receive", there) for _ in range(2)] == [text(2), text(3)]
    assert await other.call("receive", "normal") == text(4)


async def test_members_of_a_killed_process_vanish(
    processes: Processes, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Peer defect 14: crashed members stayed for ever, each costing a row and a notification."""
    pace = {"heartbeat": 0.3, "lease": 1.5}
    layer, (other,) = make_own_layer(**pace), await processes.start(1, **pace)
    here, there = await layer.new_channel(), await other.call("new_channel")
    await layer.group_add("group", here)
    await other.call("group_add", "group", there)
    await layer.send(there, text(0))
    await other.kill()
    statement = "SELECT channel FROM channels_pg_sa_membership ORDER BY channel"
    eventually(lambda: query(layer_url, statement) == [(here,)], within=2 * PATIENCE)
    eventually(lambda: query(layer_url, "SELECT count(*) FROM channels_pg_sa_node") == [(1,)], within=2 * PATIENCE)
    await layer.group_send("group", text(1))
    assert await TALK.next(layer, here) == text(1)
    # One for the dead would lie there until it expires.
    eventually(lambda: query(layer_url, "SELECT count(*) FROM channels_pg_sa_message WHERE channel IS NULL") == [(0,)])
