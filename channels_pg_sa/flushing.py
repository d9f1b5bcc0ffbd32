"""Flush that every process sees: who flushes waits until the others say that they have forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable

import psycopg

from .connection import Connection
from .database import Database
from .names import Topics
from .parcels import Acknowledged, Flushed
from .queries import Queries

logger = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds to wait for the word of other nodes, of which one may be dead or cut off."""


class Flushes:
    """Flush, and answer to the flushes of others.

    Args:
        node_id: of this node.
        database: lends connections.
        queries: the layer's statements.
        topics: where this node hears the answers.
        ready: waits until it does.
        timeout: seconds that a flush may take in all.
    """

    def __init__(
        self,
        node_id: str,
        database: Database,
        queries: Queries,
        topics: Topics,
        *,
        ready: Callable[[], Awaitable[None]],
        timeout: float,
    ) -> None:
        self._node_id = node_id
        self._database = database
        self._queries = queries
        self._topics = topics
        self._ready = ready
        self._patience = min(PATIENCE, timeout / 2)
        self._underway: dict[str, _Answers] = {}

    async def flush(self, connection: Connection) -> None:
        """Delete all messages and memberships, and wait until every living node has forgotten its own."""
        await self._ready()
        number = secrets.token_hex(8)
        answers = self._underway[number] = _Answers()
        nodes: set[str] = set()
        try:
            nodes.update(await self._queries.flush(connection, f"F{number} {self._topics.own}"))
            await asyncio.wait_for(answers.until_of(nodes), self._patience)
        except asyncio.TimeoutError:
            missing = ", ".join(sorted(nodes - answers.nodes))
            logger.warning("Flushed, but without an answer of the nodes %s", missing)
        finally:
            del self._underway[number]

    def hear_answer(self, answer: Acknowledged) -> None:
        """Take note of a node that has forgotten."""
        if answer.number in self._underway:
            self._underway[answer.number].add(answer.node)

    async def answer(self, flushed: Flushed) -> None:
        """Tell the one who flushed that this node has forgotten."""
        if flushed.number in self._underway:  # that was this node
            self.hear_answer(Acknowledged(flushed.number, self._node_id))
            return
        with contextlib.suppress(psycopg.Error):  # who flushed does not wait for ever
            async with self._database.connection(PATIENCE) as connection:
                await self._queries.tell(connection, flushed.reply, f"A{flushed.number} {self._node_id}")


class _Answers:
    """The nodes that have answered to one flush."""

    def __init__(self) -> None:
        self.nodes: set[str] = set()
        self._news = asyncio.Event()

    def add(self, node: str) -> None:
        self.nodes.add(node)
        self._news.set()

    async def until_of(self, nodes: set[str]) -> None:
        while not nodes <= self.nodes:
            self._news.clear()
            await self._news.wait()
