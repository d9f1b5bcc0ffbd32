"""Work that no caller waits for: done in batches, and tried again until it is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from channels_pg_sa.backoff import Backoff
from channels_pg_sa.errors import words_of
from channels_pg_sa.iothread import Spawn
from channels_pg_sa.logs import Logger

T = TypeVar("T")

logger = Logger(__name__)


class Backlog(Generic[T]):
    """A list of things to do on the I/O loop; the same thing twice is done once.

    Args:
        name: of its task.
        spawn: starts a task and holds it.
        run: does a batch. What it raises is logged, and the batch is done again: so it must bear repetition.
        batch: the most things that go together.
        level: gives the logging level of what `run` has raised; that of the same again is INFO.
        pause: seconds to wait before each batch that is not full, so that more comes together.
    """

    def __init__(
        self,
        name: str,
        spawn: Spawn,
        run: Callable[[list[T]], Awaitable[None]],
        *,
        batch: int,
        level: Callable[[Exception], int],
        pause: float = 0.0,
    ) -> None:
        self._name = name
        self._spawn = spawn
        self._run = run
        self._batch = batch
        self._level = level
        self._pause = pause
        self._todo: dict[T, None] = {}
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._todo)

    def add(self, things: Iterable[T]) -> None:
        """Take things to do."""
        self._todo.update(dict.fromkeys(things))
        if self._todo and (self._task is None or self._task.done()):
            self._task = self._spawn(self._work(), self._name)

    async def finish(self, timeout: float) -> None:
        """Wait until nothing is left to do, but no longer than so many seconds."""
        self._pause = 0.0
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task], timeout=timeout)

    async def _work(self) -> None:
        backoff, told = Backoff(), ""
        while self._todo:
            if self._pause and len(self._todo) < self._batch:
                await asyncio.sleep(self._pause)
            things = [thing for thing, _ in zip(self._todo, range(self._batch), strict=False)]
            for thing in things:
                del self._todo[thing]
            try:
                await self._run(things)
            except Exception as error:
                reason = words_of(error)
                level = logging.INFO if reason == told else self._level(error)
                logger.log(level, "%s: %s; trying again", self._name, reason, exc_info=level >= logging.ERROR)
                told = reason
                self._todo = {**dict.fromkeys(things), **self._todo}
                await asyncio.sleep(backoff.next())
            else:
                backoff.reset()
                told = ""
