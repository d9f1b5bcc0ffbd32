"""Small programs on a layer, each a way to run Python: `python -m tests.runtime.scenarios NAME URL`."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from asgiref.sync import async_to_sync

from channels_pg_sa import Layer
from tests.support.databases import query
from tests.support.layers import Message
from tests.support.waiting import PATIENCE, eventually

# A busy machine is slow now and then, and asyncio's debug mode tells; Python 3.12 warns of what this is all about.
logging.getLogger("asyncio").addFilter(lambda record: not record.getMessage().startswith("Executing <"))
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

LockType = type(threading.Lock())
BACKENDS = """SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'channels_pg_sa%'
    AND datname = current_database() ORDER BY pid"""


def text(number: int) -> Message:
    """Return a small message that carries a number."""
    return {"type": "test.message", "number": number}


async def take(layer: Layer, channel: str, count: int, *, within: float = PATIENCE) -> list[int]:
    """Receive so many messages, each in so many seconds, and return their numbers."""
    return [(await asyncio.wait_for(layer.receive(channel), within))["number"] for _ in range(count)]


def new_channel(layer: Layer) -> str:
    """Return a new channel of this process."""
    return asyncio.run(layer.new_channel())


def use(layer: Layer) -> None:
    """Send to and receive from this process, through a channel and a group."""
    channel, group = new_channel(layer), f"group-{os.getpid()}"
    layer.group_add_sync(group, channel)
    layer.send_sync(channel, text(1))
    layer.group_send_sync(group, text(2))
    assert asyncio.run(take(layer, channel, 2)) == [1, 2]
    layer.group_discard_sync(group, channel)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run work(0), work(1) … in as many threads at once, and raise what they raise."""
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(work, number) for number in range(count)]:
            future.result(3 * PATIENCE)


# Sync code ---------------------------------------------------------------------------------------


def calls_from_sync_code(layer: Layer) -> None:
    """A hundred calls through async_to_sync, each with a loop of its own, from code without a loop."""
    channel = async_to_sync(layer.new_channel)()
    for number in range(100):
        async_to_sync(layer.send)(channel, text(number))
        assert async_to_sync(take)(layer, channel, 1) == [number]


def sixteen_threads(layer: Layer) -> None:
    """Sixteen threads call at once, through async_to_sync and through plain functions; each keeps its order."""
    channel = new_channel(layer)
    layer.group_add_sync("group", channel)
    start = threading.Barrier(16)

    def work(thread: int) -> None:
        start.wait(PATIENCE)
        for count in range(0, 20, 2):
            async_to_sync(layer.group_send)("group", text(thread * 100 + count))
            layer.send_sync(channel, text(thread * 100 + count + 1))

    in_threads(16, work)
    received = asyncio.run(take(layer, channel, 320))
    for thread in range(16):
        assert [n % 100 for n in received if n // 100 == thread] == list(range(20))


# Event loops -------------------------------------------------------------------------------------


def many_loops(layer: Layer) -> None:
    """Eight loops receive at once, from channels of their own and from one that they share."""
    shared: list[int] = []

    async def work(number: int) -> None:
        channel = await layer.new_channel()
        own = asyncio.create_task(take(layer, channel, 20))
        common = asyncio.create_task(take(layer, "shared", 20))
        for count in range(20):
            await layer.send(channel, text(count))
            await layer.send("shared", text(number * 100 + count))
        assert await own == list(range(20))
        shared.extend(await common)

    in_threads(8, lambda number: asyncio.run(work(number)))
    assert sorted(shared) == [number * 100 + count for number in range(8) for count in range(20)]


@contextlib.contextmanager
def loop_with_readers(layer: Layer, channels: list[str]) -> Iterator[asyncio.AbstractEventLoop]:
    """Start reading these channels on a loop that then stands still."""
    loop = asyncio.new_event_loop()
    readers = [loop.create_task(layer.receive(channel)) for channel in channels]
    loop.run_until_complete(asyncio.wait(readers, timeout=0.1))
    assert not any(reader.done() for reader in readers)
    yield loop
    if not loop.is_closed():
        for reader in readers:
            reader.cancel()
        loop.run_until_complete(asyncio.gather(*readers, return_exceptions=True))
        loop.close()
    for reader in readers:
        reader._log_destroy_pending = False  # type: ignore[attr-defined]  # That it dies is what this is about.


def closed_loop(layer: Layer) -> None:
    """A loop that was closed while it received: another that waits for the same channels gets every message."""
    take_over_from(layer, close=True)


def stopped_loop(layer: Layer) -> None:
    """A loop that stands still while it receives: another that waits for the same channels gets every message."""
    take_over_from(layer, close=False)


def take_over_from(layer: Layer, *, close: bool) -> None:
    """Read on from the channels of a loop that runs no longer."""
    channels = [new_channel(layer), "normal", "prefix!"]
    layer.send_sync("normal", text(-1))
    assert asyncio.run(take(layer, "normal", 1)) == [-1]

    async def read_on(channel: str, to: str) -> None:
        reader = asyncio.create_task(take(layer, channel, 5))
        await asyncio.sleep(0)
        for number in range(5):
            await layer.send(to, text(number))
        assert await reader == list(range(5))

    with loop_with_readers(layer, channels * 2) as loop:
        if close:
            loop.close()
        for channel in channels:
            to = channel + "a" if channel == "prefix!" else channel
            asyncio.run(read_on(channel, to))


def blocked_loop(layer: Layer) -> None:
    """A loop that is blocked when its turn has come: after a moment another has it."""
    channel = new_channel(layer)
    blocked, free = threading.Event(), threading.Event()

    async def block() -> None:
        reader = asyncio.create_task(take(layer, channel, 2))
        await asyncio.sleep(0)
        blocked.set()
        free.wait(2 * PATIENCE)
        await reader

    thread = threading.Thread(target=asyncio.run, args=(block(),))
    thread.start()
    blocked.wait(PATIENCE)

    async def read() -> None:
        reader = asyncio.create_task(take(layer, channel, 1))
        await asyncio.sleep(0)
        await layer.send(channel, text(1))
        assert await reader == [1]

    asyncio.run(read())
    free.set()
    for number in (2, 3):
        layer.send_sync(channel, text(number))
    thread.join(PATIENCE)
    assert not thread.is_alive()


def loop_that_goes_on(layer: Layer) -> None:
    """A loop that stood still, and whose turn was given to others, receives what comes after it goes on."""
    channel = new_channel(layer)
    loop = asyncio.new_event_loop()
    reader = loop.create_task(take(layer, channel, 2))
    loop.run_until_complete(asyncio.sleep(0))
    layer.send_sync(channel, text(1))
    eventually(lambda: layer.counters["received"] == 1)
    assert loop.run_until_complete(asyncio.sleep(0, "nothing to wait for")) == "nothing to wait for"
    layer.send_sync(channel, text(2))
    assert loop.run_until_complete(reader) == [1, 2]
    loop.close()


def uvloop(layer: Layer) -> None:
    """The callers' loops are uvloop's; that of the I/O thread is asyncio's own under every policy."""
    import uvloop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # From Python 3.14 on; uvloop.run() sets it no longer.
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    many_loops(layer)
    stopped_loop(layer)
    calls_from_sync_code(layer)
    assert layer._node
    assert isinstance(layer._node._thread.loop, asyncio.SelectorEventLoop)


# Forks -------------------------------------------------------------------------------------------


class Traffic:
    """Send from one thread and receive in another, without a pause, until told to stop; then check what came."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._channel = new_channel(layer)
        self._sent = 0
        self._received: list[int] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()
        self.flows()

    def flows(self) -> None:
        """Wait until more has been received than when this was called."""
        before = len(self._received)
        eventually(lambda: len(self._received) > before)

    def stop(self) -> None:
        """Stop sending; receive the rest."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert self._received == list(range(self._sent))

    def _send(self) -> None:
        while not self._stopping.is_set():
            self._layer.send_sync(self._channel, text(self._sent))
            self._sent += 1
        self._layer.send_sync(self._channel, text(-1))

    def _receive(self) -> None:
        async def receive() -> None:
            while (number := (await take(self._layer, self._channel, 1))[0]) >= 0:
                self._received.append(number)

        asyncio.run(receive())


def fork(work: Callable[[], None], end: Callable[[int], object], make: Callable[[], int] = os.fork) -> int:
    """Fork; in the child do the work and end by this with 0, or with 1 and a traceback. Return the child's id."""
    child = make()
    if child == 0:
        try:
            work()
        except Exception:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        end(0)
    return child


def reap(child: int) -> None:
    """Wait for a child, which must end well."""
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status


def forks_in_traffic(layer: Layer) -> None:
    """Children send and receive on their own; their parent goes on over the same connections."""
    traffic = Traffic(layer)
    backends = set(query(sys.argv[2], BACKENDS))
    for end in (os._exit, sys.exit):
        reap(fork(lambda: use(layer), end))
        traffic.flows()
    traffic.stop()
    # There may be more: the pool grows on demand, and a child's backends end a moment after the child.
    assert backends <= set(query(sys.argv[2], BACKENDS))


def children_that_use_nothing(layer: Layer) -> None:
    """A child that never touches the layer, and frees or collects what it has, costs its parent nothing."""

    def collect() -> None:
        gc.collect()

    traffic = Traffic(layer)
    for end in (os._exit, sys.exit):
        reap(fork(lambda: None, end))
        reap(fork(collect, end))
        traffic.flows()
    traffic.stop()


def locks_of(thing: object, seen: dict[int, object]) -> list[Any]:
    """Return every lock of the package's objects that can be reached from this one."""
    if isinstance(thing, LockType):
        return [thing]
    if id(thing) in seen or not type(thing).__module__.startswith("channels_pg_sa"):
        return []
    seen[id(thing)] = thing
    return [lock for part in getattr(thing, "__dict__", {}).values() for lock in locks_of(part, seen)]


def forks_with_locks_held(layer: Layer) -> None:
    """A child works though other threads of its parent held each lock of the layer when it was forked."""
    use(layer)
    locks = locks_of(layer, {})
    assert len(locks) >= 5
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            free.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(PATIENCE)
    child = fork(lambda: use(layer), sys.exit)
    free.set()
    thread.join()
    reap(child)
    use(layer)


def killed_with_a_child(layer: Layer) -> None:
    """The connections of a process that is killed end with it, though a child that it forked lives on."""
    end, may_end = os.pipe()
    ready, is_ready = os.pipe()

    def sends_fast() -> bool:
        layer.send_sync(layer.node, text(1))
        return layer._node._outbox._fast_path.is_open  # type: ignore[union-attr]

    def live_on() -> None:
        os.close(may_end)
        os.write(is_ready, b"!")
        os.read(end, 1)

    def work() -> None:
        os.close(may_end)
        use(layer)
        eventually(sends_fast)
        fork(live_on, os._exit)
        signal.pause()

    parent = fork(work, os._exit)
    os.read(ready, 1)
    assert query(sys.argv[2], BACKENDS)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    eventually(lambda: query(sys.argv[2], BACKENDS) == [])
    os.close(may_end)
    use(layer)


def grandchildren(layer: Layer) -> None:
    """A child of a child works too, and each closes only its own."""
    use(layer)

    def middle() -> None:
        use(layer)
        reap(fork(lambda: use(layer), sys.exit))
        use(layer)

    reap(fork(middle, sys.exit))
    use(layer)


def fork_in_a_coroutine(layer: Layer) -> None:
    """A fork while a loop runs: the child leaves that loop alone, and works."""

    async def main() -> None:
        channel = await layer.new_channel()
        reader = asyncio.create_task(take(layer, channel, 2))
        await layer.send(channel, text(1))
        child = fork(lambda: in_threads(1, lambda _: use(layer)), os._exit)
        await asyncio.to_thread(reap, child)
        await layer.send(channel, text(2))
        assert await reader == [1, 2]

    asyncio.run(main())


def forks_that_python_is_not_told_of(layer: Layer) -> None:
    """A server written in C forks its workers after the application has used the layer: uWSGI, by default."""
    before = layer.node

    def work() -> None:
        nodes: set[str] = set()
        in_threads(8, lambda _: nodes.add(layer.node))
        (node,) = nodes
        assert node != before
        use(layer)
        assert layer.node == node
        layer.close_sync()

    def work_beside() -> None:
        with_its_own = Layer(url=sys.argv[2])  # which the other, used for the first time, leaves as it is
        use(with_its_own)
        node = with_its_own.node
        work()
        assert with_its_own.node == node
        use(with_its_own)
        with_its_own.close_sync()

    def work_with_files() -> None:
        os.closerange(3, 256)  # as a server does that leaves nothing open to its workers
        files = [os.open(__file__, os.O_RDONLY) for _ in range(64)]
        work()
        assert {os.fstat(file).st_ino for file in files} == {os.stat(__file__).st_ino}

    def send_at_once() -> None:
        layer.group_send_sync("nobody", text(1))
        assert layer.node != before
        layer.close_sync()

    reap(fork(work_beside, os._exit, ctypes.PyDLL(None).fork))  # the layer is there, and has not been opened
    use(layer)
    channel = new_channel(layer)
    loop = layer._node._thread.loop  # type: ignore[union-attr]
    for child, end in (
        (work, os._exit),
        (work_with_files, os._exit),
        (send_at_once, os._exit),
        (lambda: None, sys.exit),
    ):
        # Not while the I/O thread wants the interpreter's lock: the child would wait for it to take that.
        asleep = threading.Event()
        loop.call_soon_threadsafe(lambda asleep=asleep: (asleep.set(), time.sleep(1)))
        asleep.wait(PATIENCE)
        time.sleep(0.2)
        reap(fork(child, end, ctypes.PyDLL(None).fork))
    assert new_channel(layer).startswith(f"specific.{layer.node}!")
    layer.send_sync(channel, text(1))
    assert asyncio.run(take(layer, channel, 1)) == [1]


def worker_processes(layer: Layer) -> None:
    """The children of multiprocessing, which end without running atexit: forked, and begun anew."""
    use(layer)
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        arguments = (layer,) if method == "fork" else ()
        children = [context.Process(target=use if arguments else use_anew, args=arguments) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join(3 * PATIENCE)
            assert child.exitcode == 0
    use(layer)
    assert [node.id for node in layer.nodes_sync()] == [layer.node], "the children's are gone"
    last = multiprocessing.get_context("spawn").Process(target=send_unconfirmed)
    last.start()
    assert asyncio.run(take(layer, "last", 1, within=3 * PATIENCE)) == [1]  # as a process takes long to begin
    last.join(3 * PATIENCE)


def send_unconfirmed() -> None:
    """Send, and end before anything can have been sent."""
    Layer(url=sys.argv[2], confirm_sends=False).send_sync("last", text(1))


def use_anew() -> None:
    """Use a layer in a process that inherited none."""
    use(Layer(url=sys.argv[2]))


# Ends --------------------------------------------------------------------------------------------


def script_ends(layer: Layer) -> None:
    """The script ends, and does not close the layer."""
    use(layer)


def exception(layer: Layer) -> None:
    """The script ends by an exception."""
    use(layer)
    raise RuntimeError("on purpose")


def exit_in_a_coroutine(layer: Layer) -> None:
    """sys.exit() while others wait in receive() and in send()."""

    async def main() -> None:
        channel = await layer.new_channel()
        tasks = [asyncio.create_task(layer.receive(name)) for name in (channel, "normal")]
        await layer.send("other", text(1))
        tasks += [asyncio.create_task(layer.send("other", text(number))) for number in range(100)]
        await asyncio.sleep(0)
        sys.exit(0)

    asyncio.run(main())


def exit_in_a_thread(layer: Layer) -> None:
    """The main thread ends while another, a daemon, receives."""
    channel = new_channel(layer)
    waiting = threading.Event()

    async def receive() -> None:
        await layer.send(channel, text(1))
        assert await take(layer, channel, 1) == [1]  # connected, and seen to be so for the next tenth of a second
        reader = asyncio.ensure_future(layer.receive(channel))
        await asyncio.wait([reader], timeout=0.1)
        waiting.set()
        await reader

    def work() -> None:
        with contextlib.suppress(Exception):  # LayerClosed
            asyncio.run(receive())

    threading.Thread(target=work, daemon=True).start()
    assert waiting.wait(PATIENCE)


def exit_at_once(layer: Layer) -> None:
    """The script ends while the first connection is being made."""

    async def main() -> None:
        reader = asyncio.ensure_future(layer.receive("normal"))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)

    asyncio.run(main())


def interrupted(layer: Layer) -> None:
    """Control-C while a loop receives and sends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores in what runs in the background

    async def main() -> None:
        channel = await layer.new_channel()
        reader = asyncio.create_task(layer.receive(channel))
        await layer.send("other", text(1))
        os.kill(os.getpid(), signal.SIGINT)
        await reader

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())


def many_layers(layer: Layer) -> None:
    """Layers that were dropped without close() are gone with their last reference."""
    for _ in range(5):
        use(Layer(url=sys.argv[2]))
    eventually(lambda: not query(sys.argv[2], BACKENDS))


# Bounds ------------------------------------------------------------------------------------------


def unread_messages(_: Layer) -> None:
    """Messages by the ten thousand to a thousand channels that nobody reads: memory stays what it is."""
    layer = Layer(url=sys.argv[2], expiry=1)
    content = {"type": "test.message", "text": "x" * 1000}

    async def send(count: int) -> int:
        """Send so many, and return the most memory used so far, in kB."""
        for start in range(0, count, 1000):
            names = channels[start % 1000 :]
            await asyncio.gather(*(layer.send(name, content) for name in names))
            await asyncio.gather(*(layer.send(f"unread-{number}", content) for number in range(100)))
            await layer.group_send("group", content)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def main() -> None:
        channels.extend([await layer.new_channel() for _ in range(1000)])
        for channel in channels[:10]:
            await layer.group_add("group", channel)
        before, after = await send(40_000), await send(60_000)
        assert after - before < 15_000, (before, after)  # All of it would take 100 MB.

    channels: list[str] = []
    asyncio.run(main())


def main() -> None:
    """Run the scenario that the command line names."""
    globals()[sys.argv[1]](Layer(url=sys.argv[2]))


if __name__ == "__main__":
    main()
