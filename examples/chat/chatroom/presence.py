"""One server process's part in the presence group: it announces its people, and hears of everybody else's."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from typing import TYPE_CHECKING, Any

from chatroom.roster import Person, Roster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from channels.layers import BaseChannelLayer

logger = logging.getLogger(__name__)

GROUP = "presence"
HEARTBEAT = 1.0
LEASE = 3 * HEARTBEAT
# A hundred joins within this time (seconds) reach every page as one change.
GATHER = 0.05


class Presence:
    """The people of this process, told to all; the people of all, kept for this process.

    No table, and no clock that servers share: each says every HEARTBEAT seconds, and at each change, who is
    connected to it; a newcomer asks and all answer. The cost is one message a change, however many sockets watch.
    """

    def __init__(self, name: str) -> None:
        self.id = secrets.token_hex(6)
        self.name = name
        self.roster = Roster(LEASE)
        # The group of this process's own sockets, which are woken when the roster shows something new.
        self.watchers = f"watchers.{self.id}"
        self._people: dict[str, Person] = {}
        self._number = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, layer: BaseChannelLayer) -> None:
        """Begin, if this process has not begun already; to be called where the event loop runs."""
        if self._tasks:
            return
        self._layer = layer
        self._to_say = asyncio.Event()
        self._to_show = asyncio.Event()
        for work in (self._listen, self._announce, self._show):
            self._tasks.append(asyncio.create_task(self._persist(work), name=f"presence{work.__name__}"))

    def enter(self, person: Person) -> None:
        """Let everybody know of a person, or of a change in one."""
        self._people[person.id] = person
        self._to_say.set()

    def leave(self, person_id: str) -> None:
        """Let everybody know that a person is gone; nothing happens if nobody knew one."""
        if self._people.pop(person_id, None) is not None:
            self._to_say.set()

    def view(self, always: Iterable[str]) -> dict[str, Any]:
        """Return what a page shows of rooms, people and servers."""
        return self.roster.view(always)

    async def _persist(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception:  # any layer's own errors, such as a database that is away while the process starts
                logger.exception("presence of server %s starts again in %g s", self.name, HEARTBEAT)
                await asyncio.sleep(HEARTBEAT)

    async def _listen(self) -> None:
        channel = await self._layer.new_channel()
        await self._layer.group_add(GROUP, channel)
        await self._layer.group_send(GROUP, {"type": "presence.ask"})
        while True:
            message = await self._layer.receive(channel)
            if message["type"] == "presence.ask":
                self._to_say.set()
            elif self.roster.hear(message, time.monotonic()):
                self._to_show.set()

    async def _announce(self) -> None:
        while True:
            await self._told_or_due()
            self._to_say.clear()
            await self._layer.group_send(GROUP, self._announcement())
            self._judge()
            await asyncio.sleep(GATHER)

    async def _told_or_due(self) -> None:
        try:
            await asyncio.wait_for(self._to_say.wait(), HEARTBEAT)
        except asyncio.TimeoutError:
            return

    def _judge(self) -> None:
        # Silence is measured at what came of this process's own voice: if that is not heard, it is the one cut off.
        own = self.roster.servers.get(self.id)
        if own is not None and self.roster.expire(own.seen):
            self._to_show.set()

    async def _show(self) -> None:
        while True:
            await self._to_show.wait()
            self._to_show.clear()
            await self._wake_watchers()
            await asyncio.sleep(GATHER)

    async def _wake_watchers(self) -> None:
        try:
            await self._layer.group_send(self.watchers, {"type": "people.changed"})
        except Exception:
            self._to_show.set()
            raise

    def _announcement(self) -> dict[str, Any]:
        self._number += 1
        people = [[person.id, person.name, list(person.rooms)] for person in self._people.values()]
        said = {"id": self.id, "name": self.name, "pid": os.getpid(), "number": self._number, "people": people}
        return {"type": "presence.said", **said}
