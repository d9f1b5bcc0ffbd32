#!/usr/bin/env python
"""Run the chat: a database, two server processes and a worker that meet only in the channel layer; ^C ends them all."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from launcher.check import check
from launcher.database import database
from launcher.fleet import Fleet, Program, StartFailed, free_port, server, worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FIRST_PORT = 8001
LOOK_AGAIN = 0.5
RESTART_PAUSE = 8.0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="drive the chat with WebSocket clients, report, and end")
    parser.add_argument("--server", choices=("uvicorn", "daphne"), default="uvicorn", help="what serves the pages")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that do the jobs (default: 1)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at; 0.0.0.0 lets phones in (see README)")
    parser.add_argument("--port", type=int, default=FIRST_PORT, help="first port to try; the check takes any free one")
    return parser.parse_args(arguments)


def main() -> int:
    """Run until ^C, or until the check is done; return the exit status."""
    options = parse_arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    # A shell that starts this in the background leaves SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with running(options) as (fleet, where):
            if options.check:
                return asyncio.run(check(fleet, options.server, where))
            serve(fleet, options, where)
    except StartFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nEverything is stopped.")
        return 1 if options.check else 0


@contextlib.contextmanager
def running(options: argparse.Namespace) -> Iterator[tuple[Fleet, str]]:
    """Yield the running processes, and words for where their database is."""
    if not options.check:
        print("Starting the database, two servers and the worker ...", flush=True)
    with database() as (url, where):
        hosts = "*" if options.host == "0.0.0.0" else f"localhost,127.0.0.1,[::1],{options.host}"
        environment = {
            "CHAT_HOSTS": hosts,
            "CHAT_SECRET_KEY": secrets.token_urlsafe(40),
            "DATABASE_URL": url,
            "DJANGO_SETTINGS_MODULE": "chatroom.settings",
        }
        with Fleet(environment) as fleet:
            fleet.launch(programs(options))
            yield fleet, where


def programs(options: argparse.Namespace) -> list[Program]:
    """Return the two servers and the workers."""
    first = free_port(options.host, 0 if options.check else options.port)
    second = free_port(options.host, 0 if options.check else first + 1)
    servers = [server("A", options.server, options.host, first), server("B", options.server, options.host, second)]
    return [*servers, *(worker(f"worker-{number + 1}") for number in range(options.workers))]


def serve(fleet: Fleet, options: argparse.Namespace, where: str) -> NoReturn:
    """Say where the pages are, and start again what ends by itself, until ^C."""
    shown = _own_address() if options.host == "0.0.0.0" else options.host
    print(f"\nThe chat is ready, on {where}.\n")
    for program in fleet.programs.values():
        address = f"http://{shown}:{program.port}/" if program.port else "does /roll 2d6, /count and /morse"
        print(
            f"  {program.name:<10} {address:<34} {options.server if program.port else 'runworker'}, pid {program.pid}"
        )
    print("\nOpen both addresses, join the same room, and write. Kill a process to see its people vanish.")
    print("^C stops everything.", flush=True)
    while True:
        time.sleep(LOOK_AGAIN)
        if (ended := fleet.ended()) is not None:
            print(f"\n{ended.name} has ended. It starts again in {RESTART_PAUSE:g} seconds.", flush=True)
            time.sleep(RESTART_PAUSE)  # long enough to see in the pages what a lost process means
            fleet.relaunch(ended.name)
            print(f"{ended.name} is back, pid {ended.pid}.", flush=True)


def _own_address() -> str:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which address would be used
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
