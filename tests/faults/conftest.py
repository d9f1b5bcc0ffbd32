"""Fixtures for breaking things: a server of these tests' own, which they may restart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from psycopg import sql

from tests.support.layers import LayerFactory
from tests.support.schema import install
from tests.support.temp_postgres import TempPostgres

from .breaking import FragileServer, SwallowingProxy


@pytest.fixture(scope="session")
def fragile() -> Iterator[FragileServer]:
    """A server that a test may restart."""
    with TempPostgres(tcp=True) as postgres:
        server = FragileServer(postgres)
        yield server
        server.close()


@pytest.fixture(scope="session")
def fragile_template(fragile: FragileServer) -> str:
    """A database with the schema on that server."""
    url = fragile.create()
    install(url)
    return url


@pytest.fixture
def fragile_url(fragile: FragileServer, fragile_template: str) -> Iterator[str]:
    """A database of the test's own on that server, through TCP; the roles of its name go with it."""
    url = fragile.create(fragile_template)
    yield url
    fragile.drop(url)
    fragile.run(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(url.rsplit("/", 1)[1] + "_role")))


@pytest_asyncio.fixture
async def make_fragile(fragile: FragileServer, fragile_url: str) -> AsyncIterator[LayerFactory]:
    """Build layers in that database; all are closed at the end, and none may leave a connection."""
    factory = LayerFactory(fragile, fragile_url, "asgi")
    yield factory
    await factory.close()


@pytest.fixture
def proxy(layer_url: str) -> Iterator[SwallowingProxy]:
    """A proxy before the test's own database that can forget connections."""
    running = SwallowingProxy(layer_url)
    with running:
        yield running


@pytest.fixture
def fragile_proxy(fragile_url: str) -> Iterator[SwallowingProxy]:
    """The same before the database on the server that may be restarted."""
    running = SwallowingProxy(fragile_url)
    with running:
        yield running
