"""Runs the migrations of channels_pg_sa for Alembic, in a database or as SQL."""

from __future__ import annotations

import os
from logging.config import fileConfig
from typing import Any

from alembic import context

from channels_pg_sa.config import checked_schema
from channels_pg_sa.migrate import TABLE_PREFIX, VERSION_TABLE, Database, engine_for, find_url, opening_statements
from channels_pg_sa.schema import metadata

config = context.config
arguments = context.get_x_argument(as_dictionary=True)
schema = checked_schema(arguments.get("schema", config.attributes.get("schema")))


def database() -> Database:
    """Return where the database is, as the caller, the command line, the environment or alembic.ini says."""
    given = config.attributes.get("database")
    return given or find_url(arguments.get("url"), os.environ, config.get_main_option("sqlalchemy.url"))


def is_ours(obj: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
    """Leave other people's tables, and Alembic's own, out of comparisons."""
    return kind != "table" or (str(name).startswith(TABLE_PREFIX) and name != VERSION_TABLE)


def run(**options: Any) -> None:
    """Run what the command asks for, in one transaction."""
    context.configure(
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        version_table_schema=schema,
        include_object=is_ours,
        compare_type=True,
        compare_server_default=True,
        **options,
    )
    migration = context.get_context()
    reads_only = migration.opts.get("dont_mutate", False)  # `alembic current`: no schema, no lock
    with context.begin_transaction():
        for statement in () if reads_only else opening_statements(schema):
            context.execute(statement)
        context.run_migrations()
        if not (reads_only or migration.as_sql or migration.get_current_heads()):
            # Nothing is installed any more: leave nothing behind, not even Alembic's empty table.
            context.execute(f"DROP TABLE IF EXISTS {VERSION_TABLE}")


if config.config_file_name is not None and config.get_section("loggers"):
    fileConfig(config.config_file_name, disable_existing_loggers=False)
if context.is_offline_mode():
    # Named parameters: with the driver's own style each % in a function would be doubled.
    run(dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"})
else:
    with engine_for(database()).connect() as connection:
        run(connection=connection)
