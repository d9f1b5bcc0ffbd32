"""The statements as typed functions over a psycopg connection."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from channels_pg_sa.claims import Claim
from channels_pg_sa.config import Settings
from channels_pg_sa.connections.connection import Connection
from channels_pg_sa.entry import Row
from channels_pg_sa.errors import SchemaError, words_of
from channels_pg_sa.members import Member
from channels_pg_sa.parcels import Parcel
from channels_pg_sa.schema import REVISION
from channels_pg_sa.topics import Topics

from .arrays import FloatArray, IntArray, TextArray
from .compiled import compiled
from .jobs import Join, Leave, Send, Sending, membership_columns, publish_columns, send_columns

BUDGET = 4 * 1024 * 1024
"""Bytes of payloads after which an answer ends: it must come within `send_timeout` over a slow line, too."""
RESTORED = 5000
"""Memberships that one statement restores."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a heartbeat learns.

    Args:
        alive: the node's row was there.
        hears: the session LISTENs to the node's topic.
        now: Unix time by the database's clock.
        sweep_due: there is something that nobody needs any more.
        filled: those of the queues asked about in which rows wait.
    """

    alive: bool
    hears: bool
    now: float
    sweep_due: bool = False
    filled: Sequence[str] = ()


@dataclass(slots=True)
class Claimed:
    """What a claim got.

    Args:
        rows: id, channel, payload and expiry of each.
        end: the last id that was in the queue, if the claim had no end and got any.
    """

    rows: list[tuple[int, str, bytes, float]] = field(default_factory=list)
    end: int | None = None


class Queries:
    """Run the layer's statements on the tables of one schema and the rows of one prefix.

    Args:
        settings: of the layer.
        node_id: of the node that asks.
    """

    def __init__(self, settings: Settings, node_id: str) -> None:
        self._constants = {
            "prefix": settings.prefix,
            "node": node_id,
            "expiry": settings.message_life,
            "lease": dt.timedelta(seconds=settings.lease),
        }
        self._schema = settings.schema
        self._membership_life = settings.membership_life
        self._compiled = compiled(settings.schema)

    async def _execute(self, connection: Connection, name: str, **parameters: Any) -> psycopg.AsyncCursor[Any]:
        statement = self._compiled[name]
        values = {key: parameters[key] if key in parameters else self._constants[key] for key in statement.parameters}
        return await connection.execute(statement.sql, {**statement.literals, **values}, prepare=True, binary=True)

    async def _run(self, connection: Connection, name: str, **parameters: Any) -> list[tuple[Any, ...]]:
        cursor = await self._execute(connection, name, **parameters)
        # Not cursor.description, which describes each column anew.
        return await cursor.fetchall() if cursor.pgresult is not None and cursor.pgresult.nfields else []

    async def send(self, connection: Connection, sends: Sequence[Send]) -> set[int]:
        """Insert messages to channels; return the positions of those refused because their channel is full."""
        columns = send_columns(sends)
        if all(send.capacity is None for send in sends):
            await self._run(connection, "send", **columns)
            return set()
        capacity = [send.capacity for send in sends]
        rows = await self._run(connection, "send_within_capacity", capacity=capacity, **columns)
        return {place - 1 for (place,) in rows}

    async def publish(self, connection: Connection, batch: Sequence[Sending], *, queues: bool = True) -> None:
        """Insert messages to channels and groups in this order; queues: to members that no single node reads, too."""
        await self._run(connection, "publish", queues=queues, **publish_columns(batch))

    async def plain_members(self, connection: Connection, groups: Sequence[str]) -> list[tuple[int, str]]:
        """Return the members that no single node reads, each with the position of its group."""
        rows = await self._run(connection, "plain_members", group_name=TextArray(groups))
        return [(place - 1, channel) for place, channel in rows]

    async def join(self, connection: Connection, joins: Sequence[Join]) -> None:
        """Insert or renew memberships."""
        await self._run(connection, "join", expiry=self._membership_life, **membership_columns(joins))

    async def leave(self, connection: Connection, leaves: Sequence[Leave]) -> None:
        """Delete memberships, those that are renewed meanwhile as well."""
        missed = True
        while missed:
            ((missed,),) = await self._run(connection, "leave", **membership_columns(leaves))

    async def claim(self, connection: Connection, claims: Sequence[Claim]) -> list[Claimed]:
        """Claim rows of queues; return what each claim got."""
        rows = await self._run(
            connection,
            "claim",
            queue=TextArray(claim.queue for claim in claims),
            only_channel=TextArray(claim.only for claim in claims),
            first=IntArray(claim.first for claim in claims),
            last=IntArray(claim.last for claim in claims),
            count=[claim.count for claim in claims],
        )
        got = [Claimed() for _ in claims]
        for (place, end), *row in rows:
            claimed = got[place - 1]
            claimed.rows.append(tuple(row))
            claimed.end = end
        return got

    async def fetch(self, connection: Connection, rows: Collection[Row]) -> dict[int, bytes | None]:
        """Return the payloads of rows in the mailbox; those that are gone are missing.

        None stands for what would make the answer too large. At least one payload comes, if any row is there.
        """
        found = await self._run(connection, "fetch", budget=BUDGET, **_columns(rows))
        return dict(found)

    async def forget(self, connection: Connection, rows: Collection[Row]) -> int:
        """Delete rows of the mailbox; return how much room, about, is free after a vacuum, in bytes."""
        ((room,),) = await self._run(connection, "forget", **_columns(rows))
        return int(room)

    async def put_back(self, connection: Connection, rows: Collection[Row]) -> None:
        """Return claimed rows to their queues."""
        await self._run(connection, "put_back", **_columns(rows))

    def schema_error(self, connection: Connection, found: str | None, error: Exception | None = None) -> SchemaError:
        """Return the error of tables that are missing, at another revision, or not whole, as the server says."""
        reason = None if error is None else words_of(error)
        return SchemaError(found, REVISION, database=connection.info.dbname, schema=self._schema, reason=reason)

    async def enter(self, connection: Connection) -> tuple[str, str, float]:
        """Return the installation's secret and revision, and the Unix time by the database's clock.

        Raises:
            SchemaError: the table is empty, or seems to be.
        """
        rows = await self._run(connection, "enter")
        if not rows:
            raise self.schema_error(connection, "")
        ((secret, revision, now, _),) = rows
        return secret, revision, now

    async def keep_from_sweeping(self, connection: Connection) -> None:
        """Let no other node sweep until the end of the transaction."""
        await self._run(connection, "registering")

    async def is_known(self, connection: Connection) -> bool:
        """Tell whether the node's row is there."""
        ((known,),) = await self._run(connection, "known_node")
        return bool(known)

    async def register(self, connection: Connection, *, host: str, pid: int, version: str) -> None:
        """Insert or renew the node's row."""
        await self._run(connection, "register", host=host, pid=pid, version=version)

    async def restore(self, connection: Connection, members: Iterable[Member], progressed: Callable[[], None]) -> None:
        """Insert memberships from memory, so many at a time that the server hears of us over a slow line too.

        Args:
            connection: in a transaction.
            members: what to insert.
            progressed: called after each statement.
        """
        rest = iter(members)
        while rows := list(itertools.islice(rest, RESTORED)):
            await self._run(
                connection,
                "restore",
                group_name=TextArray(group for group, _, _ in rows),
                channel=TextArray(channel for _, channel, _ in rows),
                expires=[expires for _, _, expires in rows],
            )
            progressed()

    async def members(self, connection: Connection) -> list[Member]:
        """Return the memberships of the node's channels."""
        return [(group, channel, expires) for group, channel, expires in await self._run(connection, "members")]

    async def waiting(self, connection: Connection) -> list[Parcel]:
        """Return what waits in the mailbox, as doorbells."""
        rows = await self._run(connection, "waiting")
        return [
            Parcel(row, group if channel is None else channel, group is not None, end, None)
            for row, channel, group, end in rows
        ]

    async def beat(self, connection: Connection, topics: Topics, queues: Sequence[str]) -> Pulse:
        """Renew the lease and look around; queues: whose rows may have been overlooked."""
        rows = await self._run(connection, "beat", topic=topics.own, sign=topics.sign, queues=TextArray(queues))
        ((alive, hears, now, due, filled),) = rows
        return Pulse(alive, hears, now, due, filled or ())

    async def renew(self, connection: Connection, topics: Topics) -> Pulse:
        """Renew the lease, and look at nothing else."""
        ((alive, hears, now),) = await self._run(connection, "renew", topic=topics.own, sign=topics.sign)
        return Pulse(alive, hears, now)

    async def unregister(self, connection: Connection) -> None:
        """Delete the node with all that is its own."""
        await self._run(connection, "unregister")

    async def flush(self, connection: Connection, payload: str) -> list[str]:
        """Delete all messages and memberships, and notify each live node; return their ids.

        Notified last, when they have heard of all memberships that are gone. One that joined meanwhile stays.
        """
        async with connection.transaction():
            await self._run(connection, "flush")
            return [node for node, _ in await self._run(connection, "notify_nodes", payload=payload)]

    async def listen(self, connection: Connection, topics: Sequence[str], *, stop: bool = False) -> None:
        """LISTEN to topics, or stop."""
        await self._run(connection, "listen", topics=TextArray(topics), stop=stop)

    async def notify(self, connection: Connection, topic: str, payload: str) -> None:
        """Notify one topic."""
        await self._run(connection, "notify", topic=topic, payload=payload)

    async def vacuum(self, connection: Connection) -> int:
        """Vacuum the table of messages, if this role may; return the bytes that dead rows still take, or took.

        Zero before version 15 of PostgreSQL, whose statistics come too late to tell.

        https://www.postgresql.org/docs/current/sql-vacuum.html
        """
        ((name, is_owner),) = await self._run(connection, "message_table")
        if is_owner:
            # SKIP_LOCKED: another vacuum is at it. No TRUNCATE, which locks everybody out for a moment, and no workers.
            await connection.execute(f"VACUUM (SKIP_LOCKED, TRUNCATE false, PARALLEL 0) {name}".encode())
        if connection.info.server_version < 15_00_00:
            return 0
        ((dead,),) = await self._run(connection, "dead_room")
        return int(dead)

    async def sweep(self, connection: Connection, batch: int) -> tuple[int, int]:
        """Delete up to `batch` messages, and twice as many memberships, that nobody needs; return how many of each.

        Zero, and zero, while another node sweeps. One transaction: the lock holds until its end.
        """
        async with connection.transaction():
            ((mine, *_),) = await self._run(connection, "sweeping")
            if not mine:
                return 0, 0
            await self._run(connection, "adopt_orphans")
            await self._run(connection, "bury_nodes")
            messages = await self._execute(connection, "sweep_messages", batch=batch)
            memberships = await self._execute(connection, "sweep_memberships", batch=batch)
            await self._run(connection, "sweep_nodes")
            return messages.rowcount, memberships.rowcount


def _columns(rows: Collection[Row]) -> dict[str, Any]:
    return {"id": IntArray(row for row, _ in rows), "expires": FloatArray(end for _, end in rows)}
