"""What an error of the database means for the statement that met it."""

from __future__ import annotations

import asyncio
import enum
import logging

import psycopg
from sqlalchemy.exc import DBAPIError

from .errors import LayerClosed

# The server's word that it did not do the statement, but would at another time.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_AGAIN = frozenset({"40001", "40P01", "57P01", "57P02", "57P03", "57P05"})
_NO_SUCH_THING = frozenset({"42P01", "42703", "42883", "3F000"})


OUTAGE = (psycopg.Error, DBAPIError, OSError, asyncio.TimeoutError, LayerClosed)
"""What work that meets an outage raises; anything else is a mistake of ours."""


class Fate(enum.Enum):
    """What an error says about the statement that met it."""

    NOT_DONE = "not done, and it may be tried again"
    REFUSED = "not done, and it will not be"
    NO_SCHEMA = "not done: it needs tables that are not there"
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
    if state in _AGAIN:
        return Fate.NOT_DONE
    return Fate.NO_SCHEMA if state in _NO_SUCH_THING else Fate.REFUSED


def log_level(error: Exception) -> int:
    """Return how loud the log must be about an error of work that is tried again.

    An outage ends by itself. What the server refuses for want of a right or a table, class 42, somebody must mend.
    """
    if not isinstance(error, OUTAGE):
        return logging.ERROR
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return logging.ERROR if state is not None and state.startswith("42") else logging.INFO
