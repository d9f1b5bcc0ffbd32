"""Flush that every process sees: who flushes waits until the others say that they have forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable

import psycopg

from .connection import Connection
from .database import Database
from .listener import Listener
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
        listener: hears the answers.
        topic: gives this node's topic, to answer to.
        timeout: seconds that a flush may take in all.
    """

    def __init__(
        self,
        node_id: str,
        database: Database,
        queries: Queries,
        listener: Listener,
        topic: Callable[[], str],
        *,
        timeout: float,
    ) -> None:
        self._node_id = node_id
        self._database = database
        self._queries = queries
        self._listener = listener
        self._topic = topic
        self._patience = min(PATIENCE, timeout / 2)
        self._answered: dict[str, set[str]] = {}
        self._news = asyncio.Condition()

    async def flush(self, connection: Connection) -> None:
        """Delete all messages and memberships, and wait until every living node has forgotten its own."""
        await self._listener.until_listening()
        number = secrets.token_hex(8)
        answered: set[str] = set()
        nodes: set[str] = set()
        self._answered[number] = answered
        try:
            nodes.update(await self._queries.flush(connection, f"F{number} {self._topic()}"))
            async with self._news:
                await asyncio.wait_for(self._news.wait_for(lambda: nodes <= answered), self._patience)
        except asyncio.TimeoutError:
            logger.warning("Flushed, but without an answer of the nodes %s", ", ".join(sorted(nodes - answered)))
        finally:
            del self._answered[number]

    async def hear_answer(self, answer: Acknowledged) -> None:
        """Take note of a node that has forgotten."""
        if answer.number in self._answered:
            self._answered[answer.number].add(answer.node)
            async with self._news:
                self._news.notify_all()

    async def answer(self, flushed: Flushed) -> None:
        """Tell the one who flushed that this node has forgotten."""
        if flushed.number in self._answered:  # that was this node
            await self.hear_answer(Acknowledged(flushed.number, self._node_id))
            return
        with contextlib.suppress(psycopg.Error):  # who flushed does not wait for ever
            async with self._database.connection(PATIENCE) as connection:
                await self._queries.tell(connection, flushed.reply, f"A{flushed.number} {self._node_id}")
