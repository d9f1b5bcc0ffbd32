"""SQLAlchemy engines of any driver on a test database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, Engine, NullPool, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

DRIVERS = ("psycopg", "psycopg2", "pg8000")
ASYNC_DRIVERS = ("psycopg", "asyncpg")


def sqlalchemy_url(url: str, driver: str = "psycopg") -> URL:
    """Return a libpq URI as a SQLAlchemy URL; of its parameters, `options` and a socket's host and port are kept."""
    facts = conninfo_to_dict(url)
    made = URL.create(f"postgresql+{driver}", facts.get("user"), facts.get("password"), database=str(facts["dbname"]))
    if options := facts.get("options"):
        made = made.set(query={"options": str(options)})
    host, port = str(facts.get("host", "localhost")), str(facts.get("port", 5432))
    if not host.startswith("/"):
        return made.set(host=host, port=int(port))
    if driver == "pg8000":
        return made.update_query_dict({"unix_sock": f"{host}/.s.PGSQL.{port}"})
    return made.update_query_dict({"host": host, "port": port})


@contextmanager
def engine_on(url: str, driver: str = "psycopg", **options: Any) -> Iterator[Engine]:
    """Give an Engine on the database of a libpq URI, which keeps no connection."""
    engine = create_engine(sqlalchemy_url(url, driver), **{"poolclass": NullPool, **options})
    yield engine
    engine.dispose()


@asynccontextmanager
async def async_engine_on(url: str, driver: str = "psycopg", **options: Any) -> AsyncIterator[AsyncEngine]:
    """Give an AsyncEngine on the database of a libpq URI, which keeps no connection."""
    engine = create_async_engine(sqlalchemy_url(url, driver), **{"poolclass": NullPool, **options})
    yield engine
    await engine.dispose()
