"""Fixtures for every test: the server, databases, layers, and ways to break them."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import pytest_asyncio

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.support.settings")

from tests.support import django_databases
from tests.support.databases import TestServer
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.proxy import Proxy
from tests.support.schema import SCHEMA, install
from tests.support.temp_postgres import TempPostgres
from tests.support.waiting import eventually

_numbers = itertools.count(1)


MARKERS = (
    "in_memory_breaks(reason, broken): InMemoryChannelLayer breaks the rule of this test, and if so must fail it",
    "not_in_memory(reason): the rule of this test means nothing in InMemoryChannelLayer",
    "processes: starts processes, and so gets more time",
    "any_server: no server is asked for anything that others do not ask it too, so on a second one it is left out",
)


def pytest_configure(config: pytest.Config) -> None:
    """Set Django up before any test module is imported, and declare the markers."""
    import django

    django.setup()
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


@pytest.fixture(scope="session")
def server() -> Iterator[TestServer]:
    """The server of CHANNELS_PG_SA_TEST_URL, or a private one that vanishes with the tests."""
    if url := os.environ.get("CHANNELS_PG_SA_TEST_URL"):
        running = TestServer(url)
        yield running
        running.close()
        return
    with TempPostgres(settings={"max_connections": 200}) as postgres:
        running = TestServer(postgres.url)
        yield running
        running.close()


@pytest.fixture(scope="session")
def template(server: TestServer) -> str:
    """A database with the schema, installed once, that others are copied from; nobody may stay connected to it."""
    url = server.create()
    install(url)
    install(url, SCHEMA)
    return url


@pytest.fixture
def database_url(server: TestServer) -> Iterator[str]:
    """The libpq URI of a fresh, empty database."""
    url = server.create()
    yield url
    server.drop(url)


@pytest.fixture
def layer_url(server: TestServer, template: str) -> Iterator[str]:
    """The libpq URI of a fresh database of the test's own, with the schema: for tests that kill or inspect."""
    url = server.create(template)
    yield url
    server.drop(url)


@pytest.fixture(scope="session")
def shared_url(server: TestServer, template: str) -> str:
    """The libpq URI of the database that ordinary tests share; a prefix of its own keeps each apart."""
    return server.create(template)


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test has."""
    return f"test-{next(_numbers)}"


@pytest_asyncio.fixture
async def make_layer(server: TestServer, shared_url: str, prefix: str) -> AsyncIterator[LayerFactory]:
    """Build layers in the shared database; all are closed at the end, and none may leave a connection."""
    factory = LayerFactory(server, shared_url, prefix)
    yield factory
    await factory.close()


@pytest_asyncio.fixture
async def make_own_layer(server: TestServer, layer_url: str) -> AsyncIterator[LayerFactory]:
    """Build layers in a database of the test's own, which it may inspect and break."""
    factory = LayerFactory(server, layer_url, "asgi")
    yield factory
    await factory.close()


@pytest.fixture
def layer(make_layer: LayerFactory) -> PostgresLayer:
    """A layer with the default settings."""
    return make_layer()


@pytest.fixture
def databases() -> Iterator[Callable[..., None]]:
    """Set DATABASES for the rest of a test; no connection or setting of it is left to the next."""
    with ExitStack() as stack:

        def set_databases(**entries: dict[str, Any]) -> None:
            stack.enter_context(django_databases.databases(**{"default": {}, **entries}))

        yield set_databases


@pytest.fixture
def kill_listener(server: TestServer, make_own_layer: LayerFactory) -> Callable[[PostgresLayer], list[int]]:
    """End the LISTEN connection(s) in the database of a layer of `make_own_layer`; return the backends ended."""

    def kill(layer: PostgresLayer) -> list[int]:
        pids = eventually(lambda: make_own_layer.listeners(layer))
        server.terminate(pids)
        return pids

    return kill


@pytest.fixture
def proxy(layer_url: str) -> Iterator[Proxy]:
    """A proxy before the test's own database, for `make_own_layer(url=proxy.url)`."""
    with Proxy(layer_url) as running:
        yield running


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Give tests that start processes more time than the rest."""
    for item in items:
        if "processes" in item.keywords and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(120))
