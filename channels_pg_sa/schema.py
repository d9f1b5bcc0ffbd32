"""The tables, and the triggers and functions that turn rows into notifications."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    event,
    text,
)
from sqlalchemy.engine import Connection

REVISION = "0001"
"""The schema revision this version of the package works with."""

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "pk": "pk_%(table_name)s",
}

metadata = MetaData(naming_convention=NAMING)

# Names are compared byte by byte: faster, and no index breaks when the operating system's collations change.
Name = Text(collation="C")
Timestamp = DateTime(timezone=True)

# A row that waits is the truth; a NOTIFY is only the fastest way to learn of it.
message = Table(
    "channels_pg_sa_message",
    metadata,
    Column("prefix", Name, nullable=False, server_default=text("'asgi'")),
    Column("recipient", Name, nullable=False, comment="The node of a process-specific channel, or the queue's name"),
    Column("id", BigInteger, Identity(), nullable=False),
    Column("channel", Name),
    Column("group_name", Name),
    Column("payload", LargeBinary, nullable=False),
    # As the server writes it: Alembic would ask whether two calls give the same.
    Column("expires_at", Timestamp, nullable=False, server_default=text("(clock_timestamp() + '00:01:00'::interval)")),
    PrimaryKeyConstraint("prefix", "recipient", "id"),
    CheckConstraint("(channel IS NULL) <> (group_name IS NULL)", name="channel_or_group"),
    CheckConstraint("octet_length(payload) <= 16777216", name="payload_size"),  # codec.MAX_BYTES
    Index(None, "expires_at"),
    prefixes=["UNLOGGED"],
)

membership = Table(
    "channels_pg_sa_membership",
    metadata,
    Column("prefix", Name, nullable=False),
    Column("group_name", Name, nullable=False),
    Column("node", Name, nullable=False, comment="The node that reads the channel; empty if any process may"),
    Column("channel", Name, nullable=False),
    Column("expires_at", Timestamp, nullable=False, server_default=text("'infinity'")),
    PrimaryKeyConstraint("prefix", "group_name", "node", "channel"),
    Index(None, "prefix", "node", postgresql_where=text("node <> ''")),
    Index(None, "expires_at", postgresql_where=text("expires_at < 'infinity'")),
)

# Unlogged, so that a crash of the server, which may cost the latest memberships, also empties this table: then each
# node finds itself gone, registers again and restores its memberships from memory.
node = Table(
    "channels_pg_sa_node",
    metadata,
    Column("id", Name, nullable=False),
    Column("prefix", Name, nullable=False),
    Column("host", Text),
    Column("pid", Integer),
    Column("version", Text),
    Column("started_at", Timestamp, nullable=False, server_default=text("now()")),
    Column("seen_at", Timestamp, nullable=False, server_default=text("now()")),
    Column("lease_until", Timestamp, nullable=False),
    PrimaryKeyConstraint("id"),
    prefixes=["UNLOGGED"],
)

installation = Table(
    "channels_pg_sa_installation",
    metadata,
    Column("single", Boolean, nullable=False, server_default=text("true")),
    Column("secret", Text, nullable=False, server_default=text("gen_random_uuid()")),
    Column("revision", Text, nullable=False),
    PrimaryKeyConstraint("single"),
    CheckConstraint("single", name="one_row"),
)


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables in one schema, for queries."""

    message: Table
    membership: Table
    node: Table
    installation: Table


@functools.cache
def tables(schema: str | None) -> Tables:
    """Return the tables in a PostgreSQL schema, for queries and migrations of the host's own.

    create_all() of their metadata makes neither functions nor triggers.

    The name is in the tables, because a connection's own schema_translate_map would overrule a statement's.

    Args:
        schema: as in CONFIG; None leaves it to the connection's search_path, as the tables of this module do.
    """
    originals = message, membership, node, installation
    if schema is None:
        return Tables(*originals)
    elsewhere = MetaData(naming_convention=NAMING)
    copies = [table.to_metadata(elsewhere, schema=schema) for table in originals]
    for copy, original in zip(copies, originals, strict=True):
        copy._prefixes = original._prefixes  # noqa: SLF001 - to_metadata() forgets what is UNLOGGED
    return Tables(*copies)


def qualified(table: Table, schema: str | None) -> str:
    """Return the name that SQL has for a table in a PostgreSQL schema; None leaves it to the search_path."""
    return table.name if schema is None else f'"{schema}".{table.name}'


_SQL = Path(__file__).with_name("schema.sql")


def routines() -> str:
    """Return the DDL of the functions and triggers, for the first schema of the search path."""
    return _SQL.read_text(encoding="utf-8")


def _install(_target: MetaData, connection: Connection, tables: Collection[Table], **_: object) -> None:
    if installation in tables:
        connection.exec_driver_sql(routines())
        connection.execute(installation.insert().values(revision=REVISION))


event.listen(metadata, "after_create", _install)
