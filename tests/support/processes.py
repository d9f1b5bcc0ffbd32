"""Layers in processes of their own, driven from a test."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from .waiting import PATIENCE

TURNOVER = 4 * PATIENCE
"""Seconds that an interpreter may take to start, or to end: that is mostly work, which a busy machine does slowly."""
ROOT = Path(__file__).resolve().parents[2]


class ProcessError(RuntimeError):
    """A command raised in the process, or the process ended; carries what it said."""


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment, made fit to run the tests' own modules."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


class LayerProcess:
    """Run a layer in another process and call its methods from here.

    Messages pass as JSON. A receive() that waits does not keep other calls waiting.

    Args:
        config: the layer's CONFIG, as far as JSON carries it; "clock_offset" (seconds) puts the process's clock wrong.
    """

    def __init__(self, **config: Any) -> None:
        self._config = config
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.pid = 0

    async def __aenter__(self) -> LayerProcess:
        ready = self._expect(0)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.layer_process", json.dumps(self._config)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=environment(),
            limit=1 << 24,
        )
        self._reader = asyncio.create_task(self._read(), name="layer-process")
        self.pid = await asyncio.wait_for(ready, TURNOVER)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._running
        self._input.close()
        try:
            await asyncio.wait_for(process.wait(), TURNOVER)
        except asyncio.TimeoutError:
            await self.kill()
            raise
        await self._read_to_end()

    async def call(self, verb: str, *arguments: Any) -> Any:
        """Call a method of the layer there and return its result.

        Raises:
            ProcessError: it raised, or the process is gone.
        """
        return await asyncio.wait_for(self.start(verb, *arguments), PATIENCE)

    def start(self, verb: str, *arguments: Any) -> asyncio.Future[Any]:
        """Call a method of the layer there and return the future of its result."""
        number = next(self._numbers)
        future = self._expect(number)
        line = json.dumps({"id": number, "verb": verb, "arguments": arguments})
        self._input.write(line.encode() + b"\n")
        return future

    def consume(self, channel: str) -> None:
        """Receive from the channel there for ever; the messages appear in `events`."""
        self.start("consume", channel)

    async def kill(self) -> None:
        """End the process by SIGKILL and wait until it is gone."""
        process = self._running
        process.kill()
        await process.wait()
        await self._read_to_end()

    @property
    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise ProcessError("the process was not started")
        return self._process

    @property
    def _input(self) -> asyncio.StreamWriter:
        if self._running.stdin is None:
            raise ProcessError("the process has no input")
        return self._running.stdin

    async def _read_to_end(self) -> None:
        if self._reader:
            await self._reader

    def _expect(self, number: int) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Nobody need look at the end of a receive() that was pending when the process ended.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting[number] = future
        return future

    async def _read(self) -> None:
        output = self._running.stdout
        while output and (line := await output.readline()):
            self._take(json.loads(line))
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ProcessError("the process ended"))

    def _take(self, reply: dict[str, Any]) -> None:
        if "event" in reply:
            self.events.put_nowait(reply["event"])
            return
        future = self._waiting.pop(reply["id"])
        if future.done():
            return
        if "error" in reply:
            future.set_exception(ProcessError(reply["error"]))
        else:
            future.set_result(reply["result"])
