"""Outages: whether a node hears the server, and who is told when that changes."""

from __future__ import annotations

import asyncio
import math
import time
from typing import NamedTuple

from channels_pg_sa.call import resolve
from channels_pg_sa.connections.fate import OUTAGE
from channels_pg_sa.errors import ChannelLayerError, words_of
from channels_pg_sa.logs import Logger

from .clock import Clock
from .inbox import Inbox
from .listener import ConnectionLost

logger = Logger(__name__)


class Announcements(NamedTuple):
    """Payloads that local channels get when the server is lost, and when it is back; None for none."""

    lost: bytes | None = None
    back: bytes | None = None


class Outages:
    """Tell the log, the local channels and whoever waits when a node hears the server no more, and when it does again.

    Lives on the I/O loop.

    Args:
        node_id: of the node.
        inbox: has the local channels, and the readers who are told if the set-up is at fault.
        clock: the database's.
        expiry: seconds that an announcement lives.
        announcements: what the local channels get.
        loop: the I/O loop.
        key: of the setting that leads to the server by a way of its own; None if it is that of all statements.
    """

    def __init__(
        self,
        node_id: str,
        inbox: Inbox,
        clock: Clock,
        *,
        expiry: float,
        announcements: Announcements,
        loop: asyncio.AbstractEventLoop,
        key: str | None = None,
    ) -> None:
        self.trouble: str | None = None
        """Why this node does not hear the server, as far as is known; None if it does."""
        self.ended = 0
        """How often it has begun to hear."""
        self._node_id = node_id
        self._inbox = inbox
        self._clock = clock
        self._expiry = expiry
        self._announcements = announcements
        self._loop = loop
        self._key = key
        self._since = 0.0  # when this outage began
        self._logged: set[str] = set()  # its reasons
        self._change: asyncio.Future[None] = loop.create_future()

    def begin(self, error: Exception) -> None:
        """The server is not heard any more, or an attempt to hear it has failed; each reason is logged once.

        If the set-up is at fault, readers are told, although it may yet be mended.
        """
        reason = words_of(error)
        if self._key is not None and f'"{self._key}"' not in reason:
            reason = f'"{self._key}": {reason}'
        if reason not in self._logged:
            self._logged.add(reason)
            expected = isinstance(error, (*OUTAGE, ConnectionLost, ChannelLayerError))
            logger.warning(
                "Node %s does not hear PostgreSQL, and reconnects: %s",
                self._node_id,
                reason,
                exc_info=None if expected else error,
            )
        if self.trouble is None:
            self._since = time.monotonic()
            self._announce(self._announcements.lost)
        self.trouble = reason
        if isinstance(error, ChannelLayerError):
            self.refuse(error)
        else:
            self._inbox.serve()  # whoever receives outlasts an outage, whatever was wrong before it

    def end(self) -> None:
        """The server is heard: again, unless the very first attempt did it."""
        self._inbox.serve()
        self.ended += 1
        if self.trouble is not None:
            away = time.monotonic() - self._since
            logger.warning("Node %s hears PostgreSQL again, after %.1f s", self._node_id, away)
            self._announce(self._announcements.back)
        self.trouble = None
        self._logged.clear()
        self._wake()

    def refuse(self, error: ChannelLayerError) -> None:
        """Serve nobody any more, and tell those who wait."""
        self._inbox.fail(error)
        self._wake()

    async def wait(self) -> None:
        """Wait until this may have changed."""
        await asyncio.wait([self._change])

    def _wake(self) -> None:
        """Let those who wait look again."""
        resolve([self._change])
        self._change = self._loop.create_future()

    def _announce(self, payload: bytes | None) -> None:
        if payload is not None:
            now = self._clock.now()
            until = (time.time() if math.isinf(now) else now) + self._expiry  # nobody has yet seen the server's clock
            with self._inbox.decisions() as dispatcher:
                dispatcher.announce(payload, until)
