"""Every SQL statement of the layer, built with SQLAlchemy Core from the tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    Boolean,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Table,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    extract,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    table,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.sql import ColumnElement, Executable, FromClause, Select
from sqlalchemy.types import TypeEngine

from .schema import Timestamp, installation, membership, message, node


def _given(**columns: TypeEngine[Any]) -> FromClause:
    """The rows of a batch: parallel arrays, one parameter a column, whatever the number of rows."""
    arrays = [bindparam(name, type_=ARRAY(kind)) for name, kind in columns.items()]
    fields = [column(name, kind) for name, kind in columns.items()]
    return func.unnest(*arrays).table_valued(*fields, with_ordinality="place", name="given").render_derived()


def _epoch(moment: ColumnElement[Any]) -> ColumnElement[float]:
    return cast(extract("epoch", moment), Float)


PREFIX = bindparam("prefix", type_=Text)
NODE = bindparam("node", type_=Text)
ROWS = bindparam("rows", type_=ARRAY(BigInteger))
EXPIRY = bindparam("expiry", type_=Interval)
CLOCK = func.clock_timestamp(type_=Timestamp)
# The same for who looks for what is over: this one does not change within a statement, so it can bound an index scan.
NOW = func.statement_timestamp(type_=Timestamp)
INFINITY: ColumnElement[Any] = literal_column("'infinity'::timestamptz")
# Memberships survive a crash but for the last moments; nodes restore those. So joins need not wait for the disk. Set
# for the one transaction only, because behind a pooler the session is not ours.
ASYNCHRONOUS = select(func.set_config("synchronous_commit", "off", literal_column("true"))).subquery("asynchronous")

# Where a loose index scan through nodes begins. Not in a condition: one that says that a node is not this one makes the
# index on prefix and node fit for it, which for the planner is as good as any other while it takes the table for empty.
NO_NODE: ColumnElement[str] = literal_column("'' COLLATE \"C\"", Text)
# The memberships of this node's channels.
_MEMBERS = and_(membership.c.prefix == PREFIX, membership.c.node == NODE, membership.c.node != "")
_PLACE: ColumnElement[Any] = literal_column("ctid")

MESSAGE = ["prefix", "recipient", "channel", "group_name", "payload", "expires_at"]


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


def queue_of(channel: ColumnElement[str]) -> ColumnElement[str]:
    """The queue of a channel that no single node reads; names.queue_of is its twin."""
    return case((channel.contains("!"), func.split_part(channel, "!", 1) + "!"), else_=channel)


def _sends(given: FromClause) -> Select[Any]:
    return select(PREFIX, given.c.recipient, given.c.channel, null(), given.c.payload, CLOCK + EXPIRY)


def send() -> Executable:
    """Insert a batch of messages to channels."""
    given = _given(recipient=Text(), channel=Text(), payload=LargeBinary())
    return insert(message).from_select(MESSAGE, _sends(given), include_defaults=False)


def send_within_capacity() -> Executable:
    """Insert those messages of a batch that find room; return the places of the others."""
    given = _given(recipient=Text(), channel=Text(), payload=LargeBinary(), capacity=Integer())
    waiting = (
        select(literal_column("1"))
        .where(message.c.prefix == PREFIX, message.c.recipient == given.c.recipient, message.c.expires_at > CLOCK)
        .limit(given.c.capacity)
        .correlate(given)
        .subquery("waiting")
    )
    earlier = func.row_number().over(partition_by=given.c.recipient, order_by=given.c.place)
    room = select(given.c.capacity - func.count()).select_from(waiting).scalar_subquery()
    judged = select(given, (func.coalesce(earlier <= room, literal_column("true"))).label("fits")).cte("judged")
    added = (
        insert(message)
        .from_select(MESSAGE, _sends(judged).where(judged.c.fits).order_by(judged.c.place), include_defaults=False)
        .cte("added")
    )
    return select(judged.c.place).where(~judged.c.fits).add_cte(added)


def publish() -> Executable:
    """Insert a batch of messages to channels and groups: for a group one for each node, and one for each plain member.

    The nodes of a group are found by a loose index scan: one descent for each node, however many members it has.
    Without `queues` the plain members are left out: the caller sends to them with an eye on their capacity.
    """
    given = _given(recipient=Text(), channel=Text(), group_name=Text(), payload=LargeBinary()).alias("given")
    batch = select(given).cte("batch")
    nodes = (
        select(batch.c.group_name, NO_NODE.label("node"))
        .where(batch.c.group_name.is_not(None))
        .distinct()
        .cte("nodes", recursive=True)
    )
    following = next_node_of(membership, PREFIX, nodes.c.group_name, nodes.c.node)
    nodes = nodes.union_all(select(nodes.c.group_name, following).where(nodes.c.node.is_not(None)))
    plain = _plain_members_of(batch.c.group_name)
    to_channels = select(batch.c.place, batch.c.recipient, batch.c.channel, batch.c.group_name, batch.c.payload).where(
        batch.c.group_name.is_(None)
    )
    to_nodes = (
        select(batch.c.place, nodes.c.node, null(), batch.c.group_name, batch.c.payload)
        .join_from(batch, nodes, batch.c.group_name == nodes.c.group_name)
        .where(nodes.c.node != "")
    )
    to_queues = (
        select(batch.c.place, queue_of(plain.c.channel), plain.c.channel, null(), batch.c.payload)
        .join_from(batch, plain, literal_column("true"))
        .where(bindparam("queues", type_=Boolean), batch.c.group_name.is_not(None))
    )
    rows = union_all(to_channels, to_nodes, to_queues).subquery("rows")
    return insert(message).from_select(
        MESSAGE,
        select(PREFIX, rows.c.recipient, rows.c.channel, rows.c.group_name, rows.c.payload, CLOCK + EXPIRY).order_by(
            rows.c.place
        ),
        include_defaults=False,
    )


def join() -> Executable:
    """Insert or renew a batch of memberships."""
    given = _given(group_name=Text(), node=Text(), channel=Text())
    until = func.coalesce(CLOCK + EXPIRY, INFINITY)
    rows = select(PREFIX, given.c.group_name, given.c.node, given.c.channel, until).select_from(
        given.join(ASYNCHRONOUS, literal_column("true"))
    )
    fresh = upsert(membership).from_select(
        ["prefix", "group_name", "node", "channel", "expires_at"], rows, include_defaults=False
    )
    return fresh.on_conflict_do_update(
        index_elements=list(membership.primary_key), set_={"expires_at": fresh.excluded.expires_at}
    )


def leave() -> Executable:
    """Delete a batch of memberships; select how many more were found: others renewed or ended those meanwhile.

    A row that has been renewed since it was found is at another place now, and stays.
    """
    given = _given(group_name=Text(), node=Text(), channel=Text())
    same = [membership.c[name] == given.c[name] for name in ("group_name", "node", "channel")]
    found = (
        select(_lookup(membership, [membership.c.prefix == PREFIX, *same], given).label("tid"))
        .select_from(given)
        .cte("found")
    )
    gone = (
        delete(membership)
        .where(_is_any(select(found.c.tid)), select(ASYNCHRONOUS).exists())
        .returning(literal_column("1"))
        .cte("gone")
    )
    deleted = select(func.count()).select_from(gone).scalar_subquery()
    return select(func.count(found.c.tid) - deleted)


def claim() -> Executable:
    """Move waiting rows of queues to this node's mailbox, oldest first, passing over what others are claiming.

    Moved, not deleted: if the answer is lost with the connection, the rows are found when the node next reads what
    waits for it.
    """
    given = _given(queue=Text(), only_channel=Text(), floor=BigInteger(), count=Integer())
    waiting = (
        select(message.c.id, _PLACE.label("tid"))
        .where(
            message.c.prefix == PREFIX,
            message.c.recipient == given.c.queue,
            func.starts_with(message.c.channel, given.c.queue),  # what is in a node's mailbox is nobody else's
            message.c.id >= given.c.floor,
            message.c.expires_at > CLOCK,
            or_(given.c.only_channel.is_(None), message.c.channel == given.c.only_channel),
        )
        .order_by(message.c.id)
        .limit(given.c.count)
        .with_for_update(skip_locked=True)
        .lateral("waiting")
    )
    picked = (
        select(given.c.place, waiting.c.id, waiting.c.tid)
        .select_from(given.join(waiting, literal_column("true")))
        .cte("picked")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    claimant = select(picked.c.place).where(picked.c.id == message.c.id).limit(1).scalar_subquery()
    return (
        update(message)
        .values(recipient=NODE)
        .where(_is_any(select(picked.c.tid)))
        .returning(claimant, message.c.id, message.c.channel, message.c.payload, _epoch(message.c.expires_at))
    )


def _each(whole: Table, key: Sequence[ColumnElement[bool]], given: FromClause) -> ColumnElement[bool]:
    """Rows of a table by their keys, each looked up in the index by itself.

    With a join the planner, who knows nothing of a table that was empty a moment ago, would walk through it all.
    """
    return _is_any(select(_lookup(whole, key, given)).select_from(given))


def _lookup(whole: Table, key: Sequence[ColumnElement[bool]], given: FromClause) -> ColumnElement[Any]:
    """The place of the row with the key of a given one, NULL if there is none."""
    return select(_PLACE).select_from(whole).where(*key).correlate(given).scalar_subquery()


def _is_any(places: Select[Any]) -> ColumnElement[bool]:
    return _PLACE == any_(func.array(places.scalar_subquery()))  # noqa: SIM300 - it is a column


def _mine(rows: ColumnElement[Any]) -> ColumnElement[bool]:
    """Rows of the node's mailbox by their ids."""
    wanted = func.unnest(rows).table_valued(column("id", BigInteger), name="wanted").render_derived()
    key = [message.c.prefix == PREFIX, message.c.recipient == NODE, message.c.id == wanted.c.id]
    return _each(message, key, wanted)


def fetch() -> Executable:
    """Select the payloads of rows in this node's mailbox."""
    return select(message.c.id, message.c.payload).where(_mine(ROWS))


def forget() -> Executable:
    """Delete rows of this node's mailbox."""
    return delete(message).where(_mine(ROWS))


def waiting() -> Executable:
    """Select what waits in this node's mailbox, without the payloads."""
    return (
        select(message.c.id, message.c.channel, message.c.group_name, _epoch(message.c.expires_at))
        .where(message.c.prefix == PREFIX, message.c.recipient == NODE, message.c.expires_at > CLOCK)
        .order_by(message.c.id)
    )


def put_back(topic: Any) -> Executable:
    """Move claimed rows that nobody read back to their queues, and ring there."""
    back = (
        update(message)
        .values(recipient=queue_of(message.c.channel))
        .where(_mine(ROWS))
        .returning(message.c.recipient, message.c.id)
    )
    rows = back.cte("back")
    ring = literal_column("'Q'", Text) + cast(func.min(rows.c.id), Text) + " " + rows.c.recipient
    secret = select(installation.c.secret).scalar_subquery()
    return select(func.pg_notify(topic(secret, "queue", PREFIX, rows.c.recipient), ring)).group_by(rows.c.recipient)


def enter() -> Executable:
    """Select the installation's secret and revision, and the database's clock."""
    return select(installation.c.secret, installation.c.revision, _epoch(CLOCK))


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


def members() -> Executable:
    """Select the memberships of the node's channels."""
    return select(membership.c.group_name, membership.c.channel, _epoch(membership.c.expires_at)).where(_MEMBERS)


def restore() -> Executable:
    """Insert memberships from memory, with the ends they had."""
    given = _given(group_name=Text(), channel=Text(), expires=Float())
    until = case(
        (given.c.expires == literal_column("'infinity'::float8"), INFINITY), else_=func.to_timestamp(given.c.expires)
    )
    rows = select(PREFIX, given.c.group_name, NODE, given.c.channel, until)
    return (
        upsert(membership)
        .from_select(["prefix", "group_name", "node", "channel", "expires_at"], rows, include_defaults=False)
        .on_conflict_do_nothing()
    )


def _renewal() -> list[ColumnElement[Any]]:
    """Whether the node's lease could be renewed, whether the session LISTENs to its topic, and the time."""
    renewed = (
        update(node)
        .where(node.c.id == NODE, node.c.pid.is_not(None))
        .values(seen_at=CLOCK, lease_until=CLOCK + bindparam("lease", type_=Interval))
        .returning(node.c.id)
        .cte("renewed")
    )
    heard = func.pg_listening_channels().column_valued("heard")
    hears = exists().where(heard == bindparam("topic", type_=Text))
    return [exists(select(renewed.c.id)), hears, _epoch(CLOCK)]


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


def leave_all() -> Executable:
    """Delete the node, its memberships and its mailbox: it closes."""
    gone = delete(node).where(node.c.id == NODE).cte("gone")
    parted = delete(membership).where(_MEMBERS).cte("parted")
    return (
        delete(message)
        .where(message.c.prefix == PREFIX, message.c.recipient == NODE, select(ASYNCHRONOUS).exists())
        .add_cte(gone, parted)
    )


def flush(topic: Any) -> Executable:
    """Delete all messages and memberships of the prefix, and tell its nodes; return the ids of those that live."""
    emptied = delete(message).where(message.c.prefix == PREFIX).cte("emptied")
    parted = delete(membership).where(membership.c.prefix == PREFIX).cte("parted")
    secret = select(installation.c.secret).scalar_subquery()
    sign = bindparam("sign", type_=Text)
    return (
        select(node.c.id, func.pg_notify(topic(secret, "node", PREFIX, node.c.id), sign))
        .where(node.c.prefix == PREFIX, node.c.pid.is_not(None), node.c.lease_until > CLOCK)
        .add_cte(emptied, parted)
    )


def tell() -> Executable:
    """Notify one topic."""
    return select(func.pg_notify(bindparam("topic", type_=Text), bindparam("sign", type_=Text)))


def plain_members() -> Executable:
    """Select the members of groups that no single node reads."""
    given = _given(group_name=Text())
    plain = _plain_members_of(given.c.group_name)
    return select(given.c.place, plain.c.channel).select_from(given.join(plain, literal_column("true")))


def _plain_members_of(group: ColumnElement[str]) -> FromClause:
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
    return channels.table_valued(column("channel", Text), name="plain").render_derived().lateral()


BATCH = bindparam("batch", type_=Integer)


def sweep_lock(*, exclusive: bool) -> Executable:
    """Take the lock that keeps sweepers one at a time, and nodes from registering meanwhile, until the commit."""
    key = func.hashtextextended(installation.c.secret, 0)
    return select(func.pg_try_advisory_xact_lock(key) if exclusive else func.pg_advisory_xact_lock_shared(key))


def sweep_messages() -> Executable:
    """Delete a batch of messages that nobody read in time."""
    key = list(message.primary_key)
    old = select(*key).where(message.c.expires_at <= NOW).limit(BATCH).with_for_update(skip_locked=True).cte("old")
    return delete(message).where(*(part == old.c[part.name] for part in key))


def sweep_memberships() -> Executable:
    """Delete a batch of memberships that ended, or whose node is dead."""
    key = list(membership.primary_key)
    ended = select(*key).where(membership.c.expires_at <= NOW, membership.c.expires_at < INFINITY).limit(BATCH)
    dead = (
        select(*key)
        .join_from(node, membership, and_(membership.c.prefix == node.c.prefix, membership.c.node == node.c.id))
        .where(membership.c.node != "", node.c.pid.is_(None), node.c.lease_until <= NOW)
        .limit(BATCH)
    )
    old = union_all(ended, dead).cte("old")
    return delete(membership).where(*(part == old.c[part.name] for part in key), select(ASYNCHRONOUS).exists())


def bury_nodes() -> Executable:
    """Declare dead whose lease ran out: without a process, so that its members leave without notice to it."""
    return update(node).where(node.c.lease_until <= NOW, node.c.pid.is_not(None)).values(pid=None)


def sweep_nodes() -> Executable:
    """Delete dead nodes that have no members left."""
    return delete(node).where(
        node.c.pid.is_(None),
        node.c.lease_until <= NOW,
        ~exists().where(membership.c.prefix == node.c.prefix, membership.c.node == node.c.id, membership.c.node != ""),
    )


def adopt_orphans() -> Executable:
    """Give nodes that have members but no row (after a crash of the server) a lease, to come back in or be swept."""
    nodes = select(NO_NODE.label("node")).cte("nodes", recursive=True)
    following = (
        select(membership.c.node)
        .where(membership.c.prefix == PREFIX, membership.c.node > nodes.c.node, membership.c.node != "")
        .order_by(membership.c.node)
        .limit(1)
        .scalar_subquery()
    )
    nodes = nodes.union_all(select(following).where(nodes.c.node.is_not(None)))
    rows = select(nodes.c.node, PREFIX, CLOCK + bindparam("lease", type_=Interval)).where(nodes.c.node != "")
    fresh = upsert(node).from_select(["id", "prefix", "lease_until"], rows, include_defaults=False)
    return fresh.on_conflict_do_nothing()


def _message_table(schema: str | None) -> ColumnElement[Any]:
    """The table of messages as an object of its own; its name is no parameter: it is found when the plan is made."""
    name = message.name if schema is None else f'"{schema}".{message.name}'
    return literal_column(f"'{name}'::regclass")


def message_table(schema: str | None) -> Executable:
    """Select the full name of the table of messages, and whether this role may vacuum it."""
    catalog = table("pg_class", column("oid"), column("relowner"), schema="pg_catalog")
    may = func.pg_has_role(catalog.c.relowner, literal_column("'USAGE'"))
    return select(cast(_message_table(schema), Text).label("name"), may).where(catalog.c.oid == _message_table(schema))


def dead_messages(schema: str | None) -> Executable:
    """Select how many dead rows the table of messages has, as far as the statistics know."""
    return select(func.pg_stat_get_dead_tuples(_message_table(schema)))
