"""channels_rabbitmq, which serves process-specific channels and groups only."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.base import Peer, Place

_PREFETCH_LIMIT = 60_000
"""AMQP counts unacknowledged messages in 16 bits."""


class RabbitMQ(Peer):
    """Each send waits for the broker's confirmation."""

    name = "channels_rabbitmq"
    package = "channels_rabbitmq"
    default_url = "amqp://guest:guest@127.0.0.1:5672/%2F"
    url_variable = "CHANNELS_PG_SA_BENCH_RABBITMQ"
    lacks = {
        "queue": "has no normal channels",
        "blocking": "has no synchronous send",
        "async_to_sync": "refuses async_to_sync outside a running loop",
        "bulk": "keeps memberships in the process",
        "encryption": "does not encrypt",
    }

    def build(self, place: Place) -> Any:
        from channels_rabbitmq.core import RabbitmqChannelLayer

        return RabbitmqChannelLayer(
            host=place.url,
            local_capacity=_PREFETCH_LIMIT,
            remote_capacity=_PREFETCH_LIMIT,
            groups_exchange=place.prefix,
        )

    async def open(self, layer: Any) -> None:
        await layer.carehare_connection

    async def close(self, layer: Any) -> None:
        await layer.close()
