"""What an error means for the statement, for its connection and for the log."""

from __future__ import annotations

import asyncio
import logging

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from channels_pg_sa.connections.fate import Fate, fate, is_queue_full, log_level, needs_other_connection
from channels_pg_sa.errors import LayerClosed


def error_of(state: str) -> psycopg.Error:
    """Return psycopg's error of an SQLSTATE."""
    return psycopg.errors.lookup(state)("refused")


@pytest.mark.parametrize(
    ("state", "outcome", "misled", "level"),
    [
        ("57P01", Fate.NOT_DONE, False, logging.INFO),  # the server shuts down
        ("40001", Fate.NOT_DONE, False, logging.INFO),  # a conflict
        ("25P03", Fate.NOT_DONE, False, logging.INFO),  # the transaction was left alone for too long
        ("25006", Fate.NOT_DONE, True, logging.WARNING),  # the server only reads
        ("0A000", Fate.NOT_DONE, True, logging.WARNING),  # unlogged tables on a standby
        ("25P04", Fate.NOT_DONE, False, logging.INFO),  # it lasted for too long
        ("58030", Fate.REFUSED, False, logging.INFO),  # the server's disk fails
        ("54000", Fate.REFUSED, False, logging.INFO),  # some limit
        ("26000", Fate.REFUSED, False, logging.INFO),  # the session was reset, and its prepared statements with it
        ("42501", Fate.REFUSED, False, logging.ERROR),  # a right is missing
        ("21000", Fate.REFUSED, False, logging.ERROR),  # the primary key is gone
        ("53300", Fate.REFUSED, False, logging.INFO),  # too many connections
        ("53100", Fate.REFUSED, False, logging.WARNING),  # the disk is full
        ("55P03", Fate.NOT_DONE, False, logging.INFO),  # a lock was not to be had
        ("42P01", Fate.NO_SCHEMA, False, logging.ERROR),  # no table
        ("42P10", Fate.NO_SCHEMA, False, logging.ERROR),  # no primary key for ON CONFLICT
        ("08006", Fate.UNKNOWN, False, logging.INFO),  # a pooler has lost the server
    ],
)
def test_what_the_server_says(state: str, outcome: Fate, misled: bool, level: int) -> None:
    """By its SQLSTATE, whatever its words."""
    error = error_of(state)
    assert (fate(error), needs_other_connection(error), log_level(error)) == (outcome, misled, level)


def test_a_full_queue_of_notifications_becomes_free() -> None:
    """Which no other limit does that has the same SQLSTATE."""
    full = psycopg.errors.ProgramLimitExceeded("too many notifications in the NOTIFY queue")
    assert (fate(full), is_queue_full(full)) == (Fate.NOT_DONE, True)
    assert not is_queue_full(psycopg.errors.ProgramLimitExceeded("index row size 4032 exceeds btree maximum"))


def test_what_is_said_without_an_sqlstate() -> None:
    """The connection was lost, and the answer with it; what the driver refuses was not sent."""
    assert fate(psycopg.OperationalError("lost")) is Fate.UNKNOWN
    assert fate(psycopg.DatabaseError("an answer that libpq cannot read")) is Fate.UNKNOWN
    assert fate(psycopg.ProgrammingError("wrong")) is Fate.REFUSED
    assert log_level(psycopg.OperationalError("lost")) == log_level(TimeoutError()) == logging.INFO
    assert log_level(KeyError("ours")) == logging.ERROR


@pytest.mark.parametrize(
    "error",
    [
        psycopg.Error("lost"),
        DBAPIError("", None, Exception("lost")),
        OSError(),
        asyncio.TimeoutError(),
        LayerClosed(""),
    ],
)
def test_what_ends_by_itself_is_no_mistake_of_ours(error: Exception) -> None:
    """The server's errors by either driver, the network's, a time that is over, and a layer that closes meanwhile."""
    assert log_level(error) == logging.INFO


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (psycopg.OperationalError("connection lost"), Fate.UNKNOWN),
        (psycopg.errors.ProtocolViolation("server conn crashed?"), Fate.UNKNOWN),  # as PgBouncer says it
        (psycopg.errors.ConnectionFailure(), Fate.UNKNOWN),
        (psycopg.DatabaseError("lost synchronization with server"), Fate.UNKNOWN),  # libpq's, of what it cannot read
        (psycopg.errors.AdminShutdown(), Fate.NOT_DONE),
        (psycopg.errors.CrashShutdown(), Fate.NOT_DONE),
        (psycopg.errors.CannotConnectNow(), Fate.NOT_DONE),
        (psycopg.errors.IdleSessionTimeout(), Fate.NOT_DONE),
        (psycopg.errors.SerializationFailure(), Fate.NOT_DONE),
        (psycopg.errors.DeadlockDetected(), Fate.NOT_DONE),
        (psycopg.errors.ReadOnlySqlTransaction(), Fate.NOT_DONE),
        (psycopg.errors.UndefinedTable(), Fate.NO_SCHEMA),
        (psycopg.errors.UndefinedColumn(), Fate.NO_SCHEMA),
        (psycopg.errors.UndefinedFunction(), Fate.NO_SCHEMA),
        (psycopg.errors.InvalidSchemaName(), Fate.NO_SCHEMA),
        (psycopg.DataError("what the driver cannot send"), Fate.REFUSED),
    ],
)
def test_what_an_error_says_about_the_statement(error: psycopg.Error, meaning: Fate) -> None:
    """Only the server's own word that it did not do the statement allows to do it again."""
    assert fate(error) is meaning
