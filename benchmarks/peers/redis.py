"""The two layers of channels_redis."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.base import AMPLE, Peer, Place

_CONNECTIONS = 4_096
"""Recent clients stop at 100 connections, fewer than the callers of some scenarios."""

_URL = "redis://127.0.0.1:6379"


def _hosts(place: Place) -> list[dict[str, Any]]:
    return [{"address": place.url, "max_connections": _CONNECTIONS}]


def _keys(place: Place) -> list[str] | None:
    return [place.secret] if place.secret else None


class RedisCore(Peer):
    """The default layer: messages wait in sorted sets."""

    name = "channels_redis"
    package = "channels_redis"
    default_url = _URL
    url_variable = "CHANNELS_PG_SA_BENCH_REDIS"
    lacks = {"blocking": "has no synchronous send"}

    def build(self, place: Place) -> Any:
        from channels_redis.core import RedisChannelLayer

        return RedisChannelLayer(
            hosts=_hosts(place), prefix=place.prefix, capacity=AMPLE, symmetric_encryption_keys=_keys(place)
        )

    async def close(self, layer: Any) -> None:
        await layer.close_pools()

    def fill(self, place: Place, memberships: int) -> None:
        import redis

        layer = self.build(place)
        with redis.Redis.from_url(place.url) as client, client.pipeline(transaction=False) as pipeline:
            for start in range(0, memberships, 100):
                members = {f"specific.other!{start + offset}": 4e9 for offset in range(100)}
                pipeline.zadd(layer._group_key(f"other{start}"), members)
                pipeline.expire(layer._group_key(f"other{start}"), 300)
            pipeline.execute()


class RedisPubSub(Peer):
    """The pub/sub layer: nothing waits on the server."""

    name = "channels_redis pub/sub"
    package = "channels_redis"
    default_url = _URL
    url_variable = "CHANNELS_PG_SA_BENCH_REDIS"
    lacks = {"blocking": "has no synchronous send", "bulk": "keeps memberships in the process"}

    def build(self, place: Place) -> Any:
        from channels_redis.pubsub import RedisPubSubChannelLayer

        return RedisPubSubChannelLayer(hosts=_hosts(place), prefix=place.prefix, symmetric_encryption_keys=_keys(place))

    async def close(self, layer: Any) -> None:
        await layer.flush()
