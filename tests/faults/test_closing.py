"""Layers that close while jobs are on their way to their readers: what nobody read goes to others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from channels_pg_sa import LayerClosed, Publisher, node
from channels_pg_sa.connections.database import Database
from channels_pg_sa.layer import close_layers
from channels_pg_sa.receiving import reception, vacuum
from channels_pg_sa.statements.queries import Queries
from tests.support.databases import TestServer, query
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.processes import ROOT, environment
from tests.support.urls import with_parameters
from tests.support.waiting import eventually, eventually_async

from .breaking import SwallowingProxy, inside, take, text, warm
from .test_fast_path_memberships import BLOCKED as MEMBERS_BLOCKED
from .test_fast_path_memberships import locked
from .test_liveness import NODES, OLD_MESSAGES

SIGNS_OFF = """SELECT pid FROM pg_stat_activity WHERE datname = current_database()
    AND wait_event_type = 'Lock' AND query LIKE '%DELETE FROM%node%'"""
VACUUMS = """SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'VACUUM%' AND state = 'active'"""
END_VACUUMS = VACUUMS.replace("count(*)", "pg_terminate_backend(pid)")
MINE = "SELECT count(*) FROM channels_pg_sa_message WHERE recipient = %s"


def claimed(url: str, layer: PostgresLayer) -> Callable[[], bool]:
    """Return a function that tells whether a job is in the layer's mailbox."""
    return lambda: query(url, MINE, [layer.node]) == [(1,)]


def interrupted(*_arguments: Any) -> None:
    """Be interrupted by Control-C."""
    raise KeyboardInterrupt


async def reads(layer: PostgresLayer, channel: str) -> asyncio.Task[Any]:
    """Start a reader, and wait until its channel's doorbell is heard."""
    reader = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    book = inside(layer)._queues.book

    async def is_heard() -> bool:
        return channel in book.channels and not book.deaf

    await eventually_async(is_heard)
    return reader


async def vacuums(make_layer: LayerFactory, url: str, monkeypatch: pytest.MonkeyPatch) -> PostgresLayer:
    """Return a layer of which a vacuum, that takes long, is under way."""
    monkeypatch.setattr(vacuum, "ROOM", 1)
    query(url, OLD_MESSAGES, [9999])
    query(url, "DELETE FROM channels_pg_sa_message")
    slow = "-c vacuum_cost_delay=100 -c vacuum_cost_limit=1"
    layer = make_layer(url=with_parameters(url, options=slow))
    channel = await layer.new_channel()
    await layer.send(channel, text(1))
    assert await take(layer, channel, 1) == [text(1)]
    await asyncio.to_thread(eventually, lambda: query(url, VACUUMS) == [(1,)])
    return layer


async def test_a_vacuum_under_way(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is broken off, and leaves its connection whole, which else the pool would complain of."""
    layer = await vacuums(make_own_layer, layer_url, monkeypatch)
    await layer.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    eventually(lambda: query(layer_url, VACUUMS) == [(0,)])


async def test_a_vacuum_that_the_server_is_late_to_break_off(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node signs off over another connection: psycopg before 3.3 leaves this one as it is, of no use to anybody."""
    layer = await vacuums(make_own_layer, layer_url, monkeypatch)
    monkeypatch.setattr(psycopg.AsyncConnection, "cancel_safe", lambda *_, **__: asyncio.sleep(5))
    await layer.close()
    assert query(layer_url, NODES) == []
    query(layer_url, END_VACUUMS)


async def test_a_claim_under_way(make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader has gone when the answer comes, and the layer is about to delete its mailbox."""
    layer, other = make_own_layer(), make_own_layer()
    reader = await reads(layer, "jobs")
    queries = inside(layer)._queries
    claim, under_way, go_on = queries.claim, threading.Event(), threading.Event()

    async def slow(connection: Any, claims: Any) -> Any:
        answer = await claim(connection, claims)
        under_way.set()
        await asyncio.to_thread(go_on.wait, 10)
        return answer

    monkeypatch.setattr(queries, "claim", slow)
    await other.send("jobs", text(1))
    assert await asyncio.to_thread(under_way.wait, 10)
    reader.cancel()
    closing = asyncio.create_task(layer.close())

    async def is_closing() -> bool:
        return layer._node is None  # type: ignore[attr-defined]

    await eventually_async(is_closing)
    await asyncio.sleep(0.2)  # so that what closing does before it waits has been done
    go_on.set()
    await closing
    assert await take(other, "jobs", 1) == [text(1)]


async def test_a_reader_that_was_woken_and_has_not_come(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Its loop is busy: with closing the layer."""
    layer, other = make_own_layer(), make_own_layer()
    reader = await reads(layer, "jobs")
    # No await from here on: this loop does not come round to the reader.
    other.send_sync("jobs", text(1))
    eventually(claimed(layer_url, layer))
    eventually(lambda: inside(layer).inbox._dispatcher.woken)
    layer.close_sync()
    with pytest.raises(LayerClosed):
        await reader
    assert await take(other, "jobs", 1) == [text(1)]


async def test_without_the_connection_that_listens(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was claimed can go back over the other, and is not deleted for want of a recovery."""
    monkeypatch.setattr(node, "CLOSING_ALONE", 5)  # a busy machine needs more than half a second
    layer, other = make_own_layer(listen_url=proxy.url), make_own_layer()
    reader = await reads(layer, "jobs")
    # No await from here on: this loop does not come round to the reader.
    other.send_sync("jobs", text(1))
    eventually(claimed(layer_url, layer))
    eventually(lambda: inside(layer).inbox._dispatcher.woken)
    reader.cancel()
    proxy.cut()
    eventually(lambda: not inside(layer)._listener.is_listening)
    layer.close_sync()
    with contextlib.suppress(asyncio.CancelledError):
        await reader
    assert await take(other, "jobs", 1) == [text(1)]


async def test_while_it_is_being_registered(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has committed that, and nobody waits for its answer any more: no node stays for its lease."""
    layer = make_own_layer()
    register, is_committed = Queries.register, threading.Event()

    async def unanswered(queries: Queries, connection: Any, **node: Any) -> None:
        await register(queries, connection, **node)
        await connection.execute("COMMIT")
        is_committed.set()
        await asyncio.sleep(3600)

    monkeypatch.setattr(Queries, "register", unanswered)
    reader = asyncio.create_task(layer.receive("jobs"))
    assert await asyncio.to_thread(is_committed.wait, 10)
    assert query(layer_url, NODES) != []
    await layer.close()
    assert query(layer_url, NODES) == []
    with pytest.raises(LayerClosed):
        await reader


async def test_a_garbage_collector_in_the_io_thread(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str
) -> None:
    """It closes the layer wherever it runs: there nothing can be waited for, and the thread ends all the same."""
    layer: Any = make_own_layer()
    await warm(layer)
    thread = layer._node._thread
    thread.loop.call_soon_threadsafe(layer._node.close)
    await asyncio.to_thread(thread._thread.join, 10)
    assert not thread._thread.is_alive()
    eventually(lambda: not server.connections(layer_url))
    assert query(layer_url, "SELECT id FROM channels_pg_sa_node") == []
    await asyncio.wait_for(layer.close(), 5)


async def test_a_thread_that_is_interrupted_while_it_closes(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer closes all the same, and its own thread ends; a second time it waits for that."""
    layer: Any = make_own_layer()
    await warm(layer)
    closed, thread = layer._node, layer._node._thread._thread
    with monkeypatch.context() as patched:
        patched.setattr(closed._closed, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            layer.close_sync()
    layer.close_sync()
    assert closed._closed.done()
    assert not thread.is_alive()


async def test_a_layer_whose_thread_has_died(make_own_layer: LayerFactory, caplog: pytest.LogCaptureFixture) -> None:
    """It raises nothing, and nobody waits for what cannot be any more; the next call makes another."""
    layer: Any = make_own_layer()
    node = layer._open()
    node._thread.loop.call_soon_threadsafe(node._thread.loop.stop)
    await asyncio.to_thread(node._thread._thread.join)
    layer.close_sync()
    assert "cannot be closed: Event loop is closed" in caplog.text
    assert "has not closed" not in caplog.text  # which would be said after waiting for nothing
    await layer.send("jobs", text(1))


@pytest.mark.parametrize("is_used", [True, False])
async def test_a_thread_that_is_interrupted_when_it_has_just_opened(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str, monkeypatch: pytest.MonkeyPatch, is_used: bool
) -> None:
    """What it has opened is closed by who closes the layer, and, if it is used, at exit."""
    layer: Any = make_own_layer()
    with monkeypatch.context() as patch:
        patch.setattr("channels_pg_sa.layer.weakref.finalize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            layer.send_sync("jobs", text(1))
    if is_used:
        await layer.send("jobs", text(2))
        assert layer._finalizer.alive
    thread = layer._node._thread
    await layer.close()
    assert not thread._thread.is_alive()
    await asyncio.to_thread(eventually, lambda: server.connections(layer_url) == [])


async def test_a_layer_that_cannot_be_closed_well(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever closes it cannot help it: the log is told, and its thread ends."""
    layer: Any = make_own_layer()
    await warm(layer)
    thread, close = layer._node._thread, layer._node._database.close

    async def fail() -> None:
        await close()
        raise RuntimeError("broken")

    monkeypatch.setattr(layer._node._database, "close", fail)
    name = layer.node
    await layer.close()
    assert not thread._thread.is_alive()
    assert f"Node {name} did not close as it should" in caplog.text
    assert "RuntimeError: broken" in caplog.text


async def test_a_node_that_cannot_be_made_leaves_no_thread(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller is told, and may try again."""
    layer = make_own_layer()

    async def fail(_: Database) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as broken:
        broken.setattr(Database, "open", fail)
        with pytest.raises(RuntimeError, match="broken"):
            await layer.send("jobs", text(1))
    assert not [thread.name for thread in threading.enumerate() if layer.node in thread.name]
    await layer.send("jobs", text(1))


async def test_a_join_that_waits_for_the_listener_is_not_waited_for(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows when that is back, though statements get through."""
    monkeypatch.setattr(node, "CLOSING", 3600)
    layer = make_own_layer(listen_url=proxy.url)
    await warm(layer)
    proxy.cut()
    await asyncio.to_thread(eventually, lambda: not inside(layer)._listener.is_listening)
    joining = asyncio.create_task(layer.group_add("group", await layer.new_channel()))
    await asyncio.sleep(0)
    await layer.close()
    with pytest.raises(LayerClosed):
        await joining


@pytest.mark.parametrize("listens", [True, False])
async def test_while_the_database_is_away_nobody_waits_long_for_it(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    """What is still to be sent is given up before its own time is over, whether the layer listens or only sends."""
    monkeypatch.setattr(node, "CLOSING", 3600)
    layer: Any = make_own_layer(url=proxy.url)
    await (warm(layer) if listens else layer.send("jobs", text(0)))
    proxy.cut()
    if listens:  # then that is the first to notice
        await asyncio.to_thread(eventually, lambda: not inside(layer)._listener.is_listening)
    sending = asyncio.create_task(layer.send("jobs", text(1)))
    await asyncio.sleep(0)
    if not listens:
        await asyncio.to_thread(eventually, lambda: inside(layer)._database.is_away)
    await layer.close()
    with pytest.raises(LayerClosed):
        await sending


async def test_who_closes_what_another_closes_waits_for_that(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever drops a test database then must find no connection in it."""
    layer: Any = make_own_layer()
    await layer.send("jobs", text(1))
    closing, go_on, close_database = threading.Event(), threading.Event(), Database.close

    async def slow(database: Database) -> None:
        monkeypatch.undo()
        closing.set()
        await asyncio.to_thread(go_on.wait, 10)
        await close_database(database)

    monkeypatch.setattr(Database, "close", slow)
    first = asyncio.create_task(layer.close())
    assert await asyncio.to_thread(closing.wait, 10)
    first.cancel()
    await layer.send("jobs", text(2))  # opened anew, and closed before the first is
    second = asyncio.create_task(asyncio.to_thread(close_layers))
    await asyncio.sleep(0.5)
    assert not second.done()
    go_on.set()
    await second


async def test_all_layers_are_closed_at_once(make_own_layer: LayerFactory, server: TestServer, layer_url: str) -> None:
    """Before a test database is dropped: however many use it, and whether they were opened or not."""
    layers = [make_own_layer() for _ in range(3)]
    for layer in layers[1:]:
        await layer.send("jobs", text(1))
    await asyncio.to_thread(close_layers)
    assert all(repr(layer).endswith("closed>") for layer in layers)
    eventually(lambda: not server.connections(layer_url))


async def test_who_closes_waits_for_who_opens(make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so closes what another thread was about to open."""
    layer: Any = make_own_layer()
    opening, go_on, open_database = threading.Event(), threading.Event(), Database.open

    async def slow(database: Database) -> None:
        opening.set()
        await asyncio.to_thread(go_on.wait, 10)
        await open_database(database)

    monkeypatch.setattr(Database, "open", slow)
    sending = asyncio.create_task(asyncio.to_thread(layer.send_sync, "jobs", text(1)))
    assert await asyncio.to_thread(opening.wait, 10)
    closing = asyncio.create_task(layer.close())
    await asyncio.sleep(0.2)
    assert not closing.done()
    go_on.set()
    await closing
    await asyncio.gather(sending, return_exceptions=True)  # it may have been in time, or not
    assert "closed" in repr(layer)


async def test_the_end_of_a_block_closes(make_own_layer: LayerFactory, server: TestServer, layer_url: str) -> None:
    """However it ends, of a layer as of a Publisher, in a coroutine and in other code."""
    async with make_own_layer() as layer:
        await warm(layer)
        waiting = asyncio.create_task(layer.receive("jobs"))
        await layer.send("others", text(1))
    with pytest.raises(LayerClosed):
        await waiting

    async def fail(make: Callable[[], Any]) -> None:
        async with make() as sender:
            await sender.send("others", text(2))
            raise KeyError

    def fail_without_loop(make: Callable[[], Any]) -> None:
        with make() as sender:
            sender.send_sync("others", text(3))
            raise KeyError

    for make in (make_own_layer, lambda: Publisher(url=layer_url)):
        with pytest.raises(KeyError):
            await fail(make)
        with pytest.raises(KeyError):
            await asyncio.to_thread(fail_without_loop, make)
    assert await asyncio.to_thread(query, layer_url, "SELECT count(*) FROM channels_pg_sa_node") == [(0,)]
    eventually(lambda: not server.connections(layer_url))


async def test_what_was_dropped_last_is_told(make_own_layer: LayerFactory, caplog: pytest.LogCaptureFixture) -> None:
    """It would have been, some seconds later."""
    layer: Any = make_own_layer()
    await warm(layer)
    for number in range(2):
        layer._node.drops.add("undecodable", f"as number {number}")
    assert "as number 1" not in caplog.text
    await layer.close()
    assert "Messages dropped: 1 as number 1" in caplog.text


LISTENS = """
import asyncio, sys
from channels_pg_sa import Layer

layer = Layer(url=sys.argv[1], send_timeout=5)

async def main():
    channel = await layer.new_channel()
    try:
        await asyncio.wait_for(layer.receive(channel), 1)
    except asyncio.TimeoutError:
        pass

asyncio.run(main())
"""
SENDS = """
import sys
from channels_pg_sa import Layer

Layer(url=sys.argv[1], confirm_sends=False).send_sync("jobs", {"type": "test.message", "number": 1})
"""
OPENS = """
import os, signal, sys, threading, time
from channels_pg_sa import Layer, node

layer = Layer(url=sys.argv[1])

def end(*_):
    layer.close_sync()
    sys.exit(3)

class Slow(node.Node):
    def __init__(self, *arguments, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        super().__init__(*arguments, **more)

signal.signal(signal.SIGTERM, end)
from channels_pg_sa import layer as module
module.Node = Slow
layer.send_sync("jobs", {"type": "never"})
"""


async def runs(script: str, url: str) -> int | None:
    """Run a program to its end; return its exit code."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, url), cwd=ROOT, env=environment(), stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert said == b""
    return process.returncode


async def test_a_program_that_ends_needs_no_thread_to_find_the_host(
    fragile_url: str, make_fragile: LayerFactory
) -> None:
    """Its last connection is made when the interpreter starts no threads any more, by name as by address."""
    url = re.sub(r"@[^:/]+", "@localhost", fragile_url)
    assert await runs(LISTENS, url) == 0
    assert query(fragile_url, "SELECT id FROM channels_pg_sa_node") == []
    assert await runs(SENDS, url) == 0
    assert await take(make_fragile(), "jobs", 1) == [text(1)]


async def test_a_node_whose_session_ends_as_it_signs_off(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so over another."""
    monkeypatch.setattr(reception, "AGAIN", 4.0)  # a busy machine needs more than half a second
    layer = make_own_layer()
    await warm(layer)

    async def waits() -> list[tuple[int]]:
        return query(layer_url, SIGNS_OFF)

    with locked(layer_url) as locker:
        closing = asyncio.create_task(layer.close())
        [(pid,)] = await eventually_async(waits)
        server.terminate([pid])

        async def waits_again() -> bool:
            return await waits() not in ([], [(pid,)])

        await eventually_async(waits_again)
        locker.commit()
        await closing
    assert query(layer_url, NODES) == []


async def test_a_node_that_may_not_sign_off_tries_once(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server refuses it will refuse again: others sweep the node."""
    layer = make_own_layer()
    await warm(layer)
    attempts: list[None] = []

    async def refused(_: Queries, _connection: Any) -> None:
        attempts.append(None)
        raise psycopg.errors.InsufficientPrivilege

    monkeypatch.setattr(Queries, "unregister", refused)
    await layer.close()
    assert len(attempts) == 1


async def test_a_signal_s_handler_closes_what_is_just_being_opened(layer_url: str) -> None:
    """In the same thread, which cannot wait for itself."""
    assert await runs(OPENS, layer_url) == 3


@pytest.mark.parametrize("verb", ["group_add", "group_count", "flush"])
async def test_closing_waits_for_what_is_nearly_done(make_own_layer: LayerFactory, layer_url: str, verb: str) -> None:
    """Of whatever kind it is."""
    layer: Any = make_own_layer()
    # Only who flushes has to listen; a node waits for the lock as well, when it signs off.
    await (warm(layer) if verb == "flush" else layer.send("jobs", text(0)))
    calls = {"group_add": ("group", "jobs"), "group_count": ("group",), "flush": ()}

    async def is_blocked() -> bool:
        return query(layer_url, MEMBERS_BLOCKED) == [(1,)]

    with locked(layer_url) as locker:
        calling = asyncio.create_task(getattr(layer, verb)(*calls[verb]))
        await eventually_async(is_blocked)
        closing = asyncio.create_task(layer.close())
        await asyncio.sleep(1.5)  # longer than a connection that is lent is waited for
        locker.commit()
        await closing
    assert await calling in {None, 0}
