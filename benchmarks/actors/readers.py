"""Actors that receive and count."""

from __future__ import annotations

import time

from benchmarks.actors.base import WARM, Actor, Report, Stage
from benchmarks.measures import Tally
from benchmarks.scenarios import QueueWorker, Receiver

_NUMBERS = 500_001
_GROUP_NUMBERS = 5_000


class Reading(Actor):
    """Read every channel in a task of its own, as consumers do."""

    def __init__(self, stage: Stage, role: Receiver | QueueWorker) -> None:
        super().__init__(stage)
        self._role = role
        self._tallies: list[Tally] = []

    async def prepare(self) -> list[str]:
        if isinstance(self._role, QueueWorker):
            channels, tallies = [self._role.queue], [Tally(_NUMBERS)]
        else:
            channels = [await self.stage.layer.new_channel() for _ in range(self._role.channels)]
            tallies = await self._join(channels, self._role.group)
        self._tallies = list({id(tally): tally for tally in tallies}.values())
        for channel, tally in zip(channels, tallies, strict=True):
            self._start(self._read(channel, tally))
        return channels

    async def _join(self, channels: list[str], group: str | None) -> list[Tally]:
        if group is None:
            return [Tally(_NUMBERS)] * len(channels)
        for channel in channels:
            await self.stage.layer.group_add(group, channel)
        return [Tally(_GROUP_NUMBERS) for _ in channels]

    async def _read(self, channel: str, tally: Tally) -> None:
        receive, clock, report, received = self.stage.layer.receive, time.monotonic, self.report, self.stage.received
        latency = report.latencies.append
        last_seen = report.last_seen if isinstance(self._role, Receiver) and self._role.group else None
        cold = True
        while len(report.errors) < 3:
            try:
                message = await receive(channel)
            except Exception as error:
                report.note(error)
                continue
            now, number = clock(), message["number"]
            if number == WARM:
                self.stage.warmed.value += cold
                cold = False
            elif tally.add(number):
                latency(now - message["at"])
                report.finished = now
                received.value += 1
                if last_seen is not None:
                    last_seen[number] = now

    async def stop(self) -> Report:
        report = await super().stop()
        report.received = sum(tally.unique for tally in self._tallies)
        report.doubled = sum(tally.doubled for tally in self._tallies)
        if isinstance(self._role, QueueWorker):
            report.seen = self._tallies[0].numbers()
        return report
