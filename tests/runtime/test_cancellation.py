"""receive() cancelled at every point of a delivery: a fuzzed schedule, thousands of times."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from tests.support.layers import LayerFactory, Message, PostgresLayer
from tests.support.waiting import PATIENCE

MESSAGES = 1500
LARGE = "x" * 20_000
"""Too much for a notification: its row is fetched when the doorbell has been heard."""


@dataclass
class Run:
    """What the readers of one channel, or of those that begin alike, get and how often they are cancelled.

    Args:
        layer: reads.
        start: what they receive from.
        channels: where the messages are sent to, in turn.
        seed: of the schedule.
    """

    layer: PostgresLayer
    start: str
    channels: list[str]
    seed: int
    received: list[Message] = field(default_factory=list)
    cancelled: int = 0

    async def send(self, layer: PostgresLayer) -> None:
        """Send small and large messages, singly and in bursts, with and without a pause."""
        chance = random.Random(self.seed)
        number = 0
        while number < MESSAGES:
            burst = range(number, min(MESSAGES, number + chance.choice((1, 1, 1, 2, 5, 20))))
            content = [LARGE if chance.random() < 0.2 else "" for _ in burst]
            names = [self.channels[n % len(self.channels)] for n in burst]
            sends = zip(names, burst, content, strict=True)
            await asyncio.gather(*(layer.send(name, {"name": name, "number": n, "text": t}) for name, n, t in sends))
            number = burst.stop
            await asyncio.sleep(chance.choice((0, 0.001, 0.01)))

    async def read(self, reader: int, count: int = MESSAGES) -> None:
        """Receive, and give up at some moment, again and again, until so many have come."""
        chance = random.Random(f"{self.seed} {reader}")
        while len(self.received) < count:
            attempt = chance.choice((self._cancel, self._cancel, self._poll))
            try:
                self.received.append(await attempt(chance))
            except (asyncio.CancelledError, asyncio.TimeoutError):
                self.cancelled += 1

    async def _cancel(self, chance: random.Random) -> Message:
        """Cancel a receive() after some turns of the loop, or after some time."""
        task = asyncio.ensure_future(self.layer.receive(self.start))
        if chance.random() < 0.5:
            for _ in range(chance.randrange(8)):
                await asyncio.sleep(0)
        else:
            await asyncio.wait([task], timeout=chance.uniform(0, 0.005))
        task.cancel()
        return await task

    async def _poll(self, chance: random.Random) -> Message:
        """Call receive() with a deadline."""
        patience = chance.choice((0, chance.uniform(0, 0.0005), chance.uniform(0, 0.01)))
        await asyncio.sleep(0)  # With no patience at all the loop would never get its turn.
        return await asyncio.wait_for(self.layer.receive(self.start), patience)

    def check(self, *, ordered: bool) -> None:
        """Each message came once, and with a single reader in order."""
        numbers = [message["number"] for message in self.received]
        assert sorted(numbers) == list(range(MESSAGES)), f"seed {self.seed}"
        if ordered:
            came: defaultdict[str, list[int]] = defaultdict(list)
            for message in self.received:
                came[message["name"]].append(message["number"])
            assert list(came.values()) == [sorted(each) for each in came.values()], f"seed {self.seed}"
        assert self.cancelled > MESSAGES / 5, f"seed {self.seed}"
        assert "0 waiting, 0 unread" in repr(self.layer), f"seed {self.seed}"


async def new_run(layer: PostgresLayer, kind: str) -> Run:
    """Prepare a channel of this kind."""
    own = await layer.new_channel()
    start, channels = {
        "specific": (own, [own]),
        "specific prefix": (own.partition("!")[0] + "!", [own, await layer.new_channel()]),
        "normal": ("normal", ["normal"]),
        "normal prefix": ("prefix!", ["prefix!a", "prefix!b"]),
    }[kind]
    return Run(layer, start, channels, random.randrange(1 << 32))


KINDS = ("specific", "specific prefix", "normal", "normal prefix")


@pytest.mark.parametrize("readers", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_at_every_point(make_layer: LayerFactory, kind: str, readers: int) -> None:
    """Peer defect 23: cancelled receives lost, doubled and disordered messages; here each comes once, in order."""
    run = await new_run(make_layer(), kind)
    work = asyncio.gather(run.send(make_layer()), *(run.read(reader) for reader in range(readers)))
    await asyncio.wait_for(work, 5 * PATIENCE)
    run.check(ordered=readers == 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_in_several_loops(make_layer: LayerFactory, kind: str) -> None:
    """The same with readers on loops in three threads, so that a wake-up and a cancellation cross."""
    run = await new_run(make_layer(), kind)
    threads = [asyncio.to_thread(asyncio.run, run.read(reader)) for reader in range(3)]
    await asyncio.wait_for(asyncio.gather(run.send(make_layer()), *threads), 5 * PATIENCE)
    run.check(ordered=False)


async def test_cancelled_beside_one_that_waits(make_layer: LayerFactory) -> None:
    """A patient reader gets what the impatient ones leave, and all that comes when these have gone."""
    run = await new_run(make_layer(), "specific")

    async def wait() -> None:
        while len(run.received) < MESSAGES:
            run.received.append(await run.layer.receive(run.start))

    impatient = [run.read(reader, MESSAGES // 2) for reader in range(3)]
    await asyncio.wait_for(asyncio.gather(run.send(make_layer()), wait(), *impatient), 3 * PATIENCE)
    run.check(ordered=False)
