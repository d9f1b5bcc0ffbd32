"""The connection that listens is killed, cut, stalled, refused or locked out: receive() waits, and then goes on."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from channels_pg_sa import SchemaError, SendError
from channels_pg_sa.backoff import Backoff
from channels_pg_sa.connections import database
from channels_pg_sa.entry import Entry
from channels_pg_sa.receiving import listener
from channels_pg_sa.receiving import listener as listener_module
from channels_pg_sa.receiving.inbox import Inbox
from channels_pg_sa.receiving.listener import Listener
from channels_pg_sa.statements.queries import Queries
from tests.support.databases import TestServer, query
from tests.support.layers import LISTENER, LayerFactory, Message, PostgresLayer
from tests.support.urls import with_parameters
from tests.support.waiting import eventually, eventually_async

from .breaking import (
    WAITING,
    FragileServer,
    Gate,
    SwallowingProxy,
    Tally,
    come_back,
    end,
    inside,
    layer_is_listening,
    make_role,
    take,
    text,
    unhurried,
    until_beats,
    until_listening,
    until_nothing_is_remembered,
    url_as,
    warm,
    within,
)

Kill = Callable[[PostgresLayer], list[int]]

LOGGER = "channels_pg_sa"


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the layer logged that an administrator sees."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(LOGGER) and record.levelno >= logging.WARNING
    ]


async def up_to(layer: PostgresLayer, channel: str, number: int) -> AsyncIterator[Message]:
    """Receive up to the message with that number."""
    while True:
        (message,) = await take(layer, channel, 1)
        yield message
        if message["number"] == number:
            return


async def outage_told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of an outage, of which the last comes a moment after the layer listens again."""
    await asyncio.to_thread(
        eventually, lambda: [line for line in warnings_of(caplog) if "hears PostgreSQL again" in line]
    )
    return warnings_of(caplog)


@pytest.mark.parametrize("is_told", [False, True])
async def test_whose_first_caller_is_interrupted(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    """Ctrl-C just before, or just after, the I/O thread is told to listen: the next caller finds it listening."""
    layer = make_own_layer()
    await layer.send("jobs", text(1))
    soon = inside(layer)._soon

    def interrupted(*arguments: Any) -> None:
        monkeypatch.undo()
        if is_told:
            soon(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(inside(layer), "_soon", interrupted)
    channel = await layer.new_channel()
    with pytest.raises(KeyboardInterrupt):
        layer.group_add_sync("group", channel)
    assert await take(layer, "jobs", 1) == [text(1)]
    await layer.group_add("group", channel)
    mine = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"
    assert query(layer_url, mine, [LISTENER]) == [(1,)]


async def until_waiting(layer: PostgresLayer, readers: int) -> None:
    """Wait until so many receive() calls are pending."""

    async def look() -> bool:
        return f" {readers} waiting" in repr(layer)

    await eventually_async(look)


async def replace_listener(factory: LayerFactory, layer: PostgresLayer, kill: Kill) -> None:
    """Kill the listener, and wait until another one listens."""
    killed = kill(layer)

    async def look() -> bool:
        pids = factory.listeners(layer)
        return bool(pids) and not set(pids) & set(killed) and layer_is_listening(layer)

    await eventually_async(look, within=20)


async def test_a_handler_of_the_log_that_sends_through_the_layer(
    make_own_layer: LayerFactory, kill_listener: Kill, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the layer's own thread it is refused, which is its own trouble: the layer comes back."""
    layer, sender = make_own_layer(), make_own_layer()
    channel = await warm(layer)

    class Telling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            layer.group_send_sync("logs", text(0))

    handler = Telling()
    logging.getLogger("channels_pg_sa").addHandler(handler)
    try:
        await replace_listener(make_own_layer, layer, kill_listener)
        await sender.send(channel, text(1))
        assert await take(layer, channel, 1) == [text(1)]
    finally:
        logging.getLogger("channels_pg_sa").removeHandler(handler)
    assert "The layer's own thread" in capfd.readouterr().err


async def test_one_line_when_it_goes_and_one_when_it_is_back(
    make_own_layer: LayerFactory, kill_listener: Kill, caplog: pytest.LogCaptureFixture
) -> None:
    """Peer defect 5: pg_terminate_backend on the listener; receives hung for ever, and nothing was logged."""
    layer, sender = make_own_layer(), make_own_layer()
    channel = await warm(layer)
    for number in range(3):
        caplog.clear()
        reader = asyncio.create_task(take(layer, channel, 1))
        kill_listener(layer)
        await sender.send(channel, text(number))
        assert await reader == [text(number)]
        await until_listening(layer)
        gone, back = await outage_told(caplog)
        assert layer.node in gone
        assert "terminating connection due to administrator command" in gone
        assert layer.node in back
        assert " s" in back


async def test_an_outage_of_many_attempts_is_a_line_for_each_reason(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is tried in vain, a line says why it went, one why there is no other, and one for how long.

    The next outage begins anew.
    """
    attempts: list[float] = []

    def address() -> str:
        attempts.append(time.monotonic())
        return proxy.url

    async def enough_attempts() -> bool:
        return len(attempts) >= enough

    layer = make_own_layer(listen_url=address)
    await warm(layer)
    for enough in (6, 3):
        await until_listening(layer)
        caplog.clear()
        attempts.clear()
        started = time.monotonic()
        proxy.cut()
        await eventually_async(enough_attempts)
        proxy.heal()
        away = attempts[enough - 1] - attempts[0]
        went, refused, back = await outage_told(caplog)
        assert "refused" not in went
        assert "refused" in refused
        told = float(back.rsplit("after ", 1)[1].split()[0])
        assert round(away, 1) - 0.1 <= told <= time.monotonic() - started + 0.1


async def test_delays_between_attempts_grow_with_jitter_up_to_a_cap(
    proxy: SwallowingProxy, make_own_layer: LayerFactory
) -> None:
    """A restarted server is not stormed: each delay is at least half of a step that doubles up to two seconds."""
    attempts: list[float] = []

    def address() -> str:
        attempts.append(time.monotonic())
        return proxy.url

    proxy.cut()
    layer = make_own_layer(listen_url=address)
    channel = await layer.new_channel()
    reader = asyncio.create_task(take(layer, channel, 1))

    async def eight_attempts() -> bool:
        return len(attempts) >= 8

    await eventually_async(eight_attempts, within=20)
    proxy.heal()
    await layer.send(channel, text(1))
    assert await reader == [text(1)]
    gaps = [after - before for before, after in itertools.pairwise(attempts[:8])]
    steps = [min(2.0, 0.05 * 2**number) for number in range(7)]
    assert all(gap >= step / 2 for gap, step in zip(gaps, steps, strict=True)), gaps
    assert len({round(gap / step, 3) for gap, step in zip(gaps, steps, strict=True)}) > 1, gaps


async def test_delays_begin_again_when_it_has_listened(
    make_own_layer: LayerFactory, kill_listener: Kill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is lost now and then is replaced at once, however often that has happened before."""
    delays: list[float] = []

    class Noted(Backoff):
        def next(self) -> float:
            delays.append(super().next())
            return delays[-1]

    monkeypatch.setattr(listener, "Backoff", Noted)
    layer = make_own_layer()
    await warm(layer)
    await until_listening(layer)
    for _ in range(6):
        await replace_listener(make_own_layer, layer, kill_listener)
    assert len(delays) >= 6
    assert max(delays) <= Backoff().first


async def test_two_who_find_it_dead_at_once(make_own_layer: LayerFactory) -> None:
    """It is replaced, and neither is in trouble."""
    layer, sender = make_own_layer(), make_own_layer()
    channel = await warm(layer)
    before = inside(layer)._outages.ended

    async def restart() -> None:
        for reason in ("no answer", "no sign of life"):
            inside(layer)._listener.restart(reason)

    async def is_back() -> bool:
        return bool(inside(layer)._outages.ended > before)

    await within(layer, restart())
    await eventually_async(is_back)
    await sender.send(channel, text(1))
    assert await take(layer, channel, 1) == [text(1)]


async def test_what_comes_while_the_connection_is_lent_is_heard_when_it_is_back(make_own_layer: LayerFactory) -> None:
    """It has been read with the answers to statements, and makes no socket readable any more."""
    layer, sender = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    channel = await warm(layer)
    listening = inside(layer)._listener
    loop, is_lent = asyncio.get_running_loop(), asyncio.Event()

    async def ask_until_it_is_there(connection: Any) -> None:
        loop.call_soon_threadsafe(is_lent.set)
        while not listening._heard:
            await connection.execute("SELECT 1")

    lent = asyncio.create_task(within(layer, listening.lend(ask_until_it_is_there)))
    await is_lent.wait()
    await sender.send(channel, text(1))
    await lent
    assert await take(layer, channel, 1) == [text(1)]


async def test_an_end_that_comes_with_an_answer_is_noticed_at_once(make_own_layer: LayerFactory) -> None:
    """Who had the connection got what they wanted; no socket is left whose end the loop would see."""
    layer = make_own_layer(heartbeat=60, lease=200)
    await warm(layer)
    listening = inside(layer)._listener

    async def ask_and_end(connection: Any) -> None:
        await connection.execute("SELECT 1")
        connection.pgconn.finish()

    async def is_noticed() -> bool:
        lost = listening._lost
        await listening.lend(ask_and_end)
        return bool(lost.done())

    assert await within(layer, is_noticed())
    await until_listening(layer)


async def test_what_was_heard_before_a_recovery_that_failed_is_not_passed_on(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables tell of it; what they tell may have happened since."""
    layer = make_own_layer()
    await warm(layer)
    listening = inside(layer)._listener
    recover, hear = listening._recover, listening._hear
    lost: list[bytes] = []
    heard: list[bytes] = []

    async def recover_in_vain(connection: Any, progressed: Any) -> None:
        await recover(connection, progressed)
        while not listening._heard:
            await connection.execute("SELECT 1")
        lost.extend(listening._heard)
        listening._recover = recover
        raise OSError("lost")

    def note(payloads: list[bytes]) -> None:
        heard.extend(payloads)
        hear(payloads)

    monkeypatch.setattr(listening, "_recover", recover_in_vain)
    monkeypatch.setattr(listening, "_hear", note)
    await come_back(layer)
    await until_nothing_is_remembered(layer)
    assert lost
    assert heard
    assert not set(lost) & set(heard)


@pytest.mark.parametrize("break_it", ["stall", "forget"])
async def test_a_silent_connection_is_noticed_within_two_heartbeats(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, break_it: str
) -> None:
    """Peer defect 25: half-open, no packet ever says so; LISTEN was dead for 16 minutes after a failover."""
    layer = make_own_layer(
        url=with_parameters(proxy.url, connect_timeout=2),
        send_timeout=2,
        heartbeat=1,
        lease=3.1,
        on_disconnect="lost",
        on_reconnect="back",
    )
    sender = make_own_layer()
    channel = await warm(layer)
    reader = asyncio.create_task(take(layer, channel, 3))
    await until_listening(layer)
    started = time.monotonic()
    getattr(proxy, break_it)()
    await sender.send(channel, text(1))

    async def noticed() -> bool:
        return "connecting" in repr(layer) or reader.done()

    await eventually_async(noticed)
    # Two heartbeats; the rest is for the machine, and less than what anything else would notice it by.
    assert time.monotonic() - started < 2 * 1 + 5
    proxy.heal()
    first, *rest = await reader
    assert first["type"] == "lost"
    assert sorted(message["type"] for message in rest) == ["back", "test.message"]


async def test_a_silent_connection_is_noticed_as_soon_by_a_reader_that_comes(
    proxy: SwallowingProxy, make_own_layer: LayerFactory
) -> None:
    """A heartbeat does not wait behind a LISTEN that nobody answers."""
    layer, sender = make_own_layer(url=proxy.url, send_timeout=2, heartbeat=1, lease=3.1), make_own_layer()
    await warm(layer)
    await until_listening(layer)
    started = time.monotonic()
    proxy.stall()
    readers = [asyncio.create_task(take(layer, queue, 1)) for queue in ("jobs", "others")]

    async def noticed() -> bool:
        return "connecting" in repr(layer)

    await eventually_async(noticed)
    assert time.monotonic() - started < 2 * 1 + 5
    proxy.heal()
    await sender.send("jobs", text(1))
    await sender.send("others", text(2))
    assert await asyncio.gather(*readers) == [[text(1)], [text(2)]]


async def test_a_connection_that_falls_silent_before_it_listens_is_given_up(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it reads what it has missed no heartbeat would notice; the next connection tells what was sent."""
    monkeypatch.setattr(listener, "PATIENCE", 1.0)
    layer, sender = make_own_layer(listen_url=proxy.url), make_own_layer()
    channel = await warm(layer)
    await until_listening(layer)
    recover = inside(layer)._listener._recover

    async def fall_silent(connection: Any, renew: Any) -> None:
        inside(layer)._listener._recover = recover
        await asyncio.to_thread(proxy.forget)
        await recover(connection, renew)

    monkeypatch.setattr(inside(layer)._listener, "_recover", fall_silent)
    proxy.drop()
    await sender.send(channel, text(1))
    assert await take(layer, channel, 1) == [text(1)]


@pytest.mark.parametrize("reset", [b"UNLISTEN *", b"DISCARD ALL"])
async def test_a_session_that_was_reset_is_replaced(
    make_own_layer: LayerFactory, layer_url: str, caplog: pytest.LogCaptureFixture, reset: bytes
) -> None:
    """As by a pooler that gives it to somebody else in between: it answers, but hears nothing more."""
    layer, sender = make_own_layer(heartbeat=1, lease=5), make_own_layer()
    channel = await warm(layer)
    await layer.group_add("group", channel)
    await until_beats(layer, layer_url, 1)

    async def deafen(connection: Any) -> Any:
        return connection.pgconn.exec_(reset).status

    await within(layer, inside(layer)._listener.lend(deafen))
    for number in range(5):
        await sender.send(channel, text(number))
        await sender.group_send("group", text(number))
    assert [message["number"] for message in await take(layer, channel, 10)] == sorted([*range(5)] * 2)
    await until_listening(layer)
    gone, back = await outage_told(caplog)
    assert "session was reset" in gone
    assert layer.node in back


async def test_a_healthy_connection_is_left_alone(
    make_own_layer: LayerFactory, layer_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A listener that hears nothing for many heartbeats is not taken for dead."""
    layer = make_own_layer(heartbeat=0.5, lease=2)
    channel = await warm(layer)
    unhurried(layer)
    (pid,) = make_own_layer.listeners(layer)
    await until_beats(layer, layer_url, 6)
    assert make_own_layer.listeners(layer) == [pid]
    assert warnings_of(caplog) == []
    await layer.send(channel, text(1))
    assert await take(layer, channel, 1) == [text(1)]


async def test_keepalives_are_set_on_every_connection(make_own_layer: LayerFactory) -> None:
    """Peer defect 25: without keepalives the kernel tells of a dead peer after hours."""
    layer = make_own_layer()
    await warm(layer)
    parts = inside(layer)
    for connection in (parts._listener._connection, *(held.driver for held in parts._database._kept)):
        set_up = {option.keyword: option.val for option in connection.pgconn.info}
        assert set_up[b"keepalives"] == b"1"
        assert int(set_up[b"keepalives_idle"]) <= 60
        assert int(set_up[b"tcp_user_timeout"]) <= 60_000


async def test_a_dead_connection_leaves_no_trace_in_the_loop(
    make_own_layer: LayerFactory, kill_listener: Kill, caplog: pytest.LogCaptureFixture
) -> None:
    """libpq closes the socket of a dead connection; whoever gets its number next must not be taken for it."""
    layer = make_own_layer()
    channel = await warm(layer)
    with caplog.at_level(logging.DEBUG, LOGGER):
        for number in range(5):
            kill_listener(layer)
            await layer.send(channel, text(number))
            assert await take(layer, channel, 1) == [text(number)]
            await until_listening(layer)
    await until_nothing_else_is_watched(layer)


async def until_nothing_else_is_watched(layer: PostgresLayer) -> None:
    """Wait until the layer's loop watches the connection that listens, and no other."""
    loop = inside(layer)._thread.loop
    expected = {loop._ssock.fileno(), inside(layer)._listener._connection.fileno()}

    async def look() -> bool:
        return {key.fd for key in list(loop._selector.get_map().values())} == expected

    await eventually_async(look)


async def test_a_connection_that_is_given_up_leaves_no_trace_in_the_loop(make_own_layer: LayerFactory) -> None:
    """Its socket, whose end the loop has not seen, is watched no more before it is closed."""
    layer = make_own_layer()
    await warm(layer)
    given_up = inside(layer)._listener._connection
    number, close = given_up.fileno(), given_up.close
    watched: list[bool] = []

    async def look_and_close() -> None:
        watched.append(number in inside(layer)._thread.loop._selector.get_map())
        await close()

    given_up.close = look_and_close
    await come_back(layer)
    assert watched == [False]
    await until_nothing_else_is_watched(layer)


async def test_attempts_that_time_out_leave_nothing_open(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, server: TestServer, layer_url: str
) -> None:
    """Peer defect 24: connections leaked; one whose handshake is never answered is closed, garbage collector or not."""
    layer = make_own_layer(url=with_parameters(proxy.url, connect_timeout=2), send_timeout=6)
    proxy.stall()
    reader = asyncio.create_task(layer.receive("jobs"))
    gc.disable()
    try:
        with pytest.raises(SendError, match="timeout"):
            await layer.send("jobs", text(1))
        proxy.heal()
        await until_listening(layer)
        await layer.send("jobs", text(2))
        assert await asyncio.wait_for(reader, 10) == text(2)

        async def no_more_than_it_uses() -> bool:
            return len(server.connections(layer_url)) <= 3 and proxy.connections <= 3

        await eventually_async(no_more_than_it_uses)
    finally:
        gc.enable()


async def test_it_listens_first_and_then_reads_what_waits(
    make_own_layer: LayerFactory, kill_listener: Kill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent before, while and after the table is read comes once: no gap, no overlap."""
    layer, sender = make_own_layer(), make_own_layer()
    channel = await warm(layer)
    await layer.group_add("group", channel)
    numbers = itertools.count()
    plain_members, plain_waiting = Queries.members, Queries.waiting

    async def send_some() -> None:
        await sender.send(channel, text(next(numbers)))
        await sender.group_send("group", text(next(numbers)))

    async def members(self: Queries, connection: Any) -> Any:
        await send_some()
        return await plain_members(self, connection)

    async def waiting(self: Queries, connection: Any) -> Any:
        await send_some()
        rows = await plain_waiting(self, connection)
        await send_some()
        return rows

    monkeypatch.setattr(Queries, "members", members)
    monkeypatch.setattr(Queries, "waiting", waiting)
    for _ in range(3):
        await replace_listener(make_own_layer, layer, kill_listener)
    monkeypatch.undo()
    await sender.send(channel, text(next(numbers)))
    assert [message["number"] for message in await take(layer, channel, 19)] == list(range(19))


async def test_what_a_recovery_remembers_is_soon_forgotten(make_own_layer: LayerFactory, kill_listener: Kill) -> None:
    """However rare heartbeats are: they notify nobody, and end no recovery."""
    layer, sender = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    channel = await warm(layer)
    for number in range(3):
        await replace_listener(make_own_layer, layer, kill_listener)
        await sender.send(channel, text(number))
        assert await take(layer, channel, 1) == [text(number)]
        await until_nothing_is_remembered(layer)


async def begin_to_reread(layer: PostgresLayer) -> None:
    """Have the mailbox read again, until that has been done."""

    async def begin() -> None:
        inside(layer)._queues.rereads.add([None])

    await within(layer, begin())


async def test_a_mailbox_that_was_read_without_a_mark_is_read_again(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing would ever tell when ids may be forgotten."""
    layer = make_own_layer(heartbeat=60, lease=200)
    channel = await warm(layer)
    marks: list[str] = []
    notify = Queries.notify

    async def lost_twice(self: Queries, connection: Any, topic: str, payload: str) -> None:
        marks.append(payload)
        if len(marks) < 3:
            raise psycopg.OperationalError("the connection is lost")
        await notify(self, connection, topic, payload)

    monkeypatch.setattr(Queries, "notify", lost_twice)

    await begin_to_reread(layer)

    async def marked() -> bool:
        return len(marks) == 3

    await eventually_async(marked)
    await until_nothing_is_remembered(layer)
    await layer.send(channel, text(1))
    assert await take(layer, channel, 1) == [text(1)]
    await until_nothing_is_remembered(layer)
    assert len(set(marks)) == 3


async def test_a_look_at_the_mailbox_that_failed_is_over(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the ids of all that is read and deleted after it would be remembered for ever."""
    layer = make_own_layer(heartbeat=60, lease=200)
    channel = await warm(layer)
    looks: list[None] = []
    waiting = Queries.waiting

    async def lost_once(self: Queries, connection: Any) -> Any:
        looks.append(None)
        if len(looks) == 1:
            raise psycopg.OperationalError("the connection is lost")
        return await waiting(self, connection)

    monkeypatch.setattr(Queries, "waiting", lost_once)

    await begin_to_reread(layer)

    async def found() -> bool:
        return len(looks) == 2

    await eventually_async(found)
    await layer.send(channel, text(1))
    assert await take(layer, channel, 1) == [text(1)]
    await until_nothing_is_remembered(layer)


async def test_a_mailbox_that_is_read_again_keeps_what_is_for_a_group(make_own_layer: LayerFactory) -> None:
    """The join that it is for may not have been heard of: there it would be for no member, and deleted."""
    layer, sender = make_own_layer(), make_own_layer()
    channel = await warm(layer)
    await until_listening(layer)

    async def read_before_anything_is_heard(_: Any) -> None:
        await layer.group_add("group", channel)
        await sender.group_send("group", text(1))
        await inside(layer)._recovery.reread()

    await within(layer, inside(layer)._listener.lend(read_before_anything_is_heard))
    assert await take(layer, channel, 1) == [text(1)]


async def test_a_restarted_server_loses_nothing(make_fragile: LayerFactory, fragile: FragileServer) -> None:
    """An administrator's restart: messages wait in the table, memberships stay, receives go on."""
    layer, sender = make_fragile(), make_fragile()
    channel, unread = await warm(layer), await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_add("queues", "jobs")
    await sender.send(unread, text(0))
    await sender.send("jobs", text(1))
    await sender.group_send("queues", text(2))
    restarting = asyncio.create_task(asyncio.to_thread(fragile.postgres.restart))
    sends = [
        sender.send(channel, text(3)),
        sender.group_send("group", text(4)),
        layer.send(channel, text(5)),
        layer.group_send("group", text(6)),
    ]
    results = await asyncio.gather(*sends, return_exceptions=True)
    await restarting
    # One that is under way while the server stops may be told that nobody knows: then it may have come.
    assert all(result is None or getattr(result, "maybe_sent", False) for result in results)
    sent = {number for number, result in enumerate(results, 3) if result is None}
    await sender.send(channel, text(7))
    *received, last = [message["number"] async for message in up_to(layer, channel, 7)]
    assert sent <= set(received) <= {3, 4, 5, 6}
    assert len(set(received)) == len(received)
    assert last == 7
    assert await take(layer, unread, 1) == [text(0)]
    assert await take(layer, "jobs", 2) == [text(1), text(2)]


async def test_a_server_that_crashes_takes_leave(
    make_fragile: LayerFactory, fragile: FragileServer, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning, and the log does not only guess why the connection ended."""
    layer = make_fragile()
    await warm(layer)
    caplog.clear()
    await asyncio.to_thread(fragile.postgres.restart, crash=True)
    await come_back(layer)
    # PostgreSQL 13 says "because of crash of another server process", whatever it was.
    assert "terminating connection" in warnings_of(caplog)[0]


async def test_what_ended_one_connection_is_not_the_reason_that_there_is_no_other(
    make_own_layer: LayerFactory,
    kill_listener: Kill,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The log tells both."""
    layer = make_own_layer()
    await warm(layer)

    def refuse() -> None:
        raise ValueError("no password today")

    monkeypatch.setattr(inside(layer)._listener, "_connect", refuse)
    kill_listener(layer)
    await asyncio.to_thread(eventually, lambda: len(warnings_of(caplog)) > 1)
    gone, reason = warnings_of(caplog)
    assert "terminating connection" in gone
    assert "no password today" in reason


async def test_after_a_crash_memberships_come_back_by_themselves(
    fragile_proxy: SwallowingProxy, make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str
) -> None:
    """A power cut empties unlogged tables; what is sent afterwards arrives, through groups too."""
    layer, sender = make_fragile(url=fragile_proxy.url, heartbeat=1, lease=3), make_fragile()
    channel = await warm(layer)
    await layer.group_add("group", channel)
    await layer.group_add("queues", "jobs")

    async def all_deleted() -> bool:
        return query(fragile_url, WAITING) == [(0,)]

    await eventually_async(all_deleted)
    query(fragile_url, "CHECKPOINT")  # a membership of the last moments may be lost, and that of "jobs" nobody restores
    reader = asyncio.create_task(take(layer, channel, 3))
    worker = asyncio.create_task(take(layer, "jobs", 2))
    fragile_proxy.cut()
    await asyncio.to_thread(fragile.postgres.restart, crash=True)
    # As if the crash had cost the latest memberships as well.
    query(fragile_url, "DELETE FROM channels_pg_sa_membership WHERE node <> ''")
    fragile_proxy.heal()
    await layer.group_add("other", channel)  # waits until this node is back
    await sender.send(channel, text(1))
    await sender.group_send("group", text(2))
    await sender.group_send("other", text(3))
    await sender.send("jobs", text(4))
    await sender.group_send("queues", text(5))
    assert [message["number"] for message in await reader] == [1, 2, 3]
    assert [message["number"] for message in await worker] == [4, 5]


async def test_after_a_crash_new_messages_are_not_taken_for_old_ones(
    make_fragile: LayerFactory, fragile: FragileServer
) -> None:
    """Ids begin again with the emptied table (from PostgreSQL 15 on); messages in memory still have the old ones."""
    layer = make_fragile(capacity=100)
    channel = await warm(layer)
    for number in range(5):
        await layer.send(channel, text(number))

    async def all_here() -> bool:
        return layer.counters["received"] >= 6  # with the one that it was warmed with

    await eventually_async(all_here)
    await asyncio.to_thread(fragile.postgres.restart, crash=True)
    await layer.group_add("group", channel)  # waits until this node is back
    for number in range(5, 10):
        await layer.send(channel, text(number))
    assert [message["number"] for message in await take(layer, channel, 10)] == list(range(10))


async def test_after_a_crash_messages_that_came_before_the_listener_are_new(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are back sooner: their messages have the ids of those in memory, and of those still to be deleted."""
    layer, sender = make_fragile(capacity=100), make_fragile()
    channel = await warm(layer)
    for number in range(5):
        await layer.send(channel, text(number))

    # What it was warmed with is deleted: a deletion that is about to be done would take others along.
    await eventually_async(lambda: asyncio.to_thread(lambda: query(fragile_url, WAITING) == [(5,)]))

    async def all_here() -> bool:
        return layer.counters["received"] >= 6

    await eventually_async(all_here)
    gate, may_come = Gate(monkeypatch), asyncio.Event()
    assert await take(layer, channel, 2) == [text(0), text(1)]
    recover, loop = inside(layer)._listener._recover, asyncio.get_running_loop()

    async def later(connection: Any, renew: Any) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(may_come.wait(), loop))
        await recover(connection, renew)

    monkeypatch.setattr(inside(layer)._listener, "_recover", later)
    await asyncio.to_thread(fragile.postgres.restart, crash=True)
    for number in range(5, 15):
        await sender.send(channel, text(number))
    await gate.open(layer)
    may_come.set()
    await until_listening(layer)
    assert [message["number"] for message in await take(layer, channel, 13)] == list(range(2, 15))
    await eventually_async(lambda: asyncio.to_thread(lambda: query(fragile_url, WAITING) == [(0,)]))


async def test_a_server_that_comes_later_is_waited_for(proxy: SwallowingProxy, make_own_layer: LayerFactory) -> None:
    """Peer defect 5: a failed first connect hung receives for ever; here all is done when the server is there."""
    proxy.cut()
    layer = make_own_layer(url=proxy.url)
    channel = await layer.new_channel()
    readers = [asyncio.create_task(take(layer, name, 1)) for name in (channel, "jobs")]
    joins = asyncio.create_task(layer.group_add("group", channel))
    sends = asyncio.create_task(layer.send("jobs", text(1)))
    done, _ = await asyncio.wait([*readers, joins, sends], timeout=0.5)
    assert not done
    proxy.heal()
    await asyncio.gather(joins, sends)
    await layer.group_send("group", text(2))
    assert await asyncio.gather(*readers) == [[text(2)], [text(1)]]


async def test_too_many_connections_are_waited_out(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str
) -> None:
    """A role at its connection limit: receives wait, nothing is raised, nothing is lost."""
    role = make_role(fragile, fragile_url, "secret")
    url = url_as(fragile, fragile_url, role)
    layer, sender = make_fragile(url=url), make_fragile()
    channel = await warm(layer)
    await layer.group_add("group", channel)
    reader = asyncio.create_task(take(layer, channel, 2))
    set_limit = sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}")
    fragile.run(set_limit.format(sql.Identifier(role), sql.Literal(0)))
    fragile.terminate(fragile.connections(fragile_url))

    async def refused() -> bool:
        return "connecting" in repr(layer) and fragile.connections(fragile_url, LISTENER) == []

    await eventually_async(refused)
    await sender.send(channel, text(1))
    await sender.group_send("group", text(2))
    assert not reader.done()
    fragile.run(set_limit.format(sql.Identifier(role), sql.Literal(-1)))
    assert await reader == [text(1), text(2)]
    await layer.send(channel, text(3))
    assert await take(layer, channel, 1) == [text(3)]


async def test_the_listener_needs_no_other_connection_to_stay_alive(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At a limit that leaves none besides the listener: it stays, and so does the node."""
    role = make_role(fragile, fragile_url, "secret", limit=1)
    url = url_as(fragile, fragile_url, role)
    layer, sender = make_fragile(url=url, heartbeat=0.5, lease=10), make_fragile()
    channel = await layer.new_channel()
    reader = asyncio.create_task(take(layer, channel, 1))
    await until_listening(layer)
    unhurried(layer)
    await until_beats(layer, fragile_url, 6)
    await sender.send(channel, text(1))
    assert await reader == [text(1)]
    assert warnings_of(caplog) == []


async def test_an_idle_connection_is_used_where_no_more_are_to_be_had(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It went back to the pool while somebody asked the server in vain for another."""
    monkeypatch.setattr(database, "KEPT", 0.05)
    role = make_role(fragile, fragile_url, "secret", limit=2)
    layer = make_fragile(url=url_as(fragile, fragile_url, role), send_timeout=5)
    await warm(layer)
    pool = inside(layer)._database._pool
    await asyncio.to_thread(eventually, lambda: pool.get_stats().get("pool_available") == 1)
    inside(layer)._database.trouble = "too many connections"
    await layer.send("jobs", text(1))
    assert await take(layer, "jobs", 1) == [text(1)]


async def test_one_connection_fewer_than_wanted_is_enough(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At a limit that leaves one connection besides the listener, all kinds of work share it."""
    role = make_role(fragile, fragile_url, "secret", limit=2)
    url = url_as(fragile, fragile_url, role)
    layer = make_fragile(url=url, heartbeat=0.5, lease=6)
    channel = await warm(layer)
    unhurried(layer)
    tally = Tally()
    busy = True

    async def stream(name: str) -> None:
        for number in itertools.count():
            if not busy:
                return
            await tally.send(name, number, lambda message: layer.send(name, message))

    readers = [asyncio.create_task(tally.read(layer, name)) for name in (channel, "jobs")]
    streams = [asyncio.create_task(stream(name)) for name in (channel, "jobs")]
    for number in range(100):
        await layer.group_add(f"group-{number}", channel)
        await layer.group_discard(f"group-{number}", channel)
    await until_beats(layer, fragile_url, 5)
    busy = False
    await asyncio.gather(*streams)
    await tally.settle()
    await end(*readers)
    assert (tally.lost, tally.twice, tally.disordered, tally.perhaps) == ([], [], [], set())
    ((alive,),) = query(
        fragile_url, "SELECT lease_until > clock_timestamp() FROM channels_pg_sa_node WHERE id = %s", [layer.node]
    )
    assert alive
    assert warnings_of(caplog) == []


async def test_a_changed_password_is_asked_for_anew(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str
) -> None:
    """Peer defect 30: a token that ends; the callable is asked for each new connection, also in an outage."""
    valid = "first"
    role = make_role(fragile, fragile_url, valid)
    given = valid

    def address() -> str:
        if not given:
            raise RuntimeError("the token service is away")
        return url_as(fragile, fragile_url, role, given)

    layer, sender = make_fragile(url=address), make_fragile()
    # The factory counts connections by the address.
    make_fragile._layers[0] = (layer, fragile_url)
    channel = await warm(layer)
    reader = asyncio.create_task(take(layer, channel, 1))
    valid = "second"
    fragile.run(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(valid)))

    async def refused() -> bool:
        # Again, because one that is being made is in no list yet.
        left = fragile.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [role])
        return not left and "connecting" in repr(layer)

    await eventually_async(refused)
    await sender.send(channel, text(1))
    given = ""
    sending = asyncio.create_task(layer.send("jobs", text(2)))
    done, _ = await asyncio.wait([reader, sending], timeout=0.5)
    assert not done
    given = valid
    assert await reader == [text(1)]
    await sending
    assert await take(layer, "jobs", 1) == [text(2)]


async def test_every_local_channel_hears_of_an_outage(make_own_layer: LayerFactory, kill_listener: Kill) -> None:
    """Peer defect 29: on_disconnect and on_reconnect were accepted and never sent; nobody else's channels get them."""
    layer = make_own_layer(on_disconnect="layer.lost", on_reconnect="layer.back")
    other = make_own_layer(url=make_own_layer.url)
    await warm(layer)
    theirs = await warm(other)
    reading, member, both = [await layer.new_channel() for _ in range(3)]
    for channel in (member, both):
        await layer.group_add("group", channel)
        await layer.group_add("second", channel)
    await other.group_add("group", theirs)
    readers = [asyncio.create_task(take(layer, channel, 2)) for channel in (reading, both, "jobs")]
    await until_waiting(layer, 3)
    kill_listener(layer)
    told = [*await asyncio.gather(*readers), await take(layer, member, 2)]
    assert [[message["type"] for message in messages] for messages in told] == [["layer.lost", "layer.back"]] * 4
    await until_listening(other)
    for channel in (reading, member, both):
        await layer.send(channel, text(1))
        assert await take(layer, channel, 1) == [text(1)]
    await layer.send(theirs, text(2))
    assert await take(other, theirs, 1) == [text(2)]


class Storm:
    """Messages of several senders to one layer, and the events that they must outlast.

    Args:
        proxy: before the layer, and before one of its senders.
        server: that all of them use.
        url: of the database there.
    """

    def __init__(self, proxy: SwallowingProxy, server: FragileServer, url: str) -> None:
        self.tally = Tally()
        self._proxy = proxy
        self._server = server
        self._url = url
        self._over = False

    async def stream(self, name: str, send: Callable[[Message], Awaitable[None]]) -> None:
        """Send numbered messages, twenty at a time, until it is over."""
        for start in itertools.count(0, 20):
            if self._over:
                return
            await asyncio.gather(*(self.tally.send(name, number, send) for number in range(start, start + 20)))

    async def rage(self) -> None:
        """Let twenty events happen, each while messages are sent."""
        mild = [self.kill_listeners, self.drop, self.away]
        rough = [self.kill_all, self.stalled, self.forget]
        events = [*mild, *rough, self.restart, *rough, *mild, self.restart, *mild, *rough]
        assert len(events) == 20
        for event in events:
            await self.some_more(100)
            await event()

    async def end(self, at_least: int) -> None:
        """Stop sending when so many messages have been sent."""
        while len(self.tally.sent) < at_least:
            await self.some_more(100)
        self._over = True

    async def some_more(self, count: int) -> None:
        """Wait until so many more messages have been sent."""
        goal = len(self.tally.sent) + count

        async def sent() -> bool:
            return len(self.tally.sent) >= goal

        await eventually_async(sent, within=20)

    async def kill_listeners(self) -> None:
        self._server.terminate(self._server.connections(self._url, LISTENER))

    async def kill_all(self) -> None:
        self._server.terminate(self._server.connections(self._url))

    async def drop(self) -> None:
        self._proxy.drop()

    async def forget(self) -> None:
        self._proxy.forget()

    async def away(self) -> None:
        self._proxy.cut()
        await self.some_more(50)
        self._proxy.heal()

    async def stalled(self) -> None:
        self._proxy.stall()
        await self.some_more(50)
        self._proxy.heal()

    async def restart(self) -> None:
        await asyncio.to_thread(self._server.postgres.restart)


@pytest.mark.timeout(180)  # On a machine that has much else to do.
async def test_thousands_of_messages_during_twenty_events(
    fragile_proxy: SwallowingProxy, make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str
) -> None:
    """Peer defects 5, 22, 23, 25: of all that was sent nothing is lost, nothing comes twice, and order is kept."""
    config = {"heartbeat": 0.5, "lease": 20, "send_timeout": 3, "expiry": 600}
    layer = make_fragile(url=with_parameters(fragile_proxy.url, connect_timeout=2), **config)
    senders = [make_fragile(**config), make_fragile(url=fragile_proxy.url, **config)]
    channel, member = await warm(layer), await layer.new_channel()
    await layer.group_add("group", member)
    storm = Storm(fragile_proxy, fragile, fragile_url)
    readers = [asyncio.create_task(storm.tally.read(layer, name)) for name in (channel, member, "jobs")]
    streams = [
        asyncio.create_task(storm.stream(f"{kind} from {sender.node}", functools.partial(verb, name)))
        for sender in senders
        for kind, name, verb in (
            ("channel", channel, sender.send),
            ("group", "group", sender.group_send),
            ("jobs", "jobs", sender.send),
        )
    ]
    await storm.rage()
    await storm.end(at_least=10_000)
    await asyncio.gather(*streams)
    await storm.tally.settle()
    rows = query(fragile_url, "SELECT id, recipient, channel, group_name FROM channels_pg_sa_message LIMIT 20")
    assert storm.tally.lost == [], (layer, rows, inside(layer)._queues.book)
    await end(*readers)
    assert (storm.tally.twice, storm.tally.disordered) == ([], [])


async def test_what_happened_while_nothing_was_heard(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was made a member is one, who was sent away is none, and a job is claimed before the next heartbeat."""
    layer, other = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    channel = await warm(layer)
    await until_listening(layer)
    await layer.group_add("left", channel)
    worker = asyncio.create_task(take(layer, "jobs", 1))
    await eventually_async(lambda: _async(not inside(layer)._queues.book.deaf and inside(layer)._queues.book.queues))
    listener, loop, may_come = inside(layer)._listener, asyncio.get_running_loop(), asyncio.Event()
    recover = listener._recover

    async def later(connection: Any, renew: Any) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(may_come.wait(), loop))
        await recover(connection, renew)

    monkeypatch.setattr(listener, "_recover", later)
    inside(layer)._thread.loop.call_soon_threadsafe(listener.restart, "as if it were lost")
    await eventually_async(lambda: _async(not listener.is_listening))
    await other.group_add("joined", channel)
    await other.group_discard("left", channel)
    await other.send("jobs", text(1))
    may_come.set()
    await until_listening(layer)
    await other.group_send("left", text(2))
    await other.group_send("joined", text(3))
    assert await take(layer, channel, 1) == [text(3)]
    assert await asyncio.wait_for(worker, 20) == [text(1)]


async def _async(value: object) -> bool:
    return bool(value)


async def test_a_reader_is_told_as_a_sender_that_there_are_no_tables(
    server: TestServer, database_url: str, make_own_layer: LayerFactory
) -> None:
    """And not that they are damaged."""
    layer = make_own_layer(url=database_url)
    with pytest.raises(SchemaError) as sender:
        await layer.send("jobs", text(1))
    with pytest.raises(SchemaError) as reader:
        await layer.receive("jobs")
    assert str(reader.value) == str(sender.value)


async def test_an_outage_of_many_attempts_is_told_once(proxy: SwallowingProxy, make_own_layer: LayerFactory) -> None:
    """To each channel, and its end once."""
    attempts: list[None] = []

    def address() -> str:
        attempts.append(None)
        return proxy.url

    async def several() -> bool:
        return len(attempts) > 4

    layer = make_own_layer(listen_url=address, on_disconnect="layer.lost", on_reconnect="layer.back")
    channel = await warm(layer)
    await layer.group_add("group", channel)
    proxy.cut()
    await eventually_async(several)
    proxy.heal()
    await until_listening(layer)
    await layer.send(channel, text(1))
    types = [message["type"] for message in await take(layer, channel, 3)]
    assert types == ["layer.lost", "layer.back", "test.message"]


async def test_a_server_that_is_away_from_the_start_is_announced(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody has seen its clock, and to the reader who makes the layer listen, however slow that one is."""
    layer = make_own_layer(url=proxy.url, on_disconnect="layer.lost", on_reconnect="layer.back")
    channel = await layer.new_channel()
    proxy.cut()
    receive = Inbox.receive

    async def slow(inbox: Inbox, channel: str, *, shared: bool) -> Entry:
        time.sleep(0.2)  # noqa: ASYNC251 - meanwhile an attempt of the I/O thread's would fail
        return await receive(inbox, channel, shared=shared)

    monkeypatch.setattr(Inbox, "receive", slow)
    reader = asyncio.create_task(take(layer, channel, 2))

    async def is_noticed() -> bool:
        return " 1 waiting" in repr(layer) and inside(layer).trouble is not None

    await eventually_async(is_noticed)
    proxy.heal()
    assert [message["type"] for message in await reader] == ["layer.lost", "layer.back"]


async def test_a_connection_that_comes_while_its_listener_ends_is_closed(
    layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else has it, and it would stay open until the garbage collector comes by."""
    connect, begun, made = listener_module.CleanConnection.connect, asyncio.Event(), list[Any]()

    async def noted(**parameters: Any) -> Any:
        begun.set()
        made.append(await connect(**parameters))
        return made[0]

    async def recover(*_: Any) -> None:
        """Not called."""

    monkeypatch.setattr(listener_module.CleanConnection, "connect", noted)
    parameters = conninfo_to_dict(layer_url)
    listener = Listener(
        lambda: dict(parameters), 1.0, recover=recover, hear=lambda _: None, up=lambda: None, down=lambda _: None
    )
    running = asyncio.create_task(listener.run())
    await begun.wait()
    running.cancel()
    await asyncio.wait([running])
    assert [connection.closed for connection in made] == [True]


async def test_closing_waits_for_nobody_who_has_the_connection(make_own_layer: LayerFactory, layer_url: str) -> None:
    """As a heartbeat has, which waits for a lock: it is told at once, and nothing stays open."""
    layer = make_own_layer(heartbeat=60, lease=200)
    await warm(layer)
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(8)' AND state = 'active'"
    lent = asyncio.create_task(
        within(layer, inside(layer)._listener.lend(lambda connection: connection.execute("SELECT pg_sleep(8)")))
    )

    async def is_lent() -> bool:
        return await asyncio.to_thread(query, layer_url, sleeping) == [(1,)]

    await eventually_async(is_lent)
    began = time.monotonic()
    await layer.close()
    assert time.monotonic() - began < 4
    with pytest.raises(listener_module.ConnectionLost):
        await lent
