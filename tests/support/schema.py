"""Installing our tables in a test database."""

from __future__ import annotations

SCHEMA = "tenant"
"""A PostgreSQL schema that the test databases have our tables in as well."""


def install(url: str, schema: str | None = None) -> None:
    """Install the tables in a database through the migrations.

    Args:
        url: libpq URI.
        schema: the PostgreSQL schema; None leaves it to the search path.
    """
    try:
        from channels_pg_sa import migrate
    except ImportError:
        return _create(url, schema)
    migrate.upgrade(url, schema=schema)


def _create(url: str, schema: str | None) -> None:
    import psycopg
    from sqlalchemy import create_engine, text

    from channels_pg_sa.schema import metadata

    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    with engine.begin() as connection:
        if schema:
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
            connection.execute(text(f"SET search_path = {schema}"))
        metadata.create_all(connection, checkfirst=False)
    engine.dispose()
