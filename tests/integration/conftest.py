"""Channel layers as Django's settings name them."""

from __future__ import annotations

import unittest
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from channels.layers import channel_layers
from django.test.utils import override_settings

from tests.support.databases import TestServer
from tests.support.waiting import eventually

POSTGRES = "channels_pg_sa.core.PostgresChannelLayer"
IN_MEMORY = "channels.layers.InMemoryChannelLayer"


class LayerSettings:
    """Override CHANNEL_LAYERS, and close what Channels has built when the test ends."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    def use(self, **layers: dict[str, Any]) -> None:
        """Set CHANNEL_LAYERS for the rest of the test."""
        self._stack.enter_context(override_settings(CHANNEL_LAYERS=layers))
        self._stack.push_async_callback(close_built)


async def close_built() -> None:
    """Close every layer that Channels holds."""
    for layer in channel_layers.backends.values():
        await layer.close()


def run_case(case: type[unittest.TestCase]) -> None:
    """Run the one test of a test case."""
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])


@pytest_asyncio.fixture
async def layer_settings(server: TestServer, layer_url: str) -> AsyncIterator[LayerSettings]:
    """Override CHANNEL_LAYERS; no layer built meanwhile may leave a connection."""
    async with AsyncExitStack() as stack:
        yield LayerSettings(stack)
    eventually(lambda: not server.connections(layer_url))


@pytest.fixture(params=["inmemory", "postgres"])
def default_layer(request: pytest.FixtureRequest, layer_settings: LayerSettings, layer_url: str) -> str:
    """Make InMemoryChannelLayer, and then ours, the default layer; returns which."""
    if request.param == "inmemory":
        layer_settings.use(default={"BACKEND": IN_MEMORY})
    else:
        layer_settings.use(default={"BACKEND": POSTGRES, "CONFIG": {"url": layer_url}})
    return str(request.param)
