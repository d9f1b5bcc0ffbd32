"""A Django site of one WebSocket whose consumers are all in one group, and the Uvicorn that serves it."""

from __future__ import annotations

import json
from typing import Any

import uvicorn
from channels import DEFAULT_CHANNEL_LAYER
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import channel_layers
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import path

_GRACE_SECONDS = 3

urlpatterns: list[Any] = []


class Member(AsyncWebsocketConsumer):
    """A member of `group` that forwards every message to its browser, as chats and dashboards do."""

    def __init__(self, group: str) -> None:
        super().__init__()
        self.groups = [group]

    async def benchmark_message(self, message: dict[str, Any]) -> None:
        """Forward a broadcast."""
        shown = {"number": message["number"], "at": message["at"], "body": message["body"].decode("ascii")}
        await self.send(text_data=json.dumps(shown))


def server(layer: Any, group: str) -> uvicorn.Server:
    """Return a Uvicorn with its own defaults, except that it ends within seconds, whose site uses `layer`."""
    config = uvicorn.Config(
        _application(layer, group),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return uvicorn.Server(config)


def _application(layer: Any, group: str) -> ProtocolTypeRouter:
    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__, USE_TZ=True)
    http = get_asgi_application()
    # As if CHANNEL_LAYERS had it; every peer has been built and opened its own way by now.
    channel_layers.set(DEFAULT_CHANNEL_LAYER, layer)
    return ProtocolTypeRouter({"http": http, "websocket": URLRouter([path("ws", Member.as_asgi(group=group))])})
