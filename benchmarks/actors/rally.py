"""Actors that send a message to and fro."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from benchmarks.actors.base import HANG_SECONDS, WARM, Actor, Report, Stage
from benchmarks.scenarios import Pinger

_ROUND_TRIPS_TO_WARM = 20


class Pinging(Actor):
    """Measure round trips."""

    def __init__(self, stage: Stage, role: Pinger) -> None:
        super().__init__(stage)
        self._role = role
        self._body = b"x" * role.payload

    async def prepare(self) -> list[str]:
        self._channel = await self.stage.layer.new_channel()
        return []

    def _ping(self, number: int) -> Coroutine[Any, Any, None]:
        message = {"type": "benchmark.ping", "number": number, "reply": self._channel, "body": self._body}
        call: Coroutine[Any, Any, None] = self.stage.layer.send(self.stage.targets[0], message)
        return call

    async def warm(self) -> None:
        answer = asyncio.ensure_future(self.stage.layer.receive(self._channel))
        for _ in range(int(HANG_SECONDS * 2)):
            await self._ping(WARM)
            done, _ = await asyncio.wait({answer}, timeout=0.5)
            if done:
                break
        await asyncio.wait_for(answer, timeout=HANG_SECONDS)
        await asyncio.wait_for(
            self._rally(range(-_ROUND_TRIPS_TO_WARM - 1, WARM), time.monotonic() + HANG_SECONDS), HANG_SECONDS
        )
        self.report = Report()

    async def run(self) -> None:
        end = time.monotonic() + self.stage.seconds
        await self._finish([self._rally(range(self._role.limit), end)])

    async def _rally(self, numbers: range, end: float) -> None:
        receive, report = self.stage.layer.receive, self.report
        for number in numbers:
            begun = time.monotonic()
            if begun >= end:
                break
            report.sent += 1
            await self._ping(number)
            while (await receive(self._channel))["number"] != number:
                report.doubled += 1
            report.received += 1
            report.latencies.append(time.monotonic() - begun)
            self.stage.received.value += 1


class Echoing(Actor):
    """Answer."""

    async def prepare(self) -> list[str]:
        channel: str = await self.stage.layer.new_channel()
        self._start(self._answer(channel))
        return [channel]

    async def _answer(self, channel: str) -> None:
        layer = self.stage.layer
        while True:
            message = await layer.receive(channel)
            await layer.send(message["reply"], message)
