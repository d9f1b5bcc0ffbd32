"""The ASGI application of every process: pages, sockets and the worker's channel."""

from __future__ import annotations

import os
import socket

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatroom.settings")

import django

django.setup()

# Django has to be set up before these imports.
from channels.routing import ChannelNameRouter, ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.urls import path  # noqa: E402

from channels_pg_sa.django import lifespan  # noqa: E402
from chatroom.consumers import ChatConsumer  # noqa: E402
from chatroom.jobs import CHANNEL  # noqa: E402
from chatroom.presence import Presence  # noqa: E402
from chatroom.worker import JobWorker  # noqa: E402

presence = Presence(os.environ.get("CHAT_SERVER") or f"{socket.gethostname()}-{os.getpid()}")

application = ProtocolTypeRouter(
    {
        "http": ASGIStaticFilesHandler(get_asgi_application()),
        "websocket": AllowedHostsOriginValidator(
            URLRouter([path("ws", ChatConsumer.as_asgi(presence=presence))]),
        ),
        "channel": ChannelNameRouter({CHANNEL: JobWorker.as_asgi()}),
        "lifespan": lifespan,
    }
)
