"""Event loops, threads and plain functions: all of them meet the same connections."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import async_to_sync, sync_to_async

from channels_pg_sa import Layer, SendError
from tests.support.databases import TestServer
from tests.support.layers import LayerFactory, Message, PostgresLayer
from tests.support.waiting import PATIENCE

from .backends import Conversation, Maker, not_in_memory, numbers, text

TALK = Conversation(patience=10)
ONE_LOOP = "its queues belong to one event loop"


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run work(0), work(1) … in as many threads at once; raise what they raise, and fail if they hang."""
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait(PATIENCE)
        work(number)

    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(run, number) for number in range(count)]:
            future.result(3 * PATIENCE)


@not_in_memory(ONE_LOOP)
async def test_one_loop_sends_and_another_receives(make: Maker) -> None:
    """A message sent in a thread's own loop arrives in this one."""
    layer = make()
    channel = await layer.new_channel()
    waiting = asyncio.create_task(TALK.next(layer, channel))
    await asyncio.to_thread(lambda: asyncio.run(layer.send(channel, text(1))))
    assert await waiting == text(1)


@not_in_memory(ONE_LOOP)
async def test_many_loops_at_once(make: Maker) -> None:
    """Eight threads with a loop each send, receive and use groups, on one layer."""
    layer = make()

    async def work(number: int) -> None:
        channel = await layer.new_channel()
        await layer.group_add(f"group-{number}", channel)
        for count in range(20):
            await layer.send(channel, text(count))
            await layer.group_send(f"group-{number}", text(count))
        assert numbers(await TALK.take(layer, channel, 40)) == [n for n in range(20) for _ in range(2)]

    await asyncio.to_thread(in_threads, 8, lambda number: asyncio.run(work(number)))


@not_in_memory(ONE_LOOP)
async def test_readers_in_many_loops_compete(make: Maker) -> None:
    """Readers of one normal channel in several loops get each message once."""
    layer = make()
    received: list[int] = []

    async def work() -> None:
        received.extend(numbers(await TALK.take(layer, "jobs", 25)))

    for number in range(100):
        await layer.send("jobs", text(number))
    await asyncio.to_thread(in_threads, 4, lambda _: asyncio.run(work()))
    assert sorted(received) == list(range(100))


def test_a_second_loop_needs_no_second_listener(make_own_layer: LayerFactory) -> None:
    """Peer defect 4: each receive() in another event loop opened another listener."""
    layer = make_own_layer()

    async def once(number: int) -> list[int]:
        channel = await layer.new_channel()
        await layer.send(channel, text(number))
        assert await TALK.next(layer, channel) == text(number)
        return make_own_layer.listeners(layer)

    seen = [asyncio.run(once(number)) for number in range(5)]
    assert len(seen[0]) == 1
    assert seen == [seen[0]] * 5


async def test_concurrent_first_receives_need_one_listener(make_own_layer: LayerFactory) -> None:
    """Peer defect 3: six concurrent first receives opened six listeners."""
    layer = make_own_layer()
    readers = [asyncio.create_task(layer.receive("jobs")) for _ in range(6)]
    for number in range(6):
        await layer.send("jobs", text(number))
    received = await asyncio.wait_for(asyncio.gather(*readers), PATIENCE)
    assert sorted(numbers(received)) == list(range(6))
    assert len(make_own_layer.listeners(layer)) == 1


def test_threads_of_async_to_sync(make_own_layer: LayerFactory, server: TestServer, layer_url: str) -> None:
    """Peer defect 11: eight threads of async_to_sync(send) hung the process."""
    layer = make_own_layer()

    def work(number: int) -> None:
        for count in range(25):
            async_to_sync(layer.send)("jobs", text(number * 25 + count))

    in_threads(8, work)
    received = asyncio.run(TALK.take(layer, "jobs", 200))
    assert sorted(numbers(received)) == list(range(200))
    # Many threads and loops, and still a handful of connections.
    assert len(server.connections(layer_url)) <= 8


def test_calls_work_after_every_connection_was_dropped(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str
) -> None:
    """Peer defect 11: after one dropped connection every later call timed out."""
    layer = make_own_layer()
    channel = async_to_sync(layer.new_channel)()
    for number in range(5):
        async_to_sync(layer.send)(channel, text(number))
        assert async_to_sync(TALK.next)(layer, channel) == text(number)
        server.terminate(server.connections(layer_url))


def test_plain_functions(make_layer: LayerFactory) -> None:
    """The sync verbs need no event loop, and do what the others do."""
    layer: PostgresLayer = make_layer()
    channel = asyncio.run(layer.new_channel())
    layer.send_sync(channel, text(1))
    layer.group_add_sync("group", channel)
    layer.group_send_sync("group", text(2))
    layer.group_discard_sync("group", channel)
    layer.group_send_sync("group", text(3))
    layer.send_sync(channel, text(4))
    assert numbers(asyncio.run(TALK.take(layer, channel, 3))) == [1, 2, 4]
    layer.send_sync(channel, text(5))
    layer.flush_sync()
    layer.send_sync(channel, text(6))
    assert numbers(asyncio.run(TALK.take(layer, channel, 1))) == [6]
    layer.close_sync()


def test_plain_functions_in_threads(make_layer: LayerFactory) -> None:
    """Sixteen threads send at once; each thread's own messages keep their order."""
    layer: PostgresLayer = make_layer()
    channel = asyncio.run(layer.new_channel())

    def work(number: int) -> None:
        for count in range(25):
            layer.send_sync(channel, text(number * 1000 + count))

    in_threads(16, work)
    received = numbers(asyncio.run(TALK.take(layer, channel, 400)))
    assert sorted(received) == [thread * 1000 + count for thread in range(16) for count in range(25)]
    for thread in range(16):
        own = [number for number in received if number // 1000 == thread]
        assert own == sorted(own)


async def test_plain_functions_refuse_what_the_others_refuse(make_layer: LayerFactory) -> None:
    """Bad names and messages raise TypeError there too."""
    layer: PostgresLayer = make_layer()
    for verb, *values in (
        (layer.send_sync, "not valid", text(1)),
        (layer.send_sync, "jobs", {"value": {1, 2}}),
        (layer.group_add_sync, "not valid", "jobs"),
        (layer.group_add_sync, "group", "not valid"),
        (layer.group_discard_sync, "not valid", "jobs"),
        (layer.group_discard_sync, "group", "not valid"),
        (layer.group_send_sync, "not valid", text(1)),
        (layer.group_send_sync, "group", {"value": {1, 2}}),
    ):
        with pytest.raises(TypeError):
            await asyncio.to_thread(verb, *values)


def test_plain_functions_tell_of_failures(make_own_layer: LayerFactory) -> None:
    """Each waits until it is known what has become of it."""
    layer: PostgresLayer = make_own_layer(url="postgresql://nobody@127.0.0.1:1/none", send_timeout=0.2)
    for verb, *values in (
        (layer.send_sync, "jobs", text(1)),
        (layer.group_add_sync, "group", "jobs"),
        (layer.group_discard_sync, "group", "jobs"),
        (layer.group_send_sync, "group", text(1)),
        (layer.flush_sync,),
    ):
        with pytest.raises(SendError):
            verb(*values)


async def test_sync_code_under_a_running_loop(make_layer: LayerFactory) -> None:
    """A Django view: sync code in a worker thread, called from async code, that calls async_to_sync in turn."""
    layer: PostgresLayer = make_layer()
    channel = await layer.new_channel()

    def view() -> None:
        async_to_sync(layer.send)(channel, text(1))
        layer.send_sync(channel, text(2))

    await sync_to_async(view)()
    assert numbers(await TALK.take(layer, channel, 2)) == [1, 2]


def test_a_loop_that_ends_takes_nothing_along(make_layer: LayerFactory) -> None:
    """A loop closed while its receive() waited, or had just been served, leaves the messages to others."""
    layer: PostgresLayer = make_layer()
    channel = asyncio.run(layer.new_channel())
    received: list[Message] = []

    async def give_up() -> None:
        waiting = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        if waiting.done():  # it found the message of the round before
            received.append(waiting.result())
        layer.send_sync(channel, text(0))
        waiting.cancel()

    for _ in range(3):
        asyncio.run(give_up())
    layer.send_sync(channel, text(1))
    received += asyncio.run(TALK.take(layer, channel, 4 - len(received)))
    assert numbers(received) == [0, 0, 0, 1]


async def test_the_layers_own_thread_does_not_wait_for_itself(make_layer: LayerFactory) -> None:
    """A logging handler that sends is called in it: an error at once, and nobody else is held up."""
    layer: PostgresLayer = make_layer()
    channel = await layer.new_channel()
    await layer.send(channel, text(1))
    loop = layer._node._thread.loop  # type: ignore[attr-defined]

    async def handle() -> None:
        layer.send_sync(channel, text(2))

    with pytest.raises(RuntimeError, match="own thread"):
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(handle(), loop))
    await layer.send(channel, text(3))
    assert numbers(await TALK.take(layer, channel, 2)) == [1, 3]


async def test_the_layers_own_thread_does_not_wait_for_the_layer_to_open(layer_url: str) -> None:
    """What it calls while another thread opens the layer may send, too: an error at once, and the layer opens."""
    refused: list[RuntimeError] = []

    def address() -> str:
        try:
            layer.send_sync("nobody", text(0))
        except RuntimeError as error:
            refused.append(error)
        return layer_url

    layer = Layer(url=address, PSYCOPG_OPTIONS={"min_size": 1})
    opening = threading.Thread(target=layer.send_sync, args=["anybody", text(1)], daemon=True)
    opening.start()
    await asyncio.to_thread(opening.join, PATIENCE)
    assert not opening.is_alive()
    await layer.close()
    assert refused
