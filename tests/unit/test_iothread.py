"""The I/O thread is one, whoever has patched threads."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import contextvars
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator
from queue import Queue
from typing import Any

import pytest

from channels_pg_sa import ConfigurationError
from channels_pg_sa.iothread import IOThread


def patch(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Put something of that module in the place of what starts threads."""
    start = _thread.start_new_thread

    def patched(*arguments: Any) -> int:
        return start(*arguments)

    patched.__module__ = module
    monkeypatch.setattr(_thread, "start_new_thread", patched)


def test_a_debugger_may_watch_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of PyCharm and VS Code does."""
    patch(monkeypatch, "_pydev_bundle.pydev_monkey")
    IOThread("watched").stop()


@pytest.mark.parametrize("module", ["gevent.thread", "eventlet.green.thread"])
def test_green_threads_are_refused(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """They would share the caller's, which never comes back to its own work."""
    patch(monkeypatch, module)
    with pytest.raises(ConfigurationError, match="a layer needs a real one"):
        IOThread("green")


def test_a_handler_of_the_log_that_raises_does_not_end_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """By which asyncio would tell of what nobody handles."""

    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError

    monkeypatch.setattr(logging.getLogger(), "handlers", [Failing()])
    thread = IOThread("logging")
    thread.loop.call_soon_threadsafe(lambda: 1 / 0)
    assert thread.call(asyncio.sleep(0, "alive")).result(10) == "alive"
    thread.stop()


def test_what_swallows_a_cancellation_is_cancelled_again() -> None:
    """As wait_for() may, and a pool's worker: the thread ends, however many stop it."""
    thread = IOThread("stubborn")

    async def swallow() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60)

    async def begin() -> None:
        thread.spawn(swallow(), "swallow")
        await asyncio.sleep(0)

    thread.call(begin()).result(10)
    stopping = threading.Thread(target=thread.stop)
    stopping.start()
    thread.stop()
    stopping.join()
    assert not thread._thread.is_alive()


def test_a_task_is_held_until_it_ends_and_no_longer() -> None:
    """The loop itself holds none: one that waits for what only it knows would be freed in the middle."""
    thread = IOThread("holding")
    waited_for: list[Any] = []

    async def work() -> str:
        change = thread.loop.create_future()
        waited_for.append(weakref.ref(change))
        return str(await change)

    async def begin() -> weakref.ref[asyncio.Task[Any]]:
        task = weakref.ref(thread.spawn(work(), "work"))
        await asyncio.sleep(0)
        gc.collect()
        return task

    task = thread.call(begin()).result(10)
    assert (task() is not None, len(thread._tasks)) == (True, 1)

    async def finish() -> None:
        waited_for[0]().set_result("done")
        for _ in range(3):
            await asyncio.sleep(0)

    thread.call(finish()).result(10)
    assert thread._tasks == set()
    thread.stop()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_second_stop_breaks_off_nothing() -> None:
    """What is cancelled has its time, whoever else stops the thread meanwhile."""
    thread = IOThread("slow to end")
    cancelled, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
            while not go_on.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.01)
            ended.set()

    async def begin() -> None:
        thread.spawn(work(), "work")
        await asyncio.sleep(0)

    thread.call(begin()).result(10)
    stopping = [threading.Thread(target=thread.stop) for _ in range(2)]
    stopping[0].start()
    assert cancelled.wait(10)
    stopping[1].start()
    thread._thread.join(0.2)
    go_on.set()
    for stop in stopping:
        stop.join()
    assert ended.is_set()
    assert thread.loop.is_closed()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_died_may_be_stopped() -> None:
    """Whoever closes a layer at exit is not told of it then."""
    thread = IOThread("dying")

    def die() -> None:
        raise SystemExit

    thread.loop.call_soon_threadsafe(die)
    thread._thread.join(10)
    assert thread.loop.is_closed()
    thread.stop()


def test_what_fails_when_it_is_cancelled_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """It was to end, and has."""
    thread = IOThread("failing")

    async def fail() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise OSError

    async def begin() -> None:
        thread.loop.create_task(fail())
        await asyncio.sleep(0)

    thread.call(begin()).result(10)
    thread.stop()
    gc.collect()
    assert caplog.messages == []


def test_generators_that_nobody_finished_are_closed_with_the_loop() -> None:
    """What they hold, as a connection, is given back."""
    thread = IOThread("generating")
    held: list[Any] = []
    closed = threading.Event()

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.set()

    async def begin() -> None:
        held.append(generate())
        await anext(held[0])

    thread.call(begin()).result(10)
    thread.stop()
    assert closed.is_set()


def test_what_a_caller_starts_is_not_of_its_context() -> None:
    """A tool that traces would count what goes on for as long as the process to one request, which never ends."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    request.set("the first")
    thread = IOThread("free")
    seen: Queue[str] = Queue()

    async def look() -> None:
        seen.put(request.get())

    async def begin() -> None:
        await thread.spawn(look(), "look")
        thread.loop.call_later(0, lambda: seen.put(request.get()))

    thread.call(begin()).result(10)
    thread.loop.call_soon_threadsafe(lambda: seen.put(request.get()))
    assert [seen.get(timeout=10) for _ in range(3)] == ["none"] * 3
    thread.stop()
