"""What a new connection of the listener's does before it is used, while others go on."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from channels_pg_sa import listener
from channels_pg_sa.queries import Queries
from tests.support.layers import LayerFactory

from .breaking import come_back, take, text, warm


async def test_who_joins_while_its_node_recovers(make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just before the mailbox is read: it holds what was sent to the group after that, and that is for the member."""
    layer, other = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    channel = await warm(layer)
    waiting = Queries.waiting

    async def after_a_join(self: Queries, connection: Any) -> Any:
        await other.group_add("group", channel)
        await other.group_send("group", text(1))
        return await waiting(self, connection)

    monkeypatch.setattr(Queries, "waiting", after_a_join)
    await come_back(layer)
    assert await take(layer, channel, 1) == [text(1)]


async def test_what_a_recovery_in_vain_has_heard_is_not_passed_on(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one reads what holds by then."""
    layer, other = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    channel, stays = await warm(layer), await layer.new_channel()
    await layer.group_add("group", stays)
    members = Queries.members

    async def in_vain(self: Queries, connection: Any) -> Any:
        monkeypatch.setattr(Queries, "members", members)
        await other.group_add("group", channel)
        await members(self, connection)
        await other.group_discard("group", channel)
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(Queries, "members", in_vain)
    await come_back(layer)
    await other.group_send("group", text(1))
    await other.send(channel, text(2))
    assert await take(layer, stays, 1) == [text(1)]
    assert await take(layer, channel, 1) == [text(2)]


async def test_each_part_of_a_recovery_has_the_time_of_one(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them together may take longer: broken off, it would be begun again for ever."""
    layer = make_own_layer(heartbeat=60, lease=200)
    await warm(layer)
    monkeypatch.setattr(listener, "PATIENCE", 2.0)
    for name in ("register", "waiting", "members", "notify"):
        part = getattr(Queries, name)

        async def slow(self: Queries, *arguments: Any, part: Any = part, **more: Any) -> Any:
            await asyncio.sleep(1.1)
            return await part(self, *arguments, **more)

        monkeypatch.setattr(Queries, name, slow)
    await come_back(layer)
