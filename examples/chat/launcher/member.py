"""A person of the check: a real WebSocket client that keeps everything it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PATIENCE = 20.0


class CheckFailed(Exception):
    """Something is not as it should be; the message says what."""


class Member:
    """One person at one server."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.server = ""
        self.messages: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []
        self.joined: set[str] = set()
        self.people: dict[str, Any] = {"rooms": [], "servers": []}
        self._heard = asyncio.Condition()

    async def open(self, *rooms: str) -> Member:
        """Connect, say a name and join rooms; return this."""
        self._socket: ClientConnection = await connect(
            f"ws://{self.address}/ws", origin=Origin(f"http://{self.address}")
        )
        self._reader = asyncio.create_task(self._read(), name=f"read-{self.name}")
        await self.send({"type": "hello", "name": self.name})
        for room in rooms:
            await self.send({"type": "join", "room": room})
        await self.until(lambda: len(self.joined) == len(rooms), "the rooms to be joined")
        return self

    async def close(self) -> None:
        """Disconnect."""
        await self._socket.close()
        await self._reader

    async def send(self, content: dict[str, Any] | str | bytes) -> None:
        """Send an object, or a raw frame."""
        await self._socket.send(json.dumps(content) if isinstance(content, dict) else content)

    async def say(self, room: str, text: str) -> None:
        """Say something in a room."""
        await self.send({"type": "say", "room": room, "text": text})

    async def until(self, found: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
        """Return `found()` as soon as it is true; raise CheckFailed after `patience` seconds."""
        async with self._heard:
            try:
                await asyncio.wait_for(self._heard.wait_for(found), patience)
            except asyncio.TimeoutError:
                raise CheckFailed(f"{self.name} waited {patience:g} s for {what}") from None
            return found()

    async def hear(self, author: str, room: str, text: str) -> None:
        """Wait until a text of one person has come."""
        await self.until(lambda: text in self.said(author, room), f"{author} to say {text[:40]}")

    async def hear_out(self, author: str, room: str, lines: list[str]) -> None:
        """Wait for as many messages as there are lines, and raise CheckFailed unless they are the lines."""
        await self.until(lambda: len(self.said(author, room)) >= len(lines), f"all that {author} says")
        if self.said(author, room) != lines:
            raise CheckFailed(f"{self.name} got what {author} said altered, repeated or out of order")

    async def answer(self, question: str) -> dict[str, Any]:
        """Wait for a worker's answer and return it."""
        return (await self.until(lambda: self.answers(question), f"the answer to {question}"))[0]

    async def see(self, room: str, places: dict[str, str], patience: float) -> None:
        """Wait until exactly these people are in a room, each at the named server."""
        await self.until(lambda: self.places(room) == places, f"{sorted(places)} in {room}", patience)

    def said(self, author: str, room: str) -> list[str]:
        """Return what came from one person in one room, in the order it came."""
        mine = (one for one in self.messages if one["key"] == room.casefold() and "worker" not in one)
        return [one["text"] for one in mine if one["author"]["name"] == author]

    def answers(self, text: str) -> list[dict[str, Any]]:
        """Return the workers' answers to what was said as `text`."""
        asked = {one["id"] for one in self.messages if one["text"] == text}
        return [one for one in self.messages if one.get("answers") in asked]

    def places(self, room: str) -> dict[str, str]:
        """Return who is in a room, and each one's server."""
        found = (one["people"] for one in self.people["rooms"] if one["key"] == room.casefold())
        return {one["name"]: one["server"] for one in next(found, [])}

    def repeated(self) -> list[str]:
        """Return the texts that came more than once."""
        counted = Counter(one["id"] for one in self.messages)
        return [one["text"] for one in self.messages if counted[one["id"]] > 1]

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for frame in self._socket:
                async with self._heard:
                    self._take(json.loads(frame))
                    self._heard.notify_all()

    def _take(self, said: dict[str, Any]) -> None:
        match said["type"]:
            case "message":
                self.messages.append(said)
            case "error":
                self.errors.append(said)
            case "people":
                self.people = said
            case "joined":
                self.joined.add(said["key"])
            case "server":
                self.server = said["name"]
