"""Sends through Django's own connections, and closes the layers when a server stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from channels.layers import DEFAULT_CHANNEL_LAYER, get_channel_layer
from django.core.exceptions import ImproperlyConfigured
from django.db import DataError, ProgrammingError, connections
from django.db.backends.postgresql.base import DatabaseWrapper

from .codec import Message
from .connections.fate import is_without_secret
from .errors import SchemaError
from .layer import Layer, close_layers
from .schema import REVISION

_UNDEFINED_TABLE = "42P01"


def send(channel: str, message: Message, *, using: str | None = None, layer: str = DEFAULT_CHANNEL_LAYER) -> None:
    """Send a message to a channel through Django's own connection: within atomic(), if and when that commits.

    It needs no event loop and opens no connection: for views, signals, admin actions, tasks and commands. Outside of
    atomic() it is sent at once. In a TestCase, whose transaction never commits, nobody receives it.

    In a coroutine it raises SynchronousOnlyOperation, as Django's connections do. What shall be sent whatever becomes
    of the transaction, the layer itself sends.

    Args:
        channel: its name.
        message: a dict, as for the layer's send().
        using: an alias of DATABASES whose database has the layer's tables; by default the alias that the layer uses.
        layer: the entry of CHANNEL_LAYERS, whose prefix, expiry, keys, serializer and schema count.

    Raises:
        TypeError, MessageTooLarge: as the layer's send().
        django.core.exceptions.ImproperlyConfigured: the layer is not one of ours, or has an address of its own, so that
            nothing says what `using` is; or that database is not PostgreSQL; or without `using`, atomic() is that of
            another alias of the same database.
        SchemaError: the tables are missing, or the row that they want.
        django.db.Error: the database refuses.

    https://docs.djangoproject.com/en/stable/topics/db/transactions/
    """
    ours = _layer(layer)
    _execute(using, layer, ours, *ours.send_sql(channel, message))


def group_send(group: str, message: Message, *, using: str | None = None, layer: str = DEFAULT_CHANNEL_LAYER) -> None:
    """Send a message to the members of a group through Django's own connection; otherwise as `send`."""
    ours = _layer(layer)
    _execute(using, layer, ours, *ours.group_send_sql(group, message))


async def lifespan(_scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Close the layers when the server stops; an ASGI application for the type "lifespan" of a ProtocolTypeRouter.

    Uvicorn that gets SIGTERM, and so Gunicorn, ends itself by a signal that leaves no time for it. Daphne needs none of
    this.

    https://asgi.readthedocs.io/en/latest/specs/lifespan.html
    """
    message = await receive()
    if message["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
        message = await receive()
    await asyncio.to_thread(close_layers)
    await send({"type": "lifespan.shutdown.complete"})


def _layer(name: str) -> Layer:
    layer = get_channel_layer(name)
    if layer is None:
        raise ImproperlyConfigured(f'CHANNEL_LAYERS has no entry "{name}".')
    if not isinstance(layer, Layer):
        raise ImproperlyConfigured(
            f'CHANNEL_LAYERS["{name}"] is no layer of channels_pg_sa, so that nothing can be sent through a database. '
            "If this is a test, let it have that layer, or replace this function with unittest.mock."
        )
    return layer


def _execute(using: str | None, name: str, layer: Layer, sql: str, parameters: Mapping[str, Any]) -> None:
    alias = getattr(layer, "database", None) if using is None else using
    if alias is None:
        raise ImproperlyConfigured(
            f'CHANNEL_LAYERS["{name}"] has an address of its own. Say with using="…" which alias of DATABASES leads to '
            "the same database."
        )
    connection = connections[alias]
    if connection.vendor != DatabaseWrapper.vendor:
        raise ImproperlyConfigured(f'DATABASES["{alias}"] is not PostgreSQL, where the tables of the layer are.')
    with connection.cursor() as cursor:
        if using is None:  # not before: what Django has against that alias comes first
            _check_transaction(connection)
        try:
            cursor.execute(sql, parameters)
        except (DataError, ProgrammingError) as error:
            database = connection.settings_dict["NAME"]
            # psycopg's name for the SQLSTATE, and psycopg2's; https://www.postgresql.org/docs/current/errcodes-appendix.html
            if _UNDEFINED_TABLE in {getattr(error.__cause__, name, None) for name in ("sqlstate", "pgcode")}:
                raise SchemaError(None, REVISION, database=database) from error
            if is_without_secret(error.__cause__):
                raise SchemaError("", REVISION, database=database) from error
            raise


def _check_transaction(ours: DatabaseWrapper) -> None:
    """Refuse to commit at once beside a transaction of the same database, which the message is to leave with."""
    if not ours.autocommit:  # which atomic() turns off
        return
    for other in connections.all(initialized_only=True):
        if other.in_atomic_block and _place(other) == _place(ours):
            raise ImproperlyConfigured(
                f'The layer uses the alias "{ours.alias}", and the transaction that is open is of "{other.alias}", the '
                f'same database: say using="{other.alias}" to send with it, or using="{ours.alias}" to send at once.'
            )


def _place(connection: DatabaseWrapper) -> list[str]:
    """Return what tells one database from another: in the entry itself, or in libpq's words."""
    entry, options = connection.settings_dict, connection.settings_dict["OPTIONS"]
    said = [entry[key] or options.get(word) for key, word in (("HOST", "host"), ("PORT", "port"), ("NAME", "dbname"))]
    return [connection.vendor, *map(str, said), *(str(options.get(word)) for word in ("hostaddr", "service"))]
