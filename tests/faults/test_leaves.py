"""Leaves that failed while the database was away: a socket that has gone is no member for ever."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import psycopg
import pytest

from channels_pg_sa import LayerClosed, SendError
from channels_pg_sa.call import Call
from channels_pg_sa.node import TICK
from channels_pg_sa.parcels import Frame, Joined, Left
from channels_pg_sa.receiving.dispatcher import Dispatcher
from channels_pg_sa.receiving.listener import ConnectionLost
from channels_pg_sa.statements.jobs import Leave
from channels_pg_sa.statements.queries import Queries
from tests.support.databases import query
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.waiting import eventually_async

from .breaking import (
    FragileServer,
    SwallowingProxy,
    come_back,
    impatient,
    inside,
    layer_is_listening,
    take,
    text,
    until_listening,
    warm,
    within,
)
from .test_fast_path import hold
from .test_fast_path_memberships import MEMBERS, locked

Attempt = Callable[[PostgresLayer, str], Awaitable[None]]
PATIENCE = 0.5
BURY = "UPDATE channels_pg_sa_node SET pid = NULL"
"""What a sweep does first to a node that is gone."""


def sweep(url: str) -> None:
    """Sweep every node, as if it had been gone for long, with its memberships."""
    query(url, BURY)
    query(url, "DELETE FROM channels_pg_sa_membership")


def what_is_heard(patch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with the joins and leaves that nodes hear of."""
    found: list[str] = []
    hear = Dispatcher.hear

    def note(self: Dispatcher, frames: Iterable[Frame | None], now: float) -> None:
        taken = list(frames)
        hear(self, taken, now)
        found.extend(type(frame).__name__ for frame in taken if isinstance(frame, Joined | Left))

    patch.setattr(Dispatcher, "hear", note)
    return found


def heard(found: list[str], *expected: str) -> Callable[[], Awaitable[bool]]:
    """Return what looks whether just that has been heard."""

    async def look() -> bool:
        return found == list(expected)

    return look


def leave_by_the_slow_path(layer: PostgresLayer, patch: pytest.MonkeyPatch) -> None:
    """Have the layer leave groups by the statement that a test holds up."""
    patch.setattr(layer._node._outbox.memberships.own, "_fast_path", None)  # type: ignore[attr-defined]


async def lasts(look: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so, and see that it stays so while a leave might be done once more."""
    await eventually_async(look)
    await asyncio.sleep(2 * TICK)
    assert await look()


async def fails(layer: PostgresLayer, channel: str) -> None:
    """Leave in vain."""
    with pytest.raises(SendError):
        await layer.group_discard("group", channel)


async def fails_to_join(layer: PostgresLayer, channel: str) -> None:
    """Join in vain."""
    with pytest.raises(SendError):
        await layer.group_add("own", channel)


async def fails_in_a_thread(layer: PostgresLayer, channel: str) -> None:
    """Leave in vain, without an event loop."""
    with pytest.raises(SendError):
        await asyncio.to_thread(layer.group_discard_sync, "group", channel)


async def is_cancelled(layer: PostgresLayer, channel: str) -> None:
    """Leave, and lose patience: so does a server with a consumer that does not end."""
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(layer.group_discard("group", channel), PATIENCE / 5)


async def are_cancelled(layer: PostgresLayer, channel: str) -> None:
    """Leave behind another leave, so that this one has not been begun when it is cancelled."""
    other = await layer.new_channel()
    ahead = asyncio.create_task(fails(layer, other))
    await asyncio.sleep(PATIENCE / 5)
    await is_cancelled(layer, channel)
    await ahead


async def until_gone(url: str) -> None:
    """Wait until nobody is a member."""

    async def look() -> bool:
        return query(url, MEMBERS) == []

    await eventually_async(look)


@pytest.mark.parametrize("attempt", [fails, fails_in_a_thread, is_cancelled, are_cancelled])
async def test_a_leave_that_failed_is_done_when_the_database_answers(
    make_own_layer: LayerFactory, layer_url: str, attempt: Attempt
) -> None:
    """However long that takes: the caller is told that it failed, or has gone, and will not come again."""
    layer = make_own_layer()
    channel = await warm(layer)
    await layer.group_add("group", channel)
    with locked(layer_url), impatient(layer, PATIENCE):
        await attempt(layer, channel)
        await asyncio.sleep(2 * TICK)  # tried again, in vain
    await until_gone(layer_url)
    await layer.group_send("group", text(1))
    await layer.send(channel, text(2))
    assert await take(layer, channel, 1) == [text(2)]


async def test_who_joins_again_stays(make_own_layer: LayerFactory, layer_url: str) -> None:
    """A leave that failed before is not done any more, nor one that is being tried again."""
    layer = make_own_layer(send_timeout=4 * TICK)
    channels = [await warm(layer) for _ in range(2)]
    for channel in channels:
        await layer.group_add("group", channel)
    early, late = channels
    with locked(layer_url):
        await asyncio.gather(fails(layer, early), fails(layer, late))
        again = [asyncio.create_task(layer.group_add("group", early))]
        await asyncio.sleep(1.5 * TICK)  # the other leave is being tried again
        again.append(asyncio.create_task(layer.group_add("group", late)))
        await asyncio.sleep(0.1)
    await asyncio.gather(*again)
    await asyncio.sleep(2.5 * TICK)
    assert query(layer_url, MEMBERS) == sorted(("group", channel) for channel in channels)
    await layer.group_send("group", text(1))
    assert [await take(layer, channel, 1) for channel in channels] == [[text(1)]] * 2


async def test_a_leave_that_found_no_member_undoes_no_later_join(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Of another process, which was told that it succeeded."""
    layer, other = make_own_layer(), make_own_layer()
    channel = await warm(layer)
    await until_listening(layer)
    await layer.group_discard("group", channel)
    await other.group_add("group", channel)
    await asyncio.sleep(2.5 * TICK)
    assert query(layer_url, MEMBERS) == [("group", channel)]


async def test_who_leaves_while_its_node_restores_what_was_swept(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leave began before the outage, finds no member, and the membership is restored a moment later."""
    layer = make_own_layer(heartbeat=30, lease=90)
    channel = await warm(layer)
    await until_listening(layer)
    await layer.group_add("group", channel)
    queries = inside(layer)._queries
    leave, restore = queries.leave, queries.restore
    begun, restoring, left = threading.Event(), threading.Event(), threading.Event()

    async def late_leave(connection: Any, leaves: Any) -> None:
        begun.set()
        await asyncio.to_thread(restoring.wait, 10)
        await leave(connection, leaves)
        left.set()

    async def slow_restore(connection: Any, members: Any, progressed: Any) -> None:
        restoring.set()
        await asyncio.to_thread(left.wait, 10)
        await restore(connection, members, progressed)

    leave_by_the_slow_path(layer, monkeypatch)
    monkeypatch.setattr(queries, "leave", late_leave)
    monkeypatch.setattr(queries, "restore", slow_restore)
    leaving = asyncio.create_task(layer.group_discard("group", channel))
    await asyncio.to_thread(begun.wait, 10)
    sweep(layer_url)
    inside(layer)._thread.loop.call_soon_threadsafe(inside(layer)._listener.restart, "as if it noticed")
    await leaving

    async def has_left() -> bool:
        return query(layer_url, MEMBERS) == [] and (await layer.group_count("group")) == 0  # type: ignore[attr-defined]

    await until_listening(layer)
    await lasts(has_left)


async def test_who_left_before_its_node_knew_that_it_was_swept(make_own_layer: LayerFactory, layer_url: str) -> None:
    """A process that stood still: its sockets end before it notices, and what it restores are the others."""
    layer = make_own_layer(heartbeat=30, lease=90)
    channel = await warm(layer)
    await until_listening(layer)
    for group in ("left", "stays"):
        await layer.group_add(group, channel)
    sweep(layer_url)
    await layer.group_discard("left", channel)
    inside(layer)._thread.loop.call_soon_threadsafe(inside(layer)._listener.restart, "as if it noticed")

    async def look() -> bool:
        return query(layer_url, MEMBERS) == [("stays", channel)]

    await lasts(look)
    await layer.group_send("left", text(1))
    await layer.group_send("stays", text(2))
    assert await take(layer, channel, 1) == [text(2)]


async def test_channels_of_other_processes_do_not_wait_for_this_one_to_listen(
    make_own_layer: LayerFactory, proxy: SwallowingProxy, layer_url: str
) -> None:
    """Their own process hears of it; this one may be unable to listen while it can do all else."""
    layer, other = make_own_layer(listen_url=proxy.url), make_own_layer()
    await warm(layer)
    channel = await warm(other)
    proxy.cut()

    async def is_deaf() -> bool:
        return not inside(layer)._listener.is_listening

    await eventually_async(is_deaf)
    with impatient(layer, PATIENCE):
        behind = asyncio.create_task(fails_to_join(layer, await layer.new_channel()))
        await asyncio.sleep(0)
    for _ in ("the slow path", "the fast path"):
        await layer.group_add("group", channel)
        assert query(layer_url, MEMBERS) == [("group", channel)]
        await layer.group_discard("group", channel)
        assert query(layer_url, MEMBERS) == []
        await hold(layer)
    await behind
    leaves: Any = layer._node._outbox.memberships._leaves  # type: ignore[attr-defined]
    assert not leaves._calls
    assert not leaves._unsure  # which would only grow


async def test_a_channel_that_others_read_too_is_left_to_its_caller(
    make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Another process may have made it a member again meanwhile."""
    layer, other = make_own_layer(), make_own_layer()
    await warm(layer)
    await layer.group_add("group", "jobs")
    with locked(layer_url), impatient(layer, PATIENCE):
        await fails(layer, "jobs")
    assert not layer._node._outbox.memberships._leaves  # type: ignore[attr-defined]
    await other.group_add("group", "jobs")
    await asyncio.sleep(2 * TICK)
    assert query(layer_url, MEMBERS) == [("group", "jobs")]


async def test_a_leave_that_failed_hinders_no_layer_that_closes(make_own_layer: LayerFactory) -> None:
    """A heartbeat tries it again, in vain, while the layer signs off."""
    layer = make_own_layer()
    channel = await warm(layer)
    memberships = layer._node._outbox.memberships  # type: ignore[attr-defined]

    async def close_and_try_again() -> None:
        memberships._leaves.note(call := Call(Leave("group", layer.node, channel), 30, None))
        call.settled = True
        await memberships.own.close(LayerClosed("The layer is closed."), 1)
        memberships.leave_again()

    await within(layer, close_and_try_again())


async def test_a_leave_too_many_is_done_later(
    make_own_layer: LayerFactory, layer_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its caller has been told that nothing was done, and will not come again; that it must wait is no mistake."""
    layer = make_own_layer()
    channel = await warm(layer)
    await layer.group_add("group", channel)
    lane = layer._node._outbox.memberships.own  # type: ignore[attr-defined]
    limit, lane._calls._limit = lane._calls._limit, 0
    with pytest.raises(SendError, match="0 calls wait already"):
        await layer.group_discard("group", channel)
    assert query(layer_url, MEMBERS) == [("group", channel)]
    await asyncio.sleep(1.5 * TICK)  # tried again, in vain
    lane._calls._limit = limit
    await until_gone(layer_url)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_who_left_before_its_node_restored_what_was_swept(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leave looks before the membership is restored, and its answer comes when the node listens again."""
    layer = make_own_layer(heartbeat=30, lease=90)
    channel = await warm(layer)
    await layer.group_add("group", channel)
    queries = inside(layer)._queries
    leave, left, is_back = queries.leave, threading.Event(), threading.Event()

    async def late_answer(connection: Any, leaves: Any) -> None:
        await leave(connection, leaves)
        left.set()
        await asyncio.to_thread(is_back.wait, 10)

    sweep(layer_url)
    with monkeypatch.context() as patch:
        leave_by_the_slow_path(layer, patch)
        patch.setattr(queries, "leave", late_answer)
        leaving = asyncio.create_task(layer.group_discard("group", channel))
        assert await asyncio.to_thread(left.wait, 10)
        await come_back(layer)
        assert query(layer_url, MEMBERS) == [("group", channel)]
        is_back.set()
        await leaving
    await until_gone(layer_url)


async def test_who_left_while_its_node_restored_what_was_swept(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leave begins and ends while the node hears nothing, and has read already whom to restore."""
    layer = make_own_layer(heartbeat=30, lease=90)
    channel = await warm(layer)
    await layer.group_add("group", channel)
    queries = inside(layer)._queries
    leave, restore = queries.leave, queries.restore
    begun, restores, left = threading.Event(), threading.Event(), threading.Event()

    async def second_try(connection: Any, leaves: Any) -> None:
        if not begun.is_set():  # it listens still, for which a leave waits
            begun.set()
            await asyncio.to_thread(restores.wait, 10)
            raise psycopg.errors.LockNotAvailable
        await leave(connection, leaves)

    async def late(*arguments: Any) -> None:
        restores.set()
        await asyncio.to_thread(left.wait, 10)
        await restore(*arguments)

    with monkeypatch.context() as patch:
        leave_by_the_slow_path(layer, patch)
        patch.setattr(queries, "leave", second_try)
        patch.setattr(queries, "restore", late)
        leaving = asyncio.create_task(layer.group_discard("group", channel))
        assert await asyncio.to_thread(begun.wait, 10)
        sweep(layer_url)
        coming_back = asyncio.create_task(come_back(layer))
        await leaving
        assert not layer_is_listening(layer)
        left.set()
        await coming_back
    await until_gone(layer_url)


async def test_changes_of_one_transaction_are_heard_one_by_one(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Notifications of a transaction that are alike become one, and the last would be missing."""
    layer = make_own_layer(heartbeat=60, lease=200)
    channel = await warm(layer)
    await layer.group_add("other", channel)
    join = "INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel) VALUES ('asgi', 'group', %s, %s)"
    with psycopg.connect(layer_url, application_name="tests") as connection:
        connection.execute(join, [layer.node, channel])
        connection.execute("DELETE FROM channels_pg_sa_membership WHERE group_name = 'group'")
        connection.execute(join, [layer.node, channel])
        connection.commit()
    await layer.group_send("group", text(1))
    await layer.group_send("other", text(2))
    assert await take(layer, channel, 2) == [text(1), text(2)]


async def test_who_leaves_a_node_that_is_being_swept(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Nobody is told of a leave where no node is; it is no member again when the node comes back."""
    layer = make_own_layer(heartbeat=30, lease=90)
    channel = await warm(layer)
    for group in ("left", "stays"):
        await layer.group_add(group, channel)
    query(layer_url, BURY)
    await layer.group_discard("left", channel)
    assert query(layer_url, MEMBERS) == [("stays", channel)]
    await come_back(layer)
    await asyncio.sleep(2 * TICK)  # in which a leave might be done once more
    assert query(layer_url, MEMBERS) == [("stays", channel)]


@contextlib.asynccontextmanager
async def deaf(layer: PostgresLayer, end: Callable[[Any], Awaitable[None]] | None = None) -> AsyncIterator[None]:
    """Let the node hear nothing during a block; what came meanwhile it hears afterwards, unless `end` loses it."""
    begun, over = threading.Event(), threading.Event()

    async def wait(connection: Any) -> None:
        begun.set()
        await asyncio.to_thread(over.wait, 10)
        if end is not None:
            await end(connection)

    lent = asyncio.run_coroutine_threadsafe(inside(layer)._listener.lend(wait), inside(layer)._thread.loop)
    assert await asyncio.to_thread(begun.wait, 10)
    try:
        yield
    finally:
        over.set()
    await asyncio.wrap_future(lent)


async def test_who_joined_and_was_swept_before_it_was_heard(make_own_layer: LayerFactory, layer_url: str) -> None:
    """A process that was stopped just then: the caller knows of the join, so it must not be lost."""
    layer = make_own_layer(heartbeat=30, lease=90)
    channel = await warm(layer)
    await until_listening(layer)
    before = inside(layer)._outages.ended

    async def lose(connection: Any) -> None:
        await connection.close()  # with all that has come over it and has not been read
        raise psycopg.OperationalError("lost")

    async def join_unheard() -> None:
        async with deaf(layer, lose):
            await layer.group_add("group", channel)
            sweep(layer_url)

    with pytest.raises(ConnectionLost):
        await join_unheard()

    async def is_back() -> bool:
        return bool(inside(layer)._outages.ended > before)

    await eventually_async(is_back)
    assert query(layer_url, MEMBERS) == [("group", channel)]
    await layer.group_send("group", text(1))
    assert await take(layer, channel, 1) == [text(1)]


async def test_who_left_before_its_node_heard_that_it_had_joined(make_own_layer: LayerFactory, layer_url: str) -> None:
    """The node had been swept, and hears late of the join; of the leave nobody tells it, and it restores nothing."""
    layer = make_own_layer(heartbeat=30, lease=90)
    channel = await warm(layer)
    await until_listening(layer)
    sweep(layer_url)
    joined = [("group", channel)]
    async with deaf(layer):
        await layer.group_add("group", channel)
        await layer.group_discard("group", channel)

    async def has_heard() -> bool:
        with inside(layer).inbox.decisions() as dispatcher:
            return [member[:2] for member in dispatcher.members] == joined

    await eventually_async(has_heard)
    await come_back(layer)
    assert query(layer_url, MEMBERS) == []


async def test_who_left_before_its_node_heard_that_it_had_joined_again(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node knows of an older join, and had been swept: it restores nothing for the join that it hears of late."""
    layer = make_own_layer(heartbeat=30, lease=90)
    channel = await warm(layer)
    frames = what_is_heard(monkeypatch)
    await layer.group_add("group", channel)
    await eventually_async(heard(frames, "Joined"))
    sweep(layer_url)
    async with deaf(layer):
        await layer.group_add("group", channel)
        await layer.group_discard("group", channel)
        assert frames == ["Joined"]
    await eventually_async(heard(frames, "Joined", "Joined"))
    await come_back(layer)
    assert query(layer_url, MEMBERS) == []


async def test_whose_membership_others_ended_before_its_join_was_answered(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node has heard of both by then: it expects the join no more, and does not restore it."""
    layer = make_own_layer(heartbeat=30, lease=90)
    channel = await warm(layer)
    await until_listening(layer)
    leave_by_the_slow_path(layer, monkeypatch)
    frames = what_is_heard(monkeypatch)

    async def answer_late(self: Queries, connection: Any, joins: Any) -> None:
        await join(self, connection, joins)
        await asyncio.to_thread(query, layer_url, "DELETE FROM channels_pg_sa_membership")
        await eventually_async(heard(frames, "Joined", "Left"))

    join = Queries.join
    monkeypatch.setattr(Queries, "join", answer_late)
    await layer.group_add("group", channel)
    sweep(layer_url)
    await come_back(layer)
    assert query(layer_url, MEMBERS) == []


async def test_who_leaves_while_the_server_crashes(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leave is done after the crash, which has emptied the table of nodes, and before its own is back."""
    layer = make_fragile(heartbeat=30, lease=90)
    channel = await warm(layer)
    for group in ("left", "stays"):
        await layer.group_add(group, channel)
    query(fragile_url, "CHECKPOINT")
    recover, left = inside(layer)._listener._recover, threading.Event()
    leave_by_the_slow_path(layer, monkeypatch)

    async def later(connection: Any, renew: Any) -> None:
        await asyncio.to_thread(left.wait, 10)
        await recover(connection, renew)

    async def is_blocked() -> bool:
        return query(fragile_url, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted") == [(True,)]

    monkeypatch.setattr(inside(layer)._listener, "_recover", later)
    with contextlib.suppress(psycopg.OperationalError), locked(fragile_url):
        leaving = asyncio.create_task(layer.group_discard("left", channel))
        await eventually_async(is_blocked)
        await asyncio.to_thread(fragile.postgres.restart, crash=True)
    await leaving
    left.set()
    await until_listening(layer)

    async def has_left() -> bool:
        return query(fragile_url, MEMBERS) == [("stays", channel)]

    await lasts(has_left)


async def test_who_leaves_and_joins_at_once_is_restored(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Both come in one batch, of which only the last word is brought to the database: it is no leave."""
    layer = make_own_layer(heartbeat=30, lease=90)
    channel = await warm(layer)
    await layer.group_add("group", channel)
    node = layer._node  # type: ignore[attr-defined]
    node._outbox.memberships.own._fast_path = None
    for number in range(20):
        await asyncio.gather(
            layer.group_add("other", channel),  # so that the two wait, and go together
            layer.group_discard("group", channel),
            layer.group_add("group", channel),
            layer.group_add(f"group{number}", channel),
        )

    async def is_certain() -> bool:
        return not inside(layer).inbox._dispatcher.members._absent

    await eventually_async(is_certain)  # a leave that was done by itself is in doubt until the join is heard
    query(layer_url, "DELETE FROM channels_pg_sa_node")
    with psycopg.connect(layer_url, autocommit=True, application_name="tests") as crash:
        crash.execute("SET session_replication_role = replica")
        crash.execute("DELETE FROM channels_pg_sa_membership WHERE group_name = 'group'")
    await come_back(layer)
    assert ("group", channel) in query(layer_url, MEMBERS)
