"""DATABASES for one test, whatever Django was set up with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from django.db import connections
from django.db.utils import ConnectionHandler
from psycopg.conninfo import conninfo_to_dict


def entry(url: str, **options: Any) -> dict[str, Any]:
    """Return the DATABASES entry of a libpq URI."""
    facts = conninfo_to_dict(url)
    names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    own = {names[key]: value for key, value in facts.items()}
    return {"ENGINE": "django.db.backends.postgresql", **own, "OPTIONS": options}


@contextmanager
def databases(**entries: dict[str, Any]) -> Iterator[None]:
    """Set DATABASES, with connections of their own that are closed at the end."""
    _forget_connections()
    with patch.dict(connections.__dict__, settings=ConnectionHandler(entries).settings):
        yield
        _forget_connections()


def _forget_connections() -> None:
    for connection in connections.all(initialized_only=True):
        connection.close()
        del connections[connection.alias]
