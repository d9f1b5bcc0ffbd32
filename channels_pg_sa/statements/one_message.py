"""Statements that insert one message: a lone send of the layer's own, and a send in the host's transaction."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import Insert, LargeBinary, Text, bindparam, insert, null, select, union_all
from sqlalchemy.sql import ColumnElement

from channels_pg_sa.schema import Tables, tables

from .memberships import next_node_of
from .messages import MESSAGE, queue_of
from .parts import CLOCK, EXPIRY, NO_NODE, PREFIX

Value = ColumnElement[str]


def insert_message(
    there: Tables,
    *,
    prefix: Value,
    recipient: Value,
    channel: Value,
    payload: ColumnElement[bytes],
    expiry: ColumnElement[dt.timedelta],
) -> Insert:
    """Insert one message to a channel."""
    return (
        insert(there.message)
        .values(prefix=prefix, recipient=recipient, channel=channel, payload=payload, expires_at=CLOCK + expiry)
        .inline()  # without RETURNING, which wants the right to read
    )


def insert_group_message(
    there: Tables, *, prefix: Value, group: Value, payload: ColumnElement[bytes], expiry: ColumnElement[dt.timedelta]
) -> Insert:
    """Insert one message to a group, as `publish` does: one row for each node and one for each plain member."""
    members = there.membership
    nodes = select(NO_NODE.label("node")).cte("nodes", recursive=True)
    nodes = nodes.union_all(select(next_node_of(members, prefix, group, nodes.c.node)).where(nodes.c.node.is_not(None)))
    to_nodes = select(nodes.c.node.label("recipient"), null().label("channel"), group.label("group_name")).where(
        nodes.c.node != ""
    )
    to_queues = select(queue_of(members.c.channel), members.c.channel, null()).where(
        members.c.prefix == prefix, members.c.group_name == group, members.c.node == "", members.c.expires_at > CLOCK
    )
    rows = union_all(to_nodes, to_queues).subquery("rows")
    values = select(prefix, rows.c.recipient, rows.c.channel, rows.c.group_name, payload, CLOCK + expiry)
    return insert(there.message).from_select(MESSAGE, values, include_defaults=False)


def send_one() -> Insert:
    """Insert a message to a channel: `send` for a batch of one, which the server starts faster."""
    return insert_message(
        tables(None),
        prefix=PREFIX,
        recipient=bindparam("recipient", type_=Text),
        channel=bindparam("channel", type_=Text),
        payload=bindparam("payload", type_=LargeBinary),
        expiry=EXPIRY,
    )


def publish_one() -> Insert:
    """Insert a message to a group: `publish` for a batch of one, which the server starts faster."""
    return insert_group_message(
        tables(None),
        prefix=PREFIX,
        group=bindparam("group_name", type_=Text),
        payload=bindparam("payload", type_=LargeBinary),
        expiry=EXPIRY,
    )
