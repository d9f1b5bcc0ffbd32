"""Statements about messages: sends, claims, what waits, and what is over."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Float,
    Integer,
    LargeBinary,
    Text,
    bindparam,
    case,
    cast,
    column,
    delete,
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
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.sql import ColumnElement, Executable, FromClause, Select

from channels_pg_sa.claims import ANYWHERE
from channels_pg_sa.entry import SAME
from channels_pg_sa.schema import membership, message, qualified

from .memberships import next_node_of, plain_members_of
from .parts import (
    BATCH,
    CLOCK,
    CTID,
    EXPIRY,
    NO_NODE,
    NODE,
    NOW,
    PREFIX,
    SECRET,
    ctid_of,
    epoch,
    given_rows,
    has_ctid,
)

ROW = 200
"""Bytes that a message takes beside its payload, those in indexes included."""
MESSAGE = ["prefix", "recipient", "channel", "group_name", "payload", "expires_at"]


def queue_of(channel: ColumnElement[str]) -> ColumnElement[str]:
    """The queue of a channel that no single node reads; names.queue_of is its twin."""
    return case((channel.contains("!"), func.split_part(channel, "!", 1) + "!"), else_=channel)


def _sends(given: FromClause) -> Select[Any]:
    return select(PREFIX, given.c.recipient, given.c.channel, null(), given.c.payload, CLOCK + EXPIRY)


def send() -> Executable:
    """Insert a batch of messages to channels."""
    given = given_rows(recipient=Text(), channel=Text(), payload=LargeBinary())
    return insert(message).from_select(MESSAGE, _sends(given), include_defaults=False)


def send_within_capacity() -> Executable:
    """Insert those messages of a batch that find room; return the places of the others."""
    given = given_rows(recipient=Text(), channel=Text(), payload=LargeBinary(), capacity=Integer())
    waiting = (
        select(literal_column("1"))
        .where(message.c.prefix == PREFIX, message.c.recipient == given.c.recipient, message.c.expires_at > CLOCK)
        .limit(given.c.capacity)
        .correlate(given)
        .subquery("waiting")
    )
    # What is refused comes last of its recipient and capacity, so it uses no room that another could. Different
    # capacities of one recipient do not see each other within a batch.
    alike = [given.c.recipient, given.c.capacity]
    earlier = func.row_number().over(partition_by=alike, order_by=given.c.place)
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
    given = given_rows(recipient=Text(), channel=Text(), group_name=Text(), payload=LargeBinary())
    batch = select(given).cte("batch")
    nodes = (
        select(batch.c.group_name, NO_NODE.label("node"))
        .where(batch.c.group_name.is_not(None))
        .distinct()
        .cte("nodes", recursive=True)
    )
    following = next_node_of(membership, PREFIX, nodes.c.group_name, nodes.c.node)
    nodes = nodes.union_all(select(nodes.c.group_name, following).where(nodes.c.node.is_not(None)))
    plain = plain_members_of(batch.c.group_name)
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


def claim() -> Executable:
    """Move waiting rows of queues to this node's mailbox, oldest first, passing over what others are claiming.

    Moved, not deleted: if the answer is lost with the connection, the rows are found when the node next reads what
    waits for it. Each row comes with the place of its claim and, of a claim without an end, the last id in its queue.
    """
    given = given_rows(queue=Text(), only_channel=Text(), first=BigInteger(), last=BigInteger(), count=Integer())
    waiting = (
        select(message.c.id, CTID.label("tid"))
        .where(
            message.c.prefix == PREFIX,
            message.c.recipient == given.c.queue,
            func.starts_with(message.c.channel, given.c.queue),  # what is in a node's mailbox is nobody else's
            message.c.id.between(given.c.first, given.c.last),
            message.c.expires_at > CLOCK,
            or_(given.c.only_channel.is_(None), message.c.channel == given.c.only_channel),
        )
        .order_by(message.c.id)
        .limit(given.c.count)
        .with_for_update(skip_locked=True)
        .lateral("waiting")
    )
    whole = message.alias("whole")
    end = select(func.max(whole.c.id)).where(whole.c.prefix == PREFIX, whole.c.recipient == given.c.queue)
    endless = given.c.last == literal_column(str(ANYWHERE[1]))
    end_of = case((endless, end.correlate(given).scalar_subquery()))
    picked = (
        select(given.c.place, waiting.c.id, waiting.c.tid, end_of.label("end"))
        .select_from(given.join(waiting, literal_column("true")))
        .cte("picked")
    )
    claim_of = select(array([picked.c.place, picked.c.end])).where(picked.c.id == message.c.id).limit(1)
    moved = (message.c.id, message.c.channel, message.c.payload, epoch(message.c.expires_at))
    return (
        update(message)
        .values(recipient=NODE)
        .where(has_ctid(select(picked.c.tid)))
        .returning(claim_of.scalar_subquery(), *moved)
    )


def _given_mine() -> ColumnElement[bool]:
    """Rows of the node's mailbox by their ids, each looked up in the index by itself.

    With a join the planner, which knows nothing of a table that was empty a moment ago, would walk through it all. By
    their ends as well: since a server has crashed, or the tables were made anew, other messages may have the ids.
    """
    given = given_rows(id=BigInteger(), expires=Float())
    margin: ColumnElement[float] = literal_column(str(SAME), Float)
    is_same = epoch(message.c.expires_at).between(given.c.expires - margin, given.c.expires + margin)
    key = [message.c.prefix == PREFIX, message.c.recipient == NODE, message.c.id == given.c.id, is_same]
    return has_ctid(select(ctid_of(message, key, given)).select_from(given))


def fetch() -> Executable:
    """Select the payloads of rows in this node's mailbox, oldest first; NULL for those behind so many bytes.

    The size of a payload is known without reading it.
    """
    size = func.octet_length(message.c.payload)
    before = (func.sum(size).over(order_by=message.c.id) - size).label("before")
    found = select(message.c.id, message.c.payload, before).where(_given_mine()).subquery("found")
    budget = bindparam("budget", type_=BigInteger)
    return select(found.c.id, case((found.c.before < budget, found.c.payload), else_=null()))


def forget() -> Executable:
    """Delete rows of this node's mailbox; select how much room, about, is free after a vacuum, in bytes."""
    room = (ROW + func.octet_length(message.c.payload)).label("room")
    gone = delete(message).where(_given_mine()).returning(room).cte("gone")
    return select(func.coalesce(func.sum(gone.c.room), 0))


def waiting() -> Executable:
    """Select what waits in this node's mailbox, without the payloads."""
    return (
        select(message.c.id, message.c.channel, message.c.group_name, epoch(message.c.expires_at))
        .where(message.c.prefix == PREFIX, message.c.recipient == NODE, message.c.expires_at > CLOCK)
        .order_by(message.c.id)
    )


def put_back(topic: Any) -> Executable:
    """Move claimed rows that nobody read back to their queues, and ring there."""
    back = (
        update(message)
        .values(recipient=queue_of(message.c.channel))
        .where(_given_mine())
        .returning(message.c.recipient, message.c.id)
    )
    rows = back.cte("back")
    ends = func.min(rows.c.id), func.max(rows.c.id)
    first, last = (literal_column("'Q'", Text) + cast(end, Text) + " " + rows.c.recipient for end in ends)
    ring = func.pg_notify(topic(SECRET, "queue", PREFIX, rows.c.recipient), first + "," + last)
    return select(ring).group_by(rows.c.recipient)


def sweep_messages() -> Executable:
    """Delete a batch of messages that nobody read in time."""
    key = list(message.primary_key)
    old = select(*key).where(message.c.expires_at <= NOW).limit(BATCH).with_for_update(skip_locked=True).cte("old")
    return delete(message).where(*(part == old.c[part.name] for part in key))


_CATALOG = table("pg_class", column("oid"), column("relowner"), column("reltoastrelid"), schema="pg_catalog")


def _message_table(schema: str | None) -> ColumnElement[Any]:
    """The table of messages as an object of its own; its name is no parameter: it is found when the plan is made."""
    return literal_column(f"'{qualified(message, schema)}'::regclass")


def message_table(schema: str | None) -> Executable:
    """Select the full name of the table of messages, and whether this role may vacuum it."""
    may = func.pg_has_role(_CATALOG.c.relowner, literal_column("'USAGE'"))
    name = cast(_message_table(schema), Text).label("name")
    return select(name, may).where(_CATALOG.c.oid == _message_table(schema))


def dead_room(schema: str | None) -> Executable:
    """Select how much room dead rows take, about, in bytes, as far as the statistics know.

    A large payload is cut into pieces of about 2,000 bytes, and each is a row of the TOAST table.

    https://www.postgresql.org/docs/current/storage-toast.html
    """
    dead = func.pg_stat_get_dead_tuples
    room = ROW * dead(_CATALOG.c.oid) + 2000 * dead(_CATALOG.c.reltoastrelid)
    return select(room).where(_CATALOG.c.oid == _message_table(schema))
