"""Statements for connections and sessions that are not the layer's own: one send, or a look at groups and nodes."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import (
    Insert,
    Interval,
    LargeBinary,
    Table,
    Text,
    and_,
    exists,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.sql import ColumnElement, Select

from .names import node_of, recipient_of
from .schema import Tables
from .statements import CLOCK, MESSAGE, NO_NODE, next_node_of, queue_of


def insert_message(there: Tables, *, prefix: str, channel: str, payload: bytes, expiry: dt.timedelta) -> Insert:
    """Insert one message to a channel."""
    return (
        insert(there.message)
        .values(
            prefix=prefix,
            recipient=recipient_of(channel),
            channel=channel,
            payload=payload,
            expires_at=CLOCK + literal(expiry, Interval),
        )
        .inline()  # without RETURNING, which wants the right to read
    )


def insert_group_message(there: Tables, *, prefix: str, group: str, payload: bytes, expiry: dt.timedelta) -> Insert:
    """Insert one message to a group, as `publish` does: one row for each node and one for each plain member."""
    members = there.membership
    whose, addressed = literal(prefix, Text), literal(group, Text)
    nodes = select(NO_NODE.label("node")).cte("nodes", recursive=True)
    nodes = nodes.union_all(
        select(next_node_of(members, whose, addressed, nodes.c.node)).where(nodes.c.node.is_not(None))
    )
    to_nodes = select(nodes.c.node.label("recipient"), null().label("channel"), addressed.label("group_name")).where(
        nodes.c.node != ""
    )
    to_queues = select(queue_of(members.c.channel), members.c.channel, null()).where(
        members.c.prefix == whose, members.c.group_name == addressed, members.c.node == "", members.c.expires_at > CLOCK
    )
    rows = union_all(to_nodes, to_queues).subquery("rows")
    values = select(
        whose,
        rows.c.recipient,
        rows.c.channel,
        rows.c.group_name,
        literal(payload, LargeBinary),
        CLOCK + literal(expiry, Interval),
    )
    return insert(there.message).from_select(MESSAGE, values, include_defaults=False)


def _is_live(nodes: Table) -> ColumnElement[bool]:
    return and_(nodes.c.pid.is_not(None), nodes.c.lease_until > CLOCK)


def _counts(there: Tables, prefix: str) -> ColumnElement[bool]:
    """Whether a membership lasts, and somebody is there to read for it."""
    members, nodes = there.membership, there.node
    reader = exists().where(nodes.c.id == members.c.node, nodes.c.prefix == members.c.prefix, _is_live(nodes))
    return and_(
        members.c.prefix == prefix, members.c.expires_at > CLOCK, or_(members.c.node == "", reader.correlate(members))
    )


def group_channels(there: Tables, prefix: str, group: str) -> Select[str]:
    """Select the names of a group's members."""
    members = there.membership
    return (
        select(members.c.channel)
        .where(_counts(there, prefix), members.c.group_name == group)
        .order_by(members.c.channel)
    )


def group_count(there: Tables, prefix: str, group: str) -> Select[int]:
    """Select how many members a group has."""
    members = there.membership
    return select(func.count()).select_from(members).where(_counts(there, prefix), members.c.group_name == group)


def groups_of(there: Tables, prefix: str, channel: str) -> Select[str]:
    """Select the names of the groups that a channel is a member of."""
    members = there.membership
    owner = members.c.node == (node_of(channel) or "")
    if node_of(channel) is not None:
        owner = and_(owner, members.c.node != "")  # as the index has it, for plans that know no parameters
    return (
        select(members.c.group_name)
        .where(_counts(there, prefix), owner, members.c.channel == channel)
        .order_by(members.c.group_name)
    )


def nodes(there: Tables, prefix: str) -> Select[str, str, int, str, dt.datetime, dt.datetime]:
    """Select the nodes that are alive: id, host, pid, version, started_at and seen_at, the oldest first."""
    found = there.node.c
    return (
        select(found.id, found.host, found.pid, found.version, found.started_at, found.seen_at)
        .where(found.prefix == prefix, _is_live(there.node))
        .order_by(found.started_at, found.id)
    )
