"""Flush that every process sees: whoever flushes waits until the others say that they have forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from weakref import WeakValueDictionary

from channels_pg_sa.connections.connection import Connection
from channels_pg_sa.connections.database import Database
from channels_pg_sa.connections.fate import OUTAGE
from channels_pg_sa.logs import Logger
from channels_pg_sa.parcels import Acknowledged, Flushed
from channels_pg_sa.statements.queries import Queries
from channels_pg_sa.topics import Topics

logger = Logger(__name__)

PATIENCE = 2.0
"""Seconds to wait for the word of other nodes, of which one may be dead or cut off."""


class Flushes:
    """Flush, and answer to the flushes of others.

    Args:
        node_id: of this node.
        database: lends connections.
        queries: the layer's statements.
        topics: where this node hears the answers.
        timeout: seconds that a flush may take in all.
    """

    def __init__(self, node_id: str, database: Database, queries: Queries, topics: Topics, *, timeout: float) -> None:
        self._node_id = node_id
        self._database = database
        self._queries = queries
        self._topics = topics
        self._patience = min(PATIENCE, timeout / 2)
        self._underway: WeakValueDictionary[str, Answers] = WeakValueDictionary()  # by number

    async def flush(self, connection: Connection) -> Answers:
        """Delete all messages and memberships; return what tells when every living node has forgotten its own."""
        number = secrets.token_hex(8)
        answers = self._underway[number] = Answers(self._patience)
        answers.expected.update(await self._queries.flush(connection, f"F{number} {self._topics.own}"))
        return answers

    def hear_answer(self, answer: Acknowledged) -> None:
        """Take note of a node that has forgotten."""
        if (answers := self._underway.get(answer.number)) is not None:
            answers.add(answer.node)

    async def answer(self, flushed: Flushed) -> None:
        """Tell the one who flushed that this node has forgotten."""
        if flushed.number in self._underway:  # that was this node
            self.hear_answer(Acknowledged(flushed.number, self._node_id))
            return
        with contextlib.suppress(*OUTAGE):  # whoever flushed does not wait for ever
            async with self._database.connection(PATIENCE) as connection:
                await self._queries.notify(connection, flushed.reply, f"A{flushed.number} {self._node_id}")


class Answers:
    """The nodes that have answered to one flush, of those expected to.

    Args:
        patience: seconds to wait for them.
    """

    def __init__(self, patience: float) -> None:
        self.expected: set[str] = set()
        self._patience = patience
        self._nodes: set[str] = set()
        self._news = asyncio.Event()

    def add(self, node: str) -> None:
        """Take note of an answer."""
        self._nodes.add(node)
        self._news.set()

    async def wait(self) -> None:
        """Wait until all have answered; not for ever, and not on a connection, which an answer to others may need."""
        try:
            await asyncio.wait_for(self._until_complete(), self._patience)
        except asyncio.TimeoutError:
            missing = ", ".join(sorted(self.expected - self._nodes))
            logger.warning("Flushed, but without an answer of the nodes %s", missing)

    async def _until_complete(self) -> None:
        while not self.expected <= self._nodes:
            self._news.clear()
            await self._news.wait()
