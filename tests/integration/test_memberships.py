"""Joins and leaves that meet in the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest_asyncio

from channels_pg_sa.config import Settings
from channels_pg_sa.statements.compiled import compiled
from channels_pg_sa.statements.jobs import Join, Leave
from channels_pg_sa.statements.queries import Queries
from tests.support.databases import AWAITED, query
from tests.support.layers import LayerFactory
from tests.support.urls import with_parameters
from tests.support.waiting import eventually_async

NODE, CHANNEL = "0123456789ab", "s.0123456789ab!a"
NOTE = """CREATE TABLE noted (number serial, what text, setting text);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $body$
    BEGIN
        INSERT INTO noted (what, setting) VALUES (lower(TG_OP), current_setting('synchronous_commit'));
        RETURN NULL;
    END $body$;
    CREATE TRIGGER note AFTER INSERT OR DELETE ON channels_pg_sa_membership FOR EACH ROW EXECUTE FUNCTION note()"""

Connection = psycopg.AsyncConnection[tuple[object, ...]]


@pytest_asyncio.fixture
async def connections(layer_url: str) -> AsyncIterator[tuple[Connection, Connection]]:
    """Two sessions in the test's own database."""
    async with (
        await psycopg.AsyncConnection.connect(layer_url, autocommit=True) as one,
        await psycopg.AsyncConnection.connect(layer_url, autocommit=True) as other,
    ):
        yield one, other


async def test_a_leave_ends_a_membership_that_is_renewed_meanwhile(
    connections: tuple[Connection, Connection], layer_url: str
) -> None:
    """It found the row at a place that it has left by the time of the delete, and looks again."""
    one, other = connections
    queries = Queries(Settings(connect=dict, listen=dict), NODE)
    join, leave = Join("group", NODE, CHANNEL), Leave("group", NODE, CHANNEL)
    await queries.join(one, [join])

    async def is_blocked() -> bool:
        return query(layer_url, AWAITED) == [(1,)]

    async with one.transaction():
        await queries.join(one, [join])
        leaving = asyncio.create_task(queries.leave(other, [leave, Leave("group", NODE, "nobody")]))
        await eventually_async(is_blocked)
    await leaving
    assert await queries.members(other) == []


async def test_joins_and_leaves_do_not_wait_for_the_disk(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Whatever the server's setting: nodes restore memberships that a crash has cost."""
    query(layer_url, NOTE)
    layer = make_own_layer(url=with_parameters(layer_url, options="-c synchronous_commit=on"))
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_discard("group", channel)
    await layer.group_add("group", channel)
    await layer.close()
    noted = query(layer_url, "SELECT what, setting FROM noted ORDER BY number")
    assert noted == [("insert", "off"), ("delete", "off")] * 2


async def test_a_membership_that_is_renewed_while_it_is_swept_stays(
    connections: tuple[Connection, Connection], layer_url: str
) -> None:
    """The sweep takes it for ended, and the renewal commits a moment later."""
    one, other = connections
    queries = Queries(Settings(connect=dict, listen=dict, group_expiry=60), NODE)
    join = Join("group", NODE, CHANNEL)
    await queries.join(one, [join])
    query(layer_url, "UPDATE channels_pg_sa_membership SET expires_at = clock_timestamp() - interval '1 s'")

    async def is_blocked() -> bool:
        return query(layer_url, AWAITED) == [(1,)]

    async with one.transaction():
        await queries.join(one, [join])
        sweeping = asyncio.create_task(queries.sweep(other, 100))
        blocked = asyncio.create_task(eventually_async(is_blocked))
        await asyncio.wait([sweeping, blocked], return_when=asyncio.FIRST_COMPLETED)
        blocked.cancel()
    await asyncio.gather(sweeping, blocked, return_exceptions=True)
    assert [member[:2] for member in await queries.members(other)] == [("group", CHANNEL)]


async def test_a_join_that_a_flush_overlooks_is_heard_of(make_own_layer: LayerFactory, layer_url: str) -> None:
    """It is committed after the flush has looked, and before the flush is."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("other", channel)
    statements = compiled(None)
    constants = {"prefix": "asgi", "payload": "Fn nowhere"}
    with psycopg.connect(layer_url, application_name="tests") as flushing:
        for name in ("flush", "notify_nodes"):
            flushing.execute(statements[name].sql.encode(), {**statements[name].literals, **constants})
            if name == "flush":
                await layer.group_add("group", channel)
        flushing.commit()

    async def has_left() -> bool:
        return await layer.group_count("other") == 0  # type: ignore[attr-defined,no-any-return]

    await eventually_async(has_left)
    await layer.send(channel, {"type": "flush.is.over"})
    assert (await asyncio.wait_for(layer.receive(channel), 10))["type"] == "flush.is.over"
    await layer.group_send("group", {"type": "group"})
    assert (await asyncio.wait_for(layer.receive(channel), 10))["type"] == "group"
