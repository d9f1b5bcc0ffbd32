"""The demo's own check: two servers, a worker, real sockets, kills and restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.demo.chat import LAUNCHER, start
from tests.support.processes import environment
from tests.support.waiting import eventually


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["uvicorn", "daphne"])
def test_the_check_passes(layer_url: str, kind: str) -> None:
    """Every step of the check goes well, whichever server serves the pages."""
    done = subprocess.run(
        [sys.executable, str(LAUNCHER), "--check", "--server", kind, "--workers", "2"],
        env=environment(DATABASE_URL=layer_url),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 of 11 steps passed" in done.stdout
    assert "FAIL" not in done.stdout


@pytest.mark.processes
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_launcher_leaves_no_process_behind(layer_url: str, end: signal.Signals) -> None:
    """However the launcher ends, what it started ends too."""
    chat = start(layer_url)
    assert sorted(chat.pids) == ["A", "B", "worker-1"]
    chat.launcher.send_signal(end)
    chat.launcher.communicate(timeout=30)
    assert chat.launcher.returncode == (0 if end != signal.SIGKILL else -signal.SIGKILL)
    eventually(lambda: not any(_runs(pid) for pid in chat.pids.values()))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
