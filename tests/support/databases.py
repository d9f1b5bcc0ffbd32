"""Databases on the test server: fresh ones, copies of a template, and a look at who is connected."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from .urls import with_database

if TYPE_CHECKING:
    from typing_extensions import LiteralString

AWAITED = """SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE NOT granted AND datname = current_database()"""
"""Locks that sessions of this database wait for; in its copies, of other tests, the tables have the same OIDs."""
OURS = "channels_pg_sa%"
"""LIKE pattern of the application names of the layer's connections."""


class TestServer:
    """Create, inspect and drop databases over one administrative connection.

    Args:
        url: libpq URI of a database whose user may create databases.
    """

    __test__ = False

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = psycopg.connect(url, autocommit=True, application_name="tests")
        self._mark = secrets.token_hex(4)  # what a killed run has left is not in the way
        self._numbers = itertools.count(1)
        self._created: list[str] = []

    def create(self, template: str | None = None) -> str:
        """Create a database, empty or a copy of that of the URI `template`, and return its URI."""
        name = f"channels_pg_sa_test_{self._mark}_{next(self._numbers)}"
        source = database_name(template) if template else "template0"
        self.run(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(source)))
        self._created.append(name)
        return with_database(self.url, name)

    def drop(self, url: str) -> None:
        """Drop a database, and throw out who is still in it."""
        name = database_name(url)
        self.run(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        self._created.remove(name)

    def close(self) -> None:
        """Drop all that is left and disconnect."""
        for name in list(self._created):
            self.drop(with_database(self.url, name))
        self._connection.close()

    def run(self, query: sql.Composed | LiteralString, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run a statement on the administrative connection and return its rows."""
        cursor = self._connection.execute(query, parameters or None)
        return cursor.fetchall() if cursor.description else []

    def connections(self, url: str, application: str = OURS) -> list[int]:
        """Return the backends' process ids of the connections to a database whose application name is LIKE this."""
        rows = self.run(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND application_name LIKE %s ORDER BY pid",
            (database_name(url), application),
        )
        return [pid for (pid,) in rows]

    def terminate(self, pids: Sequence[int]) -> None:
        """End these backends, as an administrator or a failover would."""
        for pid in pids:
            self.run("SELECT pg_terminate_backend(%s)", (pid,))


def database_name(url: str) -> str:
    """Return the name of the database in a libpq URI."""
    return str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])


def query(
    url: str, statement: LiteralString, parameters: Sequence[object] | Mapping[str, object] = ()
) -> list[tuple[Any, ...]]:
    """Run one statement in a database, commit, and return its rows."""
    with psycopg.connect(url, autocommit=True, application_name="tests") as connection:
        cursor = connection.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def run_script(url: str, script: str) -> None:
    """Run several statements."""
    with psycopg.connect(url, autocommit=True, application_name="tests") as connected:
        connected.execute(script.encode())
