"""Consumers as Channels' documentation has them, on each of its generic classes."""

from __future__ import annotations

from typing import Any

from asgiref.sync import async_to_sync
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)

Message = dict[str, Any]


class AsyncChat(AsyncJsonWebsocketConsumer):  # type: ignore[misc]
    """Pass what one member says to all."""

    async def connect(self) -> None:
        """Join before the socket opens."""
        await self.channel_layer.group_add("chat", self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        """Leave."""
        await self.channel_layer.group_discard("chat", self.channel_name)

    async def receive_json(self, content: Message, **_: Any) -> None:
        """Tell all."""
        await self.channel_layer.group_send("chat", {"type": "chat.said", "content": content})

    async def chat_said(self, message: Message) -> None:
        """Tell the browser."""
        await self.send_json(message["content"])


class SyncChat(JsonWebsocketConsumer):  # type: ignore[misc]
    """The same in synchronous code."""

    def connect(self) -> None:
        """Join before the socket opens."""
        async_to_sync(self.channel_layer.group_add)("chat", self.channel_name)
        self.accept()

    def disconnect(self, code: int) -> None:
        """Leave."""
        async_to_sync(self.channel_layer.group_discard)("chat", self.channel_name)

    def receive_json(self, content: Message, **_: Any) -> None:
        """Tell all."""
        async_to_sync(self.channel_layer.group_send)("chat", {"type": "chat.said", "content": content})

    def chat_said(self, message: Message) -> None:
        """Tell the browser."""
        self.send_json(message["content"])


class AsyncListener(AsyncWebsocketConsumer):  # type: ignore[misc]
    """A consumer that names its groups, so that Channels joins and leaves them."""

    groups = ("news", "weather")

    async def news_flash(self, message: Message) -> None:
        """Tell the browser."""
        await self.send(message["text"], message.get("bytes"))


class SyncListener(WebsocketConsumer):  # type: ignore[misc]
    """The same in synchronous code."""

    groups = ("news", "weather")

    def news_flash(self, message: Message) -> None:
        """Tell the browser."""
        self.send(message["text"], message.get("bytes"))


class OtherLayerChat(AsyncChat):
    """A consumer on a layer other than the default."""

    channel_layer_alias = "other"


class AsyncEcho(AsyncConsumer):  # type: ignore[misc]
    """No socket: take an order, wait for a message, and put it out."""

    async def order_name(self, message: Message) -> None:
        """Tell which channel this consumer reads."""
        await self.send({"type": "name", "name": self.channel_name})

    async def order_done(self, message: Message) -> None:
        """Put out what came through the layer."""
        await self.send({"type": "done", "number": message["number"]})


class SyncEcho(SyncConsumer):  # type: ignore[misc]
    """The same in synchronous code."""

    def order_name(self, message: Message) -> None:
        """Tell which channel this consumer reads."""
        self.send({"type": "name", "name": self.channel_name})

    def order_done(self, message: Message) -> None:
        """Put out what came through the layer."""
        self.send({"type": "done", "number": message["number"]})
