"""One layer in one process: an outbox and a reception on an I/O thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable
from concurrent import futures
from concurrent.futures import Future
from typing import Any

from .call import Call
from .config import Settings
from .connections.database import Database
from .drops import DropLog
from .entry import Entry
from .errors import LayerClosed
from .iothread import IOThread
from .logs import Logger
from .names import node_of, recipient_of
from .receiving.outages import Announcements
from .receiving.reception import Reception
from .sending.outbox import Outbox
from .statements.compiled import Compiled
from .statements.jobs import GroupSend, Send, Sending
from .statements.queries import Queries

logger = Logger(__name__)

Loop = asyncio.AbstractEventLoop

TICK = 1.0
"""Seconds between two rounds of housekeeping in memory."""
MOST_UNCONFIRMED = 1000
"""Sends that may wait in the lane before one that need not be confirmed waits for its commit after all."""
LARGEST_UNCONFIRMED = 65_536
"""Bytes of a message that need not be confirmed; more of so many would fill the memory."""
CLOSING = 5.0
"""Seconds that closing may take for what is still to be done."""
CLOSING_ALONE = 0.5
"""The same while the database is away."""


def is_thread_of(node_id: str) -> bool:
    """Tell whether the caller runs in the I/O thread of a node, which may be just being made."""
    return threading.current_thread().name == _thread_name(node_id)


def _thread_name(node_id: str) -> str:
    return f"channels_pg_sa {node_id}"


class Node:
    """Send, receive and keep groups for one layer of this process, from any thread.

    The Call that a method returns is awaited by a coroutine on `loop`, or wait()ed for by a thread that gave no loop.

    Args:
        settings: of the layer.
        node_id: stands in the names of its channels.
        announcements: what local channels get when the database is lost, and when it is back.
    """

    def __init__(self, settings: Settings, node_id: str, *, announcements: Announcements) -> None:
        self.id = node_id
        self.drops = DropLog()
        self._settings = settings
        self._pid = os.getpid()
        self._closing: asyncio.Task[None] | None = None
        self._closed: Future[None] = Future()
        self._thread = IOThread(_thread_name(node_id))
        try:
            self._thread.call(self._compose(announcements)).result()
        except BaseException:
            self._thread.stop()
            raise

    async def _compose(self, announcements: Announcements) -> None:
        settings = self._settings
        queries = Queries(settings, self.id)
        self._database = Database(settings)
        await self._database.open()
        self._reception = Reception(
            self.id,
            settings,
            self._thread,
            database=self._database,
            queries=queries,
            announcements=announcements,
        )
        self.take = self._reception.inbox.take
        """Returns a message that is here already, without a detour; None if `receive` must be asked."""
        self._outbox = Outbox(
            self.id,
            settings,
            self._thread.loop,
            self._database,
            queries,
            drops=self.drops,
            reception=self._reception,
        )
        self._housekeeping = self._thread.spawn(self._keep_house(), "channels_pg_sa housekeeping")

    # Sending -------------------------------------------------------------------------------------

    def send(self, channel: str, payload: bytes, loop: Loop | None) -> Call[Any]:
        """Send to a channel; the result is False if it is full."""
        return self._submit(Send(recipient_of(channel), channel, payload, self._settings.capacity_of(channel)), loop)

    def group_send(self, group: str, payload: bytes, loop: Loop | None) -> Call[Any]:
        """Send to the members of a group."""
        return self._submit(GroupSend(group, payload), loop)

    def _submit(self, job: Sending, loop: Loop | None) -> Call[Any]:
        """Queue a send. It goes unconfirmed if the layer is set so, it is small, and the lane has room."""
        confirmed = (
            self._settings.confirm_sends
            or len(job.payload) > LARGEST_UNCONFIRMED
            or len(self._outbox.sends) >= MOST_UNCONFIRMED
        )
        return self._outbox.send(job, loop, None if confirmed else self._note_outcome)

    def _note_outcome(self, call: Call[Sending]) -> None:
        job = call.job
        whom = job.channel if isinstance(job, Send) else f"group {job.group!r}"
        if call.error is not None:
            self.drops.add("unsent", f"to {whom}, which could not be sent: {call.error}")
        elif call.result is False:
            self.drops.add("over_capacity", f"to {whom}, which is over its capacity")

    def join(self, group: str, channel: str, loop: Loop | None) -> Call[Any]:
        """Make a channel a member of a group, or renew its membership."""
        if node_of(channel) == self.id:
            self._listen()
        return self._outbox.memberships.join(group, channel, loop)

    def leave(self, group: str, channel: str, loop: Loop | None) -> Call[Any]:
        """End a membership."""
        return self._outbox.memberships.leave(group, channel, loop)

    def flush(self, loop: Loop | None) -> Call[Any]:
        """Forget all messages and groups of the prefix, in the database and in every process."""
        self._listen()
        return self._outbox.flush(loop)

    def read(self, statement: Compiled, loop: Loop | None) -> Call[Any]:
        """Run a statement that only reads; the result is its rows."""
        return self._outbox.read(statement, loop)

    # Receiving -----------------------------------------------------------------------------------

    def receive(self, channel: str) -> Awaitable[Entry]:
        """Wait for the next message of a channel.

        Raises:
            ValueError: the channel belongs to another node.
            SchemaError, PoolerError, PrivilegeError, ConfigurationError: the layer cannot work as it is set up.
            LayerClosed: it was closed meanwhile.
        """
        owner = node_of(channel)
        if owner is not None and owner != self.id:
            raise ValueError(
                f"{channel} belongs to another process or layer, or this one was closed since: to node {owner}, and "
                f"this is {self.id}."
            )
        return self._reception.receive(channel, shared=owner is None)

    # The whole -----------------------------------------------------------------------------------

    @property
    def counters(self) -> Counter[str]:
        """What has been received and dropped so far, and why."""
        return self._reception.counters + self.drops.counters

    @property
    def state(self) -> str:
        """How it is doing, in a few words."""
        return self._reception.state

    def close(self) -> None:
        """Finish what was begun, take back what is this node's, and close every connection.

        May be called again, from wherever, while that goes on or after an interrupt: then it is waited for once more.
        """
        if os.getpid() != self._pid or self._closed.done():
            return
        try:
            self._thread.loop.call_soon_threadsafe(self._begin_to_close)
        except RuntimeError as error:
            if not self._closed.done():  # the loop has ended, though nobody stopped it
                logger.error("Node %s cannot be closed: %s", self.id, error)  # noqa: TRY400 - where says nothing
                self._settle()
        if not self._thread.is_current:  # where a garbage collector calls from, who could not wait for itself
            self._wait_until_closed()
            self._thread.stop()

    def _wait_until_closed(self) -> None:
        end = time.monotonic() + 3 * CLOSING
        while not self._closed.done():
            if time.monotonic() > end:
                logger.error("Node %s has not closed within %g s", self.id, 3 * CLOSING)
                self._settle()
            # Briefly, again and again: a signal's handler may wait in the middle of this, and be told in its place.
            with contextlib.suppress(TimeoutError, futures.TimeoutError):
                self._closed.result(0.1)

    def _begin_to_close(self) -> None:
        if self._closing is None:
            self._closing = self._thread.spawn(self._close_well(), "channels_pg_sa close")

    def _settle(self) -> None:
        """Let nobody wait any more."""
        with contextlib.suppress(futures.InvalidStateError):  # somebody else did just then
            self._closed.set_result(None)

    async def _close_well(self) -> None:
        try:
            await self._close()
        except Exception:
            logger.exception("Node %s did not close as it should", self.id)
        finally:
            self._settle()
            self._thread.stop()

    async def _close(self) -> None:
        closed = LayerClosed("The layer is closed.")
        is_away = self._reception.is_away or self._database.is_away
        end = time.monotonic() + (CLOSING_ALONE if is_away else CLOSING)
        self._reception.refuse(closed)
        await self._outbox.close(closed, end - time.monotonic())
        self._housekeeping.cancel()
        await self._reception.finish(max(0.0, end - time.monotonic()))
        await self._reception.sign_off(max(0.1, end - time.monotonic()))
        self.drops.report(at_once=True)
        await self._database.close()

    def _listen(self) -> None:
        self._reception.start()
        self._reception.check()

    async def _keep_house(self) -> None:
        next_round = time.monotonic() + self._settings.heartbeat
        swept, next_sweep = float("-inf"), time.monotonic() + self._settings.lease
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            thoroughly = now > next_round
            if thoroughly:
                next_round = now + self._settings.heartbeat
            try:
                if now > next_sweep and self._outbox.last_end > swept:
                    # It may be that nobody receives, and what was sent expires.
                    swept, next_sweep = now, now + self._settings.lease
                    self._reception.sweep()
                self._outbox.memberships.leave_again()
                self._reception.keep_house(self.drops, thoroughly=thoroughly)
            except Exception:
                logger.exception("Housekeeping failed")
            self.drops.report()
