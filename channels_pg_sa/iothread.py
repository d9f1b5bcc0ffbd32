"""One thread with an event loop of its own, that no caller's loop can take along when it ends."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import contextvars
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from typing_extensions import TypeVarTuple, Unpack

from .errors import ConfigurationError
from .logs import Logger

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

Spawn = Callable[[Coroutine[Any, Any, Any], str], "asyncio.Task[Any]"]
"""Starts a named task on the I/O loop, and holds it until it ends."""

logger = Logger(__name__)

PATIENCE = 5.0
"""Seconds that the thread may take to end; it may wait for a lock that the caller's own thread holds, in a handler."""
RECANCEL = 0.5
"""Seconds after which a task that was cancelled and goes on is cancelled again."""


class _Resolvers(ThreadPoolExecutor):
    """Threads in which the loop resolves host names.

    An interpreter that ends starts no more of them, before it closes what is still open, which may need a connection:
    then it is done at once, in the I/O thread.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            done: Future[Any] = Future()
            try:
                done.set_result(fn(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - whoever waits for the result is told
                done.set_exception(error)
            return done


class _Loop(asyncio.SelectorEventLoop):
    """What other threads begin here is not done in their context.

    A heartbeat would be of the request that happened to open the layer: for a tool that traces, that would never end;
    and the log would name it for ever.
    """

    def call_soon_threadsafe(
        self,
        callback: Callable[[Unpack[Arguments]], object],
        *args: Unpack[Arguments],
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        nobodys = contextvars.Context() if context is None else context
        return super().call_soon_threadsafe(callback, *args, context=nobodys)


class IOThread:
    """Run coroutines on a loop in a thread.

    A daemon: what uses it closes it at exit, and a process that is killed need not wait for it.

    Args:
        name: of the thread.

    Raises:
        ConfigurationError: gevent or eventlet has patched threads, so that it would be none, or what a loop waits with.
    """

    def __init__(self, name: str) -> None:
        patchable: tuple[Any, ...] = (_thread.start_new_thread, selectors.DefaultSelector)
        if any(part.__module__.partition(".")[0] in {"gevent", "eventlet"} for part in patchable):
            # One that shares the caller's would never give it back to code without a loop, such as Django's ORM.
            raise ConfigurationError(
                "Threads are green here, patched by gevent or eventlet, and a layer needs a real one. Run the server "
                "or worker with threads or processes; or send by channels_pg_sa.django.send(), by send_sql(), or by a "
                "Publisher with an engine, which need none."
            )
        self.loop = _Loop()  # whatever the policy makes, which may want the main thread, say
        self.loop.set_default_executor(_Resolvers(thread_name_prefix=name))
        self.loop.set_exception_handler(_log_exception)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._first_stop = threading.Lock()  # which nobody releases: a second one would break off what the loop cancels
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    def call(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine from any thread, and return the future of its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a named task, in this thread, and hold it until it ends."""
        task = self.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def stop(self) -> None:
        """Cancel what still runs, end the loop, and wait for the thread unless it is the caller's own."""
        if self._first_stop.acquire(blocking=False):
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self.loop.call_soon_threadsafe(self.loop.stop)
        if not self.is_current:
            self._thread.join(PATIENCE)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("The task %s died", task.get_name(), exc_info=error)

    def _work(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self._cancel_all())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    async def _cancel_all(self) -> None:
        await cancelled({task for task in asyncio.all_tasks() if task is not asyncio.current_task()})


async def cancelled(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks until all have ended: wait_for() before Python 3.12, and a pool's worker, may swallow it."""
    while tasks:
        for task in tasks:
            task.cancel()
        done, tasks = await asyncio.wait(tasks, timeout=RECANCEL)
        await asyncio.gather(*done, return_exceptions=True)  # whatever they met, it is over


def _log_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody handles; asyncio's own way would end the loop where a handler of the log raises."""
    what = context.get("task") or context.get("future") or context.get("handle") or ""
    logger.error("%s %s", context["message"], what, exc_info=context.get("exception"))
