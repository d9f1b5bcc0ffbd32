"""Roles that a test needs, and that do not outlive it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from .databases import TestServer


@contextmanager
def role(server: TestServer, url: str, name: str) -> Iterator[str]:
    """Make a role that may do nothing, and drop it at the end with all that it has in a database.

    Roles belong to the whole server: whoever else wants one of this name meanwhile waits. One that is there before
    stays, and loses only what it has in the test's database.

    Args:
        server: where to.
        url: libpq URI of the test's own database.
        name: of the role, such as one that the documentation names.
    """
    server.run("SELECT pg_advisory_lock(hashtext(%s))", (name,))
    try:
        found = server.run("SELECT oid FROM pg_roles WHERE rolname = %s", (name,))
        if not found:
            server.run(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
        try:
            yield name
        finally:
            with psycopg.connect(url, application_name="tests") as connection:
                connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            if not found:
                server.run(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
    finally:
        server.run("SELECT pg_advisory_unlock(hashtext(%s))", (name,))
