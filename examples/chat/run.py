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

from launcher.fleet import EVERYWHERE, LOCAL, Fleet, Program, StartFailed, free_ports, server, worker
from launcher.signals import interrupt_on_signals

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
    parser.add_argument("--host", default=LOCAL, help=f"address to serve at; {EVERYWHERE} lets phones in (see README)")
    parser.add_argument(
        "--port", type=int, help=f"of server A, B has the next (default: {FIRST_PORT}; 0: any free ones)"
    )
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error("--workers has to be at least 1")
    if options.port is None:
        options.port = 0 if options.check else FIRST_PORT
    return options


def main() -> int:
    """Run until ^C, or until the check is done; return the exit status."""
    options = parse_arguments()
    interrupt_on_signals()
    try:
        with running(options) as (fleet, where):
            if not options.check:
                serve(fleet, options, where)
            from launcher.check import check

            print(f"Ready, on {where}. Checking:\n", flush=True)
            return asyncio.run(check(fleet))
    except ModuleNotFoundError as missing:
        print(f"{missing.name} is not installed here. `nox -s demo` installs all that, and runs this.", file=sys.stderr)
        return 1
    except StartFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nEverything is stopped.")
        return 1 if options.check else 0


@contextlib.contextmanager
def running(options: argparse.Namespace) -> Iterator[tuple[Fleet, str]]:
    """Yield the running processes, and words for where their database is."""
    from launcher.database import database

    ports = free_ports(options.host, options.port, 2)
    workers = "a worker" if options.workers == 1 else f"{options.workers} workers"
    print(f"Starting a database, two {options.server} servers and {workers} ...", flush=True)
    with database() as (url, where):
        hosts = "*" if options.host == EVERYWHERE else f"localhost,127.0.0.1,{options.host}"
        environment = {
            "CHAT_HOSTS": hosts,
            "CHAT_SECRET_KEY": secrets.token_urlsafe(40),
            "DATABASE_URL": url,
            "DJANGO_SETTINGS_MODULE": "chatroom.settings",
        }
        with Fleet(environment) as fleet:
            servers = [server(name, options.server, options.host, port) for name, port in zip("AB", ports, strict=True)]
            fleet.launch([*servers, *(worker(f"worker-{number + 1}") for number in range(options.workers))])
            yield fleet, where


def serve(fleet: Fleet, options: argparse.Namespace, where: str) -> NoReturn:
    """Say where the pages are, and start again what ends by itself, until ^C."""
    shown = _own_address() if options.host == EVERYWHERE else options.host
    print(f"\nThe chat is ready, on {where}.\n")
    for program in fleet.programs.values():
        if program.address:
            address = f"http://{program.address.replace(LOCAL, shown)}/"
            print(f"  {f'server {program.name}':<10}  {address:<34}  pid {program.pid}")
        else:
            print(f"  {program.name:<10}  {'manage.py runworker':<34}  pid {program.pid}")
    print("\nOpen both addresses, join the same room, and write. Kill a process to see its people vanish.")
    print("^C stops everything.", flush=True)
    while True:
        time.sleep(LOOK_AGAIN)
        if (ended := fleet.ended()) is not None:
            print(
                f"\n{ended.name} {_how_it_ended(fleet, ended)}It starts again in {RESTART_PAUSE:g} seconds.", flush=True
            )
            time.sleep(RESTART_PAUSE)  # long enough to see in the pages what a lost process means
            fleet.relaunch(ended.name)
            print(f"{ended.name} is back, pid {ended.pid}.", flush=True)


def _how_it_ended(fleet: Fleet, program: Program) -> str:
    code = program.process.returncode if program.process is not None else 0
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}. "
    return f"has ended with {code}:\n\n{fleet.output(program.name)}\n"


def _own_address() -> str:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which address would be used
        return str(probe.getsockname()[0])
    return LOCAL


if __name__ == "__main__":
    sys.exit(main())
