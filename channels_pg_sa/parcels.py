"""What a notification says, in frames: those of the triggers in schema.sql, and those that nodes write themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Parcel:
    """A message to a channel or a group; a doorbell, if its content must be fetched by id.

    Args:
        id: of its row.
        name: of the channel, or of the group if `grouped`.
        expires: Unix time by the database's clock.
        encoded: the payload in base64, None for a doorbell.
    """

    id: int
    name: str
    grouped: bool
    expires: float
    encoded: bytes | None


@dataclass(frozen=True, slots=True)
class Ring:
    """A queue has a new row; of many the first and the last are told."""

    id: int
    queue: str


@dataclass(frozen=True, slots=True)
class Joined:
    """A channel of this node is a member of the group until `expires` (Unix time)."""

    group: str
    channel: str
    expires: float


@dataclass(frozen=True, slots=True)
class Left:
    """A channel of this node is no member of the group any more."""

    group: str
    channel: str


@dataclass(frozen=True, slots=True)
class Mark:
    """This node's own mark has come round: what was notified before it has been heard."""

    number: int


@dataclass(frozen=True, slots=True)
class Flushed:
    """All messages and groups are gone; whoever flushed waits for an answer on the topic `reply`."""

    number: str
    reply: str


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A node has done the flush of that number."""

    number: str
    node: str


_MAX_ROW = 2**63 - 1

Frame = Parcel | Ring | Joined | Left | Mark | Flushed | Acknowledged


def parse(payload: bytes) -> Iterator[Frame | None]:
    """Yield the frames of a notification; None for each that is not one of ours."""
    for frame in payload.split(b","):
        try:
            yield _parse(frame)
        except ValueError:
            yield None


def _parse(frame: bytes) -> Frame:
    kind = frame[:1]
    if kind in b"PGpg":  # an empty one too, which has no parts
        number, expires, name, *content = frame[1:].split(b" ")
        if len(content) != (kind in b"PG"):
            raise ValueError(frame)
        return Parcel(_row(number), name.decode(), kind in b"Gg", _time(expires), content[0] if content else None)
    return _short(kind, frame[1:].decode().split(" "))


def _short(kind: bytes, fields: list[str]) -> Frame:
    match kind, fields:
        case b"Q", [number, queue]:
            return Ring(_row(number), queue)
        case b"J", [_stamp, group, channel, until]:
            return Joined(group, channel, _time(until))
        case b"L", [_stamp, group, channel]:
            return Left(group, channel)
        case b"B", [number]:
            return Mark(int(number))
        case b"F", [number, reply]:
            return Flushed(number, reply)
        case b"A", [number, node]:
            return Acknowledged(number, node)
    raise ValueError(kind, fields)


def _row(text: str | bytes) -> int:
    """Read the id of a row; no statement would take one that is no bigint, however often it were tried."""
    row = int(text)
    if not 0 <= row <= _MAX_ROW:
        raise ValueError(text)
    return row


def _time(text: str | bytes) -> float:
    """Read a Unix time or infinity; what is not a number would never be over."""
    time = float(text)
    if math.isnan(time):
        raise ValueError(text)
    return time
