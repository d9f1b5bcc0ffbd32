"""Random conversations while sessions are killed: each channel gets exactly what it should, in order and once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from channels_pg_sa import SendError
from tests.support.databases import TestServer
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.waiting import let_pass

from .breaking import end, until_listening

SECONDS = 4.0
"""How long they talk at least."""
ENOUGH = 150
"""Messages to groups, and as many to channels, that are certainly sent before they stop."""
SETTLING = 2.0
"""Seconds without any message after which no more is expected, and which the effect of a fault may last."""
BYTES = (10, 10, 10, 200, 7_000, 30_000)
QUEUES = ("queue-1", "queue-2")
GROUPS = ("group-1", "group-2", "group-3")
ALL = "all"  # who is in it stays there


@dataclass
class Act:
    """A send, join or leave.

    Args:
        what: "channel", "group", "join" or "leave".
        target: a channel or a group.
        begun: by the monotonic clock, as all times here.
        over: when its outcome was known; infinity before that.
        done: whether it certainly was; None if nobody can tell.
    """

    what: str
    target: str
    begun: float = field(default_factory=time.monotonic)
    over: float = float("inf")
    done: bool | None = None


class Book:
    """What was done, and what was heard."""

    def __init__(self) -> None:
        self.sends: dict[int, Act] = {}  # by the number in the message
        self.senders: dict[int, int] = {}  # likewise
        self.heard: defaultdict[str, list[int]] = defaultdict(list)  # by channel
        self.changes: defaultdict[tuple[str, str], list[Act]] = defaultdict(list)  # by group and channel
        self.kills: list[float] = []

    def sure(self) -> tuple[int, int]:
        """Return how many sends to groups, and how many to channels, have certainly been done."""
        done = Counter(send.what for send in self.sends.values() if send.done)
        return done["group"], done["channel"]

    def is_member(self, group: str, channel: str, send: Act) -> bool | None:
        """Tell whether a channel was in a group all the while; None if that changed, or nobody can tell.

        A send that was cancelled may come later. And of an outage it is only known who was a member in the end.
        """
        hit = any(send.begun - SETTLING < kill < send.over + SETTLING for kill in self.kills)
        until = send.over + SETTLING if hit or not send.done else send.over
        member: bool | None = False
        for change in self.changes[group, channel]:
            lasting = 0.0 if change.done else SETTLING
            if change.begun <= until and change.over + lasting >= send.begun:
                return None
            if change.over < send.begun:
                member = (change.what == "join") if change.done else None
        return member

    def should_get(self, number: int, channel: str) -> tuple[int, int]:
        """Return how often, at least and at most, a channel should have got a message."""
        send = self.sends[number]
        if send.done is False:
            return 0, 0
        if send.what == "channel":
            wanted: bool | None = send.target == channel
        else:
            wanted = self.is_member(send.target, channel, send)
        return int(wanted is True and send.done is True), int(wanted is not False)

    def mistakes(self, channels: list[str]) -> list[str]:
        """Return what is not as it should be."""
        found: list[str] = []
        for channel in channels:
            got = Counter(self.heard[channel])
            for number, send in self.sends.items():
                least, most = self.should_get(number, channel)
                if not least <= got[number] <= most:
                    found.append(f"{channel} got {number} {got[number]} times, not {least} to {most}: {send}")
            found += self._disorder(channel)
        return found

    def _disorder(self, channel: str) -> list[str]:
        """Of one sender's messages that it waited for; a queue, which several read, has no order."""
        if channel in QUEUES:
            return []
        sure = [number for number in self.heard[channel] if self.sends[number].done]
        of_each = {sender: [n for n in sure if self.senders[n] == sender] for sender in set(self.senders.values())}
        return [f"{channel} got {numbers}" for numbers in of_each.values() if numbers != sorted(numbers)]


class Conversation:
    """Readers of each channel, senders to all of them, and who joins and leaves."""

    def __init__(self, layers: list[PostgresLayer], seed: int) -> None:
        self.book = Book()
        self.random = random.Random(seed)
        self.layers = layers
        self.channels: dict[str, PostgresLayer] = {}
        self._numbers = itertools.count(1)
        self._until = 0.0

    async def hold(self, killer: Coroutine[Any, Any, None] | None) -> None:
        """Talk for a while, and listen until nothing more comes."""
        for layer in self.layers:
            self.channels |= {await layer.new_channel(): layer for _ in range(3)}
        for channel, layer in self.channels.items():
            await self._change(layer, "join", ALL, channel)
        readers = [asyncio.create_task(self._read(layer, name)) for name, layer in self.channels.items()]
        readers += [asyncio.create_task(self._read(layer, queue)) for layer in self.layers[:2] for queue in QUEUES * 2]
        self._until = time.monotonic() + SECONDS
        talk = [self._send(sender) for sender in range(8)] + [self._come_and_go(name) for name in self.channels]
        await asyncio.gather(*talk, *([] if killer is None else [killer]))
        for layer in self.layers:
            await until_listening(layer)
        heard = -1
        while heard != (heard := sum(map(len, self.book.heard.values()))):
            await let_pass(SETTLING)
        await end(*readers)

    @property
    def goes_on(self) -> bool:
        """Whether it has not been long enough, or, on a busy machine, not enough has been said."""
        return time.monotonic() < self._until or min(self.book.sure()) < ENOUGH

    async def kill(self, server: TestServer, url: str) -> None:
        """Kill half of the sessions now and then."""
        while self.goes_on:
            await asyncio.sleep(self.random.uniform(0.2, 1.5))
            sessions = await asyncio.to_thread(server.connections, url)
            self.book.kills.append(time.monotonic())
            await asyncio.to_thread(server.terminate, [pid for pid in sessions if self.random.random() < 0.5])

    async def _read(self, layer: PostgresLayer, channel: str) -> None:
        """Receive, and give up waiting now and then: a message is either received or still there."""
        while True:
            receiving = asyncio.create_task(layer.receive(channel))
            patience = self.random.uniform(0, 0.03) if self.random.random() < 0.3 else None
            try:
                await asyncio.wait([receiving], timeout=patience)
            finally:
                receiving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    self.book.heard[channel].append((await receiving)["number"])

    async def _send(self, sender: int) -> None:
        layer = self.layers[sender % len(self.layers)]
        while self.goes_on:
            number = next(self._numbers)
            what = self.random.choice(("channel", "group"))
            target = self.random.choice((ALL, *GROUPS) if what == "group" else (*self.channels, *QUEUES))
            message = {"type": "test.message", "number": number, "text": "x" * self.random.choice(BYTES)}
            act = self.book.sends[number] = Act(what, target)
            self.book.senders[number] = sender
            sending = layer.group_send(target, message) if what == "group" else layer.send(target, message)
            await self._note(act, sending, share=0.1)
            await asyncio.sleep(self.random.choice((0, 0, 0.02)))

    async def _come_and_go(self, channel: str) -> None:
        layer = self.channels[channel]
        while self.goes_on:
            await self._change(
                layer, self.random.choice(("join", "leave")), self.random.choice(GROUPS), channel, share=0.1
            )
            await asyncio.sleep(self.random.uniform(0, 0.1))

    async def _change(self, layer: PostgresLayer, what: str, group: str, channel: str, *, share: float = 0.0) -> None:
        act = Act(what, group)
        self.book.changes[group, channel].append(act)
        change = layer.group_add if what == "join" else layer.group_discard
        await self._note(act, change(group, channel), share=share)

    async def _note(self, act: Act, work: Coroutine[Any, Any, None], *, share: float) -> None:
        """Note the outcome; a share is cancelled in the middle, and nobody can tell what became of it."""
        task = asyncio.create_task(work)
        if self.random.random() < share:
            await asyncio.wait([task], timeout=self.random.uniform(0, 0.01))
            task.cancel()
        try:
            await task
            act.done = True
        except SendError as error:
            act.done = None if error.maybe_sent else False
        except asyncio.CancelledError:
            act.done = None
        act.over = time.monotonic()


@pytest.mark.parametrize("is_killed", [False, True])
async def test_each_gets_what_it_should(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str, is_killed: bool
) -> None:
    """Under joins and leaves, cancellations at any moment, large messages and small, whatever the interleaving."""
    seed = random.randrange(1 << 32)
    conversation = Conversation([make_own_layer(heartbeat=1) for _ in range(3)], seed)
    await conversation.hold(conversation.kill(server, layer_url) if is_killed else None)
    book = conversation.book
    assert book.mistakes([*conversation.channels, *QUEUES]) == [], seed
    assert bool(book.kills) == is_killed
    expected = sum(book.should_get(number, name)[0] for number in book.sends for name in conversation.channels)
    assert expected > 300, (seed, expected)
