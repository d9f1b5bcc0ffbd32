"""Work that no caller waits for: in batches, each thing once at a time, and again until it is done."""

from __future__ import annotations

import asyncio
import logging
import types
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
import pytest_asyncio

from channels_pg_sa.receiving import backlog as backlog_module
from channels_pg_sa.receiving.backlog import Backlog


class Work:
    """A backlog whose batches are noted, and wait until they are let go."""

    def __init__(self, batch: int = 100, pause: float = 0.0) -> None:
        self.batches: list[list[str]] = []
        self.errors: list[Exception | None] = []  # of each batch, None for one that succeeds
        self.gate = asyncio.Event()
        self.entered = asyncio.Semaphore(0)
        self.tasks: list[asyncio.Task[None]] = []
        self.backlog = Backlog[str](
            "test work", self._spawn, self._run, batch=batch, level=lambda _: logging.ERROR, pause=pause
        )

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        self.tasks.append(asyncio.get_running_loop().create_task(work, name=name))
        return self.tasks[-1]

    async def _run(self, things: list[str]) -> None:
        self.batches.append(things)
        self.entered.release()
        await self.gate.wait()
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(backlog_module.Backoff, "next", lambda _self: 0.0)


@pytest_asyncio.fixture
async def work() -> AsyncIterator[Work]:
    """One that is finished at the end of the test."""
    made = Work()
    yield made
    made.gate.set()
    await made.backlog.finish(5)
    assert all(task.done() for task in made.tasks)


async def test_things_go_together_and_each_once(work: Work) -> None:
    """In the order they came; what comes while a batch runs goes with the next."""
    work.backlog.add("ab")
    work.backlog.add("ba")
    await work.entered.acquire()
    work.backlog.add("cdc")
    assert len(work.backlog) == 2
    work.gate.set()
    await work.backlog.finish(5)
    assert work.batches == [["a", "b"], ["c", "d"]]
    assert len(work.backlog) == 0


async def test_what_is_added_again_while_it_is_done_is_done_again(work: Work) -> None:
    """The news may have come after it had looked."""
    work.backlog.add("a")
    await work.entered.acquire()
    work.backlog.add("a")
    work.gate.set()
    await work.backlog.finish(5)
    assert work.batches == [["a"], ["a"]]


async def test_batches_are_bounded() -> None:
    """What is left goes with the next."""
    work = Work(batch=2)
    work.gate.set()
    work.backlog.add("abcde")
    await work.backlog.finish(5)
    assert work.batches == [["a", "b"], ["c", "d"], ["e"]]


async def test_what_failed_is_done_again_before_what_came_later(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    """Together with it, as often as needed, and with a line for each failure."""
    caplog.set_level(logging.INFO, "channels_pg_sa.receiving.backlog")
    work.errors = [ValueError("no database"), OSError()]
    work.backlog.add("ab")
    await work.entered.acquire()
    work.backlog.add("ca")
    work.gate.set()
    await work.backlog.finish(5)
    assert work.batches == [["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]
    assert caplog.messages == [
        "test work: no database; trying again",
        "test work: OSError; trying again",
    ]


async def test_the_same_failure_again_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, with its traceback, and anew after another, or after a success."""
    caplog.set_level(logging.INFO, "channels_pg_sa.receiving.backlog")
    work = Work(batch=1)
    work.gate.set()
    work.errors = [OSError("gone"), OSError("gone"), ValueError("wrong"), OSError("gone"), None, OSError("gone")]
    work.backlog.add("ab")
    await work.backlog.finish(5)
    news, no_news = ("ERROR", True), ("INFO", False)
    told = [(record.levelname, bool(record.exc_info)) for record in caplog.records]
    assert told == [news, no_news, news, news, news]


async def test_delays_begin_again_with_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever failed long ago is not held up for it."""
    delays: list[str] = []

    def delayed(_: object) -> float:
        delays.append("next")
        return 0.0

    monkeypatch.setattr(backlog_module.Backoff, "next", delayed)
    monkeypatch.setattr(backlog_module.Backoff, "reset", lambda _: delays.append("reset"))
    work = Work(batch=1)
    work.gate.set()
    work.errors = [OSError("gone"), OSError("gone"), None, OSError("gone")]
    work.backlog.add("ab")
    await work.backlog.finish(5)
    assert delays == ["next", "next", "reset", "next", "reset"]


async def test_its_task_has_a_name_and_ends_when_nothing_is_left(work: Work) -> None:
    """The next thing starts another."""
    work.gate.set()
    work.backlog.add([])
    assert work.tasks == []
    work.backlog.add("a")
    await work.backlog.finish(5)
    work.backlog.add("b")
    await work.backlog.finish(5)
    assert [task.get_name() for task in work.tasks] == ["test work"] * 2
    assert all(task.done() for task in work.tasks)


async def test_a_pause_gathers_and_finishing_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Things that come within it share a batch."""
    pauses: list[float] = []
    go_on = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await go_on.wait()

    work = Work(pause=3.0)
    work.gate.set()
    monkeypatch.setattr(backlog_module, "asyncio", types.SimpleNamespace(sleep=sleep, wait=asyncio.wait))
    work.backlog.add("a")
    await asyncio.sleep(0)
    work.backlog.add("b")
    go_on.set()
    await work.backlog.finish(5)
    work.backlog.add("c")
    await work.backlog.finish(5)
    assert work.batches == [["a", "b"], ["c"]]
    assert pauses == [3.0]


async def test_a_full_batch_does_not_pause() -> None:
    """What comes faster than the pauses allow is not held up by them."""
    work = Work(batch=2, pause=3600.0)
    work.gate.set()
    work.backlog.add(["a", "b"])
    work.backlog.add(["c", "d"])
    for _ in range(2):
        await asyncio.wait_for(work.entered.acquire(), 5)
    assert work.batches == [["a", "b"], ["c", "d"]]


async def test_finishing_takes_no_longer_than_it_may(work: Work) -> None:
    """Work that hangs goes on behind it."""
    work.backlog.add("a")
    await work.entered.acquire()
    await work.backlog.finish(0.01)
    assert not work.tasks[0].done()
