"""Run one case: start its processes, bring them to the same line, let them go, wait for the messages, clear up."""

from __future__ import annotations

import multiprocessing
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

from benchmarks.peers import Peer, Place
from benchmarks.peers.base import port_of
from benchmarks.results import Result, conclude
from benchmarks.scenarios import BlockingSender, Joiner, Pinger, QueueWorker, Role, Scenario, Sender
from benchmarks.system import family_cpu_seconds, listening_process, machine_cpu_seconds
from benchmarks.worker import Account, Part, work

_PREPARE_SECONDS = 60.0
_WARM_SECONDS = 30.0
_RUN_GRACE_SECONDS = 45.0
_IDLE_SECONDS = 2.0
_DRAIN_SECONDS = 20.0
_SETTLE_SECONDS = 0.3
_CLOSE_SECONDS = 15.0


class CaseFailed(Exception):
    """A process of a case reported an error or did not answer in time."""


class Worker:
    """One process of a case, as its coordinator sees it."""

    def __init__(self, context: ForkServerContext, name: str, part: Part) -> None:
        self.part = part
        self._link, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(part, theirs), name=name, daemon=True)
        self._process.start()
        theirs.close()

    def tell(self, order: str, value: Any = None) -> None:
        """Give an order; its answer has to be awaited before the next one."""
        try:
            self._link.send((order, value))
        except OSError as error:
            raise CaseFailed(f"{self._process.name} is gone ({error})") from error

    def answer(self, seconds: float, order: str) -> Any:
        """Return the answer; raise CaseFailed when there is none after `seconds`."""
        if not self._link.poll(max(0.0, seconds)):
            raise CaseFailed(f"{self._process.name} did not finish '{order}' within {seconds:.0f} s")
        try:
            kind, value = self._link.recv()
        except (EOFError, OSError) as error:
            raise CaseFailed(f"{self._process.name} died during '{order}'") from error
        if kind == "error":
            raise CaseFailed(f"'{order}': {str(value).strip().splitlines()[-1][:200]}")
        return value

    def end(self, seconds: float) -> bool:
        """Wait for the process and return True if it went by itself."""
        self._process.join(seconds)
        alone = not self._process.is_alive()
        if not alone:
            self._process.kill()
            self._process.join()
        self._link.close()
        return alone


class Case:
    """One repetition of one scenario with one peer."""

    def __init__(self, scenario: Scenario, peer: Peer, url: str, seconds: float) -> None:
        self._scenario = scenario
        self._peer = peer
        secret = uuid.uuid4().hex if scenario.encrypted else None
        self._place = Place(url, f"bench{uuid.uuid4().hex[:12]}", secret)
        self._seconds = seconds * scenario.stretch
        self._workers: list[Worker] = []

    def run(self) -> Result:
        """Return the result; one with an `error` when the case failed. Every step has a deadline."""
        try:
            self._peer.clear(self._place.url)
            if self._scenario.memberships:
                self._peer.fill(self._place, self._scenario.memberships)
            self._start()
            self._bring_to_the_line()
            result = self._measure()
        except CaseFailed as failure:
            self._end(0.0)
            return Result(self._scenario.name, self._peer.name, error=str(failure))
        return self._close(result)

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.worker", "channels.layers"])
        roles = self._scenario.roles
        for number, group in enumerate([roles] if self._peer.one_process else [(role,) for role in roles]):
            counters = (context.Value("q", 0, lock=False), context.Value("q", 0, lock=False))
            part = Part(self._peer.name, self._place, group, self._seconds, *counters)
            kinds = "+".join(dict.fromkeys(type(role).__name__ for role in group))
            self._workers.append(Worker(context, f"{kinds} {number}", part))

    def _ask(self, order: str, value: Any, seconds: float, *, of: Callable[[Role], bool] | None = None) -> list[Any]:
        deadline = time.monotonic() + seconds
        asked = [worker for worker in self._workers if of is None or any(of(role) for role in worker.part.roles)]
        for worker in asked:
            worker.tell(order, value)
        return [worker.answer(deadline - time.monotonic(), order) for worker in asked]

    def _bring_to_the_line(self) -> None:
        names = self._ask("prepare", None, _PREPARE_SECONDS)
        self._ask("targets", [name for some in names for name in some], _PREPARE_SECONDS)
        wanted = self._channels_to_warm()
        deadline = time.monotonic() + _WARM_SECONDS
        while True:
            self._ask("warm", None, _WARM_SECONDS, of=_sends)
            if _reaches(self._warmed, wanted, 1.0):
                break
            if time.monotonic() > deadline:
                raise CaseFailed(
                    f"{wanted - self._warmed()} of {wanted} channels heard nothing in {_WARM_SECONDS:.0f} s"
                )
        time.sleep(_SETTLE_SECONDS)

    def _channels_to_warm(self) -> int:
        # One of several competing workers is enough: a layer may well favour one of them.
        workers = any(isinstance(role, QueueWorker) for role in self._scenario.roles)
        return self._scenario.channels + workers

    def _warmed(self) -> int:
        return sum(worker.part.warmed.value for worker in self._workers)

    def _received(self) -> int:
        return sum(worker.part.received.value for worker in self._workers)

    def _measure(self) -> Result:
        port = port_of(self._place.url) if self._place.url else None
        server = listening_process(port) if port else None
        before = family_cpu_seconds(server) if server else 0.0
        begun, machine = time.monotonic(), machine_cpu_seconds()
        started = begun + 0.05
        sent = sum(self._ask("run", started, self._seconds + _RUN_GRACE_SECONDS))
        cut = self._drain(sent * self._scenario.fan_out)
        server_cpu = family_cpu_seconds(server) - before if server else None
        machine, seconds = machine_cpu_seconds() - machine, time.monotonic() - begun
        accounts: list[Account] = self._ask("stop", None, _PREPARE_SECONDS)
        result = conclude(self._scenario, self._peer.name, accounts, started, server_cpu, cut=cut)
        others = machine - (server_cpu or 0.0) - sum(account.cpu_seconds for account in accounts)
        return replace(result, other_cores=max(0.0, others / seconds))

    def _drain(self, expected: int) -> bool:
        """Wait until all is received, nothing moves, or time is over; return True in the last case."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while (before := self._received()) < expected:
            if not _reaches(self._received, before + 1, _IDLE_SECONDS):
                return False
            if time.monotonic() > deadline:
                return True
        time.sleep(_SETTLE_SECONDS)  # a second copy comes after the first
        return False

    def _close(self, result: Result) -> Result:
        try:
            self._ask("close", None, _CLOSE_SECONDS)
        except CaseFailed as failure:
            self._end(0.0)
            return _noted(result, str(failure))
        return result if self._end(_CLOSE_SECONDS) else _noted(result, "a process did not end after close()")

    def _end(self, seconds: float) -> bool:
        alone = [worker.end(seconds) for worker in self._workers]
        return all(alone)


def install(peer: Peer, url: str) -> None:
    """Install the peer's schema in a process of its own; raise CaseFailed when that fails."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=_install, args=(peer.name, url, theirs), daemon=True)
    process.start()
    process.join(_PREPARE_SECONDS)
    if process.exitcode != 0:
        process.kill()
        reason = ours.recv() if ours.poll() else f"ended with {process.exitcode}"
        raise CaseFailed(f"cannot install its schema: {reason}")


def _install(name: str, url: str, link: Connection) -> None:
    from benchmarks.peers import PEERS

    try:
        PEERS[name].install(url)
    except Exception as error:
        link.send(f"{type(error).__name__}: {error}"[:300])
        raise SystemExit(1) from error


def _sends(role: Role) -> bool:
    return isinstance(role, (Sender, BlockingSender, Pinger, Joiner))


def _reaches(count: Callable[[], int], wanted: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while count() < wanted:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _noted(result: Result, note: str) -> Result:
    return replace(result, notes=(*result.notes, note))
