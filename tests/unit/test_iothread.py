"""The I/O thread is one, whoever has patched threads."""

from __future__ import annotations

import _thread
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
