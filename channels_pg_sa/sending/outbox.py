"""What callers send: lanes that gather it into statements, and what they are told when it fails."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.pq.abc import PGresult

from channels_pg_sa.call import Call, settle
from channels_pg_sa.config import Settings
from channels_pg_sa.connections.connection import Connection
from channels_pg_sa.connections.database import Database
from channels_pg_sa.connections.fate import Fate, fate
from channels_pg_sa.drops import DropLog
from channels_pg_sa.errors import SendError
from channels_pg_sa.names import recipient_of
from channels_pg_sa.receiving.flushing import Answers
from channels_pg_sa.receiving.reception import Reception
from channels_pg_sa.statements.compiled import Compiled
from channels_pg_sa.statements.jobs import GroupSend, Send, Sending
from channels_pg_sa.statements.prepared import Prepared
from channels_pg_sa.statements.queries import Queries

from .attempts import Attempts, send_error
from .fastpath import FastPath
from .lane import BUDGET, Lane, Over
from .memberships import Memberships

Loop = asyncio.AbstractEventLoop


class Outbox:
    """Do what callers ask of the database, together with what others ask for meanwhile.

    Args:
        node_id: of the node.
        settings: of the layer.
        loop: the I/O loop.
        database: lends connections.
        queries: the layer's statements.
        drops: is told of messages to groups that members have no room for.
        reception: hears of the node's own memberships.
    """

    def __init__(
        self,
        node_id: str,
        settings: Settings,
        loop: Loop,
        database: Database,
        queries: Queries,
        *,
        drops: DropLog,
        reception: Reception,
    ) -> None:
        self.last_end = float("-inf")
        """When the last message that was sent will have expired, by the monotonic clock."""
        timeout = settings.send_timeout
        self._settings = settings
        self._queries = queries
        self._drops = drops
        self._reception = reception
        self._timeout = timeout
        self._attempts = Attempts(database, queries, timeout)
        self._prepared = Prepared(settings)
        self._fast_path = FastPath(loop, database, self._prepared, limit=timeout)
        self.sends: Lane[Sending] = Lane(
            "channels_pg_sa sends",
            loop,
            self._run_sends,
            late=self._attempts.late,
            fast_path=None if settings.bounded else self._begin_sends,
            at_rest=self._fast_path.when_at_rest,
            cost=lambda job: len(job.payload),
        )
        self.memberships = Memberships(
            node_id,
            loop,
            self._attempts,
            self._fast_path,
            queries=queries,
            prepared=self._prepared,
            reception=reception,
            late=self._late,
            timeout=timeout,
        )
        self.reads: Lane[Compiled] = Lane("channels_pg_sa reads", loop, self._run_reads, late=self._attempts.late)
        self.flushes: Lane[None] = Lane("channels_pg_sa flushes", loop, self._run_flushes, late=self._late)

    def send(self, job: Sending, loop: Loop | None, report: Callable[[Call[Sending]], None] | None) -> Call[Any]:
        """Send to a channel or a group.

        Args:
            job: what to send, and where.
            loop: the caller's, None for a plain thread.
            report: called with the outcome if the caller does not wait for it.

        Raises:
            SendError: too many calls wait already.
        """
        self.last_end = time.monotonic() + self._timeout + self._settings.expiry
        return self.sends.submit(Call(job, self._timeout, loop, report=report))

    def read(self, statement: Compiled, loop: Loop | None) -> Call[Any]:
        """Run a statement that only reads; the result is its rows."""
        return self.reads.submit(Call(statement, self._timeout, loop))

    def flush(self, loop: Loop | None) -> Call[Any]:
        """Forget all messages and groups of the prefix, in the database and in every process."""
        return self.flushes.submit(Call(None, self._timeout, loop))

    async def close(self, error: BaseException, timeout: float) -> None:
        """Let what waits be done for `timeout` seconds, and fail the rest with the error."""
        memberships = self.memberships
        lanes: list[Lane[Any]] = [self.sends, memberships.own, memberships.others, self.reads, self.flushes]
        await asyncio.gather(*(lane.close(error, timeout) for lane in lanes))
        await self._fast_path.close()

    async def _run_sends(self, calls: list[Call[Sending]]) -> None:
        if not self._settings.bounded:
            await self._attempts.make(calls, self._send, repeatable=False)
            self._fast_path.note_calls(calls)
            return
        # Channels with a capacity are asked for room: each kind has its statement, in the callers' order.
        for kind, some in itertools.groupby(calls, key=lambda call: type(call.job)):
            send = self._send_within_capacity if kind is Send else self._group_send_within_capacity
            part = list(some)
            await self._attempts.make(part, send, repeatable=False)
            settle(part)  # what is done does not wait for what follows

    def _begin_sends(self, calls: list[Call[Sending]], over: Over) -> bool:
        """Send at once, in the calling thread, if there is a connection for it."""
        if not self._fast_path.is_open:
            return False
        statement = self._prepared.send([call.job for call in calls])
        return self._fast_path.run([statement], functools.partial(self._conclude_sends, calls, over))

    @staticmethod
    def _conclude_sends(
        calls: list[Call[Sending]], over: Over, error: psycopg.Error | None, _results: list[PGresult]
    ) -> None:
        """Tell the lane. What the server refused takes the slow path, where there is time to find out why."""
        outcome = None if error is None else fate(error)
        if error is not None and outcome is Fate.UNKNOWN:
            for call in calls:
                call.error = call.error or send_error(call, error, outcome)
        over(outcome is None or outcome is Fate.UNKNOWN)

    async def _send(self, connection: Connection, calls: list[Call[Sending]]) -> None:
        jobs = [call.job for call in calls]
        sends = [job for job in jobs if isinstance(job, Send)]
        if len(sends) == len(jobs):
            await self._queries.send(connection, sends)
        else:
            await self._queries.publish(connection, jobs)

    async def _send_within_capacity(self, connection: Connection, calls: list[Call[Sending]]) -> None:
        """Send what finds room, and tell the callers whether theirs did."""
        refused = await self._queries.send(connection, [call.job for call in calls if isinstance(call.job, Send)])
        for place, call in enumerate(calls):
            call.result = place not in refused

    async def _group_send_within_capacity(self, connection: Connection, calls: list[Call[Sending]]) -> None:
        """Leave full members out, and send to the rest."""
        sends = [call.job for call in calls if isinstance(call.job, GroupSend)]
        async with connection.transaction():
            found = await self._queries.plain_members(connection, [job.group for job in sends])
            plain = [
                Send(recipient_of(channel), channel, sends[place].payload, self._settings.capacity_of(channel))
                for place, channel in found
            ]
            refused = await self._send_in_parts(connection, plain)
            await self._queries.publish(connection, sends, queues=False)
        dropped = Counter((plain[place].channel, sends[found[place][0]].group) for place in refused)
        for (channel, group), count in dropped.items():
            self._drops.over_capacity(channel, group, count)

    async def _send_in_parts(self, connection: Connection, sends: list[Send]) -> set[int]:
        """Send, a batch's bytes at a time, each with a payload of its own; return the positions of those refused."""
        refused: set[int] = set()
        begin = size = 0
        for place, send in enumerate(sends, 1):
            size += len(send.payload)
            if size >= BUDGET or place == len(sends):
                found = await self._queries.send(connection, sends[begin:place])
                refused.update(begin + position for position in found)
                begin, size = place, 0
        return refused

    def _late(self, call: Call[Any]) -> SendError:
        """Return the error of a call that may have waited for the listener."""
        return self._attempts.late(call, self._reception.trouble)

    async def _run_reads(self, calls: list[Call[Compiled]]) -> None:
        for call in calls:
            await self._attempts.make([call], self._read, repeatable=True)
            settle([call])

    async def _read(self, connection: Connection, calls: list[Call[Compiled]]) -> None:
        for call in calls:
            cursor = await connection.execute(call.job.sql, call.job.literals, binary=True)
            call.result = await cursor.fetchall()

    async def _run_flushes(self, calls: list[Call[None]]) -> None:
        answers: Answers | None = None

        async def flush(connection: Connection, _calls: list[Call[None]]) -> None:
            nonlocal answers
            answers = await self._reception.flush(connection)

        await self._reception.ready()  # not with a connection, which the listener may need on its way back
        await self._attempts.make(calls, flush, repeatable=True)
        if answers is not None:
            await answers.wait()
