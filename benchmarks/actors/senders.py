"""Actors that send and keep time."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine
from typing import Any

from benchmarks.actors.base import WARM, Actor, Stage
from benchmarks.scenarios import Sender


class Sending(Actor):
    """Send from `concurrency` coroutines, each waiting for its own send."""

    def __init__(self, stage: Stage, role: Sender) -> None:
        super().__init__(stage)
        self._role = role
        self._body = b"x" * role.payload
        self._numbers = itertools.count()

    def _send(self, number: int) -> Coroutine[Any, Any, None]:
        layer, role = self.stage.layer, self._role
        message = {"type": "benchmark.message", "number": number, "at": time.monotonic(), "body": self._body}
        call: Coroutine[Any, Any, None]
        if role.group is not None:
            call = layer.group_send(role.group, message)
        else:
            targets = self.stage.targets
            call = layer.send(role.queue or targets[number % len(targets)], message)
        return call

    async def warm(self) -> None:
        targets = self.stage.targets
        if self._role.group is not None:
            await self._send(WARM)
            return
        names = [self._role.queue] * 16 if self._role.queue else targets
        count = max(len(names), self._role.concurrency)
        message = {"type": "benchmark.message", "number": WARM, "at": 0.0, "body": b"x"}
        await asyncio.gather(*(self.stage.layer.send(names[i % len(names)], message) for i in range(count)))

    async def run(self) -> None:
        start = time.monotonic()
        lane = self._paced_lane if self._role.every else self._lane
        await self._finish([lane(start) for _ in range(self._role.concurrency)])

    async def _lane(self, start: float) -> None:
        end = start + self.stage.seconds
        while time.monotonic() < end and (number := next(self._numbers)) < self._role.limit:
            await self._call(number)

    async def _paced_lane(self, start: float) -> None:
        every = self._role.every or 0.0
        while (number := next(self._numbers)) * every < self.stage.seconds:
            await asyncio.sleep(max(0.0, start + number * every - time.monotonic()))
            await self._call(number)

    async def _call(self, number: int) -> None:
        begun = time.monotonic()
        if self._role.group is not None:
            self.report.started[number] = begun
        try:
            await self._send(number)
        except Exception as error:
            self.report.refused += 1
            self.report.note(error)
        else:
            self.report.sent += 1
            self.report.calls.append(time.monotonic() - begun)
