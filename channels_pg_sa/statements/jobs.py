"""What callers ask for, sends, joins and leaves, and the columns of the statements that do many of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .arrays import BytesArray, TextArray


@dataclass(frozen=True, slots=True)
class Send:
    """A message to a channel.

    Args:
        recipient: the mailbox it goes to (names.recipient_of).
        capacity: refuse it if so many messages wait there already; None for no limit.
    """

    recipient: str
    channel: str
    payload: bytes
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class GroupSend:
    """A message to the members of a group."""

    group: str
    payload: bytes


Sending = Send | GroupSend


@dataclass(frozen=True, slots=True)
class Membership:
    """A channel's membership of a group, which is to begin or to end.

    Args:
        node: the one that reads the channel, "" if any process may.
    """

    group: str
    node: str
    channel: str

    @property
    def key(self) -> tuple[str, str]:
        """What tells one membership from another."""
        return self.group, self.channel


class Join(Membership):
    """A membership that begins, or is renewed."""

    __slots__ = ()


class Leave(Membership):
    """A membership that ends."""

    __slots__ = ()


def send_columns(sends: Sequence[Send]) -> dict[str, TextArray | BytesArray]:
    """Return the parameters of `send`."""
    return {
        "recipient": TextArray(send.recipient for send in sends),
        "channel": TextArray(send.channel for send in sends),
        "payload": BytesArray(send.payload for send in sends),
    }


def publish_columns(batch: Sequence[Sending]) -> dict[str, TextArray | BytesArray]:
    """Return the parameters of `publish`."""
    return {
        "recipient": TextArray(item.recipient if isinstance(item, Send) else None for item in batch),
        "channel": TextArray(item.channel if isinstance(item, Send) else None for item in batch),
        "group_name": TextArray(item.group if isinstance(item, GroupSend) else None for item in batch),
        "payload": BytesArray(item.payload for item in batch),
    }


def membership_columns(rows: Sequence[Membership]) -> dict[str, TextArray]:
    """Return the parameters of `join` and `leave`."""
    return {
        "group_name": TextArray(row.group for row in rows),
        "node": TextArray(row.node for row in rows),
        "channel": TextArray(row.channel for row in rows),
    }
