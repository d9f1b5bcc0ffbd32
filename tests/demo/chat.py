"""The demo as its user starts it: the launcher, run as a program, and what it says of itself."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support.processes import environment

LAUNCHER = Path(__file__).resolve().parents[2] / "examples" / "chat" / "run.py"
STOP_LIMIT = 30.0


@dataclass
class Chat:
    """A running chat: the addresses of its servers and the pids of its processes, by name."""

    launcher: subprocess.Popen[str]
    addresses: dict[str, str]
    pids: dict[str, int]

    def stop(self) -> int:
        """End it as ^C does, and return the exit status."""
        self.launcher.send_signal(signal.SIGINT)
        self.launcher.communicate(timeout=STOP_LIMIT)
        return self.launcher.returncode

    def await_restart(self, name: str) -> None:
        """Return when the launcher has started a program again, and know its new pid."""
        line = _read_until(_output(self.launcher), f"{name} is back")
        self.pids[name] = int(line.rpartition("pid ")[2].rstrip(".\n"))


def start(database_url: str) -> Chat:
    """Start the chat on a database, at free ports, and return it when it is ready."""
    launcher = subprocess.Popen(
        [sys.executable, str(LAUNCHER), "--port", "0"],
        env=environment(DATABASE_URL=database_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    chat = Chat(launcher, {}, {})
    lines: list[str] = []
    _read_until(_output(launcher), "^C stops everything", lines)
    for line in lines:
        if found := re.match(r"  (?:server )?(\S+) +(.+?) +pid (\d+)$", line):
            chat.pids[found[1]] = int(found[3])
            chat.addresses[found[1]] = found[2]
    return chat


def _output(launcher: subprocess.Popen[str]) -> IO[str]:
    if launcher.stdout is None:
        raise RuntimeError("the launcher's output goes elsewhere")
    return launcher.stdout


def _read_until(output: IO[str], words: str, lines: list[str] | None = None) -> str:
    seen = []
    for line in output:
        seen.append(line)
        if words in line:
            if lines is not None:
                lines.extend(seen)
            return line
    raise RuntimeError(f"the launcher ended before it said {words!r}: {''.join(seen)}")
