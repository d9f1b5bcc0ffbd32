"""The chat's processes: start, wait until they answer, kill, start again, stop."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CHAT = Path(__file__).resolve().parents[1]
LOCAL, EVERYWHERE = "127.0.0.1", "0.0.0.0"
START_LIMIT = 30.0
STOP_LIMIT = 8.0
LOOK_AGAIN = 0.05
LOG_SHOWN = 4000


class StartFailed(Exception):
    """Something the chat needs cannot be had, or a process did not come up; the message is for the person."""


@dataclass(slots=True)
class Program:
    """One process to run: its name, its arguments after `python`, and the `host:port` of a server."""

    name: str
    arguments: Sequence[str]
    address: str = ""
    process: subprocess.Popen[bytes] | None = None
    # A file without a name: nothing is left of it, however the launcher ends. Fleet.stop closes it.
    log: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    @property
    def pid(self) -> int:
        """Return the id of the running process, 0 if there is none."""
        return self.process.pid if self.process is not None else 0


def server(name: str, kind: str, host: str, port: int) -> Program:
    """Return the program of an ASGI server; `kind` is uvicorn or daphne."""
    application = "chatroom.asgi:application"
    if kind == "daphne":
        arguments = ["-b", host, "-p", str(port), "--application-close-timeout", "3", application]
    else:
        limits = ["--ws-max-size", "65536", "--ws-ping-interval", "10", "--timeout-graceful-shutdown", "3"]
        arguments = [application, "--host", host, "--port", str(port), "--log-level", "warning", *limits]
    address = f"{LOCAL if host == EVERYWHERE else host}:{port}"
    return Program(name, ["-m", "launcher.tether", kind, *arguments], address)


def worker(name: str) -> Program:
    """Return the program of a process that does the jobs."""
    return Program(name, ["-m", "launcher.tether", "manage", "runworker", "chat-jobs"])


def free_ports(host: str, first: int, count: int) -> list[int]:
    """Return so many ports from `first` on, or any if that is 0; raise StartFailed if one of them is in use."""
    with contextlib.ExitStack() as probes:
        ports = []
        for port in range(first, first + count) if first else [0] * count:
            probe = probes.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (OSError, OverflowError) as error:
                why = getattr(error, "strerror", None) or error
                raise StartFailed(
                    f"Cannot serve at {host}:{port}: {why}. Try --port 0, which takes free ports."
                ) from None
            ports.append(int(probe.getsockname()[1]))
        return ports


@dataclass(slots=True)
class Fleet:
    """Programs with one environment, all stopped at the end of the `with` block."""

    environment: dict[str, str]
    programs: dict[str, Program] = field(default_factory=dict)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def launch(self, programs: Sequence[Program]) -> None:
        """Start programs together and return when each server answers; raise StartFailed if one does not."""
        for program in programs:
            self.programs[program.name] = program
            self._start(program)
        for program in programs:
            if program.address:
                self._await_answer(program)

    def kill(self, name: str) -> None:
        """End a program by SIGKILL, as a crash would."""
        process = self._running(name)
        process.kill()
        process.wait()
        self._let_go(process)

    def relaunch(self, name: str) -> None:
        """Start a program that was killed, or ended by itself, again at the same port."""
        if self.programs[name].process is not None:
            self.kill(name)
        self.launch([self.programs[name]])

    def ended(self) -> Program | None:
        """Return a program that has ended by itself, if any has."""
        programs = self.programs.values()
        return next((one for one in programs if one.process is not None and one.process.poll() is not None), None)

    def stop(self) -> None:
        """Ask all to end, and end those that do not."""
        processes = [one.process for one in self.programs.values() if one.process is not None]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_LIMIT
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._let_go(process)
        for program in self.programs.values():
            program.log.close()

    def output(self, name: str) -> str:
        """Return the end of what a program printed."""
        file = self.programs[name].log.fileno()
        # Not by seek(): the program writes at the place that it shares with this file.
        return os.pread(file, LOG_SHOWN, max(0, os.fstat(file).st_size - LOG_SHOWN)).decode(errors="replace")

    def _start(self, program: Program) -> None:
        program.process = subprocess.Popen(
            [sys.executable, *program.arguments],
            cwd=CHAT,
            env={**os.environ, **self.environment, "CHAT_SERVER": program.name},
            stdin=subprocess.PIPE,
            stdout=program.log,
            stderr=program.log,
            start_new_session=True,  # a terminal's ^C is for the launcher, which then stops the others in order
        )

    def _await_answer(self, program: Program) -> None:
        deadline = time.monotonic() + START_LIMIT
        process = self._running(program.name)
        while self._answering_pid(program.address) != process.pid:
            if process.poll() is not None or time.monotonic() > deadline:
                raise StartFailed(f"Server {program.name} does not answer:\n{self.output(program.name)}")
            time.sleep(LOOK_AGAIN)

    def _answering_pid(self, address: str) -> int:
        connection = http.client.HTTPConnection(address, timeout=2)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            connection.request("GET", "/health")
            return int(json.load(connection.getresponse())["pid"])
        return 0

    def _running(self, name: str) -> subprocess.Popen[bytes]:
        process = self.programs[name].process
        if process is None:
            raise StartFailed(f"{name} is not running")
        return process

    def _let_go(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            process.stdin.close()
        for program in self.programs.values():
            if program.process is process:
                program.process = None
