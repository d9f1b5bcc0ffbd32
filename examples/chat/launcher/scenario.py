"""The steps of the check: what people do at both servers and the worker, and what each of them must then see."""

from __future__ import annotations

import asyncio
import http.client
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from chatroom.presence import LEASE
from launcher.member import PATIENCE, CheckFailed, Member

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launcher.fleet import Fleet

ROOM = "Check \u2603 <b>room</b>"
ELSEWHERE = "Elsewhere"
NO_ROOMS = ("", "\u200b", "r" * 41, 7, None, ["Lobby"])
TALK = 40
WORDS = 40
# Four bytes a character: with everything around it more than fits into one notification of PostgreSQL.
LONG = "\U0001f4e6" * 1990
SCRIPT = "<script>alert('x')</script> & <img src=x onerror=alert(1)>"


@dataclass(slots=True)
class Scenario:
    """The people of the check and what is done with them; each step returns what it saw, or raises CheckFailed."""

    fleet: Fleet
    members: list[Member] = field(default_factory=list)
    aside: list[Member] = field(default_factory=list)
    everybody: list[Member] = field(default_factory=list)

    async def pages(self) -> str:
        """Fetch the page and its parts from both servers; a socket of another site is refused."""
        for name in ("A", "B"):
            for path in ("/", "/static/chatroom/style.css", "/static/chatroom/app.js"):
                status, policy = await asyncio.to_thread(_fetch, self._address(name), path)
                _expect(status == 200, f"{path} of server {name} answered {status}")
                _expect(path != "/" or "script-src 'self'" in policy, f"the page of {name} has no policy")
        try:
            await connect(f"ws://{self._address('A')}/ws", origin=Origin("https://example.org"))
        except InvalidStatus as refusal:
            status = refusal.response.status_code
            _expect(status == 403, f"a socket of another site got {status}")
            return "a socket of another site is refused"
        raise CheckFailed("a socket of another site was accepted")

    async def presence(self) -> str:
        """Three people join the room at each server; everybody sees all six, and the two who are elsewhere."""
        await asyncio.gather(*(self._enter(f"{name}{number}", name) for name in "AB" for number in (1, 2, 3)))
        self.aside = await asyncio.gather(*(self._enter(f"{name}-aside", name, ELSEWHERE) for name in "AB"))
        await self._all_see_all()
        return f"{len(self.members)} people see each other from both servers, 2 are elsewhere"

    async def quiet(self) -> str:
        """Say one thing at a time from one server to the other and back, which shows the latency at rest."""
        for number in range(WORDS):
            speaker, listener = self.aside if number % 2 else reversed(self.aside)
            await speaker.say(ELSEWHERE, f"word {number}")
            await listener.hear(speaker.name, ELSEWHERE, f"word {number}")
        return _timings(self._latencies())

    async def talk(self) -> str:
        """All speak at once without waiting; every message reaches every member once, each sender's in order."""
        spoken = {m.name: [self._line(m, number) for number in range(TALK)] for m in self.members}
        await asyncio.gather(*(self._speak(member, spoken[member.name]) for member in self.members))
        for member in self.members:
            for author, lines in spoken.items():
                await member.hear_out(author, ROOM, lines)
        total = TALK * len(self.members)
        return f"{total} messages, {total * len(self.members):,} deliveries, one in ten too long for one notification"

    async def jobs(self) -> str:
        """Jobs asked at both servers are done by a worker process, and the answer reaches every member."""
        first, last = self.members[0], self.members[-1]
        expected = {
            "/morse SOS 42": "... --- ... / ....- ..---",
            "/count to be or": "3 words, 6 characters without blanks",
        }
        await asyncio.gather(
            first.say(ROOM, "/morse SOS 42"), last.say(ROOM, "/count to be or"), first.say(ROOM, "/roll 2d6")
        )
        pids = {program.pid for program in self.fleet.programs.values() if not program.address}
        for member in self.members:
            for question, answer in expected.items():
                note = await member.answer(question)
                _expect(note["text"] == answer, f"{question} gave {note['text']}")
                _expect(note["worker"]["pid"] in pids, "the answer is not from a worker process")
            rolled = (await member.answer("/roll 2d6"))["text"]
            _expect(2 <= int(rolled.rpartition("= ")[2]) <= 12, f"2d6 gave {rolled}")
        workers = {note["worker"]["pid"] for note in first.messages if "worker" in note}
        return f"3 jobs, answered to all by pid {', '.join(map(str, sorted(workers)))}"

    async def bad_input(self) -> str:
        """Each wrong thing is answered by an error of its own; script tags are text like any other."""
        member, other = self.members[0], self.members[-1]
        await member.say(ROOM, SCRIPT)
        await other.hear(member.name, ROOM, SCRIPT)
        frames: list[dict[str, object] | str | bytes] = [
            "{",
            "[1]",
            "7",
            '{"type": "say"}',
            '{"type": []}',
            b"\x00\xff",
        ]
        frames += [_say(ROOM, text) for text in ("", "  ", "x" * 2001, 7, "/fly", "/roll 0d6", "/count")]
        frames += [_say(room, "x") for room in (*NO_ROOMS, "a room not joined")]
        frames += [{"type": "join", "room": room} for room in NO_ROOMS]
        before = len(member.errors)
        for frame in frames:
            await member.send(frame)
        await member.until(lambda: len(member.errors) - before >= len(frames), f"{len(frames)} errors")
        await self._all_hear(member, "still here")
        _expect(len(member.errors) - before == len(frames), "more errors than wrong frames")
        return f"{len(frames)} wrong frames, {len(frames)} clear errors, and the socket lives"

    async def leaving(self) -> str:
        """Who leaves the room, or closes the page, is gone for all."""
        leaver = await self._enter("leaver", "B")
        await self._all_see_all()
        self.members.remove(leaver)
        started = time.monotonic()
        await leaver.send({"type": "leave", "room": ROOM})
        await self._all_see_all()
        seconds = time.monotonic() - started
        await self._all_hear(self.members[0], "without the leaver")
        await leaver.send({"type": "join", "room": ELSEWHERE})
        await leaver.until(lambda: ELSEWHERE.casefold() in leaver.joined, "a room after the one that was left")
        _expect(not leaver.said(self.members[0].name, ROOM), "who left still hears the room")
        await leaver.close()
        return f"by all after {seconds * 1000:.0f} ms; who left hears nothing more"

    async def server_killed(self) -> str:
        """Kill a server: its people vanish from the others' pages, and those go on talking."""
        await asyncio.to_thread(self.fleet.kill, "B")
        started = time.monotonic()
        self.members = [member for member in self.members if member.server == "A"]
        await self._all_hear(self.members[0], "B is gone, we talk on")
        await self._all_see_all(patience=3 * LEASE)
        return f"its people are gone after {time.monotonic() - started:.1f} s; the others talk on"

    async def server_back(self) -> str:
        """Start the server again: people come back to it, and talk crosses both ways."""
        await asyncio.to_thread(self.fleet.relaunch, "B")
        await asyncio.gather(*(self._enter(f"B{number}", "B") for number in (4, 5, 6)))
        await self._all_see_all()
        await self._all_hear(self.members[0], "welcome back")
        await self._all_hear(self.members[-1], "it is good to be back")
        return "3 people are back, and each hears the other server"

    async def worker_killed(self) -> str:
        """Ask for jobs while no worker lives: they wait in the layer, and are done once when one comes."""
        workers = [program.name for program in self.fleet.programs.values() if not program.address]
        for name in workers:
            await asyncio.to_thread(self.fleet.kill, name)
        asked = [f"/count job {number}" for number in range(5)]
        for question in asked:
            await self.members[0].say(ROOM, question)
            await self.members[-1].hear(self.members[0].name, ROOM, question)
        early = [question for question in asked if self.members[-1].answers(question)]
        _expect(not early, f"answered without a worker: {early}")
        for name in workers:
            await asyncio.to_thread(self.fleet.relaunch, name)
        for member in self.members:
            for question in asked:
                await member.answer(question)
        return f"{len(asked)} jobs waited for a worker and were done once it came"

    async def nothing_astray(self) -> str:
        """After a last word of each, nobody has got anything twice, or from a room that they are not in."""
        for member in self.members:
            await self._all_hear(member, f"last word of {member.name}")
        for member in self.everybody:
            _expect(not member.repeated(), f"{member.name} got twice: {member.repeated()[:3]}")
            strange = {note["key"] for note in member.messages} - member.joined
            _expect(not strange, f"{member.name} got messages of {strange}")
        return f"{sum(len(member.messages) for member in self.everybody):,} deliveries to {len(self.everybody)} people"

    def _latencies(self) -> list[float]:
        notes = (note for member in self.everybody for note in member.messages)
        return [note["ms"] for note in notes if note["via"] != note["at"] and "worker" not in note]

    def _address(self, name: str) -> str:
        return self.fleet.programs[name].address

    async def _enter(self, name: str, server: str, room: str = ROOM) -> Member:
        member = await Member(name, self._address(server)).open(room)
        self.everybody.append(member)
        if room == ROOM:
            self.members.append(member)
        return member

    async def _speak(self, member: Member, lines: list[str]) -> None:
        for line in lines:
            await member.say(ROOM, line)

    def _line(self, member: Member, number: int) -> str:
        return f"{number}{LONG}" if number % 10 == 9 else f"{number} from {member.name}"

    async def _all_see_all(self, patience: float = PATIENCE) -> None:
        places = {member.name: member.server for member in self.members}
        for member in self.members:
            await member.see(ROOM, places, patience)

    async def _all_hear(self, speaker: Member, text: str) -> None:
        await speaker.say(ROOM, text)
        for member in self.members:
            await member.hear(speaker.name, ROOM, text)


def _expect(well: bool, otherwise: str) -> None:
    if not well:
        raise CheckFailed(otherwise)


def _say(room: object, text: object) -> dict[str, object]:
    return {"type": "say", "room": room, "text": text}


def _timings(milliseconds: Sequence[float]) -> str:
    slow = statistics.quantiles(milliseconds, n=20, method="inclusive")[-1]
    middle = statistics.median(milliseconds)
    return f"{middle:.1f} ms median, {slow:.1f} ms 95th percentile, over {len(milliseconds)} deliveries"


def _fetch(address: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("Content-Security-Policy") or ""
    finally:
        connection.close()
