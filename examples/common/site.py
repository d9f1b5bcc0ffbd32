"""A Django server of one page and one WebSocket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import django

django.setup()

# Django has to be set up before these imports.
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.http import HttpRequest, HttpResponse, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402

if TYPE_CHECKING:
    from channels.generic.websocket import AsyncWebsocketConsumer

# It shows the "text" of whatever the WebSocket sends, and loads nothing.
PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def page(request: HttpRequest) -> HttpResponse:
    """Return the page."""
    return HttpResponse(PAGE)


def health(request: HttpRequest) -> JsonResponse:
    """Tell the launcher which process answers."""
    return JsonResponse({"pid": os.getpid()})


urlpatterns = [path("", page), path("health", health)]


def site(consumer: type[AsyncWebsocketConsumer]) -> ProtocolTypeRouter:
    """Return the ASGI application whose WebSockets, at /ws, are served by a consumer."""
    sockets = URLRouter([path("ws", consumer.as_asgi())])
    return ProtocolTypeRouter({"http": get_asgi_application(), "websocket": AllowedHostsOriginValidator(sockets)})
