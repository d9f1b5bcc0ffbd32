"""Actors that open channels and join groups, and send nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time

from benchmarks.actors.base import Actor, Stage
from benchmarks.scenarios import Idler, Joiner
from benchmarks.system import resident_bytes


class Joining(Actor):
    """Join and leave groups."""

    def __init__(self, stage: Stage, role: Joiner) -> None:
        super().__init__(stage)
        self._role = role

    async def prepare(self) -> list[str]:
        self._channels = [await self.stage.layer.new_channel() for _ in range(self._role.concurrency)]
        return []

    async def warm(self) -> None:
        await asyncio.gather(*(self.stage.layer.group_add("warm", channel) for channel in self._channels))
        await asyncio.gather(*(self.stage.layer.group_discard("warm", channel) for channel in self._channels))

    async def run(self) -> None:
        end = time.monotonic() + self.stage.seconds
        await self._finish([self._lane(lane, channel, end) for lane, channel in enumerate(self._channels)])

    async def _lane(self, lane: int, channel: str, end: float) -> None:
        layer, report = self.stage.layer, self.report
        group = f"room{lane % self._role.groups if self._role.groups else lane}"
        while time.monotonic() < end:
            for change in (layer.group_add, layer.group_discard):
                begun = time.monotonic()
                report.sent += 1
                await change(group, channel)
                report.received += 1
                report.latencies.append(time.monotonic() - begun)
                self.stage.received.value += 1


class Idling(Actor):
    """Hold many channels open."""

    def __init__(self, stage: Stage, role: Idler) -> None:
        super().__init__(stage)
        self._role = role
        self._all_open = asyncio.Event()

    async def prepare(self) -> list[str]:
        # The first channel opens connections and imports modules: not what a channel costs.
        self._start(self._wait())
        await asyncio.sleep(0.5)
        return []

    async def run(self) -> None:
        before, begun = resident_bytes(), time.monotonic()
        for _ in range(self._role.channels):
            self._start(self._wait())
            if len(self._tasks) % 100 == 0:
                await asyncio.sleep(0)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._all_open.wait(), timeout=begun + 30.0 - time.monotonic())
        await asyncio.sleep(1.0)  # for what receive() does before it waits: a subscription, a query
        opened = self.stage.received.value - 1
        self.report.sent, self.report.received = self._role.channels, opened
        self.report.bytes_each = (resident_bytes() - before) / max(1, opened)
        self.report.finished = time.monotonic()

    async def _wait(self) -> None:
        channel = await self.stage.layer.new_channel()
        self.stage.received.value += 1
        if self.stage.received.value > self._role.channels:
            self._all_open.set()
        await self.stage.layer.receive(channel)
