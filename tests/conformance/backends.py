"""The layers that the conformance suite runs over, and the words its tests are written in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import channels
import pytest
from channels.layers import InMemoryChannelLayer
from packaging.version import Version

from tests.support.layers import Layer, LayerFactory, Message
from tests.support.schema import SCHEMA

KEY = "a key that only the tests know"


@dataclass(frozen=True)
class Backend:
    """A layer and the CONFIG it is tested with.

    Args:
        name: as the tests' ids show it.
        config: on top of what the test asks for.
        in_memory: Channels' own layer, which lives in one event loop of one process.
        marks: of its tests.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    in_memory: bool = False
    marks: tuple[pytest.MarkDecorator, ...] = ()

    @property
    def patience(self) -> float:
        """Seconds that a receive() may take: nothing travels in memory, so what is not there will not come."""
        return 0.2 if self.in_memory else 10


ANY_SERVER = (pytest.mark.any_server,)
IN_MEMORY = Backend("inmemory", in_memory=True, marks=ANY_SERVER)
OURS = (
    Backend("plain"),
    Backend("json", {"serializer": "json"}, marks=ANY_SERVER),
    Backend("encrypted", {"symmetric_encryption_keys": [KEY]}, marks=ANY_SERVER),
    Backend("schema", {"schema": SCHEMA}),
)


def in_memory_breaks(reason: str, before: str | None = None) -> pytest.MarkDecorator:
    """Declare that InMemoryChannelLayer breaks the rule of this test: there the test must fail, and here is why.

    Args:
        reason: what it does instead.
        before: the version of Channels that keeps the rule, if one does.
    """
    broken = before is None or Version(channels.__version__) < Version(before)
    return pytest.mark.in_memory_breaks(reason, broken)


def not_in_memory(reason: str) -> pytest.MarkDecorator:
    """Declare that the rule of this test means nothing in InMemoryChannelLayer, so that it is not run there."""
    return pytest.mark.not_in_memory(reason)


class Maker:
    """Build layers of one backend that share their messages, as processes of one application do."""

    def __init__(self, backend: Backend, factory: LayerFactory | None) -> None:
        self.backend = backend
        self._factory = factory

    def __call__(self, **config: Any) -> Layer:
        """Build a layer with this CONFIG."""
        if self._factory is None:
            layer: Layer = InMemoryChannelLayer(**config)
            return layer
        return self._factory(**{**self.backend.config, **config})


class Conversation:
    """Receive with a deadline, so that a message that never comes fails the test and does not hang it."""

    def __init__(self, patience: float) -> None:
        self.patience = patience

    async def next(self, layer: Layer, channel: str) -> Message:
        """Receive one message, or fail."""
        return await asyncio.wait_for(layer.receive(channel), self.patience)

    async def take(self, layer: Layer, channel: str, count: int) -> list[Message]:
        """Receive so many messages, or fail."""
        return [await self.next(layer, channel) for _ in range(count)]

    async def is_empty(self, layer: Layer, channel: str, through: str | None = None) -> bool:
        """Tell whether nothing waits in the channel.

        A marker is sent and received: first in, first out puts it behind whatever else is there.

        Args:
            layer: which receives.
            channel: to receive from.
            through: the channel to send to, if that is another, such as one of a prefix.
        """
        marker = {"type": "marker"}
        await layer.send(through or channel, marker)
        return await self.next(layer, channel) == marker


def text(number: int) -> Message:
    """Return a small message that carries a number."""
    return {"type": "test.message", "number": number}


def numbers(messages: Iterable[Message]) -> list[int]:
    """Return what the messages of `text` carry."""
    return [message["number"] for message in messages]
