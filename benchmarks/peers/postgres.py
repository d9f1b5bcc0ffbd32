"""channels_postgres, and the floor under every layer on PostgreSQL: NOTIFY alone."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from benchmarks.peers.base import Peer, Place, first_receive


def _django_database(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
    }


def _set_up_django(url: str) -> None:
    import django
    from django.conf import settings

    if not settings.configured:
        database = _django_database(url)
        databases = {"default": database, "channels_postgres": database}
        settings.configure(INSTALLED_APPS=["channels_postgres"], DATABASES=databases, USE_TZ=True)
        django.setup()


class ChannelsPostgres(Peer):
    """Its README's configuration, with the settings a layer object needs and its tables emptied before each case."""

    name = "channels_postgres"
    package = "channels_postgres"
    uses_postgres = True
    max_channels: ClassVar[int] = 5_000
    beyond = "takes one advisory lock a channel, and a server with default settings has room for fewer than 9,000"
    lacks = {"blocking": "has no synchronous send", "idle": beyond}

    def install(self, url: str) -> None:
        from django.core.management import call_command

        _set_up_django(url)
        call_command("migrate", "channels_postgres", database="channels_postgres", verbosity=0)

    def clear(self, url: str) -> None:
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("TRUNCATE channels_postgres_message, channels_postgres_groupchannel")

    def fill(self, place: Place, memberships: int) -> None:
        import psycopg

        statement = (
            "INSERT INTO channels_postgres_groupchannel (group_key, channel, expire)"
            " SELECT 'asgi:group:other' || n / 100, 'specific.other!' || n, now() + interval '1 day'"
            " FROM generate_series(1, %s) AS n"
        )
        with psycopg.connect(place.url, autocommit=True) as connection:
            connection.execute(statement, (memberships,))
            connection.execute("ANALYZE channels_postgres_groupchannel")

    def build(self, place: Place) -> Any:
        _set_up_django(place.url)
        from channels_postgres.core import PostgresChannelLayer

        config: dict[str, Any] = {
            **_django_database(place.url),
            "TIME_ZONE": None,
            "PSYCOPG_OPTIONS": {"min_size": 10, "max_size": 10},
        }
        if place.secret:
            config["symmetric_encryption_keys"] = [place.secret]
        return PostgresChannelLayer(**config)

    async def open(self, layer: Any) -> None:
        # Receives that start together would each open a listener and deliver every message several times.
        layer.listener_task_is_running = asyncio.Event()
        await first_receive(layer, layer.listener_task_is_running)

    async def close(self, layer: Any) -> None:
        from channels_postgres import db

        if db.connection_pool is not None:
            await db.connection_pool.close()


class NotifyLayer:
    """The least that can be a channel on PostgreSQL: one connection sends NOTIFY, one listens."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._name = f"bench_{uuid.uuid4().hex}"
        self._sender: Any = None
        self._listener: Any = None

    async def open(self) -> None:
        """Connect both connections and LISTEN."""
        import psycopg

        self._sender = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        self._listener = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        await self._listener.execute(f"LISTEN {self._name}")
        self._notifies = self._listener.notifies()

    async def new_channel(self) -> str:
        """Return the one channel this layer has."""
        return self._name

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Notify."""
        payload = json.dumps({**message, "body": message["body"].decode("ascii")})
        await self._sender.execute("SELECT pg_notify(%s, %s)", (channel, payload))

    async def receive(self, channel: str) -> dict[str, Any]:
        """Wait for the next notification."""
        notify = await anext(self._notifies)
        message: dict[str, Any] = json.loads(notify.payload)
        message["body"] = message["body"].encode("ascii")
        return message

    async def close(self) -> None:
        """Close both connections."""
        for connection in (self._sender, self._listener):
            await connection.close()


class RawNotify(Peer):
    """The floor for round trips."""

    name = "raw pg_notify (floor)"
    package = "psycopg"
    uses_postgres = True
    only = frozenset({"ping_pong"})

    def build(self, place: Place) -> Any:
        return NotifyLayer(place.url)

    async def open(self, layer: Any) -> None:
        await layer.open()

    async def close(self, layer: Any) -> None:
        await layer.close()
