"""Who is in which room at which server, as far as the servers' announcements tell; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from chatroom.rules import room_key

if TYPE_CHECKING:
    from collections.abc import Iterable

SHOWN_PEOPLE = 60
SHOWN_ROOMS = 200


class Person(NamedTuple):
    """One socket: a person at one page."""

    id: str
    name: str
    rooms: tuple[str, ...]


@dataclass(slots=True)
class Server:
    """What one server process last said of itself. `seen` is in this process's monotonic seconds."""

    id: str
    name: str
    pid: int
    number: int
    seen: float
    people: tuple[Person, ...] = ()


@dataclass(slots=True)
class Roster:
    """Every server's last announcement.

    An announcement is the whole list of one server's people, so a lost one is mended by the next, and a server that
    falls silent for `lease` seconds takes its people with it. That is all a crash needs.
    """

    lease: float
    servers: dict[str, Server] = field(default_factory=dict)

    def hear(self, said: dict[str, Any], now: float) -> bool:
        """Take in an announcement; return whether a reader of the roster sees a difference."""
        people = tuple(Person(one[0], one[1], tuple(one[2])) for one in said["people"])
        known = self.servers.get(said["id"])
        if known is not None and said["number"] < known.number:
            return False
        self.servers[said["id"]] = Server(said["id"], said["name"], said["pid"], said["number"], now, people)
        return known is None or known.people != people

    def expire(self, now: float) -> bool:
        """Forget the servers that were silent for the lease before `now`; return whether there were any."""
        silent = [server.id for server in self.servers.values() if now - server.seen > self.lease]
        for server_id in silent:
            del self.servers[server_id]
        return bool(silent)

    def view(self, always: Iterable[str]) -> dict[str, Any]:
        """Return the rooms (those of `always` first, empty or not) and the servers, for a page to show."""
        names: dict[str, str] = {room_key(room): room for room in always}
        inside: dict[str, list[dict[str, str]]] = {key: [] for key in names}
        for server in sorted(self.servers.values(), key=lambda server: (server.name, server.id)):
            for person in server.people:
                for room in person.rooms:
                    names.setdefault(room_key(room), room)
                    entry = {"id": person.id, "name": person.name, "server": server.name}
                    inside.setdefault(room_key(room), []).append(entry)
        rooms = [
            {"key": key, "name": names[key], "count": len(people), "people": people[:SHOWN_PEOPLE]}
            for key, people in list(inside.items())[:SHOWN_ROOMS]
        ]
        return {"rooms": rooms, "servers": [self._card(server) for server in self.servers.values()]}

    def _card(self, server: Server) -> dict[str, Any]:
        return {"id": server.id, "name": server.name, "pid": server.pid, "people": len(server.people)}
