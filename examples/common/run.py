"""Runs an example: by hand until ^C, or driven by its own check."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psycopg

from launcher.database import database
from launcher.fleet import LOCAL, Fleet, Program, StartFailed, free_ports
from launcher.member import CheckFailed
from launcher.signals import interrupt_on_signals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
FIRST_PORT = 8001
LOOK_AGAIN = 0.5


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs: a database and the `host:port` of each server."""

    url: str
    servers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Example:
    """What to run, and what to do with it.

    Args:
        sql: what the example's own tables need; it may run again on a database that has them.
        servers: names, and the ASGI applications that Uvicorn serves.
        workers: names of other processes, and their arguments after `python -m`.
        environment: of every process.
        invitation: what a person is told who runs it by hand.
        check: drives it, yields what it has seen, and raises CheckFailed if that is not as it should be.
        by_hand: what goes on while a person looks at it; it returns early if there is nothing.
    """

    sql: str
    servers: Mapping[str, str]
    invitation: Callable[[Stage], str]
    check: Callable[[Stage], AsyncIterator[str]]
    workers: Mapping[str, list[str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    by_hand: Callable[[Stage], None] = lambda stage: None


def main(example: Example, about: str | None) -> int:
    """Run the example until ^C, or until its check is done, and return the exit status."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--check", action="store_true", help="drive it with a WebSocket client, report, and end")
    parser.add_argument("--port", type=int, help=f"of the first server (default: {FIRST_PORT}; 0: any free ones)")
    options = parser.parse_args()
    port = (0 if options.check else FIRST_PORT) if options.port is None else options.port
    interrupt_on_signals()
    try:
        print("Starting ...", flush=True)
        with _running(example, port) as (stage, fleet):
            if options.check:
                return asyncio.run(check(example, stage, fleet))
            print(f"\n{example.invitation(stage)}\n^C stops everything.", flush=True)
            _serve(example, stage, fleet)
    except StartFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nEverything is stopped.")
        return 1 if options.check else 0


@contextlib.contextmanager
def _running(example: Example, port: int) -> Iterator[tuple[Stage, Fleet]]:
    ports = free_ports(LOCAL, port, len(example.servers))
    servers = dict(zip(example.servers, (f"{LOCAL}:{port}" for port in ports), strict=True))
    with database() as (url, _):
        with psycopg.connect(url) as connection:
            connection.execute(example.sql.encode())
        environment = {
            "DATABASE_URL": url,
            "DJANGO_SETTINGS_MODULE": "examples.common.settings",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            **example.environment,
        }
        with Fleet(environment) as fleet:
            fleet.launch(
                [
                    _program(name, ["uvicorn", app, *_uvicorn(servers[name])], servers[name])
                    for name, app in example.servers.items()
                ]
                + [_program(name, arguments) for name, arguments in example.workers.items()]
            )
            yield Stage(url, servers), fleet


def _program(name: str, arguments: list[str], address: str = "") -> Program:
    return Program(name, ["-m", "launcher.tether", *arguments], address)


def _uvicorn(address: str) -> list[str]:
    host, _, port = address.partition(":")
    return ["--host", host, "--port", port, "--log-level", "warning", "--timeout-graceful-shutdown", "3"]


async def check(example: Example, stage: Stage, fleet: Fleet) -> int:
    """Print what the example's check sees, and if it fails what its processes printed; return 0 or 1."""
    try:
        async for seen in example.check(stage):
            print(f"  ok    {seen}", flush=True)
    except Exception as error:
        print(f"  FAIL  {error if isinstance(error, CheckFailed) else repr(error)}")
        for name in fleet.programs:
            print(f"\n--- What {name} printed:\n{fleet.output(name)}")
        return 1
    print("All is well.")
    return 0


def _serve(example: Example, stage: Stage, fleet: Fleet) -> NoReturn:
    example.by_hand(stage)
    while (ended := fleet.ended()) is None:
        time.sleep(LOOK_AGAIN)
    raise StartFailed(f"{ended.name} has ended:\n{fleet.output(ended.name)}")
