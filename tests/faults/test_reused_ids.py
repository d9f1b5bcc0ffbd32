"""Ids that begin anew, after a crash or with new tables, while something is yet to be done to rows that had them."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest

from channels_pg_sa import migrate
from channels_pg_sa.statements.queries import Queries
from tests.support.layers import LayerFactory

from .breaking import FragileServer, Gate, SwallowingProxy, come_back, inside, take, text, warm, within

OLD, NEW = range(20), range(100, 120)


async def make_tables_anew(url: str) -> None:
    """Remove all that is there, as an operator might who has damaged tables."""
    await asyncio.to_thread(migrate.downgrade, url, revision="base")
    await asyncio.to_thread(migrate.upgrade, url)


async def test_tables_made_anew_under_deletions(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is deleted then are rows that others have sent meanwhile: no longer by their ids alone."""
    layer, sender = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    gate, channel = Gate(monkeypatch), await warm(layer)
    for number in OLD:
        await sender.send(channel, text(number))
    await take(layer, channel, len(OLD))
    await make_tables_anew(layer_url)
    fresh = make_own_layer()
    for number in NEW:
        await fresh.send(channel, text(number))
    await gate.open(layer)
    await come_back(layer)
    assert [message["number"] for message in await take(layer, channel, len(NEW))] == list(NEW)


async def test_a_crash_that_the_listener_does_not_notice_at_once(
    fragile_proxy: SwallowingProxy,
    make_fragile: LayerFactory,
    fragile: FragileServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a failover, after which the old connection is silent."""
    layer = make_fragile(listen_url=fragile_proxy.url, heartbeat=60, lease=200)
    sender = make_fragile()
    gate, channel = Gate(monkeypatch), await warm(layer)
    for number in OLD:
        await sender.send(channel, text(number))
    await take(layer, channel, len(OLD))
    fragile_proxy.stall()
    await asyncio.to_thread(fragile.postgres.restart, crash=True)
    fresh = make_fragile()
    for number in NEW:
        await fresh.send(channel, text(number))
    await gate.open(layer)
    fragile_proxy.heal()
    await come_back(layer)
    assert [message["number"] for message in await take(layer, channel, len(NEW))] == list(NEW)


async def test_tables_made_anew_under_a_fetch(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is handed what was sent to another channel, whose row has the id by now."""
    layer, sender = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    channel, other = await warm(layer), await layer.new_channel()
    fetch, asked, sent = Queries.fetch, threading.Event(), threading.Event()

    async def late(self: Queries, connection: Any, rows: Any) -> Any:
        asked.set()
        await asyncio.to_thread(sent.wait, 20)
        return await fetch(self, connection, rows)

    monkeypatch.setattr(Queries, "fetch", late)
    reader = asyncio.create_task(take(layer, channel, 1))
    await sender.send(channel, {"type": "test.message", "number": 0, "text": "x" * 9000})
    assert await asyncio.to_thread(asked.wait, 10)
    with psycopg.connect(layer_url) as connection:
        ((row,),) = connection.execute("SELECT id FROM channels_pg_sa_message WHERE length(payload) > 9000").fetchall()
    await make_tables_anew(layer_url)
    fresh = make_own_layer()
    for number in range(row):
        await fresh.send(other, text(number))
    sent.set()
    await within(layer, inside(layer)._courier.fetches.finish(10))
    await come_back(layer)
    await fresh.send(channel, text(-2))
    assert await reader == [text(-2)]
    assert [message["number"] for message in await take(layer, other, row)] == list(range(row))
