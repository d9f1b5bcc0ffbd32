"""The servers of a run: a database of its own for each layer on PostgreSQL, the schema of each, and who is absent."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit, urlunsplit

from benchmarks.coordinator import CaseFailed, install
from benchmarks.peers import Peer

POSTGRES_VARIABLES = ("CHANNELS_PG_SA_BENCH_POSTGRES", "CHANNELS_PG_SA_TEST_URL")


class Servers:
    """Finds the server of a peer when it is first asked for, and starts a private PostgreSQL when none is named.

    Args:
        stack: stops that server, and drops the databases that were made.
        connections: that the private server is to have room for.
    """

    def __init__(self, stack: ExitStack, *, connections: int = 100) -> None:
        self._stack = stack
        self._connections = connections
        self._postgres: str | None = None

    def url(self, peer: Peer) -> str:
        """Return where `peer` finds its server, "" for none; raise CaseFailed when it cannot take part."""
        url = self._find(peer)
        if (reason := peer.absent(url)) is not None:
            raise CaseFailed(reason)
        if peer.uses_postgres:
            url = self._stack.enter_context(_database(url))
        install(peer, url)
        return url

    def _find(self, peer: Peer) -> str:
        if peer.uses_postgres:
            if self._postgres is None:
                named = (os.environ.get(variable) for variable in POSTGRES_VARIABLES)
                self._postgres = next((url for url in named if url), None) or self._start_postgres()
            return self._postgres
        return os.environ.get(peer.url_variable, peer.default_url) if peer.url_variable else ""

    def _start_postgres(self) -> str:
        from tests.support.temp_postgres import TempPostgres

        server = TempPostgres(settings={"max_connections": self._connections}, tcp=True, durable=True)
        return self._stack.enter_context(server).tcp_url


@contextmanager
def servers(peers: Sequence[Peer], absent: dict[str, str]) -> Iterator[tuple[dict[str, str], str]]:
    """Yield the URL of each peer that is here and PostgreSQL's version; note in `absent` why others are not here.

    In the end the databases that were made are dropped, and a server that was started is stopped.
    """
    urls: dict[str, str] = {}
    with ExitStack() as stack:
        found = Servers(stack)
        for peer in peers:
            try:
                urls[peer.name] = found.url(peer)
            except CaseFailed as failure:
                absent[peer.name] = str(failure)
            except Exception as error:
                absent[peer.name] = f"{type(error).__name__}: {error}".strip()
        yield urls, next((_version(urls[peer.name]) for peer in peers if peer.uses_postgres and peer.name in urls), "")


def _version(url: str) -> str:
    import psycopg

    with psycopg.connect(url) as connection:
        return str(connection.info.parameter_status("server_version"))


@contextmanager
def _database(url: str) -> Iterator[str]:
    import psycopg

    name = f"channels_pg_sa_bench_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
