"""Layers that reach no other process: what asyncio alone costs."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from benchmarks.peers.base import AMPLE, Peer, Place


class InMemory(Peer):
    """Channels' own layer; all roles of a scenario share one process."""

    name = "InMemory (one process)"
    package = "channels"
    one_process = True
    max_channels = 1_000
    beyond = "looks at every channel for each send, so that 5,000 take seconds"
    lacks = {
        "blocking": "has no synchronous send",
        "async_to_sync": "reaches no other event loop",
        "bulk": "keeps memberships in the process",
        "encryption": "does not encrypt",
    }

    def build(self, place: Place) -> Any:
        from channels.layers import InMemoryChannelLayer

        return InMemoryChannelLayer(capacity=AMPLE)


class FutureLayer:
    """Channels nobody can send to."""

    async def new_channel(self) -> str:
        """Return a channel name."""
        return f"specific.none!{uuid.uuid4().hex}"

    async def receive(self, channel: str) -> dict[str, Any]:
        """Wait for ever."""
        waiter: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        return await waiter


class BareTasks(Peer):
    """The floor for memory: a task and a future for each channel, no layer at all."""

    name = "bare tasks (floor)"
    package = "channels"
    only = frozenset({"idle_10000", "idle_100000"})

    def build(self, place: Place) -> Any:
        return FutureLayer()
