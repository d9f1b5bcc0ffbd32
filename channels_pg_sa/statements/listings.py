"""Statements that look at groups and nodes, for the layer's own connections and for the host's."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import Text, and_, bindparam, exists, func, or_, select
from sqlalchemy.sql import ColumnElement, Executable, Select

from channels_pg_sa.schema import Tables

from .parts import CLOCK, NO_NODE, PREFIX, is_live

Value = ColumnElement[str] | str


def _counts(there: Tables, prefix: Value) -> ColumnElement[bool]:
    """Whether a membership lasts, and somebody is there to read for it."""
    members, nodes = there.membership, there.node
    reader = exists().where(nodes.c.id == members.c.node, nodes.c.prefix == members.c.prefix, is_live(nodes))
    return and_(
        members.c.prefix == prefix, members.c.expires_at > CLOCK, or_(members.c.node == "", reader.correlate(members))
    )


def group_channels(there: Tables, prefix: Value, group: Value) -> Select[str]:
    """Select the names of a group's members."""
    members = there.membership
    return (
        select(members.c.channel)
        .where(_counts(there, prefix), members.c.group_name == group)
        .order_by(members.c.channel)
    )


def group_count(there: Tables, prefix: Value, group: Value) -> Select[int]:
    """Select how many members a group has."""
    members = there.membership
    return select(func.count()).select_from(members).where(_counts(there, prefix), members.c.group_name == group)


def groups_of(there: Tables, prefix: Value, channel: Value, node: Value | None) -> Select[str]:
    """Select the names of the groups that a channel is a member of; node: the one that reads it, if there is one."""
    members = there.membership
    # The second condition is that of the index, for plans that know no parameters.
    owner = members.c.node == "" if node is None else and_(members.c.node == node, members.c.node != NO_NODE)
    return (
        select(members.c.group_name)
        .where(_counts(there, prefix), owner, members.c.channel == channel)
        .order_by(members.c.group_name)
    )


def nodes(there: Tables, prefix: Value) -> Select[str, str, int, str, dt.datetime, dt.datetime]:
    """Select the nodes that are alive: id, host, pid, version, started_at and seen_at, the oldest first."""
    found = there.node.c
    return (
        select(found.id, found.host, found.pid, found.version, found.started_at, found.seen_at)
        .where(found.prefix == prefix, is_live(there.node))
        .order_by(found.started_at, found.id)
    )


def with_parameters(there: Tables) -> dict[str, Executable]:
    """Return the statements as they are compiled once, for whatever prefix, group, channel and node."""
    group, channel, node = (bindparam(name, type_=Text) for name in ("group", "channel", "node"))
    return {
        "group_channels": group_channels(there, PREFIX, group),
        "group_count": group_count(there, PREFIX, group),
        "groups_of": groups_of(there, PREFIX, channel, None),
        "groups_of_specific": groups_of(there, PREFIX, channel, node),
        "nodes": nodes(there, PREFIX),
    }
