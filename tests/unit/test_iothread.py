"""The I/O thread is one, whoever has patched threads."""

from __future__ import annotations

import _thread
import asyncio
import logging
import threading
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
