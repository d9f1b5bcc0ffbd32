"""The coordinator of a soak: starts the actors, breaks things under them, and collects what they wrote."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from channels_pg_sa.codec import MessageCodec
from tests.support.databases import OURS, query
from tests.support.processes import ROOT, environment
from tests.support.temp_postgres import TempPostgres

from .actors import GROUPS, JOBS
from .balance import Balance, Books

CAST = {"receiver": 2, "worker": 3, "sender": 2, "plain-sender": 1}
SETTLING = 30.0
"""Seconds without any delivery after which what is missing is lost."""

BACKENDS = """SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE %s"""
TERMINATE = """SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE %s ORDER BY random() LIMIT %s) AS chosen"""
CLAIMED = "SELECT payload FROM channels_pg_sa_message WHERE recipient = %s"
SIZE = "SELECT pg_total_relation_size('channels_pg_sa_message')"


@dataclass
class Outcome:
    """What a soak showed.

    Args:
        balances: by kind of message.
        processes: how many ran at once.
        connections: the most of all of them at once.
        left: connections that stayed when all processes had ended.
        memory: bytes of the process that grew most, after a quarter of the time and at the end.
        table: bytes of the message table at the end of sending.
        faults: how many of each kind.
        crashed: processes that ended by themselves.
        seconds: of sending.
    """

    balances: dict[str, Balance] = field(default_factory=dict)
    processes: int = sum(CAST.values())
    connections: int = 0
    left: int = 0
    memory: tuple[int, int] = (0, 0)
    table: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    crashed: int = 0
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether nothing went wrong that may not."""
        return not (self.crashed or self.left) and all(each.is_clean for each in self.balances.values())


class Performer:
    """An actor's process.

    Args:
        role: of tests.soak.actors.
        process: which runs it.
        log: file that it writes to.
    """

    def __init__(self, role: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.role = role
        self.introduction: dict[str, Any] = {}
        self._process = process
        self._log = log
        self._read = 0

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.returncode is not None

    @property
    def memory(self) -> int:
        """The bytes of memory that it has; 0 if that cannot be told."""
        with contextlib.suppress(OSError, ValueError):
            return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        return 0

    async def introduce(self) -> None:
        """Wait until it acts."""
        if self._process.stdout is not None:
            self.introduction = json.loads(await asyncio.wait_for(self._process.stdout.readline(), SETTLING))

    def lines(self) -> list[list[Any]]:
        """Return what it has written since the last time."""
        if not self._log.exists():
            return []
        with self._log.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    async def end(self) -> int:
        """End it in good order; return its status."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        return await asyncio.wait_for(self._process.wait(), SETTLING)

    async def kill(self) -> None:
        """End it by SIGKILL."""
        self._process.kill()
        await self._process.wait()


class Stage:
    """Play a soak.

    Args:
        url: libpq URI of a database with the schema.
        folder: for the actors' logs.
        chance: what happens.
        server: which may be restarted, if there is one.
    """

    def __init__(self, url: str, folder: str, chance: random.Random, server: TempPostgres | None) -> None:
        self._url = url
        self._folder = Path(folder)
        self._chance = chance
        self._server = server
        self._books = Books()
        self._outcome = Outcome()
        self._performers: list[Performer] = []
        self._gone: list[Performer] = []
        self._started = 0
        # The lease is short, so that a process that misses a few beats loses what is its own, and gets it back.
        self._config = {"url": url, "expiry": 100_000, "heartbeat": 1, "lease": 6, "send_timeout": 15}
        self._faults: list[Callable[[], Awaitable[None]]] = [self._terminate] * 8 + [self._kill_worker] * 3
        if server is not None:
            self._faults.append(self._restart)

    async def play(self, seconds: float) -> Outcome:
        """Send for so many seconds, wait for what is under way, and return what came of it."""
        outcome = self._outcome
        for role, count in CAST.items():
            await asyncio.gather(*(self._start(role) for _ in range(count)))
        begun = time.monotonic()
        breaking = asyncio.create_task(self._break_things(begun + seconds))
        before = await self._watch(begun + seconds / 4)
        await self._watch(begun + seconds)
        await breaking
        await self._dismiss("sender", "plain-sender")
        outcome.seconds = time.monotonic() - begun
        outcome.table = query(self._url, SIZE)[0][0]
        await self._settle()
        grown = [(before[each], each.memory) for each in self._performers if each in before]
        outcome.memory = max(grown, key=lambda pair: pair[1] - pair[0])
        await self._dismiss("receiver", "worker")
        self._collect()
        outcome.balances = self._books.deliveries()
        outcome.left = await self._left()
        return outcome

    # Actors --------------------------------------------------------------------------------------

    async def _start(self, role: str) -> None:
        self._started += 1
        log = self._folder / f"{self._started}-{role}"
        streams = [("channel", name) for name in self._books.members]
        streams += [("group", name) for name in GROUPS] + [("job", JOBS)] * 6
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.soak.actors", role, json.dumps(self._config), log),
            str(self._chance.random()),
            cwd=ROOT,
            env=environment(SOAK_STREAMS=json.dumps(streams)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        performer = Performer(role, process, log)
        self._performers.append(performer)
        await performer.introduce()
        self._books.members.update(performer.introduction.get("members", {}))

    async def _dismiss(self, *roles: str) -> None:
        going = [performer for performer in self._performers if performer.role in roles]
        statuses = await asyncio.gather(*(performer.end() for performer in going))
        self._outcome.crashed += sum(status != 0 for status in statuses)
        self._collect()
        self._gone += going
        self._performers = [performer for performer in self._performers if performer not in going]

    def _collect(self) -> None:
        """Enter into the books what the actors have written."""
        for performer in (*self._performers, *self._gone):
            for first, second, *rest in performer.lines():
                if first == "trouble":
                    self._outcome.faults["joins that failed"] += 1
                elif rest and isinstance(rest[0], int):
                    self._books.came[first, second].append(rest[0])
                else:
                    self._books.outcomes[first][second] = rest[0]

    async def _watch(self, end: float) -> dict[Performer, int]:
        """Count connections, and see who has ended; return the memory that each process has at the end."""
        while time.monotonic() < end:
            with contextlib.suppress(psycopg.OperationalError):
                ((count,),) = await asyncio.to_thread(query, self._url, BACKENDS, [OURS])
                self._outcome.connections = max(self._outcome.connections, count)
            await asyncio.sleep(0.2)
        return {performer: performer.memory for performer in self._performers}

    async def _settle(self) -> None:
        """Wait until all has come, or nothing comes any more."""
        delivered, since = -1, time.monotonic()
        while time.monotonic() - since < SETTLING:
            self._collect()
            now = sum(map(len, self._books.came.values()))
            if now != delivered:
                delivered, since = now, time.monotonic()
            elif self._books.is_settled():
                return
            await asyncio.sleep(0.5)

    async def _left(self) -> int:
        """Return how many connections stay; the server notices a moment later than the client that one has ended."""
        await asyncio.sleep(1)
        return int(query(self._url, BACKENDS, [OURS])[0][0])

    # Faults --------------------------------------------------------------------------------------

    async def _break_things(self, end: float) -> None:
        while (pause := self._chance.uniform(0.2, 2)) < end - time.monotonic():
            await asyncio.sleep(pause)
            with contextlib.suppress(psycopg.OperationalError):
                await self._chance.choice(self._faults)()
            ended = [performer for performer in self._performers if performer.has_ended]
            if ended:
                raise RuntimeError(f"The {ended[0].role} ended by itself.")

    async def _terminate(self) -> None:
        count = self._chance.choice((1, 1, 2, 5, 100))
        ((done,),) = await asyncio.to_thread(query, self._url, TERMINATE, [OURS, count])
        self._outcome.faults["connections ended"] += done

    async def _kill_worker(self) -> None:
        worker = self._chance.choice([performer for performer in self._performers if performer.role == "worker"])
        self._performers.remove(worker)
        self._gone.append(worker)
        await worker.kill()
        self._outcome.faults["workers killed"] += 1
        await self._note_in_hand(worker.introduction["node"])
        await self._start("worker")

    async def _note_in_hand(self, node: str) -> None:
        """Note what a killed worker had claimed: that is lost with it."""
        codec = MessageCodec("msgpack", ())
        for (payload,) in await asyncio.to_thread(query, self._url, CLAIMED, [node]):
            message = codec.decode(payload)
            self._books.in_hand[message["stream"]].add(message["number"])

    async def _restart(self) -> None:
        if self._server is not None:
            await asyncio.to_thread(self._server.restart)
            self._outcome.faults["restarts of the server"] += 1
