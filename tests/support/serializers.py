"""Serializers of a project's own, as the setting `serializer` names them."""

from __future__ import annotations

import zlib

import msgpack

from channels_pg_sa.codec import Message


class Compressed:
    """MessagePack, deflated."""

    def __init__(self, level: int) -> None:
        self._level = level

    def dumps(self, message: Message) -> bytes:
        """Return the message as bytes."""
        return zlib.compress(msgpack.packb(message), self._level)

    def loads(self, data: bytes) -> Message:
        """Return the message of such bytes."""
        message: Message = msgpack.unpackb(zlib.decompress(data))
        return message


COMPRESSED = Compressed(level=9)
COMPRESSED_PATH = f"{__name__}.COMPRESSED"


class Backwards:
    """MessagePack, from its end to its start."""

    def dumps(self, message: Message) -> bytes:
        """Return the message as bytes."""
        return bytes(msgpack.packb(message))[::-1]

    def loads(self, data: bytes) -> Message:
        """Return the message of such bytes."""
        message: Message = msgpack.unpackb(data[::-1])
        return message


BACKWARDS_PATH = f"{__name__}.{Backwards.__name__}"
