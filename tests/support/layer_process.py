"""A process with one layer, which obeys the JSON lines on its standard input (see processes.py)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any, TextIO

Reply = dict[str, Any]


class Server:
    """Run each command as a task of its own, so that a pending receive() keeps nobody waiting."""

    def __init__(self, layer: Any, output: TextIO) -> None:
        self._layer = layer
        self._output = output
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, commands: asyncio.StreamReader) -> None:
        """Obey until the input ends, then close the layer."""
        self._answer({"id": 0, "result": os.getpid()})
        while line := await commands.readline():
            task = asyncio.create_task(self._obey(json.loads(line)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._layer.close()

    async def _obey(self, command: dict[str, Any]) -> None:
        verb = getattr(self, "do_" + command["verb"], None) or getattr(self._layer, command["verb"])
        try:
            result = await verb(*command["arguments"])
        except Exception as error:
            self._answer({"id": command["id"], "error": repr(error)})
        else:
            self._answer({"id": command["id"], "result": result})

    def _answer(self, reply: Reply) -> None:
        self._output.write(json.dumps(reply) + "\n")
        self._output.flush()

    async def do_consume(self, channel: str) -> None:
        """Receive for ever, and report each message as an event of its own."""
        while True:
            self._answer({"event": await self._layer.receive(channel)})


async def main(config: dict[str, Any]) -> None:
    """Build the layer and serve."""
    offset = config.pop("clock_offset", 0)
    if offset:
        real = time.time
        time.time = lambda: real() + offset
    from channels_pg_sa.core import PostgresChannelLayer

    reader = asyncio.StreamReader(limit=1 << 24)
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    await Server(PostgresChannelLayer(**config), sys.stdout).serve(reader)


if __name__ == "__main__":
    import django

    django.setup()
    asyncio.run(main(json.loads(sys.argv[1])))
