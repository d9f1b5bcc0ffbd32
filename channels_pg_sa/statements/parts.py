"""What statements are made of: their parameters, the clock, the rows of a batch, and rows by their ctids."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from sqlalchemy import (
    ARRAY,
    Float,
    Integer,
    Interval,
    Table,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    column,
    extract,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql import ColumnElement, FromClause, Select, quoted_name
from sqlalchemy.sql.functions import Function
from sqlalchemy.types import TypeEngine

from channels_pg_sa.schema import Timestamp, installation


def given_rows(**columns: TypeEngine[Any]) -> FromClause:
    """The rows of a batch: parallel arrays, one parameter a column, whatever the number of rows."""
    arrays = [bindparam(name, type_=ARRAY(kind)) for name, kind in columns.items()]
    fields = [column(name, kind) for name, kind in columns.items()]
    return func.unnest(*arrays).table_valued(*fields, with_ordinality="place").render_derived(name="given")


def epoch(moment: ColumnElement[Any]) -> ColumnElement[float]:
    """A time as Unix time."""
    return cast(extract("epoch", moment), Float)


PREFIX = bindparam("prefix", type_=Text)
NODE = bindparam("node", type_=Text)
EXPIRY = bindparam("expiry", type_=Interval)
BATCH = bindparam("batch", type_=Integer)
CLOCK = func.clock_timestamp(type_=Timestamp)
# For conditions on what is over: this one does not change within a statement, so it can bound an index scan.
NOW = func.statement_timestamp(type_=Timestamp)
SECRET = select(installation.c.secret).scalar_subquery()
INFINITY: ColumnElement[Any] = literal_column("'infinity'::timestamptz")
# Memberships survive a crash but for the last moments; nodes restore those. So joins need not wait for the disk. Set
# for the one transaction only, because behind a pooler the session is not ours.
ASYNCHRONOUS = select(func.set_config("synchronous_commit", "off", literal_column("true"))).subquery("asynchronous")
# What stands for no node. Written out, because a plan for whatever parameters could not use the partial index on prefix
# and node. A loose index scan through nodes begins there and has no condition `node <> ''`: for that the planner would
# consider this index, which seems to cost no more while it takes the table for empty.
NO_NODE: ColumnElement[str] = literal_column("'' COLLATE \"C\"", Text)
CTID: ColumnElement[Any] = literal_column("ctid")


def is_live(nodes: Table) -> ColumnElement[bool]:
    """Whether a node has a lease, and is no sweeper's placeholder."""
    return and_(nodes.c.pid.is_not(None), nodes.c.lease_until > CLOCK)


def ctid_of(
    whole: Table, key: Sequence[ColumnElement[bool]], given: FromClause, *, lock: bool = False
) -> ColumnElement[Any]:
    """The ctid of the row with the key of a given one, NULL if there is none; lock: keep others from changing it."""
    found = select(CTID).select_from(whole).where(*key).correlate(given)
    return (found.with_for_update() if lock else found).scalar_subquery()


def has_ctid(ctids: Select[Any]) -> ColumnElement[bool]:
    """Whether a row has one of these ctids."""
    return CTID == any_(func.array(ctids.scalar_subquery()))  # noqa: SIM300 - it is a column


Routines: TypeAlias = Callable[[str], Callable[..., Function[Any]]]
"""Gives a function of ours by what stands behind channels_pg_sa_ in its name."""


def routines_in(schema: str | None) -> Routines:
    """Return our functions in a PostgreSQL schema.

    SQLAlchemy quotes the schema of a function neither for its capitals nor because it is called as a word of SQL.
    """
    quote = PGDialect_psycopg().identifier_preparer.quote  # type: ignore[no-untyped-call]
    place = () if schema is None else (quoted_name(quote(schema), quote=False),)
    return lambda name: functools.partial(Function, f"channels_pg_sa_{name}", packagenames=place)
