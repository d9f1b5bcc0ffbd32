"""The NOTIFY channels of nodes and queues, which only those who know the installation's secret can tell."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

SIGN = 8
"""Characters of the secret that are told to statements."""


def topic(secret: str, kind: str, prefix: str, name: str) -> str:
    """Return the NOTIFY channel of a node (kind "node") or of a queue (kind "queue").

    Hashed, because PostgreSQL cuts identifiers at 63 bytes; with the installation's secret, so that nobody who cannot
    read our tables can forge a notification. The database's function channels_pg_sa_topic is its twin.
    """
    text = "\x1f".join((secret, kind, prefix, name))
    return "channels_pg_sa_" + hashlib.sha256(text.encode()).hexdigest()[:32]


def sign_of(secret: str) -> str:
    """Return what the secret begins with, by which a statement knows it: logs of statements would have the whole."""
    return secret[:SIGN]


class Topics:
    """The NOTIFY channels that a node listens on, as soon as the installation's secret is known.

    Args:
        prefix: of the layer.
        node_id: of the node.
    """

    def __init__(self, prefix: str, node_id: str) -> None:
        self.secret = ""
        self._prefix = prefix
        self._node_id = node_id

    @property
    def sign(self) -> str:
        """What the secret begins with."""
        return sign_of(self.secret)

    @property
    def own(self) -> str:
        """Where the node hears."""
        return topic(self.secret, "node", self._prefix, self._node_id)

    def of_queues(self, queues: Iterable[str]) -> list[str]:
        """Return where the doorbells of queues are heard."""
        return [topic(self.secret, "queue", self._prefix, queue) for queue in queues]
