"""Examples as their users start them."""

from __future__ import annotations

import signal
import subprocess
import sys

from tests.support.processes import ROOT, environment

LIMIT = 100.0


def check(name: str, database_url: str) -> list[str]:
    """Let an example drive itself, and return what it has seen.

    Raises:
        AssertionError: it did not end well; carries what it printed.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", "--check"],
        cwd=ROOT,
        env=environment(DATABASE_URL=database_url),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    if done.returncode or done.stderr:
        raise AssertionError(f"examples.{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return [line.removeprefix("  ok    ") for line in done.stdout.splitlines() if line.startswith("  ok    ")]


def by_hand(name: str, database_url: str) -> tuple[str, int]:
    """Start an example, and end it by ^C as soon as it is ready; return what it printed and its status."""
    running = subprocess.Popen(
        [sys.executable, "-m", f"examples.{name}", "--port", "0"],
        cwd=ROOT,
        env=environment(DATABASE_URL=database_url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed = ""
    for line in running.stdout or ():
        printed += line
        if "^C stops everything" in line:
            break
    running.send_signal(signal.SIGINT)
    rest, _ = running.communicate(timeout=LIMIT)
    return printed + rest, running.returncode
