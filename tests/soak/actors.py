"""The processes of a soak: `python -m tests.soak.actors ROLE CONFIG LOG SEED`; each ends with its standard input.

Each writes what it did to its own log, a JSON array a line, at once, so that it is there when the process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from channels_pg_sa import Layer, SendError

JOBS = "jobs"
GROUPS = ["everybody", "others"]
CHANNELS = 6
LARGE = 20_000

Send = tuple[str, str, dict[str, Any]]
"""Whether to a channel or a group, its name, and the message."""


class Actor:
    """What all have in common.

    Args:
        layer: to use.
        log: file descriptor to write to.
        chance: of its own.
    """

    def __init__(self, layer: Layer, log: int, chance: random.Random) -> None:
        self.layer = layer
        self.chance = chance
        self.stopping = False
        self._log = log

    def write(self, *fields: Any) -> None:
        """Write a line."""
        os.write(self._log, json.dumps(fields).encode() + b"\n")

    async def read(self, channel: str, label: str) -> None:
        """Receive for ever, and write down each message."""
        while True:
            message = await self.layer.receive(channel)
            self.write(label, message["stream"], message["number"])

    async def run(self) -> None:
        """Act until cancelled."""
        raise NotImplementedError


class Receiver(Actor):
    """Read channels of its own, some of which are members of groups all the time, and others now and then."""

    async def run(self) -> None:
        """Introduce the channels, and read them."""
        channels = [await self.layer.new_channel() for _ in range(CHANNELS)]
        members = {channel: GROUPS[place % len(GROUPS)] for place, channel in enumerate(channels)}
        for channel, group in members.items():
            await self.layer.group_add(group, channel)
        print(json.dumps({"members": members}), flush=True)
        readers = [self.read(channel, channel) for channel in channels]
        await asyncio.gather(*readers, *(self._come_and_go(number) for number in range(3)))

    async def _come_and_go(self, number: int) -> None:
        channel = await self.layer.new_channel("passing")
        reader = asyncio.create_task(self.read(channel, channel))
        try:
            while True:
                group = self.chance.choice(GROUPS)
                for change in (self.layer.group_add, self.layer.group_discard):
                    try:
                        await change(group, channel)
                    except SendError as error:
                        self.write("trouble", str(error))
                    await asyncio.sleep(self.chance.uniform(0, 0.5))
        finally:
            reader.cancel()


class Worker(Actor):
    """Do jobs of a normal channel, in competition with others, through several readers."""

    async def run(self) -> None:
        """Introduce the node, and work."""
        print(json.dumps({"node": self.layer.node}), flush=True)
        await asyncio.gather(*(self.read(JOBS, "worker") for _ in range(3)))


class Sender(Actor):
    """Send to channels, groups and jobs; in each stream one number after the other."""

    async def run(self) -> None:
        """Send bursts, until no more are asked for."""
        streams = json.loads(os.environ["SOAK_STREAMS"])
        numbers: Counter[str] = Counter()
        print("{}", flush=True)
        while not self.stopping:
            burst: list[Send] = []
            for _ in range(self.chance.choice((1, 1, 5, 20))):
                kind, name = self.chance.choice(streams)
                stream = f"{self.layer.node} {kind} {name}"
                large = self.chance.random() < 0.05
                burst.append((kind, name, {"stream": stream, "number": numbers[stream], "text": "x" * LARGE * large}))
                numbers[stream] += 1
            await self.send(burst)
            await asyncio.sleep(self.chance.uniform(0, 0.05))

    async def send(self, burst: list[Send]) -> None:
        """Send all at once."""

        async def send(kind: str, name: str, message: dict[str, Any]) -> None:
            with self.outcome_noted(message):
                await (self.layer.group_send if kind == "group" else self.layer.send)(name, message)

        await asyncio.gather(*(send(*each) for each in burst))

    @contextlib.contextmanager
    def outcome_noted(self, message: dict[str, Any]) -> Iterator[None]:
        """Write down what became of a message that is sent in the block."""
        outcome = "sent"
        try:
            yield
        except SendError as error:
            outcome = "unsure" if error.maybe_sent else "not sent"
        self.write(message["stream"], message["number"], outcome)


class PlainSender(Sender):
    """The same one by one by plain functions, in a thread without an event loop."""

    async def send(self, burst: list[Send]) -> None:
        """Send one after the other."""
        await asyncio.to_thread(self._send_plainly, burst)

    def _send_plainly(self, burst: list[Send]) -> None:
        for kind, name, message in burst:
            with self.outcome_noted(message):
                (self.layer.group_send_sync if kind == "group" else self.layer.send_sync)(name, message)


ROLES: dict[str, Callable[..., Actor]] = {
    "receiver": Receiver, "worker": Worker, "sender": Sender, "plain-sender": PlainSender,
}  # fmt: skip


async def main(role: str, config: str, log: str, seed: str) -> None:
    """Act until standard input ends, then close the layer."""
    layer = Layer(**json.loads(config))
    actor = ROLES[role](layer, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), random.Random(seed))
    acting = asyncio.create_task(actor.run())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    ending = asyncio.create_task(reader.read())
    await asyncio.wait([acting, ending], return_when=asyncio.FIRST_COMPLETED)
    actor.stopping = True
    if not isinstance(actor, Sender):
        acting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await acting
    await layer.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # It mourns each connection that is ended here.
    asyncio.run(main(*sys.argv[1:]))
