"""Statements about nodes: their leases, what they tell each other, and the sweeping of dead ones."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    BindParameter,
    Boolean,
    Interval,
    Text,
    and_,
    bindparam,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql import ColumnElement, Executable

from channels_pg_sa.schema import installation, membership, message, node

from .memberships import MEMBERS
from .parts import ASYNCHRONOUS, CLOCK, INFINITY, NO_NODE, NODE, NOW, PREFIX, SECRET, epoch, is_live

LINGER = "3s"
"""How long a process may leave a transaction alone in which it keeps others waiting."""


def enter() -> Executable:
    """Select the installation's secret and revision, the database's clock, and how full the queue of notifications is.

    The last for its effect: it frees what all have read. A queue that was full does not become free by itself, since
    whoever finds it full frees nothing.
    """
    return select(installation.c.secret, installation.c.revision, epoch(CLOCK), func.pg_notification_queue_usage())


def known_node() -> Executable:
    """Select whether the node's row is there, and its own rather than a sweeper's placeholder."""
    return select(exists().where(node.c.id == NODE, node.c.pid.is_not(None)))


def register() -> Executable:
    """Insert the node, or renew it."""
    values: dict[str, BindParameter[Any]] = {name: bindparam(name) for name in ("host", "pid", "version")}
    fresh = upsert(node).values(
        id=NODE, prefix=PREFIX, lease_until=CLOCK + bindparam("lease", type_=Interval), **values
    )
    return fresh.on_conflict_do_update(
        index_elements=[node.c.id],
        set_={"seen_at": CLOCK, **{name: fresh.excluded[name] for name in (*values, "lease_until")}},
    )


def _renewal() -> list[ColumnElement[Any]]:
    """Whether the node's lease could be renewed, whether the session LISTENs to its topic, and the time.

    A topic is nobody's any more when the installation has another secret, which begins otherwise.
    """
    renewed = (
        update(node)
        .where(node.c.id == NODE, node.c.pid.is_not(None))
        .values(seen_at=CLOCK, lease_until=CLOCK + bindparam("lease", type_=Interval))
        .returning(node.c.id)
        .cte("renewed")
    )
    heard = func.pg_listening_channels().column_valued("heard")
    is_right = exists().where(func.starts_with(installation.c.secret, bindparam("sign", type_=Text)))
    hears = and_(exists().where(heard == bindparam("topic", type_=Text)), is_right)
    return [exists(select(renewed.c.id)), hears, epoch(CLOCK)]


def renew() -> Executable:
    """Renew the node's lease, and see whether the session still LISTENs to its topic."""
    return select(*_renewal())


def beat() -> Executable:
    """Renew, and see what there is to sweep and to claim.

    All in one statement: it is the only one an idle process sends. It notifies nobody, because that would wake every
    process that listens.
    """
    due = or_(
        exists().where(message.c.expires_at <= NOW),
        exists().where(node.c.lease_until <= NOW),
        exists().where(membership.c.expires_at <= NOW, membership.c.expires_at < INFINITY),
    )
    queue = func.unnest(bindparam("queues", type_=ARRAY(Text))).column_valued("queue")
    filled = select(func.array_agg(queue)).where(
        exists().where(message.c.prefix == PREFIX, message.c.recipient == queue, message.c.expires_at > CLOCK)
    )
    return select(*_renewal(), due, filled.scalar_subquery())


def unregister() -> Executable:
    """Delete the node, its memberships and its mailbox: it closes."""
    gone = delete(node).where(node.c.id == NODE).cte("gone")
    parted = delete(membership).where(MEMBERS).cte("parted")
    return (
        delete(message)
        .where(message.c.prefix == PREFIX, message.c.recipient == NODE, select(ASYNCHRONOUS).exists())
        .add_cte(gone, parted)
    )


def flush() -> Executable:
    """Delete all messages and memberships of the prefix; of each membership its node is told."""
    emptied = delete(message).where(message.c.prefix == PREFIX, select(ASYNCHRONOUS).exists()).cte("emptied")
    return delete(membership).where(membership.c.prefix == PREFIX).add_cte(emptied)


def listen(listening: Any) -> Executable:
    """LISTEN to topics, or stop."""
    return select(listening(bindparam("topics", type_=ARRAY(Text)), bindparam("stop", type_=Boolean)))


def notify_nodes(topic: Any) -> Executable:
    """Notify each node of the prefix that lives; return their ids."""
    payload = bindparam("payload", type_=Text)
    return select(node.c.id, func.pg_notify(topic(SECRET, "node", PREFIX, node.c.id), payload)).where(
        node.c.prefix == PREFIX, is_live(node)
    )


def notify() -> Executable:
    """Notify one topic."""
    return select(func.pg_notify(bindparam("topic", type_=Text), bindparam("payload", type_=Text)))


def sweep_lock(*, exclusive: bool) -> Executable:
    """Take the lock that keeps sweepers one at a time, and nodes from registering meanwhile, until the commit.

    A process that is stopped while it has the lock, or whose host is gone, must not keep it from the others. And the
    commit waits for no disk and no standby: memberships are restored from memory.
    """
    key = func.hashtextextended(installation.c.secret, 0)
    return select(
        func.pg_try_advisory_xact_lock(key) if exclusive else func.pg_advisory_xact_lock_shared(key),
        func.set_config("idle_in_transaction_session_timeout", LINGER, literal_column("true")),
        func.set_config("synchronous_commit", "off", literal_column("true")),
    )


def bury_nodes() -> Executable:
    """Mark nodes whose lease ran out as dead (no pid), so that the trigger notifies them no more of their members."""
    return update(node).where(node.c.lease_until <= NOW, node.c.pid.is_not(None)).values(pid=None)


def sweep_nodes() -> Executable:
    """Delete dead nodes that have no members left."""
    return delete(node).where(
        node.c.pid.is_(None),
        node.c.lease_until <= NOW,
        ~exists().where(
            membership.c.prefix == node.c.prefix, membership.c.node == node.c.id, membership.c.node != NO_NODE
        ),
    )


def adopt_orphans() -> Executable:
    """Give nodes that have members but no row (after a crash of the server) a lease, to come back in or be swept."""
    nodes = select(NO_NODE.label("node")).cte("nodes", recursive=True)
    following = (
        select(membership.c.node)
        .where(membership.c.prefix == PREFIX, membership.c.node > nodes.c.node, membership.c.node != NO_NODE)
        .order_by(membership.c.node)
        .limit(1)
        .scalar_subquery()
    )
    nodes = nodes.union_all(select(following).where(nodes.c.node.is_not(None)))
    rows = select(nodes.c.node, PREFIX, CLOCK + bindparam("lease", type_=Interval)).where(nodes.c.node != "")
    fresh = upsert(node).from_select(["id", "prefix", "lease_until"], rows, include_defaults=False)
    return fresh.on_conflict_do_nothing()
