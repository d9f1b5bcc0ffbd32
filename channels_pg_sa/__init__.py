"""A Django Channels channel layer whose only server is PostgreSQL."""

from __future__ import annotations

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
from .version import __version__

__all__ = [
    "ChannelFull",
    "ChannelLayerError",
    "ConfigurationError",
    "DecodeError",
    "Layer",
    "LayerClosed",
    "MessageTooLarge",
    "PoolerError",
    "SchemaError",
    "SendError",
    "__version__",
]
