"""Building layers, closing them all, and proving that they left nothing behind."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from channels_pg_sa.statements.compiled import Compiled

from .databases import TestServer
from .waiting import PATIENCE, eventually

Message = dict[str, Any]

LISTENER = "channels_pg_sa listener"
"""The application name of the LISTEN connection."""


class Layer(Protocol):
    """What Channels asks of a channel layer."""

    extensions: list[str]
    expiry: float
    group_expiry: float
    capacity: int | None
    ChannelFull: type[Exception]
    MessageTooLarge: type[Exception]

    async def send(self, channel: str, message: Message) -> None:
        """Send a message to a channel."""

    async def receive(self, channel: str) -> Message:
        """Wait for the next message of a channel."""

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return a new process-specific channel."""

    async def group_add(self, group: str, channel: str) -> None:
        """Make the channel a member of the group."""

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove the channel from the group."""

    async def group_send(self, group: str, message: Message) -> None:
        """Send a message to each member of the group."""

    async def flush(self) -> None:
        """Forget all messages and groups."""

    async def close(self) -> None:
        """Give back what the layer holds."""


class PostgresLayer(Layer, Protocol):
    """What our layer offers beyond that."""

    node: Any
    counters: Any

    def send_sync(self, channel: str, message: Message) -> None:
        """Send from code without an event loop."""

    def group_send_sync(self, group: str, message: Message) -> None:
        """Send to a group from code without an event loop."""

    def group_add_sync(self, group: str, channel: str) -> None:
        """Join from code without an event loop."""

    def group_discard_sync(self, group: str, channel: str) -> None:
        """Leave from code without an event loop."""

    def flush_sync(self) -> None:
        """Flush from code without an event loop."""

    def close_sync(self) -> None:
        """Close from code without an event loop."""


class LayerFactory:
    """Build layers on one database and one prefix, unless told otherwise.

    Args:
        server: where the layers' connections can be counted.
        url: libpq URI of a database with the schema.
        prefix: of every layer that is given none.
    """

    def __init__(self, server: TestServer, url: str, prefix: str) -> None:
        self.url = url
        self.prefix = prefix
        self._server = server
        self._layers: list[tuple[PostgresLayer, str]] = []

    def __call__(self, **config: Any) -> PostgresLayer:
        """Build a layer with this CONFIG on top of the factory's own url and prefix."""
        from channels_pg_sa.core import PostgresChannelLayer

        config = {"url": self.url, "prefix": self.prefix, **config}
        layer: PostgresLayer = PostgresChannelLayer(**config)
        self._layers.append((layer, config["url"]))
        return layer

    def listeners(self, layer: PostgresLayer) -> list[int]:
        """Return the backends that LISTEN in the layer's database."""
        url = next(url for known, url in self._layers if known is layer)
        return self._server.connections(url, LISTENER)

    async def close(self) -> None:
        """Close every layer.

        Raises:
            AssertionError: a connection of theirs is left on the server.
        """
        await asyncio.wait_for(asyncio.gather(*(layer.close() for layer, _ in self._layers)), PATIENCE)
        for url in {url for _, url in self._layers}:
            # The server notices a moment later than the client that a connection has ended.
            eventually(lambda url=url: not self._server.connections(url))  # type: ignore[misc]


async def ask(layer: Any, statement: str) -> list[tuple[Any, ...]]:
    """Return what a statement selects in a session of the layer's own."""
    rows: list[tuple[Any, ...]] = await layer._open().read(Compiled(statement, {}, ()), asyncio.get_running_loop())
    return rows
