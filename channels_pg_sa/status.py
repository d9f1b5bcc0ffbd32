"""What an operator sees of the layers in a database: their processes, their groups, and the queues that fill."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from .config import checked_schema
from .migrate import Database, check_revision, engine_for
from .schema import tables
from .statements import overview

MOST = 20
"""Queues of a prefix that are shown; the fullest."""

Rows: TypeAlias = Sequence[Sequence[Any]]


def status(database: Database, *, schema: str | None = None) -> str:
    """Return in lines of text who receives, how many groups there are, and what waits in queues, prefix by prefix.

    Args:
        database: where to look.
        schema: the PostgreSQL schema of the tables; None leaves it to the connection's search_path.

    Raises:
        SchemaError: the tables are missing, or at another revision.
        ConfigurationError: the address or the schema's name is wrong.
        sqlalchemy.exc.DBAPIError: the database refuses.
    """
    there = tables(checked_schema(schema))
    with engine_for(database).connect() as connection:
        # All of it as it was at one moment.
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        check_revision(connection, schema)
        processes, groups, queues = (
            connection.execute(statement).all()
            for statement in (overview.processes(there), overview.groups(there), overview.queues(there, MOST))
        )
    return "".join(f"{line}\n" for line in _lines(processes, groups, queues))


def _lines(processes: Rows, groups: Rows, queues: Rows) -> Iterator[str]:
    prefixes = sorted({row[0] for row in (*processes, *groups, *queues)})
    if not prefixes:
        yield "Nobody receives, and no queue holds messages."
    for prefix in prefixes:
        yield f"prefix {_printable(prefix)}"
        yield from _process_lines([row[1:] for row in processes if row[0] == prefix])
        for _, count, memberships in (row for row in groups if row[0] == prefix):
            yield f"  groups: {count:,}  memberships: {memberships:,}"
        yield from _queue_lines([row[1:] for row in queues if row[0] == prefix])


def _process_lines(processes: Rows) -> Iterator[str]:
    yield f"  processes: {sum(is_live for *_, is_live, _, _ in processes)}"
    for node, host, pid, version, age, silence, is_live, memberships, mailbox in processes:
        sign = f"seen {_span(silence)} ago" if is_live else f"gone, last seen {_span(silence)} ago"
        yield (
            f"    {_printable(node)}  {_printable(host)}  pid {pid}  version {_printable(version)}  up {_span(age)}  "
            f"{sign}  memberships: {memberships:,}  mailbox: {mailbox:,}"
        )


def _queue_lines(queues: Rows) -> Iterator[str]:
    if queues:
        yield f"  queues that hold messages: {queues[0][-1]:,}"
    for name, waiting, left, _ in queues:
        end = "never" if math.isinf(left) else f"in {_span(left)}"
        yield f"    {_printable(name)}  waiting: {waiting:,}  the first expires {end}"
    if queues and queues[0][-1] > len(queues):
        yield f"    and {queues[0][-1] - len(queues):,} more"


def _span(seconds: float) -> str:
    """Days, hours, minutes and seconds; after a clock was set back no less than none."""
    return str(dt.timedelta(seconds=max(0, int(seconds))))


def _printable(name: str | None) -> str:
    """A name that every terminal can show, and none takes for a command, whoever wrote the row."""
    return name if name and name.isascii() and name.isprintable() else ascii(name)
