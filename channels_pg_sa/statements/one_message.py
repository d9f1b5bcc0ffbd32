"""Statements that insert one message: a send in the host's transaction, and a lone send of the layer's own.

The latter notifies by itself and keeps the trigger from doing so, which for a single row takes as long as the rest.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import (
    Insert,
    Interval,
    LargeBinary,
    Text,
    bindparam,
    case,
    func,
    insert,
    literal_column,
    null,
    select,
    union_all,
)
from sqlalchemy.sql import ColumnElement, Executable

from channels_pg_sa.schema import Tables, message, tables

from .memberships import next_node_of
from .messages import MESSAGE, queue_of
from .parts import CLOCK, EXPIRY, NO_NODE, PREFIX, SECRET, Routines

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


def with_parameters(there: Tables) -> dict[str, Insert]:
    """Return the two for an engine, which compiles them once; SQLAlchemy reserves the columns' names for itself."""
    recipient, channel, group = (bindparam(name, type_=Text) for name in ("b_recipient", "b_channel", "b_group"))
    common: dict[str, Any] = {
        "prefix": bindparam("b_prefix", type_=Text),
        "payload": bindparam("b_payload", type_=LargeBinary),
        "expiry": bindparam("b_expiry", type_=Interval),
    }
    return {
        "send": insert_message(there, recipient=recipient, channel=channel, **common),
        "group_send": insert_group_message(there, group=group, **common),
    }


def send_one(routine: Routines) -> Executable:
    """Insert a message to a channel: `send` for a batch of one, which the server starts faster."""
    one = insert_message(
        tables(None),
        prefix=PREFIX,
        recipient=bindparam("recipient", type_=Text),
        channel=bindparam("channel", type_=Text),
        payload=bindparam("payload", type_=LargeBinary),
        expiry=EXPIRY,
    )
    # The topic is the caller's, unless the tables have been made anew under its session, with another secret.
    is_right = func.starts_with(SECRET, bindparam("sign", type_=Text))
    return _notifying(one, routine, bindparam("topic", type_=Text), case((is_right, "on"), else_="no"))


def publish_one(routine: Routines) -> Executable:
    """Insert a message to a group: `publish` for a batch of one, which the server starts faster."""
    one = insert_group_message(
        tables(None),
        prefix=PREFIX,
        group=bindparam("group_name", type_=Text),
        payload=bindparam("payload", type_=LargeBinary),
        expiry=EXPIRY,
    )
    kind = case((routine("queued")(message.c.channel, message.c.recipient), "queue"), else_="node")
    topic = routine("topic")(SECRET, kind, PREFIX, message.c.recipient)
    return _notifying(one, routine, topic, literal_column("'on'"))


def _notifying(insertion: Insert, routine: Routines, topic: ColumnElement[str], done: ColumnElement[str]) -> Executable:
    """Notify of each row, as the trigger does of a few, and tell it, for this transaction only, that this is done."""
    parts = (message.c[name] for name in ("id", "expires_at", "recipient", "channel", "group_name", "payload"))
    told = func.set_config("channels_pg_sa.notified", done, literal_column("true"))
    return insertion.returning(func.pg_notify(topic, routine("frame")(*parts)), told)
