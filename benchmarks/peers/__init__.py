"""The channel layers that are compared."""

from __future__ import annotations

from benchmarks.peers.base import Peer, Place
from benchmarks.peers.in_memory import BareTasks, InMemory
from benchmarks.peers.nats import Nats
from benchmarks.peers.ours import ChannelsPgSa, Unconfirmed
from benchmarks.peers.postgres import ChannelsPostgres, RawNotify
from benchmarks.peers.rabbitmq import RabbitMQ
from benchmarks.peers.redis import RedisCore, RedisPubSub

OURS = ChannelsPgSa.name

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        ChannelsPgSa(),
        Unconfirmed(),
        RedisPubSub(),
        RedisCore(),
        Nats(),
        ChannelsPostgres(),
        RabbitMQ(),
        InMemory(),
        RawNotify(),
        BareTasks(),
    )
}

__all__ = ["OURS", "PEERS", "Peer", "Place"]
