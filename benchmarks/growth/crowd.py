"""Connections beside the one that is measured: some that only listen, and some of a host that commits."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from channels_pg_sa.topics import topic

PREFIX = "growth"


class Crowd:
    """Connections that LISTEN, each to the topic of a node of its own, and throw away what they hear."""

    def __init__(self, url: str, secret: str) -> None:
        self._url = url
        self._secret = secret
        self._members: list[psycopg.Connection[Any]] = []
        self._selector = selectors.DefaultSelector()
        self._ending = False
        self._thread = threading.Thread(target=self._drain, name="growth crowd", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._members)

    def resize(self, size: int) -> None:
        """Have so many connections."""
        while len(self._members) > size:
            member = self._members.pop()
            self._selector.unregister(member.pgconn.socket)
            member.close()
        while len(self._members) < size:
            member = psycopg.connect(self._url, autocommit=True)
            heard = topic(self._secret, "node", PREFIX, node_id(len(self._members)))
            member.execute(f"LISTEN {heard}".encode())
            self._members.append(member)
            self._selector.register(member.pgconn.socket, selectors.EVENT_READ)

    def close(self) -> None:
        """Close all of them."""
        self.resize(0)
        self._ending = True
        self._thread.join()
        self._selector.close()

    def _drain(self) -> None:
        while not self._ending:
            for key, _ in self._selector.select(timeout=0.1):
                with contextlib.suppress(OSError):
                    os.read(key.fd, 1 << 16)


def node_id(number: int) -> str:
    """Return the id of the node that the connection of this number listens for."""
    return f"{number:012x}"


@dataclass(frozen=True, slots=True)
class Commits:
    """What transactions of many writers at a time did.

    Attributes:
        flushes: of the WAL, for each commit; None where the server does not count them.
        per_second: commits.
    """

    flushes: float | None
    per_second: float


HOST_WRITE = "INSERT INTO growth_host VALUES (1)"
HOST_SEND = "SELECT channels_pg_sa_send('specific.%s!1', '{\"type\": \"growth\"}', 'growth')" % node_id(0)  # noqa: UP031


def commits(url: str, statements: Sequence[str], *, writers: int = 8, times: int = 50) -> Commits:
    """Let writers commit transactions of these statements at the same time, as fast as they can."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS growth_host (number integer)")
        before, began = _flushes(connection), time.monotonic()
        threads = [threading.Thread(target=_write, args=(url, statements, times)) for _ in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lasted = time.monotonic() - began
        time.sleep(0.2)  # the counts of a session are there when it has ended
        after = _flushes(connection)
        flushes = None if before is None or after is None else (after - before) / (writers * times)
        return Commits(flushes, writers * times / lasted)


def _write(url: str, statements: Sequence[str], times: int) -> None:
    with psycopg.connect(url) as connection:
        for _ in range(times):
            for statement in statements:
                connection.execute(statement.encode())
            connection.commit()


def _flushes(connection: psycopg.Connection[Any]) -> int | None:
    version = connection.info.server_version
    if version < 140000:
        return None
    query = "SELECT wal_sync FROM pg_stat_wal"
    if version >= 180000:
        query = "SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal'"
    row = connection.execute(query.encode()).fetchone()
    return int(row[0]) if row else None
