"""A Django Channels channel layer whose only server is PostgreSQL."""

from __future__ import annotations

from .directory import LiveNode
from .errors import (
    ChannelFull,
    ChannelLayerError,
    ConfigurationError,
    DecodeError,
    LayerClosed,
    MessageTooLarge,
    PoolerError,
    SchemaError,
    SendError,
)
from .layer import Layer
from .publisher import Publisher
from .version import __version__

__all__ = [
    "ChannelFull",
    "ChannelLayerError",
    "ConfigurationError",
    "DecodeError",
    "Layer",
    "LayerClosed",
    "LiveNode",
    "MessageTooLarge",
    "PoolerError",
    "Publisher",
    "SchemaError",
    "SendError",
    "__version__",
]
