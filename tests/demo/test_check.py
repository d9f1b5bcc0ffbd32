"""The demo's own check: two servers, a worker, real sockets, kills and restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest

from launcher.check import check
from launcher.fleet import Fleet, Program
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


def test_a_step_that_goes_wrong_fails_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    """Servers that do not answer end the check at its first step, whatever is raised, and its status is 1."""
    with Fleet({}) as fleet:
        fleet.programs = {name: Program(name, [], "127.0.0.1:1") for name in "AB"}
        assert asyncio.run(check(fleet)) == 1
    assert "0 of 11 steps passed" in capsys.readouterr().out


def test_a_port_in_use_is_told(layer_url: str) -> None:
    """The launcher says which port it cannot have and what to do, and starts nothing."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, str(LAUNCHER), "--port", port],
            env=environment(DATABASE_URL=layer_url),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"Cannot serve at 127.0.0.1:{port}: Address already in use. Try --port 0")
    assert done.stderr.count("\n") == 1


@pytest.mark.processes
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_launcher_leaves_no_process_behind(layer_url: str, end: signal.Signals) -> None:
    """However the launcher ends, what it started ends too."""
    chat = start(layer_url)
    assert sorted(chat.pids) == ["A", "B", "worker-1"]
    chat.launcher.send_signal(end)
    output, _ = chat.launcher.communicate(timeout=30)
    assert output == ("" if end == signal.SIGKILL else "\nEverything is stopped.\n")
    assert chat.launcher.returncode == (0 if end != signal.SIGKILL else -signal.SIGKILL)
    eventually(lambda: not any(_runs(pid) for pid in chat.pids.values()))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
