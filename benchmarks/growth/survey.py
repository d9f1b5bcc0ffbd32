"""What is measured, and how often: loads that the model is fitted to, others that it is to predict, and the rest."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.growth.crowd import HOST_SEND, HOST_WRITE, commits
from benchmarks.growth.model import Load
from benchmarks.growth.probe import Probe, probe
from benchmarks.growth.report import RARE, SENDERS, Findings

PAUSE = 0.25
"""Seconds between messages to real layers, which wait up to 0.1 s before they delete."""
LISTENERS = (0, 1, 25, 50, 100, 200, 400)
PROCESSES = (1, 4, 16, 64)
MEMBERS = 1_000
HEARTBEAT = 1.5
"""Seconds: more often than the default, but not so often that a connection would still be at hand from the last one."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        times: statements in a repetition.
        repeat: repetitions.
        listeners: the most connections that listen.
        rows: messages that come and go to see what room they leave.
        idle: layers that idle.
        seconds: for which they are watched.
    """

    times: int
    repeat: int
    listeners: int
    rows: int
    idle: int
    seconds: float


FULL = Effort(times=60, repeat=5, listeners=400, rows=50_000, idle=16, seconds=30.0)
QUICK = Effort(times=10, repeat=1, listeners=50, rows=1_000, idle=4, seconds=6.0)


def fitted(listeners: int) -> list[Load]:
    """Return the loads that the model is fitted to, with no more than so many connections that listen."""
    loads = [Load(count, 1, group=False) for count in LISTENERS]
    loads += [Load(count, count, group=True) for count in PROCESSES]
    loads += [Load(100, 16, group=True), Load(200, 64, group=True), Load(400, 200, group=True)]
    loads += [Load(16, 16, group=True, size=size) for size in (1_000, 4_000)]
    loads += [Load(1, 1, group=False, messages=count) for count in (16, 256)]
    loads += [Load(16, 16, group=False, messages=64), Load(16, 16, group=True, messages=16)]
    loads += [Load(100, 1, group=False, messages=16), Load(1, 1, group=False, messages=16, size=1_000)]
    return sorted((load for load in loads if load.listeners <= listeners), key=lambda load: load.listeners)


def held_out(listeners: int) -> list[Load]:
    """Return loads that the model is to predict."""
    loads = [Load(40, 8, group=False, messages=8), Load(150, 32, group=True, size=1_000)]
    return [load for load in loads if load.listeners <= listeners]


async def measure(url: str, effort: Effort) -> Findings:
    """Measure everything on a database that has the tables and nobody in it."""
    async with probe(url) as server:
        listeners = min(effort.listeners, await server.room())
        found = Findings(await server.version())
        await _measure_sends(server, effort, listeners, found)
        await _measure_rows(server, effort, found)
        await _measure_layers(server, effort, listeners, found)
    write, send = HOST_WRITE, HOST_SEND
    for what, statements in {"writes": [write], "writes and sends": [write, send], "sends": [send]}.items():
        found.writers[what] = commits(url, statements, times=effort.times)
    return found


async def _measure_sends(server: Probe, effort: Effort, listeners: int, found: Findings) -> None:
    for load in fitted(listeners):
        say(str(load))
        found.sends[load] = await server.measure(load, times=effort.times, repeat=effort.repeat)
        if not load.group and load.messages == 1:
            found.bare[load.listeners] = await server.bare(load.listeners, times=effort.times, repeat=effort.repeat)
            found.back_to_back[load] = await server.measure(load, times=effort.times, repeat=effort.repeat, pause=0.0)
            found.together[load] = await server.together(
                load, senders=SENDERS, times=effort.times // 2, repeat=effort.repeat
            )
        if load == Load(16, 16, group=True):
            found.crowded[load] = await server.measure(load, times=effort.times, repeat=effort.repeat, members=MEMBERS)
            large = Load(16, 16, group=True, size=32_000)
            found.large[large] = await server.measure(large, times=effort.times, repeat=effort.repeat)
    for load in held_out(listeners):
        say(f"held out: {load}")
        found.held_out[load] = await server.measure(load, times=effort.times, repeat=effort.repeat)


async def _measure_rows(server: Probe, effort: Effort, found: Findings) -> None:
    say("rows")
    server.crowd.resize(1)
    for count in (1, 16, 256):
        found.deletions[count] = await server.deletion(count, times=effort.times // 2, repeat=effort.repeat)
    found.fetching = await server.fetching(32_000, times=effort.times // 2, repeat=effort.repeat)
    for count in (1, 16, 256):
        found.lives[count] = await server.life(Load(1, 1, group=False, messages=count), times=effort.times)
    found.rows = effort.rows
    found.room = await server.room_of_dead_rows(effort.rows)
    found.vacuuming = await server.vacuuming(effort.rows)


async def _measure_layers(server: Probe, effort: Effort, listeners: int, found: Findings) -> None:
    say("real layers")
    receivers, others = effort.idle, max(0, min(50, listeners - 4 * effort.idle))
    load = Load(receivers + others, receivers, group=True, size=500)
    found.living[load] = await server.living(load, others=others, times=effort.times, pause=PAUSE, heartbeat=RARE)
    found.idle, found.interval = effort.idle, HEARTBEAT
    found.beat, found.statements = await server.idling(effort.idle, heartbeat=HEARTBEAT, seconds=effort.seconds)


def say(line: str) -> None:
    """Tell whoever waits how far it is."""
    print(line, file=sys.stderr, flush=True)
