"""A browser of the checks: a real WebSocket client."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Origin

from launcher.member import PATIENCE, CheckFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Browser:
    """One page that is open."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def next(self) -> dict[str, Any]:
        """Return the next message that the page gets; raise CheckFailed if none comes."""
        try:
            return dict(json.loads(await asyncio.wait_for(self._socket.recv(), PATIENCE)))
        except asyncio.TimeoutError:
            raise CheckFailed(f"nothing came to the page within {PATIENCE:g} s") from None

    async def expect(self, **wanted: Any) -> None:
        """Wait for the next message, and raise CheckFailed unless it has these values."""
        message = await self.next()
        if {key: message.get(key) for key in wanted} != wanted:
            raise CheckFailed(f"the page got {message} instead of {wanted}")


@asynccontextmanager
async def browser(address: str) -> AsyncIterator[Browser]:
    """Open the page of a server for the time of the block."""
    async with connect(f"ws://{address}/ws", origin=Origin(f"http://{address}")) as socket:
        yield Browser(socket)
