"""A Django Channels channel layer whose only server is PostgreSQL."""

from __future__ import annotations

from .config import Config
from .directory import LiveNode
from .errors import (
    ChannelFull,
    ChannelLayerError,
    ConfigurationError,
    DecodeError,
    LayerClosed,
    MessageTooLarge,
    PoolerError,
    PrivilegeError,
    SchemaError,
    SendError,
)
from .layer import Layer, close_layers
from .publisher import Publisher
from .version import __version__

__all__ = [
    "ChannelFull",
    "ChannelLayerError",
    "Config",
    "ConfigurationError",
    "DecodeError",
    "Layer",
    "LayerClosed",
    "LiveNode",
    "MessageTooLarge",
    "PoolerError",
    "PrivilegeError",
    "Publisher",
    "SchemaError",
    "SendError",
    "__version__",
    "close_layers",
]
