"""An ASGI application that echoes a number through a channel; its layer is used before the server forks."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from channels_pg_sa import Layer
from channels_pg_sa.django import lifespan

from .scenarios import use

layer = Layer(url=os.environ["LAYER_URL"])
use(layer)


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer GET /number with the number and this process's id, once it has gone through the layer."""
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return
    if scope["type"] != "http":
        raise RuntimeError("HTTP alone is spoken here.")
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.send(channel, {"number": int(scope["path"][1:])})
    message = await layer.receive(channel)
    await layer.group_discard("group", channel)
    body = f"{message['number']} {os.getpid()}".encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
