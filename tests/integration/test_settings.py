"""How Channels finds the layer in Django's settings."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from channels.layers import InMemoryChannelLayer, channel_layers, get_channel_layer
from django.core.exceptions import ImproperlyConfigured

from tests.support.layers import ask
from tests.support.waiting import PATIENCE

from .conftest import POSTGRES, LayerSettings


async def received(layer: Any) -> Any:
    """Return the next job."""
    return await asyncio.wait_for(layer.receive("jobs"), PATIENCE)


async def test_layers_by_alias(layer_settings: LayerSettings, layer_url: str) -> None:
    """Each alias has a layer of its own, which is built once; an unknown alias has none."""
    layer_settings.use(
        default={"BACKEND": POSTGRES, "CONFIG": {"url": layer_url}},
        second={"BACKEND": POSTGRES, "CONFIG": {"url": layer_url, "prefix": "second", "expiry": 5}},
    )
    default, second = get_channel_layer(), get_channel_layer("second")
    assert get_channel_layer() is default
    assert get_channel_layer("second") is second is not default
    assert (default.expiry, second.expiry) == (60, 5)
    assert get_channel_layer("third") is None


async def test_the_test_config(layer_settings: LayerSettings, layer_url: str, shared_url: str) -> None:
    """TEST_CONFIG replaces CONFIG for the layer that tests build, which works beside the other."""
    layer_settings.use(
        default={
            "BACKEND": POSTGRES,
            "CONFIG": {"url": layer_url, "prefix": "live"},
            "TEST_CONFIG": {"url": layer_url, "prefix": "test", "capacity": 3},
        }
    )
    live, test = get_channel_layer(), channel_layers.make_test_backend("default")
    assert (live.capacity, test.capacity) == (None, 3)
    await live.send("jobs", {"type": "live"})
    await test.send("jobs", {"type": "test"})
    assert await received(test) == {"type": "test"}
    assert await received(live) == {"type": "live"}
    await test.close()


async def test_a_layer_is_swapped_in_a_test(layer_settings: LayerSettings, layer_url: str) -> None:
    """`channel_layers.set` puts InMemoryChannelLayer in our place and back."""
    layer_settings.use(default={"BACKEND": POSTGRES, "CONFIG": {"url": layer_url}})
    ours = get_channel_layer()
    assert channel_layers.set("default", InMemoryChannelLayer()) is ours
    assert isinstance(get_channel_layer(), InMemoryChannelLayer)
    channel_layers.set("default", ours)
    await get_channel_layer().send("jobs", {"type": "back"})
    assert await received(ours) == {"type": "back"}


async def test_a_project_s_own_configure_is_called_beside_ours(layer_settings: LayerSettings, layer_url: str) -> None:
    """PSYCOPG_OPTIONS may set sessions up, and they are still set as the layer needs them."""

    async def configure(connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute("SET statement_timeout = '77s'")

    config = {"url": layer_url, "PSYCOPG_OPTIONS": {"configure": configure}}
    layer_settings.use(default={"BACKEND": POSTGRES, "CONFIG": config})
    asked = "SELECT name, setting FROM pg_settings WHERE name IN ('plan_cache_mode', 'statement_timeout')"
    rows = await ask(get_channel_layer(), asked)
    assert dict(rows) == {"plan_cache_mode": "force_generic_plan", "statement_timeout": "77000"}


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"hosts": [("localhost", 6379)]}, "hosts"),
        ({"url": "postgresql://", "capacity": True}, "capacity"),
        ({"database": "nowhere"}, "nowhere"),
        ({"ENGINE": "django.db.backends.sqlite3", "NAME": "x"}, "sqlite3"),
        ({}, "default"),
    ],
)
async def test_a_wrong_config_is_never_silent(layer_settings: LayerSettings, config: object, word: str) -> None:
    """Peer defect 1: a KeyError was swallowed by Channels, so that get_channel_layer() was None."""
    layer_settings.use(default={"BACKEND": POSTGRES, "CONFIG": config})
    with pytest.raises(ImproperlyConfigured, match=word):
        get_channel_layer()


async def test_layers_are_built_without_a_database(layer_settings: LayerSettings) -> None:
    """Settings are read at import, where no server need be up; nothing connects before the first use."""
    layer_settings.use(default={"BACKEND": POSTGRES, "CONFIG": {"url": "postgresql://nobody@127.0.0.1:1/none"}})
    layer = get_channel_layer()
    assert layer.extensions == ["groups", "flush"]
    assert (await layer.new_channel()).startswith("specific.")
    assert layer.counters == {}
    assert repr(layer).endswith("closed>")
