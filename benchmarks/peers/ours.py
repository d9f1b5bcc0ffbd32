"""channels_pg_sa itself."""

from __future__ import annotations

from typing import Any, ClassVar

from benchmarks.peers.base import Peer, Place

_FILL = (
    # Joins of strangers, which nobody needs to hear of.
    "ALTER TABLE channels_pg_sa_membership DISABLE TRIGGER joined",
    """INSERT INTO channels_pg_sa_node (id, prefix, lease_until)
    SELECT 'other' || n, %(prefix)s, 'infinity' FROM generate_series(0, 99) AS n""",
    """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel)
    SELECT %(prefix)s, 'other' || n / 100, 'other' || n %% 100, 'specific.other' || n %% 100 || '!' || n
    FROM generate_series(1, %(memberships)s) AS n""",
    "ALTER TABLE channels_pg_sa_membership ENABLE TRIGGER joined",
)
_TABLES = "channels_pg_sa_message, channels_pg_sa_membership, channels_pg_sa_node"


class ChannelsPgSa(Peer):
    """The layer this repository holds, with its defaults."""

    name = "channels_pg_sa"
    package = "channels_pg_sa.core"
    uses_postgres = True
    config: ClassVar[dict[str, Any]] = {}

    def absent(self, url: str) -> str | None:
        try:
            return super().absent(url)
        except ImportError as error:
            return f"channels_pg_sa cannot be imported ({error})"

    def install(self, url: str) -> None:
        from channels_pg_sa.migrate import upgrade

        upgrade(url)

    def clear(self, url: str) -> None:
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"TRUNCATE {_TABLES}")

    def fill(self, place: Place, memberships: int) -> None:
        import psycopg

        values = {"prefix": place.prefix, "memberships": memberships}
        with psycopg.connect(place.url) as connection, psycopg.ClientCursor(connection) as cursor:
            for statement in _FILL:
                cursor.execute(statement, values)
            cursor.execute("ANALYZE channels_pg_sa_membership")

    def build(self, place: Place) -> Any:
        from channels_pg_sa.core import PostgresChannelLayer

        keys = [place.secret] if place.secret else []
        return PostgresChannelLayer(url=place.url, prefix=place.prefix, symmetric_encryption_keys=keys, **self.config)

    async def close(self, layer: Any) -> None:
        await layer.close()

    def send_plainly(self, layer: Any, channel: str, message: dict[str, Any]) -> None:
        layer.send_sync(channel, message)

    def close_plainly(self, layer: Any) -> None:
        layer.close_sync()


class Unconfirmed(ChannelsPgSa):
    """The same with sends that do not wait for their commit, as those of NATS do not wait either."""

    name = "channels_pg_sa unconfirmed"
    only = frozenset({"send_1", "send_64", "group_1x100", "group_4x250", "async_to_sync"})
    config: ClassVar[dict[str, Any]] = {"confirm_sends": False}
