"""Reading groups and nodes with every driver that the documentation names."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Executable, func, select

from channels_pg_sa import LiveNode, Publisher, __version__, schema
from tests.support.engines import ASYNC_DRIVERS, DRIVERS, async_engine_on, engine_on
from tests.support.layers import LayerFactory

Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Members:
    """A layer with two members in `group`, one of them also in `other`.

    Args:
        node: the id of its node.
        channel: its own, in both groups.
        members: of `group`, in the order of their names.
    """

    node: str
    channel: str
    members: list[str]


@pytest_asyncio.fixture
async def there(make_own_layer: LayerFactory) -> Members:
    """Who is to be read, on the test's own database."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    for group, member in (("group", channel), ("group", "jobs"), ("other", channel)):
        await layer.group_add(group, member)
    return Members(layer.node, channel, sorted([channel, "jobs"]))


def check_nodes(nodes: list[LiveNode], there: Members) -> None:
    """Assert that the layer is the only node, and that each field came as what it is."""
    (node,) = nodes
    assert (node.id, node.host, node.pid) == (there.node, socket.gethostname(), os.getpid())
    assert node.version == __version__
    assert node.started_at <= node.seen_at
    assert node.seen_at.utcoffset() is not None
    assert abs(dt.datetime.now(dt.timezone.utc) - node.seen_at) < dt.timedelta(minutes=1)


async def check_methods(publisher: Publisher, there: Members) -> None:
    """Assert what coroutines are told."""
    assert await publisher.group_channels("group") == there.members
    assert await publisher.group_count("group") == 2
    assert await publisher.groups_of(there.channel) == ["group", "other"]
    assert await publisher.groups_of("jobs") == ["group"]
    assert (await publisher.group_channels("none"), await publisher.group_count("none")) == ([], 0)
    check_nodes(await publisher.nodes(), there)


def check_methods_sync(publisher: Publisher, there: Members) -> None:
    """Assert what code without a loop is told."""
    assert publisher.group_channels_sync("group") == there.members
    assert publisher.group_count_sync("group") == 2
    assert publisher.groups_of_sync(there.channel) == ["group", "other"]
    assert publisher.groups_of_sync("jobs") == ["group"]
    assert (publisher.group_channels_sync("none"), publisher.group_count_sync("none")) == ([], 0)
    check_nodes(publisher.nodes_sync(), there)


async def check_statements(rows: Callable[[Executable], Awaitable[Rows]], there: Members) -> None:
    """Assert what the statements select, by themselves and within queries of the host's own."""
    publisher = Publisher(url="postgresql://nobody@nowhere.invalid/nothing")
    members = publisher.group_channels_statement("group")
    assert await rows(members) == [(member,) for member in there.members]
    assert await rows(members.limit(1)) == [(there.members[0],)]
    assert await rows(publisher.group_count_statement("group")) == [(2,)]
    assert await rows(publisher.groups_of_statement(there.channel)) == [("group",), ("other",)]
    check_nodes([LiveNode(*row) for row in await rows(publisher.nodes_statement())], there)

    hosts = publisher.nodes_statement().subquery()
    joined = (
        select(schema.membership.c.group_name, hosts.c.host)
        .join(hosts, hosts.c.id == schema.membership.c.node)
        .order_by(schema.membership.c.group_name)
    )
    assert await rows(joined) == [("group", socket.gethostname()), ("other", socket.gethostname())]
    count = publisher.group_count_statement("group").scalar_subquery()
    both = select(count, func.count()).select_from(publisher.groups_of_statement(there.channel).subquery())
    assert await rows(both) == [(2, 2)]


@pytest.mark.parametrize("driver", DRIVERS)
async def test_an_engine_of_every_driver_reads(there: Members, layer_url: str, driver: str) -> None:
    """From coroutines, and without a loop."""
    with engine_on(layer_url, driver) as engine:
        publisher = Publisher(engine=engine)
        await check_methods(publisher, there)
        await asyncio.to_thread(check_methods_sync, publisher, there)


@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
async def test_an_async_engine_of_every_driver_reads(there: Members, layer_url: str, driver: str) -> None:
    """From coroutines."""
    async with async_engine_on(layer_url, driver) as engine:
        await check_methods(Publisher(engine=engine), there)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_the_statements_and_tables_are_the_host_s_to_use(there: Members, layer_url: str, driver: str) -> None:
    """In queries of its own, on any driver, in its transaction."""
    with engine_on(layer_url, driver) as engine, engine.begin() as connection:

        async def rows(statement: Executable) -> Rows:
            return [tuple(row) for row in connection.execute(statement)]

        await check_statements(rows, there)


@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
async def test_the_same_of_async_drivers(there: Members, layer_url: str, driver: str) -> None:
    """The statements and tables, on an AsyncConnection."""
    async with async_engine_on(layer_url, driver) as engine, engine.begin() as connection:

        async def rows(statement: Executable) -> Rows:
            return [tuple(row) for row in await connection.execute(statement)]

        await check_statements(rows, there)
