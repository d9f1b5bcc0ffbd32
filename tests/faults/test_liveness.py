"""Who is dead is forgotten, who lives is not: leases, memberships that come back, expiry, and one sweeper at a time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import signal
import socket
import threading
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql

from channels_pg_sa import SendError, __version__, drops, node
from channels_pg_sa.config import Settings
from channels_pg_sa.connections import database
from channels_pg_sa.receiving import flushing, heartbeat, listener, recovery, vacuum
from channels_pg_sa.receiving.listener import ConnectionLost
from channels_pg_sa.statements import queries
from channels_pg_sa.statements.messages import ROW
from channels_pg_sa.statements.queries import Queries
from tests.support.databases import AWAITED, TestServer, query, run_script
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.processes import LayerProcess
from tests.support.urls import with_parameters
from tests.support.waiting import eventually, eventually_async, let_pass

from .breaking import (
    PATIENCE,
    WAITING,
    CountingProxy,
    SwallowingProxy,
    inside,
    locked_messages,
    take,
    text,
    unhurried,
    until_beats,
    until_blocked,
    until_listening,
    warm,
)
from .test_listener import LOGGER

PACE = {"heartbeat": 0.3, "lease": 1.5}
MEMBERS = "SELECT channel FROM channels_pg_sa_membership ORDER BY channel"
NODES = "SELECT id FROM channels_pg_sa_node ORDER BY id"
SWEEP_LOCK = "SELECT pg_advisory_lock(hashtextextended(secret, 0)) FROM channels_pg_sa_installation"
OLD_MESSAGES = """INSERT INTO channels_pg_sa_message (recipient, channel, payload, expires_at)
    SELECT 'old-' || n %% 100, 'old-' || n %% 100, '', now() - interval '1 s' FROM generate_series(1, %s) n"""
OLD_MEMBERS = """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel, expires_at)
    SELECT 'asgi', 'old', '', 'old-' || n, now() - interval '1 s' FROM generate_series(1, %s) n"""
BEATS = "SELECT count(*) FROM beats"
COUNT_BEATS = """CREATE TABLE beats (); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO beats DEFAULT VALUES; RETURN NULL; END';
    CREATE TRIGGER note AFTER UPDATE ON channels_pg_sa_node FOR EACH ROW EXECUTE FUNCTION note()"""
SLOW_INSERTS = """CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END';
    CREATE TRIGGER stall BEFORE INSERT ON channels_pg_sa_membership EXECUTE FUNCTION stall()"""
GROUPS_ROWS = "SELECT count(*) FROM channels_pg_sa_message WHERE group_name = 'group'"


@pytest_asyncio.fixture
async def processes(make_own_layer: LayerFactory) -> AsyncIterator[AsyncExitStack]:
    """Holds processes, which end with the test, before its layers do."""
    async with AsyncExitStack() as stack:
        yield stack


async def start(stack: AsyncExitStack, url: str, **config: Any) -> LayerProcess:
    """Start a process with a layer."""
    return await stack.enter_async_context(LayerProcess(url=url, **config))


async def test_an_idle_process_sends_one_statement_in_a_heartbeat(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the connection that listens, without an empty one to see whether there is a connection; no more often."""
    monkeypatch.setattr(heartbeat, "SLOW", 60)  # a busy machine is not what this is about
    monkeypatch.setattr(database, "KEPT", 0.1)  # as in the pauses between real heartbeats
    query(layer_url, COUNT_BEATS)
    with CountingProxy(layer_url) as proxy:
        url = with_parameters(proxy.url, sslmode="disable", gssencmode="disable")
        layer = make_own_layer(url=url, heartbeat=0.5, lease=10)
        await warm(layer)
        unhurried(layer)
        eventually(lambda: query(layer_url, WAITING) == [(0,)])
        await until_beats(layer, layer_url, 3)
        started, before = time.monotonic(), proxy.statements
        ((first,),) = query(layer_url, BEATS)
        await until_beats(layer, layer_url, 5)
        ((last,),) = query(layer_url, BEATS)
        sent = [count - earlier for count, earlier in zip(proxy.statements, before, strict=True) if count != earlier]
        assert sent == [last - first]
        # Each waits for up to a tenth less, so that nodes which start together do not beat together.
        assert last - first <= (time.monotonic() - started) / (0.9 * 0.5) + 1
        await layer.close()


async def test_an_idle_process_wakes_no_other(
    make_own_layer: LayerFactory, layer_url: str, kill_listener: Callable[[PostgresLayer], list[int]]
) -> None:
    """NOTIFY wakes all who listen, to whatever: it is sent when a listener comes, and by no heartbeat."""
    layer = make_own_layer(heartbeat=0.5, lease=10)
    await warm(layer)
    unhurried(layer)
    await until_beats(layer, layer_url, 1)
    topic = inside(layer)._recovery._topics.own
    with psycopg.connect(layer_url, autocommit=True, application_name="tests") as other:

        def heard() -> list[str]:
            other.execute("SELECT pg_notify(%s, 'end')", [topic])
            return list(itertools.takewhile("end".__ne__, (notification.payload for notification in other.notifies())))

        other.execute(sql.SQL("LISTEN {}").format(sql.Identifier(topic)))
        await until_beats(layer, layer_url, 5)
        assert heard() == []
        kill_listener(layer)
        await until_beats(layer, layer_url, 5)
        (mark,) = heard()
        assert mark.startswith("B")


async def test_a_locked_table_of_nodes_keeps_no_message_waiting(
    make_own_layer: LayerFactory, layer_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator's LOCK or ALTER TABLE: beats are refused and tried again, and the connection goes on listening."""
    layer, sender = make_own_layer(heartbeat=1, lease=20), make_own_layer()
    channel = await warm(layer)
    unhurried(layer)
    await sender.send(channel, text(0))
    assert await take(layer, channel, 1) == [text(0)]
    (pid,) = make_own_layer.listeners(layer)[:1]

    def refused() -> int:
        return sum("lock timeout" in record.getMessage() for record in caplog.records)

    numbers = itertools.count(1)
    with caplog.at_level(logging.INFO, "channels_pg_sa"), psycopg.connect(layer_url) as operator:
        operator.execute("LOCK TABLE channels_pg_sa_node IN ACCESS EXCLUSIVE MODE")

        async def refused_thrice() -> bool:
            number = next(numbers)
            await sender.send(channel, text(number))
            assert await take(layer, channel, 1) == [text(number)]
            return refused() >= 3

        await eventually_async(refused_thrice)
    await until_beats(layer, layer_url, 2)
    assert pid in make_own_layer.listeners(layer)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_node_outlives_a_lock_on_its_messages(make_own_layer: LayerFactory, layer_url: str) -> None:
    """VACUUM FULL may take longer than the lease: what needs no other table than that of nodes is done."""
    layer = make_own_layer(heartbeat=0.5, lease=2)
    await warm(layer)
    unhurried(layer)  # a new connection would have to read its mailbox first, which is locked
    with locked_messages(layer_url):
        await until_beats(layer, layer_url, 5)
    await layer.send("jobs", text(1))
    assert await take(layer, "jobs", 1) == [text(1)]


async def test_questions_that_take_long_are_asked_elsewhere(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour's dead rows make them slow; no message waits behind them, and what is found is still swept."""
    monkeypatch.setattr(heartbeat, "SLOW", 0)
    layer = make_own_layer(heartbeat=0.3, lease=10)
    await warm(layer)
    asked: list[bool] = []
    beat = Queries.beat

    async def noted(self: Queries, connection: Any, topics: Any, queues: Any) -> Any:
        asked.append(connection is inside(layer)._listener._connection)
        return await beat(self, connection, topics, queues)

    monkeypatch.setattr(Queries, "beat", noted)
    await until_beats(layer, layer_url, 4)
    query(layer_url, OLD_MESSAGES, [10])
    eventually(lambda: query(layer_url, WAITING) == [(0,)])
    assert not any(asked[1:])


async def test_questions_that_cost_the_connection_are_asked_elsewhere(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next connection would be lost by them as well, and nothing be heard for long."""
    monkeypatch.setattr(heartbeat, "SLOW", 60)  # a busy machine is not what this is about
    layer = make_own_layer(heartbeat=0.5, lease=200)
    await warm(layer)
    beat, asked_here = Queries.beat, list[bool]()

    async def slow(self: Queries, connection: Any, *questions: Any) -> Any:
        asked_here.append(connection is inside(layer)._listener._connection)
        if asked_here[-1]:
            await connection.execute("SELECT pg_sleep(3)")
        return await beat(self, connection, *questions)

    monkeypatch.setattr(Queries, "beat", slow)

    async def has_asked_twice() -> bool:
        return len(asked_here) > 1

    await eventually_async(has_asked_twice)
    assert asked_here[:2] == [True, False]
    monkeypatch.undo()


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
    assert time.monotonic() - killed < PACE["lease"] + PACE["heartbeat"] + 5
    eventually(lambda: query(layer_url, NODES) == [(layer.node,)])
    await layer.group_send("group", text(1))
    assert await take(layer, here, 1) == [text(1)]
    # What was written for the dead would lie there.
    eventually(lambda: query(layer_url, GROUPS_ROWS) == [(0,)])


async def test_a_heartbeat_that_finds_no_connection_is_no_error(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The listener tells of the loss, and makes a new one."""
    caplog.set_level(logging.INFO, "channels_pg_sa.receiving.heartbeat")
    layer = make_own_layer(**PACE)
    await warm(layer)

    async def lend(_work: Any) -> None:
        raise ConnectionLost("the connection is closed")

    monkeypatch.setattr(inside(layer)._listener, "lend", lend)
    eventually(lambda: caplog.records)
    assert caplog.record_tuples[0] == (
        *("channels_pg_sa.receiving.heartbeat", logging.INFO, "A heartbeat failed: the connection is closed"),
    )


@pytest.mark.processes
async def test_a_stopped_process_that_was_swept_comes_back(
    processes: AsyncExitStack, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Stopped, as in a debugger or a suspended machine, it does not hear of its own end when it goes on."""
    layer, other = make_own_layer(**PACE), await start(processes, layer_url, **PACE)
    await warm(layer)
    channel = await other.call("new_channel")
    await other.call("group_add", "group", channel)
    os.kill(other.pid, signal.SIGSTOP)
    try:
        eventually(lambda: query(layer_url, NODES) == [(layer.node,)])
        assert query(layer_url, MEMBERS) == []
    finally:
        os.kill(other.pid, signal.SIGCONT)
    eventually(lambda: query(layer_url, MEMBERS) != [])
    await layer.group_send("group", text(1))
    assert await other.call("receive", channel) == text(1)


@pytest.mark.processes
async def test_a_flush_does_not_fail_for_the_dead(
    processes: AsyncExitStack, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """A killed process does not answer, and counts as dead only when its lease is over: it is flushed all the same."""
    layer, other = make_own_layer(send_timeout=4), await start(processes, layer_url)
    await warm(layer)
    await other.call("group_add", "group", await other.call("new_channel"))
    await other.kill()
    await layer.send("jobs", text(1))
    await layer.flush()
    assert query(layer_url, WAITING) == [(0,)]


async def test_two_flushes_at_once_over_one_connection_each(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each waits for the other's answer, and has its connection free for its own."""
    monkeypatch.setattr(flushing, "PATIENCE", 3600)
    layers = [make_own_layer(PSYCOPG_OPTIONS={"max_size": 1}, send_timeout=40) for _ in range(2)]
    for layer in layers:
        await warm(layer)
    await asyncio.gather(*(layer.flush() for layer in layers))
    assert "Flushed, but without an answer" not in caplog.text


async def test_a_flush_that_lost_all_connections_keeps_none_from_the_listener(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a pooler the listener needs another to come back, and there may be one only."""

    async def is_pooled(_: Any) -> bool:
        return True

    monkeypatch.setattr(recovery, "is_pooled", is_pooled)
    layer = make_own_layer(PSYCOPG_OPTIONS={"max_size": 1}, send_timeout=3)
    await warm(layer)
    with locked_messages(layer_url):
        flush = asyncio.create_task(layer.flush())
        await until_blocked(layer_url)
        server.terminate(server.connections(layer_url))
    await asyncio.gather(flush, return_exceptions=True)  # in time, or not

    async def arrives() -> bool:
        with contextlib.suppress(SendError):
            await layer.send("jobs", text(1))
            return await take(layer, "jobs", 1) == [text(1)]
        return False

    await eventually_async(arrives)


@pytest.mark.processes
async def test_jobs_that_a_killed_process_had_claimed_are_not_done_twice(
    processes: AsyncExitStack, make_own_layer: LayerFactory, server: TestServer, layer_url: str
) -> None:
    """At most once: a job belongs to the process that took it, and dies with it; what nobody took goes to others."""
    worker = await start(processes, layer_url, **PACE)
    worker.consume("jobs")
    async with make_own_layer() as sender:
        for number in range(5):
            await sender.send("jobs", text(number))
        done = [await asyncio.wait_for(worker.events.get(), 10) for _ in range(5)]
    await worker.kill()
    # The server may have a claim of its to do yet, which would take a job for it.
    await eventually_async(lambda: asyncio.to_thread(lambda: not server.connections(layer_url)))
    layer = make_own_layer(**PACE)
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
    await until_beats(layer, layer_url, 2)
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
    run_script(layer_url, "DELETE FROM channels_pg_sa_node; DELETE FROM channels_pg_sa_membership")
    eventually(lambda: query(layer_url, MEMBERS) == [(channel,)])
    await other.group_send("group", text(1))
    assert await take(layer, channel, 1) == [text(1)]


async def test_memberships_come_back_however_long_that_takes(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some hundred thousand take a slow server longer than it has for any statement, and longer than the lease."""
    monkeypatch.setattr(listener, "PATIENCE", 1.0)
    monkeypatch.setattr(queries, "RESTORED", 1)
    layer, other = make_own_layer(**PACE), make_own_layer(**PACE)
    channels = sorted([await warm(layer), *[await layer.new_channel() for _ in range(9)]])
    await asyncio.gather(*(layer.group_add("group", channel) for channel in channels))
    await warm(other)
    query(layer_url, SLOW_INSERTS)
    run_script(
        layer_url,
        f"DELETE FROM channels_pg_sa_node WHERE id = '{layer.node}'; DELETE FROM channels_pg_sa_membership",
    )
    eventually(lambda: query(layer_url, MEMBERS) == [(channel,) for channel in channels])
    await until_listening(layer)
    unhurried(layer, other)
    came_back = make_own_layer.listeners(layer)
    await until_beats(layer, layer_url, 5)
    assert make_own_layer.listeners(layer) == came_back
    assert query(layer_url, MEMBERS) == [(channel,) for channel in channels]


async def test_a_node_that_others_gave_a_lease_is_itself_again(make_own_layer: LayerFactory, layer_url: str) -> None:
    """After a crash of the server a sweeper knows only ids; a node that comes back says who and what it is."""
    layer: Any = make_own_layer(**PACE)
    await warm(layer)
    query(
        layer_url,
        """UPDATE channels_pg_sa_node SET host = 'unknown', pid = NULL, version = 'old',
        lease_until = now() + interval '60 s' WHERE id = %s""",
        [layer.node],
    )

    async def is_back() -> Any:
        return await layer.nodes()

    (node,) = await eventually_async(is_back)
    assert (node.id, node.host, node.pid) == (layer.node, socket.gethostname(), os.getpid())
    assert node.version == __version__
    await until_beats(layer, layer_url, 1)


async def test_members_without_a_node_wait_for_it_under_their_own_prefix(layer_url: str) -> None:
    """After a crash of the server: for a lease's time, if it is of the sweeper's prefix; others sweep for the rest."""
    query(
        layer_url,
        """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel) VALUES
        ('asgi', 'group', 'aaaaaaaaaaaa', 's.aaaaaaaaaaaa!a'), ('asgi', 'group', 'cccccccccccc', 's.cccccccccccc!a'),
        ('asgi', 'group', '', 'jobs'), ('other', 'group', 'bbbbbbbbbbbb', 's.bbbbbbbbbbbb!a')""",
    )
    queries = {
        prefix: Queries(Settings(connect=dict, listen=dict, prefix=prefix), "0123456789ab")
        for prefix in ("asgi", "other")
    }
    adopted = "SELECT prefix, id FROM channels_pg_sa_node WHERE pid IS NULL AND lease_until > now() ORDER BY id"
    async with await psycopg.AsyncConnection.connect(layer_url, autocommit=True) as connection:
        await queries["asgi"].sweep(connection, 10)
        assert query(layer_url, adopted) == [("asgi", "aaaaaaaaaaaa"), ("asgi", "cccccccccccc")]
        await queries["other"].sweep(connection, 10)
        assert ("other", "bbbbbbbbbbbb") in query(layer_url, adopted)
    assert len(query(layer_url, MEMBERS)) == 4


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
    layer, other = make_own_layer(group_expiry=4), make_own_layer(group_expiry=4)
    renewed, ended = await warm(layer), await layer.new_channel()
    await other.group_send("nobody", text(0))
    joined = time.monotonic()
    for channel in (renewed, ended, "jobs"):
        await layer.group_add("group", channel)
    began = time.monotonic()
    await let_pass(2)
    await layer.group_add("group", renewed)
    await other.group_send("group", text(1))
    in_time = time.monotonic() - joined < 4
    await let_pass(began + 4.05 - time.monotonic())
    await other.group_send("group", text(2))
    still = time.monotonic() - joined < 6
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


async def test_all_memberships_that_are_over_go_in_one_sweep(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch after batch, though no messages are over with them: the next heartbeat may be far away."""
    monkeypatch.setattr(heartbeat, "SWEEP", 10)
    query(layer_url, OLD_MEMBERS, [45])
    await warm(make_own_layer(heartbeat=60, lease=200))
    eventually(lambda: query(layer_url, "SELECT count(*) FROM channels_pg_sa_membership") == [(0,)])


async def test_what_is_swept_is_vacuumed_as_what_is_read(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both leave rows that are in the way until then."""
    is_vacuumed = threading.Event()

    async def note(_queries: Queries, _connection: Any) -> int:
        is_vacuumed.set()
        return 0

    monkeypatch.setattr(Queries, "vacuum", note)
    monkeypatch.setattr(vacuum, "ROOM", 1000 * ROW)
    query(layer_url, OLD_MESSAGES, [1000])
    await warm(make_own_layer(heartbeat=0.3, lease=1.5))
    assert await asyncio.to_thread(is_vacuumed.wait, PATIENCE)


async def test_a_sweep_may_take_longer_than_a_heartbeat(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Broken off, it would be begun again for ever."""
    query(
        layer_url,
        """CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
            $body$ BEGIN PERFORM pg_sleep(0.6); RETURN NULL; END $body$;
        CREATE TRIGGER dawdles AFTER DELETE ON channels_pg_sa_message EXECUTE FUNCTION dawdle()""",
    )
    layer = make_own_layer(heartbeat=0.2, lease=10)
    await layer.group_add("group", await layer.new_channel())
    unhurried(layer)
    query(layer_url, OLD_MESSAGES, [10])
    eventually(lambda: query(layer_url, WAITING) == [(0,)])


async def test_one_sweeper_at_a_time(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Peer defect 31: every worker ran the same clean-up; here who finds another at it goes on with its life."""
    layers = [make_own_layer(**PACE) for _ in range(3)]
    for layer in layers:
        await warm(layer)
    unhurried(*layers)
    eventually(lambda: query(layer_url, WAITING) == [(0,)])
    with psycopg.connect(layer_url, autocommit=True, application_name="tests") as sweeper:
        sweeper.execute(SWEEP_LOCK)
        query(layer_url, OLD_MESSAGES, [10])
        for layer in layers:
            await until_beats(layer, layer_url, 3)
        assert query(layer_url, "SELECT count(*) FROM channels_pg_sa_message WHERE recipient LIKE 'old-%'") == [(10,)]
        assert query(layer_url, f"{AWAITED} AND locktype = 'advisory'") == [(0,)]
        await layers[0].send("jobs", text(1))
        assert await take(layers[1], "jobs", 1) == [text(1)]
    eventually(lambda: query(layer_url, WAITING) == [(0,)])
    assert len(query(layer_url, NODES)) == 3


async def test_what_nobody_receives_is_swept_by_who_sends(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All workers are down: the table would grow, and where there are capacities each send would count more rows."""
    monkeypatch.setattr(node, "TICK", 0.01)
    layer = make_own_layer(heartbeat=0.3, lease=1, expiry=0.1)
    for number in range(2):
        await layer.send("jobs", text(number))
        eventually(lambda: query(layer_url, WAITING) == [(0,)])
    assert query(layer_url, NODES) == []


# Housekeeping in memory ---------------------------------------------------------------------------


async def test_housekeeping_goes_on_after_an_error(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and the next round is kept: thoroughly once in a heartbeat, and tells what was dropped."""
    monkeypatch.setattr(node, "TICK", 0.01)
    monkeypatch.setattr(drops, "PAUSE", 0.05)
    layer: Any = make_own_layer(heartbeat=0.1, lease=1)
    await warm(layer)
    rounds: list[bool] = []

    def keep_house(_: object, *, thoroughly: bool) -> None:
        rounds.append(thoroughly)
        if len(rounds) == 1:
            raise RuntimeError("broken")

    monkeypatch.setattr(inside(layer), "keep_house", keep_house)
    for number in range(2):
        layer._node.drops.add("undecodable", f"as number {number}")

    async def is_kept() -> bool:
        return {True, False} <= set(rounds[1:]) and "as number 1" in caplog.text

    await eventually_async(is_kept)
    assert caplog.text.count("Housekeeping failed") == 1
    assert rounds.count(True) < rounds.count(False)


async def test_a_beat_that_was_refused_is_made_again_soon(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However rare they are: a lease has only three."""
    beat, beats = Queries.beat, list[None]()

    async def refused(self: Queries, *arguments: Any) -> Any:
        beats.append(None)
        if len(beats) == 1:
            raise psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")
        return await beat(self, *arguments)

    monkeypatch.setattr(Queries, "beat", refused)
    layer = make_own_layer(heartbeat=60, lease=200)
    await warm(layer)

    async def is_made_again() -> bool:
        return len(beats) == 2

    await eventually_async(is_made_again)


async def test_a_beat_that_was_refused_is_made_again_no_later_than_the_next(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where heartbeats are frequent, what comes soon after a refusal is simply the next of them."""
    monkeypatch.setattr(heartbeat, "AGAIN", 3600)
    beats = refuse(monkeypatch, 1)
    layer = make_own_layer(heartbeat=0.2, lease=200)
    await warm(layer)

    async def is_made_again() -> bool:
        return len(beats) > 1

    await eventually_async(is_made_again)


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> list[None]:
    """Have the heartbeat of this number refused; return one item for each that is made, by whichever statement."""
    made: list[None] = []

    def noting(ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def noted(self: Queries, *arguments: Any) -> Any:
            made.append(None)
            if len(made) == number:
                raise psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")
            return await ask(self, *arguments)

        return noted

    for question in ("beat", "renew"):
        monkeypatch.setattr(Queries, question, noting(getattr(Queries, question)))
    return made


async def test_a_lease_is_renewed_while_a_question_takes_long(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked elsewhere, and no beat waits for its answer."""
    monkeypatch.setattr(heartbeat, "SLOW", 0)
    renew, renewals = Queries.renew, list[None]()

    async def noted(self: Queries, *arguments: Any) -> Any:
        renewals.append(None)
        return await renew(self, *arguments)

    monkeypatch.setattr(Queries, "renew", noted)
    monkeypatch.setattr(heartbeat.Heartbeat, "_look", lambda _: asyncio.sleep(3600))
    layer = make_own_layer(heartbeat=0.2, lease=10)
    await warm(layer)

    async def are_renewed() -> bool:
        return len(renewals) >= 3

    await eventually_async(are_renewed)


async def test_a_new_connection_looks_at_the_clock(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next heartbeat may be far away, and until then it would be of another server, or none."""

    async def rest(_: heartbeat.Heartbeat) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(heartbeat.Heartbeat, "run", rest)
    layer = make_own_layer()
    await warm(layer)
    assert inside(layer)._clock.now() > 0


@pytest.mark.parametrize("question", ["beat", "renew"])
async def test_each_heartbeat_looks_at_the_clock(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    """It may be set, and then messages are over by the new time."""
    ask = getattr(Queries, question)

    async def an_hour_later(self: Queries, *arguments: Any) -> Any:
        pulse = await ask(self, *arguments)
        return dataclasses.replace(pulse, now=pulse.now + 3600)

    if question == "renew":
        monkeypatch.setattr(heartbeat, "SLOW", 0)
        monkeypatch.setattr(heartbeat.Heartbeat, "_look", lambda _: asyncio.sleep(0))
    layer = make_own_layer(heartbeat=0.3, lease=10)
    channel = await warm(layer)
    monkeypatch.setattr(Queries, question, an_hour_later)

    async def is_over() -> bool:
        await layer.send(channel, text(1))
        return bool(layer.counters["expired"])

    await eventually_async(is_over)


async def test_a_beat_that_was_refused_after_others_is_made_again_soon(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That others were answered before is no answer to this one."""
    beats = refuse(monkeypatch, 2)
    # The second comes soon after the first, and each other a minute after the one before it.
    jitter = types.SimpleNamespace(uniform=lambda *_: 1.0 if beats else 0.001)
    monkeypatch.setattr(heartbeat, "random", jitter)
    layer = make_own_layer(heartbeat=60, lease=200)
    await warm(layer)

    async def is_made_again() -> bool:
        return len(beats) >= 3

    await eventually_async(is_made_again)


async def test_what_has_gone_well_in_between_may_be_told_again(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same failure in succession is told once; after a success it is news."""
    caplog.set_level(logging.INFO, LOGGER)
    layer = make_own_layer(heartbeat=0.2, lease=200)
    await warm(layer)
    unhurried(layer)
    monkeypatch.setattr(heartbeat, "AGAIN", 0.01)
    beats = list[None]()

    async def fails(self: heartbeat.Heartbeat, connection: Any) -> Any:
        beats.append(None)
        if len(beats) in {1, 2, 4}:
            raise psycopg.errors.InsufficientPrivilege("permission denied")
        return await ask(self, connection)

    ask = heartbeat.Heartbeat._ask
    monkeypatch.setattr(heartbeat.Heartbeat, "_ask", fails)
    monkeypatch.setattr(heartbeat.Heartbeat, "_renew", fails)

    async def all_told() -> bool:
        return len(beats) >= 5

    await eventually_async(all_told)
    levels = [record.levelname for record in caplog.records if "A heartbeat failed" in record.getMessage()]
    assert levels == ["ERROR", "INFO", "ERROR"]


async def test_another_reason_is_told_anew(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Though nothing has gone well in between: an operator mends one thing after the other."""
    caplog.set_level(logging.INFO, LOGGER)
    layer = make_own_layer(heartbeat=0.2, lease=200)
    await warm(layer)
    unhurried(layer)
    monkeypatch.setattr(heartbeat, "AGAIN", 0.01)
    reasons = ["of nodes", "of nodes", "of messages"]

    async def fails(_self: heartbeat.Heartbeat, _connection: Any) -> Any:
        raise psycopg.errors.InsufficientPrivilege(f"permission denied {reasons.pop(0) if reasons else 'at last'}")

    monkeypatch.setattr(heartbeat.Heartbeat, "_ask", fails)
    monkeypatch.setattr(heartbeat.Heartbeat, "_renew", fails)

    async def all_told() -> bool:
        return "denied at last" in caplog.text

    await eventually_async(all_told)
    levels = [record.levelname for record in caplog.records if "A heartbeat failed" in record.getMessage()]
    assert levels[:4] == ["ERROR", "INFO", "ERROR", "ERROR"]
