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


class Running:
    """An example that was started by hand, and is ready."""

    def __init__(self, name: str, database_url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"examples.{name}", "--port", "0"],
            cwd=ROOT,
            env=environment(DATABASE_URL=database_url),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed = ""
        for line in self._process.stdout or ():
            self.printed += line
            if "^C stops everything" in line:
                break

    def type(self, line: str) -> None:
        """Type a line."""
        print(line, file=self._process.stdin, flush=True)

    def interrupt(self) -> int:
        """Type ^C, and return the exit status."""
        self._process.send_signal(signal.SIGINT)
        rest, _ = self._process.communicate(timeout=LIMIT)
        self.printed += rest
        return self._process.returncode
