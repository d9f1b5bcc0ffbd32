"""The Django server: its page shows what the trigger pushes. Nothing here knows the table."""

from __future__ import annotations

from typing import Any

from channels.generic.websocket import AsyncJsonWebsocketConsumer

from examples.common.site import site


class News(AsyncJsonWebsocketConsumer):
    """A page that is open."""

    groups = ["news"]

    async def news_changed(self, message: dict[str, Any]) -> None:
        """Show a row that came, changed or went."""
        what, row = message["what"], message["row"]
        await self.send_json({"what": what, "row": row, "text": f"{what} {row['id']}: {row['headline']}"})


application = site(News)
