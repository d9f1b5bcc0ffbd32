"""One process of a case: it builds a layer, obeys the coordinator, and reports."""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from asgiref.sync import async_to_sync

from benchmarks.actors import WARM, Actor, Counter, Report, Stage, act
from benchmarks.peers import PEERS, Place
from benchmarks.peers.base import port_of
from benchmarks.scenarios import BlockingSender, Role, WebClients
from benchmarks.system import connections_to, sleep_until

_CLOSE_SECONDS = 10.0


@dataclass(frozen=True)
class Part:
    """What one process is told at birth. `warmed` and `received` are counters it shares with the coordinator."""

    peer: str
    place: Place
    roles: tuple[Role, ...]
    seconds: float
    warmed: Counter
    received: Counter

    @property
    def needs_layer(self) -> bool:
        """Return False for a process of mere clients: a layer there would cost what no client of a server pays."""
        return not all(isinstance(role, WebClients) for role in self.roles)


@dataclass
class Account:
    """What one process used and did."""

    reports: list[Report] = field(default_factory=list)
    cpu_seconds: float = 0.0
    connections: int = 0
    logged: list[str] = field(default_factory=list)


class _Overheard(logging.Handler):
    """Keep what a layer logs as a warning or worse: a message lost with a log line is still lost, but not silently."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._counts: collections.Counter[str] = collections.Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Count by the text before it is formatted; that is cheap and groups what belongs together."""
        self._counts[f"{record.name}: {record.msg}"[:120]] += 1

    def lines(self) -> list[str]:
        """Return the three most frequent lines, with their numbers."""
        return [f"logged {count} x {text}" for text, count in self._counts.most_common(3)]


_overheard = _Overheard()


def work(part: Part, link: Connection) -> None:
    """Run one process of a case until the coordinator says `close` or goes away."""
    logging.basicConfig(handlers=[_overheard], level=logging.WARNING, force=True)
    try:
        if isinstance(part.roles[0], BlockingSender):
            _Plain(part, part.roles[0], link).serve()
        else:
            asyncio.run(_Looped(part, link).serve())
    except EOFError:
        os._exit(1)
    except Exception:
        link.send(("error", traceback.format_exc(limit=-3)))


class _Usage:
    """CPU seconds of this process since `start`, and its connections to the server."""

    def __init__(self, place: Place) -> None:
        self._port = port_of(place.url) if place.url else None
        self._start = 0.0

    def start(self) -> None:
        self._start = time.process_time()

    def account(self, reports: list[Report]) -> Account:
        connections = connections_to(self._port) if self._port else 0
        return Account(reports, time.process_time() - self._start, connections, _overheard.lines())


class _Looped:
    """The obedience of a process with an event loop."""

    def __init__(self, part: Part, link: Connection) -> None:
        self._part = part
        self._link = link
        self._peer = PEERS[part.peer]
        self._usage = _Usage(part.place)
        self._actors: list[Actor] = []

    async def serve(self) -> None:
        layer = await self._open() if self._part.needs_layer else None
        for role in self._part.roles:
            stage = Stage(layer, self._part.seconds, self._part.warmed, self._part.received)
            self._actors.append(act(role, stage))
        while (order := await self._order())[0] != "close":
            self._link.send(("done", await self._obey(*order)))
        for actor in self._actors:
            await actor.close()
        if layer is not None:
            await asyncio.wait_for(self._peer.close(layer), _CLOSE_SECONDS)
        self._link.send(("done", None))

    async def _open(self) -> Any:
        layer = self._peer.build(self._part.place)
        await self._peer.open(layer)
        return layer

    async def _order(self) -> Any:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._link.fileno(), readable.set)
        await readable.wait()
        loop.remove_reader(self._link.fileno())
        return self._link.recv()

    async def _obey(self, order: str, value: Any = None) -> Any:
        if order == "prepare":
            return [name for actor in self._actors for name in await actor.prepare()]
        if order == "targets":
            for actor in self._actors:
                await actor.meet(value)
        elif order == "warm":
            await asyncio.gather(*(actor.warm() for actor in self._actors))
        elif order == "run":
            await asyncio.sleep(max(0.0, value - time.monotonic()))
            self._usage.start()
            await asyncio.gather(*(actor.run() for actor in self._actors))
            return sum(actor.report.sent for actor in self._actors)
        elif order == "stop":
            account = self._usage.account([])
            account.reports = [await actor.stop() for actor in self._actors]
            account.logged = _overheard.lines()
            return account
        return None


class _Plain:
    """The obedience of a process without an event loop, which sends from its main thread."""

    def __init__(self, part: Part, role: BlockingSender, link: Connection) -> None:
        self._part = part
        self._role = role
        self._link = link
        self._peer = PEERS[part.peer]
        self._layer = self._peer.build(part.place)
        self._usage = _Usage(part.place)
        self._targets: list[str] = []
        self._report = Report()
        self._send = self._sender()

    def _sender(self) -> Callable[[str, dict[str, Any]], None]:
        if self._role.plain:
            return lambda channel, message: self._peer.send_plainly(self._layer, channel, message)
        return async_to_sync(self._layer.send)

    def serve(self) -> None:
        while (order := self._link.recv())[0] != "close":
            self._link.send(("done", self._obey(*order)))
        self._peer.close_plainly(self._layer)
        self._link.send(("done", None))

    def _obey(self, order: str, value: Any = None) -> Any:
        if order == "prepare":
            return []
        if order == "targets":
            self._targets = value
        elif order == "warm":
            self._call(WARM)
        elif order == "run":
            sleep_until(value)
            self._usage.start()
            self._run(time.monotonic() + self._part.seconds)
            return self._report.sent
        elif order == "stop":
            account = self._usage.account([self._report])
            if not self._role.plain:
                self._report.empty_calls = _empty_calls(0.5)
            return account
        return None

    def _run(self, end: float) -> None:
        for number in range(self._role.limit):
            begun = time.monotonic()
            if begun >= end:
                break
            try:
                self._call(number)
            except Exception as error:
                self._report.refused += 1
                self._report.note(error)
            else:
                self._report.sent += 1
                self._report.calls.append(time.monotonic() - begun)

    def _call(self, number: int) -> None:
        body = b"x" * self._role.payload
        message = {"type": "benchmark.message", "number": number, "at": time.monotonic(), "body": body}
        self._send(self._targets[0], message)


def _empty_calls(seconds: float) -> float:
    call = async_to_sync(_nothing)
    begun = time.monotonic()
    count = 0
    while (now := time.monotonic()) < begun + seconds:
        call()
        count += 1
    return count / (now - begun)


async def _nothing() -> None:
    return None
