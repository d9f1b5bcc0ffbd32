"""Who is shown in which room, from what servers say and from their silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from channels.layers import InMemoryChannelLayer

from chatroom import presence
from chatroom.presence import Presence
from chatroom.roster import Person, Roster

HEARTBEAT = 0.05
ADA = Person("1", "Ada", ("Lobby",))


def said(server: str, number: int = 1, people: tuple[Person, ...] = (ADA,)) -> dict[str, Any]:
    """Return what a server announces."""
    listed = [[one.id, one.name, list(one.rooms)] for one in people]
    return {"id": server, "name": server.upper(), "pid": 1, "number": number, "people": listed}


def names(roster: Roster, room: str) -> list[str]:
    """Return who is shown in a room."""
    rooms = {one["key"]: one for one in roster.view(())["rooms"]}
    return [person["name"] for person in rooms.get(room, {"people": []})["people"]]


def test_a_change_is_told_from_a_heartbeat() -> None:
    """Only a new server, or other people, are worth a look of the pages."""
    roster = Roster(lease=3)
    assert roster.hear(said("a"), now=1.0)
    assert not roster.hear(said("a", 2), now=2.0)
    assert roster.hear(said("a", 3, (ADA, Person("2", "Bo", ("lobby", "Attic")))), now=3.0)
    assert names(roster, "lobby") == ["Ada", "Bo"]
    assert names(roster, "attic") == ["Bo"]


def test_an_older_announcement_changes_nothing() -> None:
    """What comes late is not believed."""
    roster = Roster(lease=3)
    roster.hear(said("a", 2, ()), now=1.0)
    assert not roster.hear(said("a", 1), now=2.0)
    assert names(roster, "lobby") == []


def test_a_silent_server_takes_its_people_along() -> None:
    """After the lease, and not before, its people are gone; those of others stay."""
    roster = Roster(lease=3)
    roster.hear(said("a"), now=10.0)
    roster.hear(said("b", people=(Person("2", "Bo", ("Lobby",)),)), now=12.0)
    assert not roster.expire(13.0)
    assert roster.expire(13.1)
    assert names(roster, "lobby") == ["Bo"]


def test_a_full_room_shows_its_number_and_its_first_people() -> None:
    """A page is not sent ten thousand names."""
    roster = Roster(lease=3)
    roster.hear(said("a", people=tuple(Person(str(n), f"P{n}", ("Hall",)) for n in range(10_000))), now=1.0)
    (hall,) = roster.view(())["rooms"]
    assert hall["count"] == 10_000
    assert len(hall["people"]) == 60


Start = Callable[[str], Presence]


@pytest_asyncio.fixture
async def start(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Start the presence of servers that share one layer; all are stopped at the end."""
    monkeypatch.setattr(presence, "HEARTBEAT", HEARTBEAT)
    monkeypatch.setattr(presence, "LEASE", 6 * HEARTBEAT)
    monkeypatch.setattr(presence, "GATHER", 0.0)
    layer = InMemoryChannelLayer()
    started: list[Presence] = []

    def begin(name: str) -> Presence:
        started.append(Presence(name))
        started[-1].start(layer)
        return started[-1]

    yield begin
    for one in started:
        await stop(one)


async def stop(server: Presence) -> None:
    """End a server's part without a word, as a crash does."""
    tasks, server._tasks = server._tasks, []
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def shown(server: Presence, expected: dict[str, str]) -> None:
    """Return when a server's watchers have been woken to just these people in the lobby, each with a server."""
    layer = server._layer
    channel = await layer.new_channel()
    await layer.group_add(server.watchers, channel)
    while _places(server) != expected:
        assert (await layer.receive(channel))["type"] == "people.changed"


def _places(server: Presence) -> dict[str, str]:
    (lobby,) = (room for room in server.view(("Lobby",))["rooms"] if room["key"] == "lobby")
    return {person["name"]: person["server"] for person in lobby["people"]}


async def test_a_newcomer_learns_who_was_there_before(start: Start) -> None:
    """It asks, all answer, and afterwards each knows the other's people."""
    first = start("A")
    first.enter(ADA)
    await shown(first, {"Ada": "A"})
    second = start("B")
    await shown(second, {"Ada": "A"})
    second.enter(Person("2", "Bo", ("Lobby",)))
    await shown(first, {"Ada": "A", "Bo": "B"})
    second.leave("2")
    await shown(first, {"Ada": "A"})


async def test_the_people_of_a_crashed_server_vanish(start: Start) -> None:
    """A server that says nothing any more is forgotten by those that still hear themselves."""
    first, second = start("A"), start("B")
    first.enter(ADA)
    second.enter(Person("2", "Bo", ("Lobby",)))
    await shown(first, {"Ada": "A", "Bo": "B"})
    await stop(second)
    await shown(first, {"Ada": "A"})


async def test_presence_comes_back_after_an_error(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that fails for a while, as when its database is away, delays the news and loses none."""
    first, second = start("A"), start("B")
    first.enter(ADA)
    await shown(second, {"Ada": "A"})
    sending = first._layer.group_send
    failed = asyncio.Event()

    async def fail(group: str, message: dict[str, Any]) -> None:
        failed.set()
        raise ConnectionError

    monkeypatch.setattr(first._layer, "group_send", fail)
    first.enter(Person("2", "Bo", ("Lobby",)))
    await failed.wait()
    monkeypatch.setattr(first._layer, "group_send", sending)
    await shown(second, {"Ada": "A", "Bo": "A"})
