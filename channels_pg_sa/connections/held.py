"""A connection that is held for many statements, and the cheap question whether it is still one."""

from __future__ import annotations

import asyncio
import contextlib
import select
from dataclasses import dataclass, field

import psycopg
from psycopg.pq import ConnStatus
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from .connection import CleanConnection, is_farewell


@dataclass(slots=True, eq=False)
class Held:
    """A connection of the engine's, taken out of it once for many statements."""

    sa_connection: AsyncConnection
    driver: CleanConnection
    poll: select.poll = field(default_factory=lambda: select.poll())  # noqa: PLW0108 - eventlet removes it
    timer: asyncio.TimerHandle | None = None
    doubted: bool = False

    def __post_init__(self) -> None:
        self.poll.register(self.driver.pgconn.socket, select.POLLIN)
        self.driver.add_notice_handler(self._heed)

    def is_alive(self) -> bool:
        """Tell whether the server's end was still there a moment ago; costs a system call, and no round trip."""
        try:
            if self.has_news():
                self.driver.pgconn.consume_input()
        except (psycopg.Error, OSError):
            return False
        return self.driver.pgconn.status == ConnStatus.OK

    def has_news(self) -> bool:
        """Tell whether anything has come from the server's end that nobody has looked at."""
        return bool(self.poll.poll(0))

    async def give_back(self) -> None:
        """Return the connection to the engine."""
        self.driver.remove_notice_handler(self._heed)
        with contextlib.suppress(DBAPIError, psycopg.Error):
            await self.sa_connection.close()

    def _heed(self, notice: psycopg.errors.Diagnostic) -> None:
        """Hear a server that ends the connection."""
        self.doubted = self.doubted or is_farewell(notice)
