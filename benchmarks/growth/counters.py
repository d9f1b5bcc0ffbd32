"""What a PostgreSQL server has done so far: its CPU as the system counts it, and flushes and statements."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg

from benchmarks.system import stat_fields

_PROC = Path("/proc")


class ServerHidden(Exception):
    """The server's processes cannot be seen from here, so its CPU cannot be measured."""


class Meter:
    """CPU seconds of a whole PostgreSQL server, to the nanosecond while its processes live.

    Args:
        backend: the process id of one of its connections.

    Raises:
        ServerHidden: it runs on another machine or in another container.
    """

    def __init__(self, backend: int) -> None:
        try:
            if not (_PROC / str(backend) / "comm").read_text().startswith("postgres"):
                raise ServerHidden("the server runs where its processes cannot be seen")
            self._postmaster = int(stat_fields(backend)[1])
        except OSError as error:
            raise ServerHidden("the server runs where its processes cannot be seen") from error

    def seconds(self) -> float:
        """Return what the server's processes have used since it started, those that have ended included."""
        ended = sum(int(ticks) for ticks in stat_fields(self._postmaster)[13:15]) / os.sysconf("SC_CLK_TCK")
        return ended + sum(_run_seconds(pid) for pid in (self._postmaster, *self._children()))

    def _children(self) -> list[int]:
        listed = (_PROC / str(self._postmaster) / "task" / str(self._postmaster) / "children").read_text()
        return [int(pid) for pid in listed.split()]


def _run_seconds(pid: int) -> float:
    try:
        return int((_PROC / str(pid) / "schedstat").read_text().split()[0]) / 1e9
    except OSError:  # it has just ended, and counts among the dead
        return 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What something cost the server.

    Attributes:
        times: how often it was done.
        cpu: microseconds of CPU, each.
        wal: bytes of WAL, each.
        per_second: how often a second it was done.
    """

    times: int
    cpu: float
    wal: float
    per_second: float

    def shared(self, parts: int) -> Cost:
        """Return the cost of one of so many equal parts of what was done once."""
        return Cost(parts, self.cpu / parts, self.wal / parts, self.per_second * parts)


def middle(costs: list[Cost]) -> Cost:
    """Return the repetition whose CPU is the median."""
    return sorted(costs, key=lambda cost: cost.cpu)[len(costs) // 2]


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the statements that this process sends, by their text; empty ones test a connection."""
    execute = psycopg.AsyncConnection.execute
    tally: Counter[str] = Counter()

    async def counting(connection: psycopg.AsyncConnection[Any], query: str, *arguments: Any, **options: Any) -> Any:
        tally[query] += 1
        return await execute(connection, query, *arguments, **options)

    with mock.patch.object(psycopg.AsyncConnection, "execute", counting):
        yield tally
