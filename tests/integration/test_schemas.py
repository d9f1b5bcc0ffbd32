"""PostgreSQL schemas whose names have to be quoted: capitals, and words of SQL."""

from __future__ import annotations

import asyncio

import pytest

from channels_pg_sa.schema import tables
from channels_pg_sa.statements import listings
from channels_pg_sa.statements.compiled import builders, compiled
from tests.support.layers import LayerFactory
from tests.support.schema import install


@pytest.mark.parametrize("schema", ["Shop", "user", "order"])
async def test_a_layer_works_there(make_own_layer: LayerFactory, layer_url: str, schema: str) -> None:
    """It listens, joins, sends all that has a statement of its own, competes for a queue, and flushes."""
    install(layer_url, schema)
    layer = make_own_layer(schema=schema)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    small, large = ({"type": "test.message", "text": "x" * size} for size in (10, 20_000))
    for message in (small, large):
        for _ in range(2):
            await layer.send(channel, message)
            await layer.group_send("group", message)
            await layer.send("jobs", message)
        assert [await asyncio.wait_for(layer.receive(channel), 10) for _ in range(4)] == [message] * 4
        assert [await asyncio.wait_for(layer.receive("jobs"), 10) for _ in range(2)] == [message] * 2
    await layer.flush()
    assert await layer.group_channels("group") == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("schema", ["tenant", "Shop", "user"])
def test_statements_ask_for_no_more_there(schema: str) -> None:
    """Of whoever runs them: SQLAlchemy names what stands in a function's call after the function."""
    names = [*builders(schema), *listings.with_parameters(tables(schema))]
    for name in names:
        assert set(compiled(schema)[name].parameters) == set(compiled(None)[name].parameters), name
