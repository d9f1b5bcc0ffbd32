"""Installing our tables in a test database."""

from __future__ import annotations

from channels_pg_sa import migrate

SCHEMA = "tenant"
"""A PostgreSQL schema that the test databases have our tables in as well."""


def install(url: str, schema: str | None = None) -> None:
    """Install the tables in a database through the migrations.

    Args:
        url: libpq URI.
        schema: the PostgreSQL schema; None leaves it to the search path.
    """
    migrate.upgrade(url, schema=schema)
