"""Joins and leaves that meet in the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest_asyncio

from channels_pg_sa.config import Settings
from channels_pg_sa.queries import Join, Leave, Queries
from tests.support.databases import query
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
BLOCKED = "SELECT count(*) FROM pg_locks WHERE NOT granted"

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
        return query(layer_url, BLOCKED) == [(1,)]

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
