"""Joins and leaves, on their way to the database: the last word about each membership counts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import psycopg
from psycopg.pq.abc import PGresult

from channels_pg_sa.call import Call, settle
from channels_pg_sa.connections.connection import Connection
from channels_pg_sa.connections.fate import Fate, fate
from channels_pg_sa.errors import LayerClosed, SendError
from channels_pg_sa.names import node_of
from channels_pg_sa.receiving.reception import Reception
from channels_pg_sa.statements.jobs import Join, Leave, Membership
from channels_pg_sa.statements.prepared import Prepared
from channels_pg_sa.statements.queries import Queries

from .attempts import Attempts
from .fastpath import FastPath
from .lane import Lane, Over
from .leaves import Leaves, is_done


class Memberships:
    """Bring memberships into the state that callers ask for.

    Args:
        node_id: of the node, whose own channels join only while it listens, and leave in any case.
        loop: the I/O loop.
        attempts: the slow path.
        fast_path: the fast path.
        queries: the statements of the slow path.
        prepared: those of the fast path.
        reception: hears of the node's own memberships.
        late: makes the error of a call whose deadline has passed.
        timeout: seconds until a call gives up.
    """

    def __init__(
        self,
        node_id: str,
        loop: asyncio.AbstractEventLoop,
        attempts: Attempts,
        fast_path: FastPath,
        *,
        queries: Queries,
        prepared: Prepared,
        reception: Reception,
        late: Callable[[Call[Any]], SendError],
        timeout: float,
    ) -> None:
        self._node_id = node_id
        self._attempts = attempts
        self._fast_path = fast_path
        self._queries = queries
        self._prepared = prepared
        self._reception = reception
        self._timeout = timeout
        self._leaves = Leaves(timeout)
        make = functools.partial(
            Lane, loop=loop, run=self._run, late=late, fast_path=self._begin, at_rest=fast_path.when_at_rest
        )
        # Of its own channels this node must hear, and may have to wait until it does; nobody else's wait behind them.
        self.own: Lane[Membership] = make("channels_pg_sa memberships")
        self.others: Lane[Membership] = make("channels_pg_sa memberships of others")

    def join(self, group: str, channel: str, loop: asyncio.AbstractEventLoop | None) -> Call[Any]:
        """Make a channel a member of a group, or renew its membership.

        Raises:
            SendError: too many calls wait already.
        """
        job = Join(group, node_of(channel) or "", channel)
        if job.node == self._node_id:
            self._leaves.forget(job)
        return self._lane_of(job).submit(Call(job, self._timeout, loop))

    def leave(self, group: str, channel: str, loop: asyncio.AbstractEventLoop | None) -> Call[Any]:
        """End a membership; that of a channel of this node's is ended later if the call fails.

        Raises:
            SendError: too many calls wait already.
        """
        job = Leave(group, node_of(channel) or "", channel)
        call: Call[Membership] = Call(job, self._timeout, loop)
        try:
            return self._lane_of(job).submit(call)
        finally:
            if job.node == self._node_id:
                self._leaves.note(call)

    def leave_again(self) -> None:
        """Try once more to do the leaves that failed."""
        for call in self._leaves.again():
            with contextlib.suppress(SendError, LayerClosed):
                self.own.submit(call)

    def _lane_of(self, job: Membership) -> Lane[Membership]:
        return self.own if job.node == self._node_id else self.others

    # On the I/O loop, or where the fast path begins ------------------------------------------------

    async def _run(self, calls: list[Call[Membership]]) -> None:
        if self._is_own(calls):
            await self._reception.ready()
        joins, leaves = _last_of(calls)
        for alike in filter(None, (_about(calls, leaves), _about(calls, joins))):
            await self._run_alike(alike)
            settle(alike)  # so that whoever leaves is not told of a join that fails
        self._fast_path.note_calls(calls)

    async def _run_alike(self, calls: list[Call[Membership]]) -> None:
        session: int | None = None

        async def change(connection: Connection, live: list[Call[Membership]]) -> None:
            nonlocal session
            session = self._reception.session()
            await self._change(connection, live)

        await self._attempts.make(calls, change, repeatable=True)
        self._conclude_leaves(calls, session)

    def _is_own(self, calls: list[Call[Membership]]) -> bool:
        """Tell whether a batch is of this node's own channels, as all its calls are then."""
        return calls[0].job.node == self._node_id

    async def _change(self, connection: Connection, calls: list[Call[Membership]]) -> None:
        joins, leaves = _last_of(calls)
        if leaves:
            await self._queries.leave(connection, leaves)
        if joins:
            self._watch(joins)
            await self._queries.join(connection, joins)
            self._conclude_joins(joins)

    def _begin(self, calls: list[Call[Membership]], over: Over) -> bool:
        """Join or leave at once, in the calling thread, if there is a connection for it."""
        session = self._reception.session()
        if not self._fast_path.is_open or (session is None and self._is_own(calls)):
            return False
        joins, leaves = _last_of(calls)
        statements = [self._prepared.leave(leaves)] if leaves else []
        if joins:
            self._watch(joins)
            statements.append(self._prepared.join(joins))
        left = functools.partial(self._conclude_ending, _about(calls, leaves), session)
        conclude = functools.partial(
            self._conclude, calls, over, len(statements), joins=joins, left=left if leaves and not joins else None
        )
        return self._fast_path.run(statements, conclude, left)

    def _conclude_ending(self, calls: list[Call[Membership]], session: int | None, result: PGresult) -> bool:
        """Tell who leaves, whatever may become of those who join; return False if the statement has missed some."""
        if result.get_value(0, 0) != b"0":
            _doubt(calls)
            return False
        self._conclude_leaves(calls, session)
        settle(calls)
        return True

    def _conclude(
        self,
        calls: list[Call[Membership]],
        over: Over,
        count: int,
        error: psycopg.Error | None,
        results: list[PGresult],
        *,
        joins: list[Join],
        left: Callable[[PGresult], bool] | None,
    ) -> None:
        """Tell the lane. What is not done for certain is done again by the slow path, which does no harm.

        Args:
            calls: of the batch.
            over: tells the lane.
            count: of the statements.
            error: that the last of them met.
            results: of those that were begun.
            joins: what the last of them does.
            left: concludes the calls if all of them leave.
        """
        if error is not None and fate(error) is Fate.UNKNOWN:
            _doubt(calls)
        done = error is None and len(results) == count
        if done:
            self._conclude_joins(joins)
        over(done and (left is None or left(results[0])))

    def _watch(self, joins: list[Join]) -> None:
        """Note which joins begin: if others end one at once, this node may hear of both before the answer."""
        if joins[0].node == self._node_id:
            self._reception.watch(job.key for job in joins)

    def _conclude_joins(self, joins: list[Join]) -> None:
        """Note which joins are done: they may leave, and be told so, before this node hears that they have joined."""
        if joins and joins[0].node == self._node_id:
            self._reception.expect(job.key for job in joins)

    def _conclude_leaves(self, calls: list[Call[Membership]], session: int | None) -> None:
        """Forget leaves of this node's own channels that are done.

        If the node's row is gone, because it was swept or the server crashed, nobody has told this node that they have
        left, and it must not restore them. If it restores memberships right now, or has done so meanwhile, it is too
        late to say so: then the leave is done once more.

        Args:
            calls: that have been tried.
            session: in which the statement began.
        """
        if not self._is_own(calls):
            return
        _, left = _last_of(call for call in calls if is_done(call))
        if left and (session is None or session != self._reception.session()):
            self._leaves.redo(left)
            return
        self._leaves.tried(calls)
        if left:
            self._reception.doubt(job.key for job in left)


def _last_of(calls: Iterable[Call[Membership]]) -> tuple[list[Join], list[Leave]]:
    """Return what was asked for last of each membership.

    In the order of groups and channels, in which all processes lock them: so none waits for another that waits for it.
    Hence two statements too: one that did both would lock twice in that order.
    """
    latest = {call.job.key: call.job for call in calls}
    last = [latest[key] for key in sorted(latest)]
    return [job for job in last if isinstance(job, Join)], [job for job in last if isinstance(job, Leave)]


def _about(calls: Iterable[Call[Membership]], jobs: Iterable[Membership]) -> list[Call[Membership]]:
    """Return the calls about these memberships, whatever they asked for."""
    keys = {job.key for job in jobs}
    return [call for call in calls if call.job.key in keys]


def _doubt(calls: Iterable[Call[Any]]) -> None:
    """Note that these may have been done."""
    for call in calls:
        call.doubtful = True
