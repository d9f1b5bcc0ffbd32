"""The database of a run: the one DATABASE_URL names, else a private PostgreSQL that vanishes afterwards."""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from channels_pg_sa.migrate import upgrade
from launcher.fleet import StartFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

PRIVATE_SERVER = Path(__file__).resolve().parents[3] / "tests" / "support" / "temp_postgres.py"


@contextmanager
def database() -> Iterator[tuple[str, str]]:
    """Yield the URL of a database that has the schema, and words for where it is."""
    given = os.environ.get("DATABASE_URL")
    if given:
        try:
            upgrade(given)
        except DBAPIError as error:
            raise StartFailed(f"DATABASE_URL does not lead to a database that can be used.\n{error.orig}") from None
        yield given, "the server of DATABASE_URL"
        return
    with _private_server() as server:
        upgrade(server.url)
        yield server.url, f"a private PostgreSQL {server.major}"


def _private_server() -> Any:
    # By path: the demo needs this one file of the tests, and is no part of their package.
    spec = importlib.util.spec_from_file_location("temp_postgres", PRIVATE_SERVER)
    if spec is None or spec.loader is None or not PRIVATE_SERVER.exists():
        raise StartFailed(f"Set DATABASE_URL, or run this in a clone of the repository: {PRIVATE_SERVER} is missing.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.TempPostgres(settings={"max_connections": 60})
