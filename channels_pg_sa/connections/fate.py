"""What an error of the database means for the statement that met it."""

from __future__ import annotations

import asyncio
import enum
import logging

import psycopg
from sqlalchemy.exc import DBAPIError

from channels_pg_sa.errors import LayerClosed

# The server's word that it did not do the statement, but would at another time.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_AGAIN = frozenset({"25P03", "25P04", "40001", "40P01", "55P03", "57P01", "57P02", "57P03", "57P05"})
# What another connection would not meet: a server that only reads, as a standby does which the address led to for a
# moment, and a plan that was made before the tables were changed.
_ELSEWHERE = frozenset({"25006", "0A000"})
_NO_SUCH_THING = frozenset({"3F000", "42703", "42883", "42P01", "42P10"})  # 42P10: a key that ON CONFLICT wants
_DISK_FULL = "53100"
# Connections, sessions that were reset, resources, the operator, locks and conflicts: they come and go.
_PASSING = ("08", "25P", "26", "40", "53", "54", "55", "57", "58")

OUTAGE = (psycopg.Error, DBAPIError, OSError, asyncio.TimeoutError, LayerClosed)
"""What work that meets an outage raises; anything else is a mistake of ours."""


class Fate(enum.Enum):
    """What an error says about the statement that met it."""

    NOT_DONE = "not done, and it may be tried again"
    REFUSED = "not done, and it will not be"
    NO_SCHEMA = "not done: it needs tables, or a row of ours, that are not there"
    UNKNOWN = "nobody can tell whether it was done"


def fate(error: Exception) -> Fate:
    """Tell what an error means for the statement.

    An error with an SQLSTATE is the server's answer in place of a commit. Without one the connection was lost, and the
    answer with it.
    """
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    if state is None:
        # libpq's own, of an answer that it cannot read, is no more than a DatabaseError.
        is_lost = isinstance(error, psycopg.OperationalError) or type(error) is psycopg.DatabaseError
        return Fate.UNKNOWN if is_lost else Fate.REFUSED
    if state.startswith("08"):  # a pooler's, which has lost the server under the statement
        return Fate.UNKNOWN
    if state in _AGAIN or state in _ELSEWHERE or is_queue_full(error):
        return Fate.NOT_DONE
    return Fate.NO_SCHEMA if state in _NO_SUCH_THING or is_without_secret(error) else Fate.REFUSED


def is_without_secret(error: BaseException | None) -> bool:
    """Tell whether a NOTIFY had no topic, because the row with the secret is missing; of psycopg2's errors too."""
    # Not by its words, which are in the language of the server.
    return getattr(getattr(error, "diag", None), "source_function", None) == "Async_Notify"


def is_queue_full(error: Exception) -> bool:
    """Tell whether the server's queue of notifications is full; other limits have the same SQLSTATE."""
    return isinstance(error, psycopg.errors.ProgramLimitExceeded) and "NOTIFY" in str(error)


def needs_other_connection(error: Exception) -> bool:
    """Tell whether the statement needs another connection, so that this one must not be kept."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _ELSEWHERE


def log_level(error: Exception) -> int:
    """Return how loud the log must be about an error of work that is tried again.

    An outage ends by itself; that of a server which writes, or of room on its disk, mostly too. What the server refuses
    for other reasons, as for want of a right or a table, somebody must mend.
    """
    if not isinstance(error, OUTAGE):
        return logging.ERROR
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    if needs_other_connection(error) or state == _DISK_FULL:
        return logging.WARNING
    return logging.INFO if state is None or state.startswith(_PASSING) else logging.ERROR
