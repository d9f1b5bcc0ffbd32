"""Joins and leaves that the calling thread begins itself: each is done in the end, whatever breaks under it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from channels_pg_sa import SchemaError, SendError
from channels_pg_sa.call import Call
from channels_pg_sa.statements.jobs import Leave
from tests.support.databases import AWAITED, TestServer, query
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.waiting import eventually_async

from .breaking import SwallowingProxy, impatient, inside, text
from .test_fast_path import Interrupted, fast_path, hold, interrupted
from .test_sending import until_rested

Change = Callable[[PostgresLayer, str], Awaitable[None]]

MEMBERS = "SELECT group_name, channel FROM channels_pg_sa_membership ORDER BY 1, 2"
BLOCKED = f"{AWAITED} AND relation = 'channels_pg_sa_membership'::regclass"

CHANGES: dict[str, Change] = {
    "join": lambda layer, group: layer.group_add(group, "jobs"),
    "leave": lambda layer, group: layer.group_discard(group, "jobs"),
    "join_sync": lambda layer, group: asyncio.to_thread(layer.group_add_sync, group, "jobs"),
    "leave_sync": lambda layer, group: asyncio.to_thread(layer.group_discard_sync, group, "jobs"),
}


@contextmanager
def locked(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Lock the memberships, as a migration would; commit or leave the block to release them."""
    with psycopg.connect(url, application_name="tests") as locker:
        locker.execute("LOCK TABLE channels_pg_sa_membership IN ACCESS EXCLUSIVE MODE")
        yield locker


@contextmanager
def busy(url: str, prefix: str, change: str) -> Iterator[psycopg.Connection[Any]]:
    """Have a transaction of another's keep a join or leave waiting, and not its opposite, until it is rolled back."""
    with psycopg.connect(url, application_name="tests") as other:
        if change.startswith("join"):
            columns = "prefix, group_name, node, channel"
            other.execute(
                f"INSERT INTO channels_pg_sa_membership ({columns}) VALUES (%s, 'group', '', 'jobs')", [prefix]
            )
        else:
            other.execute("SELECT 1 FROM channels_pg_sa_membership FOR KEY SHARE")
        yield other
        other.rollback()


@contextmanager
def locked_row(url: str, channel: str) -> Iterator[None]:
    """Keep others from changing a channel's membership."""
    with psycopg.connect(url, application_name="tests") as other:
        other.execute("SELECT 1 FROM channels_pg_sa_membership WHERE channel = %s FOR UPDATE", [channel])
        yield


async def until_waiting(url: str) -> None:
    """Wait until a statement waits for another's transaction."""

    async def look() -> bool:
        return query(url, AWAITED) == [(1,)]

    await eventually_async(look)


async def under_way(layer: PostgresLayer, url: str) -> None:
    """Wait until a statement of the layer's waits for the lock, on the connection that is held."""

    async def look() -> bool:
        return query(url, BLOCKED) == [(1,)]

    await eventually_async(look)
    assert fast_path(layer)._done is not None


async def member_of(layer: PostgresLayer, change: str) -> str:
    """Return a group that the change ends or begins a membership of; the next change may be begun by its caller."""
    await layer.group_discard("group", "jobs")
    if change.startswith("leave"):
        await layer.group_add("group", "jobs")
    return "group"


def expected(change: str) -> list[tuple[Any, ...]]:
    """Return the memberships after the change."""
    return [("group", "jobs")] if change.startswith("join") else []


@pytest.mark.parametrize("change", ["join", "leave"])
async def test_a_lone_change_is_begun_by_its_own_thread(
    make_own_layer: LayerFactory, layer_url: str, change: str
) -> None:
    """While the I/O thread is kept from working the statement reaches the server all the same."""
    layer = make_own_layer()
    group = await member_of(layer, change)
    await hold(layer)
    go_on = threading.Event()
    layer._node._thread.loop.call_soon_threadsafe(go_on.wait)  # type: ignore[attr-defined]
    changing = asyncio.ensure_future(CHANGES[change](layer, group))
    try:
        await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, MEMBERS) == expected(change)))
        assert not changing.done()
    finally:
        go_on.set()
    await changing


@pytest.mark.parametrize("change", CHANGES)
async def test_lost_under_the_statement(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, server: TestServer, layer_url: str, change: str
) -> None:
    """Done twice is as good as once, so it is done again, and the caller does not notice."""
    layer = make_own_layer(url=proxy.url)
    group = await member_of(layer, change)
    await hold(layer)
    with locked(layer_url) as locker:
        changing = asyncio.ensure_future(CHANGES[change](layer, group))
        await under_way(layer, layer_url)
        session = fast_path(layer)._held.driver.info.backend_pid
        proxy.drop()
        server.terminate([session])  # which would go on, and do it
        locker.commit()
        await changing
    assert query(layer_url, MEMBERS) == expected(change)


async def test_lost_under_the_statement_and_late(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Nobody knows whether it was done, though nothing was under way when its time was over."""
    layer = make_own_layer(url=proxy.url, send_timeout=4)
    await member_of(layer, "join")
    await hold(layer)
    with locked(layer_url):
        joining = asyncio.create_task(layer.group_add("group", "jobs"))
        await under_way(layer, layer_url)
        proxy.cut()
        with pytest.raises(SendError, match="may have been done") as caught:
            await joining
    assert caught.value.maybe_sent
    await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, MEMBERS) == [("group", "jobs")]))


@pytest.mark.parametrize("place", ["within", "after"])
@pytest.mark.parametrize("change", ["join_sync", "leave_sync"])
async def test_a_caller_that_is_interrupted_cleans_up(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch, change: str, place: str
) -> None:
    """Ctrl-C, or a time limit of Celery's, while the statement is under way: what the caller undoes comes after it."""
    layer = make_own_layer()
    await member_of(layer, change)
    await hold(layer)
    if place == "within":
        Interrupted(fast_path(layer)._held.driver, sent=True)
    else:
        monkeypatch.setattr(layer._node._outbox.memberships.others, "_watch_soon", interrupted)  # type: ignore[attr-defined]
    verbs = [layer.group_add_sync, layer.group_discard_sync]
    do, undo = verbs if change == "join_sync" else reversed(verbs)
    with busy(layer_url, make_own_layer.prefix, change) as other:
        with pytest.raises(KeyboardInterrupt):
            do("group", "jobs")
        monkeypatch.undo()
        undoing = asyncio.create_task(asyncio.to_thread(undo, "group", "jobs"))
        await asyncio.wait([undoing], timeout=0.5)
        other.rollback()
        await undoing
        await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, AWAITED) == [(0,)]))
    assert query(layer_url, MEMBERS) == ([] if change == "join_sync" else [("group", "jobs")])


async def test_a_caller_that_is_interrupted_before_anything_is_sent(
    make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Nothing was done, and the connection is as good as before."""
    layer = await hold(make_own_layer())
    await layer.group_add("group", "jobs")
    Interrupted(fast_path(layer)._held.driver, sent=False)
    with pytest.raises(KeyboardInterrupt):
        layer.group_discard_sync("group", "jobs")
    assert fast_path(layer).is_open
    await layer.group_add("group", "others")
    assert fast_path(layer).is_open
    assert query(layer_url, MEMBERS) == [("group", "jobs"), ("group", "others")]


@pytest.mark.parametrize("followed", [False, True], ids=["alone", "followed"])
@pytest.mark.parametrize("change", ["join", "leave"])
async def test_ended_under_the_statement(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str, change: str, followed: bool
) -> None:
    """The server says that it did not do it: it is done again, and before what was asked for after it."""
    layer = make_own_layer()
    await member_of(layer, change)
    await hold(layer)
    opposite = "leave" if change == "join" else "join"
    with locked(layer_url) as locker:
        changing = [asyncio.ensure_future(CHANGES[change](layer, "group"))]
        await under_way(layer, layer_url)
        if followed:
            changing.append(asyncio.ensure_future(CHANGES[opposite](layer, "group")))
            await asyncio.sleep(0)
        server.terminate(server.connections(layer_url))
        locker.commit()
        await asyncio.gather(*changing)
    assert query(layer_url, MEMBERS) == expected(opposite if followed else change)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_statement_that_takes_too_long(make_own_layer: LayerFactory, layer_url: str, change: str) -> None:
    """Its caller is told after send_timeout, and the server gives it up: it does not come after what follows."""
    layer = make_own_layer()
    group = await member_of(layer, change)
    await hold(layer)
    with locked(layer_url), impatient(layer, 1):
        started = time.monotonic()
        changing = asyncio.ensure_future(CHANGES[change](layer, group))
        await under_way(layer, layer_url)
        with pytest.raises(SendError):
            await changing
        assert 1 <= time.monotonic() - started < 3
        await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, AWAITED) == [(0,)]))
    await layer.group_add("group", "others")
    assert query(layer_url, MEMBERS) == [("group", "jobs")] * change.startswith("leave") + [("group", "others")]


async def test_a_leave_ends_a_membership_that_is_renewed_meanwhile(
    make_own_layer: LayerFactory, layer_url: str
) -> None:
    """The statement tells that it missed one: the rest is done by the slow path."""
    layer = make_own_layer()
    await layer.group_add("group", "jobs")
    await hold(layer)
    with psycopg.connect(layer_url, application_name="tests") as other:
        other.execute("UPDATE channels_pg_sa_membership SET expires_at = expires_at + interval '0'")
        leaving = asyncio.create_task(layer.group_discard("group", "jobs"))
        await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, AWAITED) == [(1,)]))
        assert fast_path(layer)._done is not None
        other.commit()
    await leaving
    assert query(layer_url, MEMBERS) == []


async def test_a_leave_that_missed_one_may_have_been_done(make_own_layer: LayerFactory) -> None:
    """Of others: who is late while the slow path does the rest is told so."""
    layer = make_own_layer()
    await layer.group_discard("group", "jobs")
    call = Call[Any](Leave("group", "", "jobs"), 30, None)
    missed = Missed()
    assert not layer._node._outbox.memberships._conclude_ending([call], None, missed)  # type: ignore[attr-defined]
    assert call.doubtful


class Missed:
    """The result of a statement that missed one membership."""

    def get_value(self, _row: int, _column: int) -> bytes:
        """Return how many."""
        return b"1"


async def test_joins_and_leaves_together(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Of each membership what was asked for last is done."""
    layer = make_own_layer()
    channels = [f"jobs-{number}" for number in range(40)]
    leaving = [f"leaving-{number}" for number in range(5)]
    joining = [f"joining-{number}" for number in range(5)]
    for channel in [*channels[::2], *leaving]:
        await layer.group_add("group", channel)
    await hold(layer)
    await asyncio.gather(
        *(layer.group_discard("group", channel) for channel in leaving),
        *(
            verb("group", channel)
            for place, channel in enumerate(channels)
            for verb in (
                [layer.group_add, layer.group_discard] if place % 2 else [layer.group_discard, layer.group_add]
            )
        ),
        *(layer.group_add("group", channel) for channel in joining),
    )
    assert query(layer_url, MEMBERS) == sorted(("group", channel) for channel in [*channels[::2], *joining])


async def together(
    layer: PostgresLayer, url: str, *changes: tuple[str, str], behind: str = "first"
) -> list[asyncio.Future[None]]:
    """Begin joins and leaves that make one batch, behind another that is held up until they wait; return them."""
    verbs = {"join": layer.group_add, "leave": layer.group_discard}
    await layer.group_add("group", behind)
    with locked_row(url, behind):
        first = asyncio.ensure_future(layer.group_add("group", behind))
        await until_waiting(url)
        begun = [asyncio.ensure_future(verbs[change]("group", channel)) for change, channel in changes]
        await asyncio.sleep(0)
    await first
    return begun


@pytest.mark.parametrize("changes", [("join", "join"), ("leave", "leave"), ("join", "leave"), ("leave", "join")])
async def test_processes_that_change_the_same_memberships_never_wait_in_a_circle(
    make_own_layer: LayerFactory, layer_url: str, changes: tuple[str, str]
) -> None:
    """In whatever order they are asked: who waits for one has locked none behind it."""
    layer = make_own_layer()
    for channel in ("jobs-2", "jobs-1"):
        await layer.group_add("group", channel)
    with locked_row(layer_url, "jobs-1"):
        begun = await together(layer, layer_url, (changes[0], "jobs-2"), (changes[1], "jobs-1"))
        await until_waiting(layer_url)
        query(layer_url, "SELECT 1 FROM channels_pg_sa_membership WHERE channel = 'jobs-2' FOR UPDATE NOWAIT")
    await asyncio.gather(*begun)
    left = [("group", f"jobs-{number}") for number, change in zip((2, 1), changes, strict=True) if change == "join"]
    assert query(layer_url, MEMBERS) == sorted([("group", "first"), *left])


async def test_a_batch_of_joins_and_leaves_takes_the_fast_path(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One statement after the other, over the connection that is held."""
    layer = await hold(make_own_layer())
    await layer.group_add("group", "jobs-1")
    attempts = layer._node._outbox.memberships._attempts  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "make", None)
        await asyncio.gather(*await together(layer, layer_url, ("join", "jobs-2"), ("leave", "jobs-1")))
    assert query(layer_url, MEMBERS) == [("group", "first"), ("group", "jobs-2")]


async def test_who_joins_in_a_batch_whose_leave_missed_one(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Nobody is told of a join that was not begun: both are done by the slow path."""
    layer = await hold(make_own_layer())
    await layer.group_add("group", "jobs-1")
    with psycopg.connect(layer_url, application_name="tests") as other:
        other.execute("UPDATE channels_pg_sa_membership SET expires_at = expires_at WHERE channel = 'jobs-1'")
        begun = await together(layer, layer_url, ("join", "jobs-2"), ("leave", "jobs-1"))
        await until_waiting(layer_url)
        assert fast_path(layer)._done is not None
        other.commit()
    await asyncio.gather(*begun)
    assert query(layer_url, MEMBERS) == [("group", "first"), ("group", "jobs-2")]


@pytest.mark.parametrize("break_it", ["terminate", "drop"])
async def test_lost_between_the_statements_of_a_batch(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, server: TestServer, layer_url: str, break_it: str
) -> None:
    """Who left has left, and who joins joins over another connection."""
    layer = await hold(make_own_layer(url=proxy.url))
    for channel in ("jobs-1", "jobs-2"):
        await layer.group_add("group", channel)
    with locked_row(layer_url, "jobs-2"):
        begun = await together(layer, layer_url, ("join", "jobs-2"), ("leave", "jobs-1"))
        await until_waiting(layer_url)
        assert query(layer_url, MEMBERS) == [("group", "first"), ("group", "jobs-2")]
        if break_it == "terminate":
            server.terminate(server.connections(layer_url))
        else:
            proxy.drop()
    await asyncio.gather(*begun)
    assert query(layer_url, MEMBERS) == [("group", "first"), ("group", "jobs-2")]


@pytest.mark.parametrize("is_fast", [True, False])
async def test_who_leaves_does_not_wait_for_a_join_that_waits(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch, is_fast: bool
) -> None:
    """Although they made one batch, by whichever path."""
    layer = await hold(make_own_layer())
    if not is_fast:
        monkeypatch.setattr(layer._node._outbox.memberships.others, "_fast_path", None)  # type: ignore[attr-defined]
    for channel in ("jobs-1", "jobs-2"):
        await layer.group_add("group", channel)
    with locked_row(layer_url, "jobs-2"):
        joining, leaving = await together(layer, layer_url, ("join", "jobs-2"), ("leave", "jobs-1"))
        await leaving
        assert not joining.done()
    await joining


async def test_a_leave_that_found_nobody_says_nothing_of_who_joined_again(
    make_own_layer: LayerFactory, layer_url: str
) -> None:
    """In its batch: what the node restores if it is swept holds for that."""
    layer = await hold(make_own_layer())
    member, nobody, first = [await layer.new_channel() for _ in range(3)]
    await layer.group_add("group", member)
    await layer.group_send("group", text(1))
    assert await asyncio.wait_for(layer.receive(member), 10) == text(1)
    changes = [("leave", member), ("join", member), ("leave", nobody)]
    await asyncio.gather(*await together(layer, layer_url, *changes, behind=first))
    members = inside(layer).inbox._dispatcher.members.to_restore()
    assert sorted(channel for _, channel, _ in members) == sorted([member, first])


async def test_who_leaves_is_not_told_of_a_join_that_is_refused(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Although they made one batch."""
    layer = await hold(make_own_layer())
    await layer.group_add("group", "jobs-1")
    query(layer_url, "ALTER TABLE channels_pg_sa_membership ADD CONSTRAINT no_second CHECK (channel <> 'jobs-2')")
    joining, leaving = await together(layer, layer_url, ("join", "jobs-2"), ("leave", "jobs-1"))
    with pytest.raises(SendError, match=r"Nothing was done.*no_second"):
        await joining
    await leaving
    assert query(layer_url, MEMBERS) == [("group", "first")]


async def test_a_member_hears_what_is_sent_at_once(make_own_layer: LayerFactory) -> None:
    """A channel of this process does not join before its node listens, though a connection is there."""
    layer = await hold(make_own_layer())
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_send("group", text(1))
    await layer.group_discard("group", channel)
    assert await asyncio.wait_for(layer.receive(channel), 5) == text(1)


@pytest.mark.parametrize("seconds", [0, 100])
async def test_a_membership_lasts_as_it_should(make_own_layer: LayerFactory, layer_url: str, seconds: int) -> None:
    """For group_expiry seconds, or for ever."""
    layer = await hold(make_own_layer(group_expiry=seconds))
    await layer.group_add("group", "jobs")
    lasts = "SELECT extract(epoch FROM expires_at - now())::float8 FROM channels_pg_sa_membership"
    ((left,),) = query(layer_url, lasts if seconds else "SELECT expires_at = 'infinity' FROM channels_pg_sa_membership")
    assert left is True if seconds == 0 else 90 < left <= 100


async def test_tables_that_are_gone(make_own_layer: LayerFactory, layer_url: str) -> None:
    """The error names the command that mends it."""
    layer = await hold(make_own_layer())
    query(layer_url, "DROP TABLE channels_pg_sa_membership")
    with pytest.raises(SchemaError, match="upgrade"):
        await layer.group_add("group", "jobs")


async def test_a_layer_whose_channels_have_a_capacity(make_own_layer: LayerFactory) -> None:
    """Its sends take the slow path, and its joins need not."""
    layer = make_own_layer(capacity=10)

    async def look() -> bool:
        await layer.group_add("group", "jobs")
        return bool(fast_path(layer).is_open)

    await eventually_async(look)


async def test_a_join_that_was_lost_by_the_slow_path_and_is_late(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Nobody knows whether it was done, though nothing was under way when its time was over."""
    layer = make_own_layer(url=proxy.url, send_timeout=4, PSYCOPG_OPTIONS={"max_size": 1})
    await layer.group_add("group", "others")  # which prepares the statement, on the one connection
    await until_rested(layer)

    async def is_blocked() -> bool:
        return query(layer_url, BLOCKED) == [(1,)]

    with locked(layer_url):
        joining = asyncio.create_task(layer.group_add("group", "jobs"))
        await eventually_async(is_blocked)
        assert not fast_path(layer).is_open
        proxy.cut()
        with pytest.raises(SendError, match="may have been done") as caught:
            await joining
    assert caught.value.maybe_sent


async def test_what_was_lost_and_then_refused_may_have_been_done(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal says nothing of the attempt before."""
    layer = make_own_layer()
    await layer.group_discard("group", "jobs")
    outbox = layer._node._outbox  # type: ignore[attr-defined]
    errors = iter(
        [psycopg.OperationalError("the connection is lost"), psycopg.errors.InsufficientPrivilege("permission denied")]
    )

    async def fail(_connection: Any, _joins: Any) -> None:
        raise next(errors)

    monkeypatch.setattr(outbox.memberships.others, "_fast_path", None)
    monkeypatch.setattr(outbox._queries, "join", fail)
    with pytest.raises(SendError, match="permission denied") as caught:
        await layer.group_add("group", "jobs")
    assert caught.value.maybe_sent
