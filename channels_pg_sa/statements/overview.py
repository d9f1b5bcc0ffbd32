"""Statements that show an operator what is in the tables, of every prefix."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.sql import ColumnElement, Select

from channels_pg_sa.schema import Tables

from .parts import NO_NODE, NOW, epoch, is_live


def _seconds(start: ColumnElement[Any], end: ColumnElement[Any]) -> ColumnElement[float]:
    """The seconds between two times, of which one may be infinite."""
    return epoch(end) - epoch(start)


def processes(there: Tables) -> Select[str, str, str, int, str, float, float, bool, int, int]:
    """Select the nodes, dead ones too until they are swept, the oldest of a prefix first.

    Of each: prefix, id, host, pid, version, seconds since it began to receive and since its last sign of life, whether
    it has a lease, how many memberships are its own, and how many messages are in its mailbox.
    """
    nodes, members, messages = there.node.c, there.membership.c, there.message.c
    joined = select(func.count()).where(
        members.prefix == nodes.prefix, members.node == nodes.id, members.node != NO_NODE, members.expires_at > NOW
    )
    mailbox = select(func.count()).where(
        messages.prefix == nodes.prefix, messages.recipient == nodes.id, messages.expires_at > NOW
    )
    return (
        select(
            nodes.prefix,
            nodes.id,
            nodes.host,
            nodes.pid,
            nodes.version,
            _seconds(nodes.started_at, NOW),
            _seconds(nodes.seen_at, NOW),
            is_live(there.node),
            joined.scalar_subquery(),
            mailbox.scalar_subquery(),
        )
        .where(nodes.pid.is_not(None))  # not a sweeper's placeholder
        .order_by(nodes.prefix, nodes.started_at, nodes.id)
    )


def groups(there: Tables) -> Select[str, int, int]:
    """Select of each prefix how many groups there are, and how many memberships."""
    members = there.membership.c
    return (
        select(members.prefix, func.count(members.group_name.distinct()), func.count())
        .where(members.expires_at > NOW)
        .group_by(members.prefix)
        .order_by(members.prefix)
    )


def queues(there: Tables, most: int) -> Select[str, str, int, float, int]:
    """Select the queues that hold messages, of each prefix so many of the fullest.

    Of each: prefix, name, how many messages wait, seconds until the first of them expires, and how many such queues the
    prefix has.
    """
    found = there.message.c
    is_queued = or_(found.recipient == found.channel, found.recipient.endswith("!"))  # as channels_pg_sa_queued()
    place = func.row_number().over(partition_by=found.prefix, order_by=[func.count().desc(), found.recipient])
    filled = (
        select(
            found.prefix,
            found.recipient,
            func.count().label("waiting"),
            _seconds(NOW, func.min(found.expires_at)).label("first_expires"),
            func.count().over(partition_by=found.prefix).label("queues"),
            place.label("place"),
        )
        .where(is_queued, found.expires_at > NOW)
        .group_by(found.prefix, found.recipient)
        .subquery("filled")
    )
    shown = filled.c
    return (
        select(shown.prefix, shown.recipient, shown.waiting, shown.first_expires, shown.queues)
        .where(shown.place <= most)
        .order_by(shown.prefix, shown.place)
    )
