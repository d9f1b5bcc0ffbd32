"""Actors on both ends of WebSockets: a Uvicorn in front of the layer, and the clients it serves."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import TYPE_CHECKING, Any

from benchmarks.actors.base import HANG_SECONDS, WARM, Actor, Report, Stage
from benchmarks.measures import Tally
from benchmarks.scenarios import WebClients, WebServer
from benchmarks.system import allow_open_files

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

_BROADCASTS = 5_000
_CONNECTING_AT_ONCE = 50
_OTHER_FILES = 256


def _open_files(clients: int) -> int:
    """Return how many open files suffice, even where both ends of every WebSocket are in one process."""
    return 2 * clients + _OTHER_FILES


class Serving(Actor):
    """Run Uvicorn until the case closes."""

    def __init__(self, stage: Stage, role: WebServer) -> None:
        super().__init__(stage)
        self._role = role

    async def prepare(self) -> list[str]:
        from benchmarks.site import server

        allow_open_files(_open_files(self._role.clients))
        listening = socket.create_server(("127.0.0.1", 0))
        self._server = server(self.stage.layer, self._role.group)
        self._running = asyncio.ensure_future(self._server.serve(sockets=[listening]))
        await asyncio.wait_for(self._started(), HANG_SECONDS)
        return [f"ws://127.0.0.1:{listening.getsockname()[1]}/ws"]

    async def _started(self) -> None:
        while not self._server.started:
            if self._running.done():
                raise RuntimeError("Uvicorn has ended before it served anything") from self._running.exception()
            await asyncio.sleep(0.01)

    async def stop(self) -> Report:
        # It goes on serving: the clients hang up first.
        if self._running.done():
            self.report.errors.append("Uvicorn has ended too early")
        return self.report

    async def close(self) -> None:
        self._server.should_exit = True
        _, hung = await asyncio.wait({self._running}, timeout=HANG_SECONDS)
        if hung:
            raise TimeoutError(f"Uvicorn did not end within {HANG_SECONDS:.0f} s")


class Visiting(Actor):
    """Hold many WebSockets open, and count what comes through each."""

    def __init__(self, stage: Stage, role: WebClients) -> None:
        super().__init__(stage)
        self._role = role
        self._sockets: list[ClientConnection] = []
        self._tallies: list[Tally] = []

    async def meet(self, targets: list[str]) -> None:
        await super().meet(targets)
        allow_open_files(_open_files(self._role.clients))
        while missing := self._role.clients - len(self._sockets):
            await asyncio.gather(*(self._visit(targets[0]) for _ in range(min(missing, _CONNECTING_AT_ONCE))))

    async def _visit(self, address: str) -> None:
        from websockets.asyncio.client import connect

        # No keepalive: it would be the client's own work, and mean nothing for the layer.
        client = await connect(address, open_timeout=HANG_SECONDS, ping_interval=None)
        tally = Tally(_BROADCASTS)
        self._sockets.append(client)
        self._tallies.append(tally)
        self._start(self._watch(client, tally))

    async def _watch(self, client: ClientConnection, tally: Tally) -> None:
        cold = True
        try:
            while True:
                text = await client.recv()
                now, message = time.monotonic(), json.loads(text)
                if message["number"] == WARM:
                    self.stage.warmed.value += cold
                    cold = False
                elif tally.add(message["number"]):
                    self._count(message, now)
        except Exception as error:  # a connection that breaks, above all
            self.report.note(error)

    def _count(self, message: dict[str, Any], now: float) -> None:
        self.report.latencies.append(now - message["at"])
        self.report.finished = self.report.last_seen[message["number"]] = now
        self.stage.received.value += 1

    async def stop(self) -> Report:
        report = await super().stop()
        report.received = sum(tally.unique for tally in self._tallies)
        report.doubled = sum(tally.doubled for tally in self._tallies)
        await self._hang_up()
        return report

    async def _hang_up(self) -> None:
        closing = [asyncio.ensure_future(client.close()) for client in self._sockets]
        if closing:
            _, hung = await asyncio.wait(closing, timeout=HANG_SECONDS)
            for task in hung:
                task.cancel()
