"""channels-nats: core NATS, whose sends are not confirmed."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.base import AMPLE, Peer, Place


class Nats(Peer):
    """A publish is done when it is in the client's buffer."""

    name = "channels-nats"
    package = "channels_nats"
    default_url = "nats://127.0.0.1:4222"
    url_variable = "CHANNELS_PG_SA_BENCH_NATS"
    lacks = {
        "blocking": "has no synchronous send",
        "bulk": "keeps memberships in the process",
        "encryption": "does not encrypt",
    }

    def build(self, place: Place) -> Any:
        from channels_nats import NatsChannelLayer

        return NatsChannelLayer(servers=[place.url], prefix=place.prefix, capacity=AMPLE)

    async def close(self, layer: Any) -> None:
        await layer.close()
