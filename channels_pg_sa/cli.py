"""The command `channels-pg-sa`: installs, updates, checks and removes the tables, and shows what is in them."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from . import migrate
from .errors import ConfigurationError, SchemaError
from .status import status
from .version import __version__

FAILED = 1
MISUSED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit code: 0; 1 if the database is not as it should be, or refuses; 2 for a wrong argument.
    """
    parser = argparse.ArgumentParser(
        prog="channels-pg-sa",
        description="Install, update, check and remove the tables of channels_pg_sa, and show what is in them.",
        epilog=f"Without --url the environment is asked: {', then '.join(migrate.URL_VARIABLES)}.",
    )
    add_commands(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--url", help="a SQLAlchemy URL, or a libpq URI or string, of the database")
    parser.add_argument("--schema", help="the PostgreSQL schema of the tables; default: the connection's search_path")
    arguments = parser.parse_intermixed_args(argv)
    try:
        check_arguments(arguments)
        database = migrate.find_url(arguments.url, os.environ) if _needs_database(arguments) else None
        run(arguments, database, arguments.schema, sys.stdout)
        sys.stdout.flush()
    except (ConfigurationError, CommandError) as error:
        return _complain(error, MISUSED)
    except (SchemaError, DBAPIError) as error:
        return _complain(error, FAILED)
    except OSError as error:  # the disk is full, say; https://docs.python.org/3/library/signal.html#note-on-sigpipe
        with contextlib.suppress(OSError):  # it is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED if isinstance(error, BrokenPipeError) else _complain(error, FAILED)  # whoever reads has enough
    return 0


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what to do."""
    parser.add_argument("command", choices=("upgrade", "downgrade", "current", "check", "history", "sql", "status"))
    parser.add_argument(
        "revision",
        nargs="?",
        help="of upgrade and sql: where to, default head; of downgrade: where to, `base` removes all tables",
    )


def check_arguments(arguments: argparse.Namespace) -> None:
    """Make sure that the revision goes with the command.

    Raises:
        ConfigurationError: it does not.
    """
    if "://" in (arguments.revision or ""):
        raise ConfigurationError("An address stands where a revision is expected: write --url before it.")
    if arguments.command == "downgrade" and not arguments.revision:
        raise ConfigurationError("downgrade needs a revision; `downgrade base` removes all tables.")
    if arguments.command in {"current", "check", "history", "status"} and arguments.revision:
        raise ConfigurationError(f"{arguments.command} takes no revision.")


def run(arguments: argparse.Namespace, database: migrate.Database | None, schema: str | None, output: TextIO) -> None:
    """Do what `add_commands` put into the arguments.

    Args:
        arguments: `command` and `revision`.
        database: where to; None for the commands that need none.
        schema: the PostgreSQL schema of the tables; None leaves it to the connection's search_path.
        output: where results are written.

    Raises:
        ConfigurationError: the schema's name is wrong, another history has made the tables, or there is no database.
        SchemaError: `check` or `status` found the tables missing or of another revision, or there are tables without
            data.
        alembic.util.CommandError: there is no such revision.
        sqlalchemy.exc.DBAPIError: the database refuses.
    """
    revision = arguments.revision or "head"
    if arguments.command == "history":
        output.writelines(f"{name}  {text}\n" for name, text in migrate.history())
    elif arguments.command == "sql":
        migrate.write_sql(output, schema=schema, revision=revision)
    elif database is None:
        raise ConfigurationError(f"{arguments.command} needs a database.")
    else:
        _in_database(arguments.command, revision, database, schema, output)


def _needs_database(arguments: argparse.Namespace) -> bool:
    """Tell whether the command asks a database at all."""
    return arguments.command not in {"history", "sql"}


def _in_database(command: str, revision: str, database: migrate.Database, schema: str | None, output: TextIO) -> None:
    if command == "status":
        output.write(status(database, schema=schema))
        return
    if command == "check":
        migrate.check(database, schema=schema)
    elif command == "upgrade":
        migrate.upgrade(database, schema=schema, revision=revision)
    elif command == "downgrade":
        migrate.downgrade(database, schema=schema, revision=revision)
    output.write(f"{migrate.current(database, schema=schema) or 'no tables of channels_pg_sa'}\n")


def _complain(error: Exception, code: int) -> int:
    print(f"channels-pg-sa: {migrate.reason_of(error)}", file=sys.stderr)
    return code
