"""Installs, updates and removes the tables: the Alembic history, driven from Python."""

from __future__ import annotations

import io
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, create_engine, inspect, select, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from .address import Connector, Url, connector
from .config import checked_schema
from .errors import ConfigurationError, SchemaError
from .schema import REVISION, installation, metadata, node, qualified, routines

TABLE_PREFIX = "channels_pg_sa_"
VERSION_TABLE = "channels_pg_sa_version"
URL_VARIABLES = ("CHANNELS_PG_SA_URL", "DATABASE_URL")

Database: TypeAlias = "Url | Connector"
"""Where the database is: a SQLAlchemy URL, a libpq URI or string, or a function that returns libpq parameters."""

_OUR_TABLES = frozenset({*metadata.tables, VERSION_TABLE})

_TABLE = """pg_catalog.to_regclass(
    pg_catalog.concat(pg_catalog.quote_ident(CAST(:schema AS text)) || '.', CAST(:table AS text)))"""

# Alembic has one context for the whole process, which two threads would take from each other.
_ONE_AT_A_TIME = threading.Lock()
# Any number will do, as long as nobody else's migrations take it.
LOCK = 0x6368_7067_7361


def upgrade(database: Database, *, schema: str | None = None, revision: str = "head") -> None:
    """Bring the tables to a revision, and make the PostgreSQL schema if there is none.

    Several processes may do it at once: one works, the others wait and then find nothing to do.

    Args:
        database: where to.
        schema: the PostgreSQL schema of the tables; None leaves it to the connection's search_path.
        revision: an identifier, or "head" for the newest.

    Raises:
        ConfigurationError: the address or the schema's name is wrong, or another history has made the tables.
        SchemaError: the tables are there, but do not tell their revision, or a newer version has made them.
        alembic.util.CommandError: there is no such revision.
        sqlalchemy.exc.DBAPIError: the database refuses.
    """
    config = alembic_config(database, schema=schema)
    _check_history(database, schema)
    with _ONE_AT_A_TIME:
        command.upgrade(config, revision)


def downgrade(database: Database, *, schema: str | None = None, revision: str) -> None:
    """Take the tables back to a revision; "base" removes them and all they hold.

    Raises: as `upgrade` does.
    """
    config = alembic_config(database, schema=schema)
    _check_history(database, schema)
    with _ONE_AT_A_TIME:
        command.downgrade(config, revision)


def write_sql(output: TextIO | None = None, *, schema: str | None = None, revision: str = "head") -> None:
    """Write the SQL that installs the tables in an empty database, for one who may not let programs do it.

    Args:
        output: where to write, None for sys.stdout; `psql -f` reads it.
        schema: the PostgreSQL schema of the tables; None leaves it to the search_path.
        revision: an identifier, "head", or "from:to" for an update.

    Raises:
        ConfigurationError: the schema's name is wrong.
        alembic.util.CommandError: there is no such revision.
    """
    whole = io.StringIO()  # what fails has written nothing
    with _ONE_AT_A_TIME:
        command.upgrade(alembic_config(None, schema=schema, output=whole), revision, sql=True)
    (output or sys.stdout).write(whole.getvalue())


def current(database: Database, *, schema: str | None = None) -> str | None:
    """Return the revision of the tables in a database, whosever history made them; None if there are none.

    Raises:
        SchemaError: the tables do not tell.
        ConfigurationError: the address or the schema's name is wrong.
        sqlalchemy.exc.DBAPIError: the database refuses.
    """
    name = checked_schema(schema)
    with engine_for(database).connect() as connection:
        return _current(connection, name)


def check(database: Database, *, schema: str | None = None) -> None:
    """Make sure that a database has the tables, functions and triggers that this version of the package needs.

    Raises:
        SchemaError: it has not; the message says what is missing, or which command mends it.
        ConfigurationError: the address or the schema's name is wrong.
        sqlalchemy.exc.DBAPIError: the database refuses.
    """
    name = checked_schema(schema)
    with engine_for(database).connect() as connection:
        check_revision(connection, name)
        wrong = [*_missing_tables(connection, name), *_logged_tables(connection, name)]
        wrong += _missing_routines(connection, name)
    if wrong:
        raise SchemaError(REVISION, REVISION, schema=schema, reason=", ".join(wrong))


def check_revision(connection: Connection, schema: str | None) -> None:
    """Raise SchemaError unless the tables are at the revision that this version of the package needs."""
    if (found := _current(connection, schema)) != REVISION:
        raise SchemaError(found, REVISION, schema=schema)


def history() -> list[tuple[str, str]]:
    """Return every revision with what it does, the newest first."""
    scripts = ScriptDirectory.from_config(alembic_config(None))
    return [(script.revision, script.doc) for script in scripts.walk_revisions()]


def include_object(obj: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
    """Keep our tables out of a host project's autogenerated migrations.

    Give it to `context.configure(include_object=…)` in the env.py of a project that shares its database with the
    layer; without it `alembic revision --autogenerate` would drop our tables. It leaves them out of every schema,
    for projects with `include_schemas=True`. A table of the project's own models stays in, unless its name is one of
    ours.
    """
    if kind != "table":
        return True  # Columns and indexes are those of the project: of a table that is left out, none is asked about.
    # Called as ours, and in no model: it may be of a newer version of the package, and must not be dropped.
    unknown = reflected and compare_to is None and str(name).startswith(TABLE_PREFIX)
    return not unknown and name not in _OUR_TABLES


def find_url(given: str | None, environ: Mapping[str, str], otherwise: str | None = None) -> str:
    """Return the address given, else that of CHANNELS_PG_SA_URL, else that of DATABASE_URL, else the last argument.

    Raises:
        ConfigurationError: none is there.
    """
    url = given or next((environ[name] for name in URL_VARIABLES if environ.get(name)), otherwise)
    if not url:
        raise ConfigurationError(
            f"Nothing says where the database is: give a URL, or set {' or '.join(URL_VARIABLES)}."
        )
    return url


def engine_for(database: Database) -> Engine:
    """Make an engine that opens a new connection each time and keeps none.

    Raises:
        ConfigurationError: the address is wrong.
    """
    connect = database if callable(database) else connector(database)
    defaults = {"application_name": "channels_pg_sa migrate", "prepare_threshold": None, "client_encoding": "utf8"}
    return create_engine(
        "postgresql+psycopg://", poolclass=NullPool, creator=lambda: psycopg.connect(**{**defaults, **connect()})
    )


def alembic_config(database: Database | None, *, schema: str | None = None, output: TextIO | None = None) -> Config:
    """Return what Alembic's own commands need to work on our history, from any directory.

    Args:
        database: where to; None for commands that need no database.
        schema: the PostgreSQL schema of the tables.
        output: where commands print and where SQL is written; None for sys.stdout.

    Raises:
        ConfigurationError: the schema's name is wrong.
    """
    output = output or sys.stdout  # as it is now: it may have been redirected
    config = Config(stdout=output, output_buffer=output)
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.attributes.update(database=database, schema=checked_schema(schema))
    return config


def script_location() -> Path:
    """Return the directory of the history: inside the installed package, or beside it in the repository."""
    inside = Path(__file__).with_name("_alembic")
    return inside if inside.is_dir() else Path(__file__).parent.parent / "alembic"


def opening_statements(schema: str | None) -> list[str]:
    """Return the statements that come first in the transaction of a migration.

    The lock makes concurrent migrations wait for each other. It goes with the transaction, as the search_path does, so
    that all of it works through a pooler too.
    """
    statements = [f"SELECT pg_advisory_xact_lock({LOCK})"]
    if schema is not None:
        # Not CREATE SCHEMA IF NOT EXISTS: it wants the right to create even where the schema exists.
        make = f'IF to_regnamespace(\'"{schema}"\') IS NULL THEN CREATE SCHEMA "{schema}"; END IF;'
        statements += [f"DO $$ BEGIN {make} END $$", f'SET LOCAL search_path TO "{schema}"']
    return statements


def _check_history(database: Database, schema: str | None) -> None:
    with engine_for(database).connect() as connection:
        _check_owners(connection, schema)
        there = set(inspect(connection).get_table_names(schema))
        if installation.name in there and VERSION_TABLE not in there:
            raise ConfigurationError(
                "The tables are there, and not from this history: a project's own Alembic, or metadata.create_all(), "
                "has made them. That has to change them too."
            )
        found = _current(connection, schema)
    if found is not None and found > REVISION:  # of which our history knows nothing
        raise SchemaError(found, REVISION, schema=schema)


def _current(connection: Connection, schema: str | None) -> str | None:
    if not inspect(connection).has_table(installation.name, schema=schema):
        return None
    options = {"schema_translate_map": None if schema is None else {None: schema}}
    found: str | None = connection.scalar(select(installation.c.revision), execution_options=options)
    if found is None:
        raise SchemaError("", REVISION, schema=schema)
    return found


def _missing_tables(connection: Connection, schema: str | None) -> Iterator[str]:
    """Yield what is missing of tables: whole ones, columns, and the primary keys that ON CONFLICT wants."""
    inspector = inspect(connection)
    for name, table in metadata.tables.items():
        if not inspector.has_table(name, schema=schema):
            yield f"no table {name}"
            continue
        there = {column["name"] for column in inspector.get_columns(name, schema=schema)}
        yield from (f"no column {name}.{column.name}" for column in table.columns if column.name not in there)
        if inspector.get_pk_constraint(name, schema=schema)["constrained_columns"] != list(
            table.primary_key.columns.keys()
        ):
            yield f"not the primary key of {name}"


def _logged_tables(connection: Connection, schema: str | None) -> Iterator[str]:
    """Yield that the table of nodes outlasts a crash, after which each node has to find itself gone."""
    persistence = text(f"SELECT relpersistence FROM pg_catalog.pg_class WHERE oid = {_TABLE}")  # noqa: S608
    found = connection.scalar(persistence, {"schema": schema, "table": node.name})
    if found == "p":
        yield f"{node.name} is not UNLOGGED (ALTER TABLE {qualified(node, schema)} SET UNLOGGED makes it so)"


def _missing_routines(connection: Connection, schema: str | None) -> Iterator[str]:
    """Yield which functions and triggers are missing, or do not fire."""
    functions = re.findall(r"CREATE OR REPLACE FUNCTION @\.(\w+)", routines())
    triggers = re.findall(r"CREATE TRIGGER (\w+) AFTER \w+ ON @\.(\w+)", routines())
    there = text(f"""
        WITH place (id) AS (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = {_TABLE})
        SELECT p.proname, NULL FROM pg_catalog.pg_proc p JOIN place ON place.id = p.pronamespace
        UNION ALL
        SELECT t.tgname, c.relname FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
        JOIN place ON place.id = c.relnamespace WHERE t.tgenabled IN ('O', 'A')""")  # noqa: S608
    rows = connection.execute(there, {"schema": schema, "table": installation.name})
    found = {(name, table) for name, table in rows}
    yield from (f"no function {name}" for name in functions if (name, None) not in found)
    yield from (f"no trigger {name} on {table} that fires" for name, table in triggers if (name, table) not in found)


def _check_owners(connection: Connection, schema: str | None) -> None:
    """Refuse what somebody else has put where our tables are, before it is read: a view runs what its owner likes."""
    strangers = text("""
        SELECT c.relname FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
        WHERE c.relname = ANY (:names) AND r.rolname <> current_user AND NOT r.rolsuper
            AND n.nspname = coalesce(:schema, pg_catalog.current_schema()::text)""")
    found = connection.scalar(strangers, {"names": sorted(_OUR_TABLES), "schema": schema})
    if found is not None:
        raise ConfigurationError(
            f"{found} is there already, and belongs to somebody else. Drop it, if it is a stranger's, or do this as "
            "the role that owns it."
        )


def reason_of(error: Exception) -> str:
    """Return what an error says, of the database's own without what SQLAlchemy adds for programmers."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    # https://www.postgresql.org/docs/current/ddl-schemas.html#DDL-SCHEMAS-PATTERNS recommends no search_path at all.
    is_nowhere = isinstance(cause, psycopg.errors.InvalidSchemaName)
    hint = '\nName a PostgreSQL schema ("schema" in CONFIG, or --schema), or set a search_path.' if is_nowhere else ""
    return str(cause).strip() + hint
