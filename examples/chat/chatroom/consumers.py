"""One person's socket: what comes from the page goes to rooms and jobs, and what rooms say goes to the page."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from channels.generic.websocket import AsyncJsonWebsocketConsumer

from chatroom import jobs
from chatroom.roster import Person
from chatroom.rules import ROOMS_PER_PERSON, Pace, Refused, clean_name, clean_room, clean_text, room_group, room_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from chatroom.presence import Presence

logger = logging.getLogger(__name__)

NOT_OURS = ("format", "That was not a message of this chat.")
OPEN_ROOMS = ("Lobby", "Engine room", "Help desk")


class ChatConsumer(AsyncJsonWebsocketConsumer):  # type: ignore[misc]  # channels ships no types
    """Serve one page.

    The page sends objects with a `type` (hello, join, leave, say, ping) and may give each a `ref`, which comes back
    with the answer: welcome, joined, left, message, pong, or error with a `code` and a `text` for the person.
    """

    presence: Presence

    def __init__(self, presence: Presence) -> None:
        super().__init__()
        self.presence = presence
        self.person: Person | None = None
        self.rooms: dict[str, str] = {}
        self.pace = Pace(at=time.monotonic())

    async def connect(self) -> None:
        """Accept anybody; a name is asked for by the first message."""
        self.presence.start(self.channel_layer)
        await self.accept()
        await self.channel_layer.group_add(self.presence.watchers, self.channel_name)
        await self.send_json({"type": "server", "name": self.presence.name, "id": self.presence.id})
        await self.people_changed({})

    async def disconnect(self, code: int) -> None:
        """Leave everything."""
        if self.person is not None:
            self.presence.leave(self.person.id)
        groups = (self.presence.watchers, *map(room_group, self.rooms.values()))
        await asyncio.gather(*(self.channel_layer.group_discard(group, self.channel_name) for group in groups))

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any) -> None:
        """Take one frame; whatever is wrong with it is answered and never ends the socket."""
        content: dict[str, Any] = {}
        try:
            content = await self._decoded(text_data or "")
            await self._verb(content)(content)
        except Refused as refusal:
            await self._error(content, refusal.code, refusal.reason)
        except Exception:  # any layer's own errors: full, away, too large. The person may try again, the socket lives.
            logger.exception("a message could not be passed on")
            await self._error(content, "undelivered", "That could not be sent just now. Please try again.")

    async def _decoded(self, frame: str) -> dict[str, Any]:
        with suppress(ValueError):
            content = await self.decode_json(frame)
            if isinstance(content, dict):
                return content
        raise Refused(*NOT_OURS)

    def _verb(self, content: dict[str, Any]) -> Callable[[dict[str, Any]], Awaitable[None]]:
        verbs = {"hello": self._hello, "join": self._join, "leave": self._leave, "say": self._say, "ping": self._ping}
        kind = content.get("type")
        if not isinstance(kind, str) or kind not in verbs:
            raise Refused(*NOT_OURS)
        self.pace.spend(time.monotonic())
        return verbs[kind]

    async def _error(self, content: dict[str, Any], code: str, text: str) -> None:
        await self.send_json({"type": "error", "code": code, "text": text, "ref": content.get("ref")})

    async def _hello(self, content: dict[str, Any]) -> None:
        name = clean_name(content.get("name"))
        person_id = self.person.id if self.person is not None else secrets.token_hex(6)
        self.person = Person(person_id, name, tuple(self.rooms.values()))
        self.presence.enter(self.person)
        await self.send_json({"type": "welcome", "id": person_id, "name": name, "ref": content.get("ref")})

    async def _join(self, content: dict[str, Any]) -> None:
        person, room = self._known_person(), clean_room(content.get("room"))
        if room_key(room) not in self.rooms:
            if len(self.rooms) >= ROOMS_PER_PERSON:
                raise Refused("room", f"You are in {ROOMS_PER_PERSON} rooms already. Leave one first.")
            await self.channel_layer.group_add(room_group(room), self.channel_name)
            self.rooms[room_key(room)] = room
            self._tell_rooms(person)
        answer = {"type": "joined", "key": room_key(room), "name": self.rooms[room_key(room)]}
        await self.send_json({**answer, "ref": content.get("ref")})

    async def _leave(self, content: dict[str, Any]) -> None:
        person, room = self._known_person(), clean_room(content.get("room"))
        if self.rooms.pop(room_key(room), None) is not None:
            self._tell_rooms(person)
            await self.channel_layer.group_discard(room_group(room), self.channel_name)
        await self.send_json({"type": "left", "key": room_key(room), "ref": content.get("ref")})

    async def _say(self, content: dict[str, Any]) -> None:
        person, room = self._known_person(), self._joined_room(content.get("room"))
        text = clean_text(content.get("text"))
        job = jobs.parse(text)
        ref = content.get("ref")
        note = {
            "id": secrets.token_hex(8),
            "key": room_key(room),
            "author": {"id": person.id, "name": person.name},
            "ref": ref if isinstance(ref, str | int) else None,
            "text": text,
            "via": self.presence.name,
            "sent_at": time.time(),
        }
        await self.channel_layer.group_send(room_group(room), {"type": "room.message", "note": note})
        if job is not None:
            work = {"type": "job.asked", "group": room_group(room), "command": job.command, "argument": job.argument}
            await self.channel_layer.send(jobs.CHANNEL, {**work, "note": note})

    async def _ping(self, content: dict[str, Any]) -> None:
        await self.send_json({"type": "pong", "ref": content.get("ref")})

    def _known_person(self) -> Person:
        if self.person is None:
            raise Refused("name", "Say who you are first.")
        return self.person

    def _joined_room(self, room: object) -> str:
        joined = self.rooms.get(room_key(clean_room(room)))
        if joined is None:
            raise Refused("room", "You are not in that room.")
        return joined

    def _tell_rooms(self, person: Person) -> None:
        self.person = person._replace(rooms=tuple(self.rooms.values()))
        self.presence.enter(self.person)

    async def room_message(self, event: dict[str, Any]) -> None:
        """Pass on what was said in a room, with the server that hands it over and the time since it was said."""
        note = event["note"]
        delay = {"at": self.presence.name, "ms": round((time.time() - note["sent_at"]) * 1000, 2)}
        await self.send_json({"type": "message", **note, **delay})

    async def people_changed(self, event: dict[str, Any]) -> None:
        """Show who is where now."""
        await self.send_json({"type": "people", **self.presence.view(OPEN_ROOMS)})
