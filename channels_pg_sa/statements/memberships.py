"""Statements about the members of groups."""

from __future__ import annotations

from sqlalchemy import Float, Table, Text, and_, column, delete, func, literal_column, select, union_all
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql import ColumnElement, Executable, FromClause

from channels_pg_sa.schema import membership, node

from .parts import (
    ASYNCHRONOUS,
    BATCH,
    CLOCK,
    EXPIRY,
    INFINITY,
    NO_NODE,
    NODE,
    NOW,
    PREFIX,
    ctid_of,
    epoch,
    given_rows,
    has_ctid,
)

MEMBERSHIP = ["prefix", "group_name", "node", "channel", "expires_at"]
# The memberships of this node's channels.
MEMBERS = and_(membership.c.prefix == PREFIX, membership.c.node == NODE, membership.c.node != NO_NODE)


def next_node_of(
    members: Table, prefix: ColumnElement[str], group: ColumnElement[str], after: ColumnElement[str]
) -> ColumnElement[str]:
    """The first node after another that has members of the group: one descent of the primary key."""
    return (
        select(members.c.node)
        .where(
            members.c.prefix == prefix,
            members.c.group_name == group,
            members.c.node > after,
            members.c.expires_at > CLOCK,
        )
        .order_by(members.c.node)
        .limit(1)
        .scalar_subquery()
    )


def join() -> Executable:
    """Insert or renew a batch of memberships, in its order."""
    given = given_rows(group_name=Text(), node=Text(), channel=Text())
    until = func.coalesce(CLOCK + EXPIRY, INFINITY)
    rows = select(PREFIX, given.c.group_name, given.c.node, given.c.channel, until).select_from(
        given.join(ASYNCHRONOUS, literal_column("true"))
    )
    fresh = upsert(membership).from_select(MEMBERSHIP, rows, include_defaults=False)
    return fresh.on_conflict_do_update(
        index_elements=list(membership.primary_key), set_={"expires_at": fresh.excluded.expires_at}
    )


def leave() -> Executable:
    """Delete a batch of memberships; select how many were found and not deleted.

    They are locked in the order of the batch, as those that join are; the delete alone would lock them in that of their
    ctids. What was found and not deleted was renewed by others while this statement waited for it. Such a row has a new
    ctid, and is in no snapshot of this statement: for that the caller runs it again.
    """
    given = given_rows(group_name=Text(), node=Text(), channel=Text())
    same = [membership.c[name] == given.c[name] for name in ("group_name", "node", "channel")]
    tid = ctid_of(membership, [membership.c.prefix == PREFIX, *same], given, lock=True).label("tid")
    found = select(tid).select_from(given).cte("found")
    gone = (
        delete(membership)
        .where(has_ctid(select(found.c.tid)), select(ASYNCHRONOUS).exists())
        .returning(literal_column("1"))
        .cte("gone")
    )
    deleted = select(func.count()).select_from(gone).scalar_subquery()
    return select(func.count(found.c.tid) - deleted)


def members() -> Executable:
    """Select the memberships of the node's channels."""
    return select(membership.c.group_name, membership.c.channel, epoch(membership.c.expires_at)).where(MEMBERS)


def restore() -> Executable:
    """Insert memberships from memory, with the ends they had; of those that are there already the later ends count.

    A crash may have cost a renewal. Two ways to write a time differ by less than a second, so mostly none is written
    anew; but all that are there are locked, in the order of their keys.
    """
    given = given_rows(group_name=Text(), channel=Text(), expires=Float())
    rows = select(PREFIX, given.c.group_name, NODE, given.c.channel, func.to_timestamp(given.c.expires))
    fresh = upsert(membership).from_select(MEMBERSHIP, rows, include_defaults=False)
    until = fresh.excluded.expires_at
    return fresh.on_conflict_do_update(
        index_elements=list(membership.primary_key),
        set_={"expires_at": until},
        where=membership.c.expires_at + literal_column("interval '1 s'") < until,
    )


def plain_members() -> Executable:
    """Select the members of groups that no single node reads."""
    given = given_rows(group_name=Text())
    plain = plain_members_of(given.c.group_name)
    return select(given.c.place, plain.c.channel).select_from(given.join(plain, literal_column("true")))


def plain_members_of(group: ColumnElement[str]) -> FromClause:
    """The members of a group that no single node reads: one walk through a part of the primary key, in its order."""
    found = (
        select(membership.c.channel)
        .where(
            membership.c.prefix == PREFIX,
            membership.c.group_name == group,
            membership.c.node == "",
            membership.c.expires_at > CLOCK,
        )
        .order_by(membership.c.channel)
    )
    channels = func.unnest(func.array(found.scalar_subquery()))
    return channels.table_valued(column("channel", Text)).render_derived().lateral("plain")


def sweep_memberships() -> Executable:
    """Delete a batch of memberships that ended, or whose node is dead."""
    key = list(membership.primary_key)
    ended = (
        select(*key)
        .where(membership.c.expires_at <= NOW, membership.c.expires_at < INFINITY)
        .limit(BATCH)
        .with_for_update(skip_locked=True)  # one that is being renewed stays
        .subquery("ended")
    )
    dead = (
        select(*key)
        .join_from(node, membership, and_(membership.c.prefix == node.c.prefix, membership.c.node == node.c.id))
        .where(membership.c.node != NO_NODE, node.c.pid.is_(None), node.c.lease_until <= NOW)
        .limit(BATCH)
    )
    old = union_all(select(ended), dead).cte("old")
    return delete(membership).where(*(part == old.c[part.name] for part in key), select(ASYNCHRONOUS).exists())
