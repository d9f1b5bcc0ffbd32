"""The test bed does what the tests count on: the server, the proxy, the waits."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from .databases import TestServer, database_name, query
from .processes import environment
from .proxy import Proxy
from .temp_postgres import TempPostgres
from .urls import with_address, with_database, with_parameters
from .waiting import eventually, eventually_async

OWNER = """
import sys
from tests.support.temp_postgres import TempPostgres
with TempPostgres() as postgres:
    print(postgres._data, flush=True)
    sys.stdin.read()
"""


def test_a_server_keeps_its_data_and_address_over_a_restart() -> None:
    """restart() brings back what was committed; after a crash unlogged tables are empty."""
    with TempPostgres(tcp=True) as postgres:
        for url in (postgres.url, postgres.tcp_url):
            query(url, "CREATE TABLE IF NOT EXISTS kept AS SELECT 1 AS number")
            query(url, "CREATE UNLOGGED TABLE IF NOT EXISTS lost AS SELECT 1 AS number")
        query(postgres.url, "CHECKPOINT")
        postgres.restart()
        assert query(postgres.tcp_url, "TABLE lost") == [(1,)]
        postgres.restart(crash=True)
        assert query(postgres.tcp_url, "TABLE kept") == [(1,)]
        assert query(postgres.tcp_url, "TABLE lost") == []
        assert postgres.major >= 13
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres.tcp_url)


def test_a_server_ends_with_its_owner() -> None:
    """However the owner ends, SIGKILL included, neither the server nor its files stay."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout
        data = Path(owner.stdout.readline().strip())
        postmaster = int((data / "postmaster.pid").read_text().splitlines()[0])
        owner.send_signal(signal.SIGKILL)
    eventually(lambda: not data.exists() and not is_running(postmaster))


def is_running(pid: int) -> bool:
    """Tell whether there is a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_databases_come_and_go(server: TestServer, database_url: str, template: str) -> None:
    """A fresh database is empty, one from the template has our tables."""
    assert query(database_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    copy = server.create(template)
    assert query(copy, "SELECT count(*) FROM channels_pg_sa_message") == [(0,)]
    assert query(copy, "SELECT count(*) FROM tenant.channels_pg_sa_message") == [(0,)]
    server.drop(copy)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(copy)


def test_the_proxy_passes_on_and_cuts(proxy: Proxy) -> None:
    """A cut ends what is open and refuses what is new; after healing all is well."""
    with psycopg.connect(proxy.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert proxy.connections == 1
        proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(proxy.url)
    proxy.heal()
    assert query(proxy.url, "SELECT 2") == [(2,)]


def test_the_proxy_drops_and_accepts(proxy: Proxy) -> None:
    """A drop ends what is open and nothing else."""
    with psycopg.connect(proxy.url) as connection:
        proxy.drop()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert query(proxy.url, "SELECT 2") == [(2,)]


async def test_the_proxy_stalls(proxy: Proxy) -> None:
    """While stalled, no answer comes; what was asked is answered after healing."""
    async with await psycopg.AsyncConnection.connect(proxy.url, autocommit=True) as connection:
        proxy.stall()
        asking = asyncio.create_task(connection.execute("SELECT 3"))
        done, _ = await asyncio.wait([asking], timeout=0.2)
        assert not done
        proxy.heal()
        assert await (await asking).fetchone() == (3,)


def test_waiting_fails_with_what_was_seen() -> None:
    """A wait that ends in vain says why."""
    with pytest.raises(AssertionError, match="seen last: 0"):
        eventually(lambda: 0, within=0.05)


async def test_waiting_returns_what_was_seen() -> None:
    """A wait returns the first true value."""
    values = iter([0, 0, 7])

    async def look() -> int:
        return next(values)

    assert await eventually_async(look) == 7


def test_uris_are_changed_in_one_place() -> None:
    """The database, the address or a parameter; the rest stays."""
    socket = "postgresql://postgres@/old?host=%2Ftmp%2Fx&port=5432"
    assert database_name(with_database(socket, "a b")) == "a b"
    assert with_address(socket, "127.0.0.1", 7) == "postgresql://postgres@127.0.0.1:7/old"
    assert with_address("postgresql://u:p@h:1/db?sslmode=off", "h2", 2) == "postgresql://u:p@h2:2/db?sslmode=off"
    assert with_parameters("postgresql://h/db?a=1", a=2, b="x y") == "postgresql://h/db?a=2&b=x%20y"
