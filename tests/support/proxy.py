"""A TCP proxy before PostgreSQL that can be cut, stalled and healed, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from psycopg.conninfo import conninfo_to_dict

from .urls import with_address

T = TypeVar("T")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_CHUNK = 1 << 16


class Proxy:
    """Forward TCP connections to the server of a libpq URI, whether that is at an address or a unix socket.

    Args:
        target: libpq URI of a database; `url` is the same database behind this proxy.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self.port = 0
        self.accepted = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tests-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._call(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """The libpq URI of the database through this proxy."""
        return with_address(self._target, "127.0.0.1", self.port)

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._writers) // 2

    def cut(self) -> None:
        """Reset every connection and refuse new ones, as a dead server or a firewall that rejects does."""
        self._call(self._cut())

    def drop(self) -> None:
        """Reset every connection and go on accepting new ones, as an idle timeout of a load balancer does."""
        self._call(self._drop())

    def stall(self) -> None:
        """Pass nothing on, in either direction, and keep every connection open, as a dead switch does."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def heal(self) -> None:
        """Pass on what was stalled, and accept new connections again."""
        self._call(self._open())

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _open(self) -> None:
        self._flowing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        if self._server:
            server, self._server = self._server, None
            # First it accepts no more: a connection that asyncio has just accepted when its server closes stays open.
            for listening in server.sockets:
                self._loop.remove_reader(listening.fileno())
            await asyncio.sleep(0)
            server.close()
        await self._drop()

    async def _drop(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _close(self) -> None:
        await self._cut()
        # Transports that were aborted close in the loop's next round, and what it had just accepted a round later.
        for _ in range(2):
            await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:
            writer.transport.abort()
            return
        self.accepted += 1
        self._writers.add(writer)
        self._start(self._serve(reader, writer))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._flowing.wait()
            server_reader, server_writer = await self._connect_or_hang_up()
        except OSError:
            self._end(writer)
            return
        self._writers.add(server_writer)
        self._start(self._pump(reader, server_writer))
        self._start(self._pump(server_reader, writer))

    async def _connect_or_hang_up(self) -> Streams:
        """Connect; cancelled meanwhile, leave no half-made connection to the garbage collector."""
        connecting = asyncio.ensure_future(self._connect())
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            _, server_writer = await connecting
            server_writer.transport.abort()
            raise

    async def _connect(self) -> Streams:
        facts = conninfo_to_dict(self._target)
        host, port = str(facts.get("host") or "127.0.0.1"), int(facts.get("port") or 5432)
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(_CHUNK):
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        self._end(sink)

    def _end(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        if not writer.is_closing():
            writer.close()
