"""Who is dead is forgotten, who lives is not: leases, memberships that come back, expiry, and one sweeper at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from tests.support.databases import query
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.processes import LayerProcess
from tests.support.waiting import eventually, eventually_async, let_pass

from .breaking import WAITING, SwallowingProxy, inside, take, text, warm

PACE = {"heartbeat": 0.3, "lease": 1.5}
MEMBERS = "SELECT channel FROM channels_pg_sa_membership ORDER BY channel"
NODES = "SELECT id FROM channels_pg_sa_node ORDER BY id"
SWEEP_LOCK = "SELECT pg_advisory_lock(hashtextextended(secret, 0)) FROM channels_pg_sa_installation"
OLD_MESSAGES = """INSERT INTO channels_pg_sa_message (recipient, channel, payload, expires_at)
    SELECT 'old-' || n %% 100, 'old-' || n %% 100, '', now() - interval '1 s' FROM generate_series(1, %s) n"""
OLD_MEMBERS = """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel, expires_at)
    SELECT 'asgi', 'old', '', 'old-' || n, now() - interval '1 s' FROM generate_series(1, %s) n"""
GROUPS_ROWS = "SELECT count(*) FROM channels_pg_sa_message WHERE group_name = 'group'"


@pytest_asyncio.fixture
async def processes(make_own_layer: LayerFactory) -> AsyncIterator[AsyncExitStack]:
    """Holds processes, which end with the test, before its layers do."""
    async with AsyncExitStack() as stack:
        yield stack


async def start(stack: AsyncExitStack, url: str, **config: Any) -> LayerProcess:
    """Start a process with a layer."""
    return await stack.enter_async_context(LayerProcess(url=url, **config))


async def until_beats(layer: PostgresLayer, count: int) -> None:
    """Wait until the layer has given so many more signs of life."""
    heartbeat = inside(layer)._heartbeat
    goal = heartbeat.next_number + count

    async def look() -> bool:
        return bool(heartbeat.next_number >= goal)

    await eventually_async(look)


async def test_a_beat_comes_once_in_an_interval(make_own_layer: LayerFactory) -> None:
    """However long it takes until the listener hears it: beats are what an idle process costs."""
    layer = make_own_layer(heartbeat=0.2, lease=10)
    await warm(layer)
    await until_beats(layer, 1)
    first, since = inside(layer)._heartbeat.next_number, time.monotonic()
    await until_beats(layer, 10)
    shortest = 0.9 * 0.2  # so that nodes which start together do not beat together
    assert inside(layer)._heartbeat.next_number - first <= (time.monotonic() - since) / shortest + 1


@pytest.mark.processes
async def test_a_killed_process_vanishes_within_its_lease(
    processes: AsyncExitStack, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Peer defect 14: members of a process killed by SIGKILL stayed for ever, each costing a row and a NOTIFY."""
    layer, other = make_own_layer(**PACE), await start(processes, layer_url, **PACE)
    here = await warm(layer)
    there = [await other.call("new_channel") for _ in range(20)]
    await layer.group_add("group", here)
    for channel in there:
        await other.call("group_add", "group", channel)
    await other.call("send", there[0], text(0))
    assert await other.call("receive", there[0]) == text(0)
    await other.kill()
    killed = time.monotonic()
    assert len(query(layer_url, MEMBERS)) == 21  # its lease has not run out
    eventually(lambda: query(layer_url, MEMBERS) == [(here,)])
    # The lease, and the beat of another that finds it has run out; the rest is for the machine.
    assert time.monotonic() - killed < PACE["lease"] + PACE["heartbeat"] + 1
    eventually(lambda: query(layer_url, NODES) == [(layer.node,)])
    await layer.group_send("group", text(1))
    assert await take(layer, here, 1) == [text(1)]
    # What was written for the dead would lie there.
    eventually(lambda: query(layer_url, GROUPS_ROWS) == [(0,)])


@pytest.mark.processes
async def test_jobs_that_a_killed_process_had_claimed_are_not_done_twice(
    processes: AsyncExitStack, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """At most once: a job belongs to the process that took it, and dies with it; what nobody took goes to others."""
    layer, worker = make_own_layer(**PACE), await start(processes, layer_url, **PACE)
    worker.consume("jobs")
    for number in range(5):
        await layer.send("jobs", text(number))
    done = [await asyncio.wait_for(worker.events.get(), 10) for _ in range(5)]
    await worker.kill()
    for number in range(5, 10):
        await layer.send("jobs", text(number))
    while not worker.events.empty():
        done.append(worker.events.get_nowait())
    done += await take(layer, "jobs", 5)
    assert [message["number"] for message in done] == list(range(10))
    eventually(lambda: query(layer_url, NODES) == [(layer.node,)])
    await layer.send("jobs", text(10))
    assert await take(layer, "jobs", 1) == [text(10)]


async def test_who_was_cut_off_gets_its_memberships_back(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Peer defect 21: live sockets go silent; here a process longer away than its lease restores what it had."""
    layer, other = make_own_layer(url=proxy.url, **PACE), make_own_layer(**PACE)
    channels = [await warm(layer), *[await layer.new_channel() for _ in range(50)]]
    await asyncio.gather(*(layer.group_add("group", channel) for channel in channels))
    await other.group_add("group", await warm(other))
    proxy.cut()
    eventually(lambda: query(layer_url, NODES) == [(other.node,)])
    assert len(query(layer_url, MEMBERS)) == 1
    await other.send(channels[0], text(1))  # waits for it all the same
    proxy.heal()
    eventually(lambda: len(query(layer_url, MEMBERS)) == 52)
    await other.group_send("group", text(2))
    assert await take(layer, channels[0], 2) == [text(1), text(2)]
    for channel in channels[1:]:
        assert await take(layer, channel, 1) == [text(2)]


async def test_who_left_while_it_was_cut_off_is_not_brought_back(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """A socket that closes while its process is cut off and swept has left when the process is back."""
    layer, other = make_own_layer(url=proxy.url, **PACE), make_own_layer(**PACE)
    stays, leaves = await warm(layer), await layer.new_channel()
    for channel in (stays, leaves):
        await layer.group_add("group", channel)
    await warm(other)
    proxy.cut()
    eventually(lambda: query(layer_url, NODES) == [(other.node,)])
    leaving = asyncio.create_task(layer.group_discard("group", leaves))
    done, _ = await asyncio.wait([leaving], timeout=0.1)
    assert not done
    proxy.heal()
    await leaving
    eventually(lambda: layer.node in {node for (node,) in query(layer_url, NODES)})
    await until_beats(layer, 2)
    assert query(layer_url, MEMBERS) == [(stays,)]


async def test_a_stalled_process_that_was_swept_comes_back(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Silence without a closed connection is the same: swept, and back when packets flow."""
    layer, other = make_own_layer(url=proxy.url, **PACE), make_own_layer(**PACE)
    channel = await warm(layer)
    await layer.group_add("group", channel)
    await warm(other)
    proxy.stall()
    eventually(lambda: query(layer_url, NODES) == [(other.node,)])
    proxy.heal()
    eventually(lambda: query(layer_url, MEMBERS) == [(channel,)])
    await other.group_send("group", text(1))
    assert await take(layer, channel, 1) == [text(1)]


async def test_a_row_that_an_administrator_deleted_comes_back(make_own_layer: LayerFactory, layer_url: str) -> None:
    """A node that finds its row gone at a heartbeat registers again, and its memberships with it."""
    layer, other = make_own_layer(**PACE), make_own_layer(**PACE)
    channel = await warm(layer)
    await layer.group_add("group", channel)
    query(layer_url, "DELETE FROM channels_pg_sa_node")
    query(layer_url, "DELETE FROM channels_pg_sa_membership")
    eventually(lambda: query(layer_url, MEMBERS) == [(channel,)])
    await other.group_send("group", text(1))
    assert await take(layer, channel, 1) == [text(1)]


async def test_a_membership_never_ends_without_group_expiry(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Peer defect 21: membership expiry removed members that were still connected, after 24 h."""
    layer = make_own_layer(group_expiry=0)
    channel = await warm(layer)
    await layer.group_add("group", channel)
    await layer.group_add("group", "jobs")
    ends = "SELECT DISTINCT expires_at = 'infinity' FROM channels_pg_sa_membership"
    assert query(layer_url, ends) == [(True,)]
    members = inside(layer).inbox._dispatcher.members
    assert [expires for _, _, expires in members] == [float("inf")]


async def test_group_expiry_is_enforced_to_the_second(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Peer defect 14: group_expiry=1 still delivered at 2.5 s; here it ends when it says, and a renewal prolongs it."""
    layer, other = make_own_layer(group_expiry=2), make_own_layer(group_expiry=2)
    renewed, ended = await warm(layer), await layer.new_channel()
    for channel in (renewed, ended, "jobs"):
        await layer.group_add("group", channel)
    joined = time.monotonic()
    await let_pass(1)
    await layer.group_add("group", renewed)
    await other.group_send("group", text(1))
    in_time = time.monotonic() - joined < 2
    await let_pass(1.05)
    await other.group_send("group", text(2))
    still = time.monotonic() - joined < 3
    for channel in (ended, "jobs", renewed):
        await layer.send(channel, text(3))
    if in_time:
        assert await take(layer, ended, 2) == [text(1), text(3)]
        assert await take(layer, "jobs", 2) == [text(1), text(3)]
    if in_time and still:
        assert await take(layer, renewed, 3) == [text(1), text(2), text(3)]
    assert in_time
    assert still


async def test_what_expired_goes(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Peer defects 13, 31: expired rows stayed for ever, or went in one DELETE that was out of memory."""
    await warm(make_own_layer(heartbeat=0.3, lease=1.5))
    query(layer_url, OLD_MESSAGES, [12_000])
    query(layer_url, OLD_MEMBERS, [6_000])
    query(layer_url, "INSERT INTO channels_pg_sa_node (id, prefix, pid, lease_until) VALUES ('dead', 'asgi', 1, now())")
    eventually(lambda: query(layer_url, WAITING) == [(0,)])
    eventually(lambda: query(layer_url, MEMBERS) == [])
    eventually(lambda: len(query(layer_url, NODES)) == 1)


async def test_expired_rows_go_in_batches(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Peer defect 31: no transaction deletes more than a batch of each kind."""
    query(
        layer_url,
        """CREATE TABLE deleted (rows bigint); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            INSERT INTO deleted SELECT count(*) FROM gone;
            RETURN NULL;
        END $body$;
        CREATE TRIGGER notes AFTER DELETE ON channels_pg_sa_message REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION note()""",
    )
    query(layer_url, OLD_MESSAGES, [12_000])
    await warm(make_own_layer(heartbeat=0.3, lease=1.5))
    eventually(lambda: query(layer_url, WAITING) == [(0,)])
    ((most, total),) = query(layer_url, "SELECT max(rows), sum(rows) FROM deleted")
    assert most == 5000
    assert total >= 12_000


async def test_one_sweeper_at_a_time(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Peer defect 31: every worker ran the same clean-up; here who finds another at it goes on with its life."""
    layers = [make_own_layer(**PACE) for _ in range(3)]
    for layer in layers:
        await warm(layer)
    eventually(lambda: query(layer_url, WAITING) == [(0,)])
    with psycopg.connect(layer_url, autocommit=True, application_name="tests") as sweeper:
        sweeper.execute(SWEEP_LOCK)
        query(layer_url, OLD_MESSAGES, [10])
        for layer in layers:
            await until_beats(layer, 3)
        assert query(layer_url, "SELECT count(*) FROM channels_pg_sa_message WHERE recipient LIKE 'old-%'") == [(10,)]
        assert query(layer_url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == [(0,)]
        await layers[0].send("jobs", text(1))
        assert await take(layers[1], "jobs", 1) == [text(1)]
    eventually(lambda: query(layer_url, WAITING) == [(0,)])
    assert len(query(layer_url, NODES)) == 3
