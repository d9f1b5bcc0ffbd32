"""Sends that the calling thread begins itself: what breaks under them is told as truly as elsewhere."""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
import time
from contextlib import nullcontext
from typing import Any

import psycopg
import pytest

from channels_pg_sa import LayerClosed, SchemaError, SendError
from channels_pg_sa.connections.connection import give_up
from channels_pg_sa.connections.database import KEPT
from channels_pg_sa.connections.fate import Fate, fate
from channels_pg_sa.statements.jobs import Send
from channels_pg_sa.statements.prepared import Bound
from tests.support.databases import TestServer, query
from tests.support.layers import LayerFactory, PostgresLayer, ask
from tests.support.urls import with_parameters
from tests.support.waiting import eventually_async, let_pass

from .breaking import (
    BLOCKED,
    WAITING,
    FragileServer,
    SwallowingProxy,
    impatient,
    inside,
    locked_messages,
    make_role,
    take,
    text,
    until_blocked,
    url_as,
    warm,
    within,
)
from .test_sending import VERBS, LastWords

KINDS = ["send", "group_send", "send_sync"]

PREPARED = "SELECT name FROM pg_prepared_statements WHERE starts_with(name, 'channels_pg_sa')"
"""Selects which statements this library has prepared in a session under its own names."""


def fast_path(layer: PostgresLayer) -> Any:
    """Return what the layer sends its lone messages by."""
    return layer._node._outbox._fast_path  # type: ignore[attr-defined]


def a_send(layer: PostgresLayer) -> Bound:
    """Return the statement that sends a message to a queue."""
    return layer._node._outbox._prepared.send([Send("jobs", "jobs", b"")])  # type: ignore[attr-defined,no-any-return]


async def hold(layer: PostgresLayer) -> PostgresLayer:
    """Send, but nothing to anybody, until the layer holds a connection for what follows; return the layer."""

    async def look() -> bool:
        await layer.group_send("nobody", text(0))
        return bool(fast_path(layer).is_open)

    await eventually_async(look)
    await layer.group_send("nobody", text(0))
    fast_path(layer)._since += 60  # until the next statement, however long a busy machine takes until then
    return layer


async def given_back(layer: PostgresLayer) -> bool:
    """Tell whether no connection is held."""
    return fast_path(layer)._task is None


async def under_way(layer: PostgresLayer, url: str) -> None:
    """Wait until a statement of the layer's waits for the locked table, on the connection that is held."""
    await until_blocked(url)
    assert fast_path(layer)._done is not None


async def test_a_lone_send_is_begun_by_its_own_thread(make_own_layer: LayerFactory, layer_url: str) -> None:
    """While the I/O thread is kept from working the statement reaches the server all the same."""
    layer = await hold(make_own_layer())
    go_on = threading.Event()
    layer._node._thread.loop.call_soon_threadsafe(go_on.wait)  # type: ignore[attr-defined]
    sending = asyncio.create_task(layer.send("jobs", text(1)))
    await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, WAITING) == [(1,)]))
    assert not sending.done()
    go_on.set()
    await sending


async def test_order_is_kept_between_both_ways(make_own_layer: LayerFactory) -> None:
    """One at a time, many at a time, and back: what a sender sent first comes first."""
    layer = await hold(make_own_layer())
    numbers = iter(range(10_000))
    for _ in range(20):
        for _ in range(5):
            await layer.send("jobs", text(next(numbers)))
        await asyncio.gather(*(layer.send("jobs", text(next(numbers))) for _ in range(7)))
    count = next(numbers)
    assert [message["number"] for message in await take(layer, "jobs", count)] == list(range(count))


async def test_how_long_a_message_may_wait(make_own_layer: LayerFactory, layer_url: str) -> None:
    """As long as the layer's expiry: alone, to a group, with others of its kind, and with others of both."""
    layer = await hold(make_own_layer(expiry=86_400))
    await layer.group_add("group", "jobs")
    kinds = [[layer.send], [layer.group_send], [layer.send] * 5, [layer.send, layer.group_send] * 3]
    for verbs in kinds:
        await hold(layer)
        where = {layer.send: "jobs", layer.group_send: "group"}
        await asyncio.gather(*(verb(where[verb], text(1)) for verb in verbs))
    left = query(layer_url, "SELECT date_part('epoch', expires_at - clock_timestamp()) FROM channels_pg_sa_message")
    assert [seconds for (seconds,) in left] == [pytest.approx(86_400, abs=30)] * sum(map(len, kinds))


async def test_a_prefix_that_is_not_ascii(make_own_layer: LayerFactory, layer_url: str) -> None:
    """It is the same prefix whatever the encoding of the connection."""
    url = with_parameters(layer_url, client_encoding="latin1")
    layer = await hold(make_own_layer(url=url, prefix="grüße"))
    await layer.send("jobs", text(1))
    assert query(layer_url, "SELECT prefix FROM channels_pg_sa_message") == [("grüße",)]


async def test_a_session_that_writes_times_with_few_digits(make_own_layer: LayerFactory, layer_url: str) -> None:
    """By a setting of the role's, say: a large message is looked up by its end, which the statement itself tells."""
    layer = make_own_layer(url=with_parameters(layer_url, options="-c extra_float_digits=-15"))
    channel = await warm(layer)
    await hold(layer)
    message = {**text(1), "filler": "x" * 20_000}
    await layer.send(channel, message)
    assert await asyncio.wait_for(layer.receive(channel), 10) == message


@pytest.mark.parametrize("size", [100_000, 4_000_000])
async def test_large_messages(make_own_layer: LayerFactory, size: int) -> None:
    """More than the socket takes at once: the I/O thread writes the rest."""
    layer = await hold(make_own_layer())
    message = {"value": "x" * size}
    for _ in range(3):
        await layer.send("large", message)
        assert fast_path(layer).is_open
    assert await take(layer, "large", 3) == [message] * 3


async def test_a_large_message_is_written_and_no_more(proxy: SwallowingProxy, make_own_layer: LayerFactory) -> None:
    """The I/O thread does not look again and again whether the socket takes something."""
    layer = await hold(make_own_layer(url=proxy.url))
    loop = layer._node._thread.loop  # type: ignore[attr-defined]
    proxy.stall()
    sending = asyncio.create_task(layer.send("large", {"value": "x" * 15_000_000}))

    async def is_written() -> bool:
        return fast_path(layer)._socket not in loop._selector.get_map() or not (
            loop._selector.get_key(fast_path(layer)._socket).events & selectors.EVENT_WRITE
        )

    async def is_being_written() -> bool:
        return not await within(layer, is_written())

    await eventually_async(is_being_written)
    proxy.heal()
    await sending
    assert await within(layer, is_written())


async def test_a_large_message_that_is_given_up_is_written_no_further(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket is closed, and the number may soon be another's, which the loop could not watch then."""
    layer = await hold(make_own_layer(url=proxy.url))
    loop, number = layer._node._thread.loop, fast_path(layer)._socket  # type: ignore[attr-defined]
    monkeypatch.setattr("channels_pg_sa.sending.fastpath.give_up", unheard)
    proxy.stall()
    with impatient(layer, 1):
        with pytest.raises(SendError):
            await layer.send("large", {"value": "x" * 15_000_000})
        await eventually_async(lambda: given_back(layer))

    async def is_watched() -> bool:
        return number in loop._selector.get_map()

    assert not await within(layer, is_watched())
    proxy.heal()


async def test_the_rest_of_a_message_whose_connection_is_gone_is_not_written(make_own_layer: LayerFactory) -> None:
    """A thread may have asked for that just before."""
    layer = await hold(make_own_layer())
    held, loop = fast_path(layer)._held, layer._node._thread.loop  # type: ignore[attr-defined]
    fast_path(layer).release_soon()
    await eventually_async(lambda: given_back(layer))

    async def write_rest() -> bool:
        fast_path(layer)._write_rest(held)
        return fast_path(layer)._socket in loop._selector.get_map()

    assert not await within(layer, write_rest())


@pytest.mark.parametrize("break_it", ["terminate", "drop", "forget"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_that_died_between_two_sends(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, server: TestServer, layer_url: str, break_it: str, kind: str
) -> None:
    """The caller does not notice; but of a silence nobody can know before it has lasted."""
    layer = make_own_layer(url=proxy.url)
    await layer.group_add("group", "jobs")
    await hold(layer)
    if break_it == "terminate":
        server.terminate(server.connections(layer_url))
    else:
        getattr(proxy, break_it)()
    if break_it == "forget":
        with impatient(layer, 1):
            with pytest.raises(SendError, match="may have been done"):
                await VERBS[kind](layer)
            await eventually_async(lambda: given_back(layer))
        await eventually_async(lambda: sent(layer))
    await VERBS[kind](layer)
    assert query(layer_url, WAITING) == [(1,)]


@pytest.mark.parametrize("is_held", [False, True])
async def test_connections_that_were_lost_together(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, is_held: bool
) -> None:
    """In silence: one call waits until its time is over; the next one's connection is asked for a sign of life."""
    monkeypatch.setattr("channels_pg_sa.connections.database.KEPT", 60)  # so that both are at hand
    layer = await use_both(make_own_layer(url=proxy.url, heartbeat=60, lease=200, send_timeout=3))
    if is_held:
        await hold(layer)
    proxy.forget()
    with pytest.raises(SendError, match="may have been done"):
        await layer.send("jobs", text(1))
    await layer.send("others", text(2))


async def use_both(layer: PostgresLayer) -> PostgresLayer:
    """Have the layer use two connections at a time; return the layer."""
    await layer.send("others", text(0))
    database = inside(layer)._database

    async def use() -> None:
        async with database.hold(), database.hold():
            pass

    await within(layer, use())
    return layer


async def test_a_connection_that_is_held_was_lost_with_another(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In silence: who reads over the other waits until its time is over; the next send is not trusted to this one."""
    monkeypatch.setattr("channels_pg_sa.connections.database.KEPT", 60)
    layer = await hold(await use_both(make_own_layer(url=proxy.url, heartbeat=60, lease=200, send_timeout=3)))
    proxy.forget()
    with pytest.raises(SendError):
        await ask(layer, "SELECT 1")

    async def is_given_up() -> bool:
        return len(inside(layer)._database._lent) == 1

    await eventually_async(is_given_up)
    assert fast_path(layer).is_open
    await layer.send("others", text(1))


async def test_a_connection_that_does_not_show_a_sign_of_life_is_not_the_only_one(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next at hand is asked before a message is trusted to it."""
    monkeypatch.setattr("channels_pg_sa.connections.database.KEPT", 60)
    layer = make_own_layer(url=proxy.url, heartbeat=60, lease=200, send_timeout=3)
    await layer.send("others", text(0))
    database = inside(layer)._database

    async def use_both() -> None:
        async with database.hold() as first, database.hold():
            first.doubted = True

    await within(layer, use_both())
    proxy.forget()
    await layer.send("others", text(1))


async def sent(layer: PostgresLayer) -> bool:
    """Tell whether a message to nobody is sent."""
    try:
        await layer.group_send("nobody", text(0))
    except SendError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
async def test_lost_under_the_statement(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str, kind: str
) -> None:
    """Nobody can tell whether it was sent, and it is not sent again."""
    layer = make_own_layer(url=proxy.url)
    await layer.group_add("group", "jobs")
    await hold(layer)
    with locked_messages(layer_url) as locker:
        sending = asyncio.ensure_future(VERBS[kind](layer))
        await under_way(layer, layer_url)
        proxy.drop()
        with pytest.raises(SendError, match="may have been done"):
            await sending
        locker.commit()
    await layer.send("jobs", text(2))
    assert sorted(message["number"] for message in await take(layer, "jobs", 2)) == [1, 2]
    assert query(layer_url, "SELECT count(*) FROM channels_pg_sa_message WHERE recipient = 'jobs'") == [(0,)]


async def test_lost_under_a_statement_that_another_follows(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Whoever waits for both is told at once, and the other is not begun."""
    layer = await hold(make_own_layer(url=proxy.url, send_timeout=60))
    statement = a_send(layer)
    ended: list[tuple[Any, int]] = []
    with locked_messages(layer_url):
        assert fast_path(layer).run([statement] * 2, lambda error, results: ended.append((error, len(results))))
        await under_way(layer, layer_url)
        proxy.drop()
        await eventually_async(lambda: asyncio.to_thread(lambda: ended))
    ((error, count),) = ended
    assert (fate(error), count) == (Fate.UNKNOWN, 0)


async def test_ended_under_the_statement(make_own_layer: LayerFactory, server: TestServer, layer_url: str) -> None:
    """The server says that it did not do it: it is done again, and before what was sent after it."""
    layer = await hold(make_own_layer())
    with locked_messages(layer_url) as locker:
        first = asyncio.create_task(layer.send("jobs", text(0)))
        await under_way(layer, layer_url)
        others = [asyncio.create_task(layer.send("jobs", text(number))) for number in range(1, 9)]
        await asyncio.sleep(0)
        server.terminate(server.connections(layer_url))
        await until_blocked(layer_url)
        locker.commit()
        await asyncio.gather(first, *others)
    assert [message["number"] for message in await take(layer, "jobs", 9)] == list(range(9))


async def test_an_end_that_was_told_with_an_answer(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Its connection is not used for the next send."""
    with LastWords(layer_url) as proxy:
        layer = await hold(make_own_layer(url=proxy.url))
        backend = fast_path(layer)._held.driver.info.backend_pid
        proxy.gathers = True
        sending = asyncio.ensure_future(layer.send("jobs", text(2)))
        await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, WAITING) == [(1,)]))
        query(layer_url, "SELECT pg_terminate_backend(%s)", [backend])
        await sending
        proxy.gathers = False
        await layer.send("jobs", text(3))
        assert query(layer_url, WAITING) == [(2,)]
        await layer.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_statement_that_takes_too_long(make_own_layer: LayerFactory, layer_url: str, kind: str) -> None:
    """Its caller is told after send_timeout, those behind it as well, and the connection is broken off."""
    layer = make_own_layer()
    await layer.group_add("group", "jobs")
    await hold(layer)
    with locked_messages(layer_url) as locker, impatient(layer, 1):
        started = time.monotonic()
        sending = asyncio.ensure_future(VERBS[kind](layer))
        await under_way(layer, layer_url)
        behind = asyncio.create_task(layer.send("other", text(2)))
        errors = await asyncio.gather(sending, behind, return_exceptions=True)
        assert 1 <= time.monotonic() - started < 3
        assert [type(error) for error in errors] == [SendError, SendError]
        assert getattr(errors[0], "maybe_sent", None)
        # The server has given it up too.
        await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, BLOCKED) == [(0,)]))
        locker.commit()
    await layer.send("jobs", text(3))
    assert [message["number"] for message in await take(layer, "jobs", 1)] == [3]


async def test_a_statement_that_takes_longer_than_a_connection_is_kept_for(
    make_own_layer: LayerFactory, layer_url: str
) -> None:
    """It is waited for: the pause after which the connection goes back begins with its end."""
    layer = await hold(make_own_layer())
    with locked_messages(layer_url) as locker:
        sending = asyncio.create_task(layer.send("jobs", text(1)))
        await under_way(layer, layer_url)
        await let_pass(2 * KEPT)
        locker.commit()
        await sending


async def test_who_waits_for_what_is_given_up_is_told_whether_the_loop_hears_its_end_or_not(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That nobody knows whether it was done; and the connection is broken off."""
    layer = await hold(make_own_layer())
    held, ended = fast_path(layer)._held, list[Any]()
    statement = a_send(layer)
    monkeypatch.setattr("channels_pg_sa.sending.fastpath.give_up", unheard)
    with locked_messages(layer_url), impatient(layer, 1):
        assert fast_path(layer).run([statement], lambda error, _: ended.append((fate(error), held.is_alive())))
        await eventually_async(lambda: given_back(layer))
    assert ended == [(Fate.UNKNOWN, False)]


async def test_nothing_begins_on_a_connection_that_is_given_up(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer comes in that very moment: what follows would be given up with it."""
    layer = await hold(make_own_layer())
    refused: list[bool] = []

    async def answered_first(connection: Any) -> None:
        locker.commit()
        while fast_path(layer)._done is not None:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        refused.append(not fast_path(layer).run([Bound(b"channels_pg_sa_send_one", ())], lambda *_: None))
        await give_up(connection)

    monkeypatch.setattr("channels_pg_sa.sending.fastpath.give_up", answered_first)
    with locked_messages(layer_url) as locker, impatient(layer, 1):
        with pytest.raises(SendError):
            await layer.send("jobs", text(1))
        await eventually_async(lambda: asyncio.to_thread(lambda: refused))
    assert refused == [True]
    await layer.send("jobs", text(2))


async def test_nothing_begins_on_a_connection_whose_layer_closes(make_own_layer: LayerFactory) -> None:
    """It is about to be given back, and would take along what another thread begins in that moment."""
    layer = await hold(make_own_layer())

    async def begin_meanwhile() -> bool:
        closing = asyncio.ensure_future(fast_path(layer).close())
        await asyncio.sleep(0)
        assert fast_path(layer).is_open
        begun: bool = fast_path(layer).run([Bound(b"channels_pg_sa_send_one", ())], lambda *_: None)
        await closing
        return begun

    assert not await within(layer, begin_meanwhile())


async def unheard(_connection: Any) -> None:
    """In place of what gives a connection up: its socket tells nothing."""


async def test_callers_are_told_before_what_waits_for_rest_goes_on(
    make_own_layer: LayerFactory, layer_url: str
) -> None:
    """The lane takes a batch that it has not been told of for one whose outcome nobody knows."""
    layer = await hold(make_own_layer())
    path, events = fast_path(layer), list[str]()
    statement = a_send(layer)

    async def begin() -> None:
        assert path.run([statement], lambda *_: events.append("told"))
        path.when_at_rest(lambda: events.append("at rest"))

    with locked_messages(layer_url) as locker:
        await within(layer, begin())
        locker.commit()
    await eventually_async(lambda: asyncio.to_thread(lambda: len(events) == 2))
    assert events == ["told", "at rest"]


@pytest.mark.parametrize("closes", [False, True], ids=["because it takes too long", "because the layer closes"])
async def test_nothing_follows_on_a_connection_that_is_given_up(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    """The first of two statements is answered in that very moment: the second is not begun."""
    layer = await hold(make_own_layer())
    statement = a_send(layer)
    ended: list[int] = []

    async def answered_first(connection: Any) -> None:
        locker.commit()
        while not ended:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        await give_up(connection)

    monkeypatch.setattr("channels_pg_sa.sending.fastpath.give_up", answered_first)
    with locked_messages(layer_url) as locker, nullcontext() if closes else impatient(layer, 1):
        assert fast_path(layer).run([statement] * 2, lambda _error, results: ended.append(len(results)))
        if closes:
            await under_way(layer, layer_url)
            await within(layer, fast_path(layer).close())
        else:
            await eventually_async(lambda: given_back(layer))
    assert ended == [1]
    assert query(layer_url, WAITING) == [(1,)]


class Garbling(SwallowingProxy):
    """A proxy that can make nonsense of what the server says."""

    garbles = False

    async def _tell_client(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            sink.write(b"2\xff\xff\xff\xff" if self.garbles else data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await self._connect_or_hang_up()
        self._writers |= {writer, server_writer}
        self._start(self._pump(reader, server_writer))
        self._start(self._tell_client(server_reader, writer))


async def test_another_is_held_as_soon_as_one_has_been_lost(
    proxy: SwallowingProxy, make_own_layer: LayerFactory
) -> None:
    """Which ends as well as one that is given back."""
    layer = await hold(make_own_layer(url=proxy.url))
    proxy.drop()
    await eventually_async(lambda: given_back(layer))
    assert fast_path(layer)._not_before == float("-inf")


async def test_another_is_held_as_soon_as_the_server_has_ended_one(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str
) -> None:
    """It says so before it ends it: between the two there is nothing to be done on it."""
    layer = await hold(make_own_layer())
    server.terminate(server.connections(layer_url))
    await eventually_async(lambda: given_back(layer))
    assert fast_path(layer)._not_before == float("-inf")


async def test_an_answer_that_cannot_be_read(make_own_layer: LayerFactory, layer_url: str) -> None:
    """The server may have done it, and the statement is not sent again."""
    with Garbling(layer_url) as proxy:
        layer = await hold(make_own_layer(url=proxy.url))
        proxy.garbles = True
        with pytest.raises(SendError, match="may have been done"):
            await layer.send("jobs", text(1))
        proxy.garbles = False
        await layer.send("jobs", text(2))
        assert query(layer_url, WAITING) == [(2,)]
        await layer.close()


async def test_news_while_nothing_is_under_way_ends_no_statement(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread may begin one in the very moment after, of which that news says nothing."""
    layer = await hold(make_own_layer())
    ended: list[object] = []
    read = asyncio.Event()
    held, loop = fast_path(layer)._held, asyncio.get_running_loop()

    def look() -> None:
        fast_path(layer)._readable(held)
        loop.call_soon_threadsafe(read.set)

    with monkeypatch.context() as patch:
        patch.setattr(fast_path(layer), "_conclude", ended.append)
        layer._node._thread.loop.call_soon_threadsafe(look)  # type: ignore[attr-defined]
        await read.wait()
    assert ended == []
    assert fast_path(layer).is_open


async def test_a_connection_in_doubt_is_asked_and_held_again(make_own_layer: LayerFactory) -> None:
    """Nothing of its first time stands in the way."""
    layer = await hold(make_own_layer(PSYCOPG_OPTIONS={"max_size": 1}))
    backend = fast_path(layer)._held.driver.info.backend_pid
    inside(layer)._database.doubt()
    await layer.send("jobs", text(1))
    await eventually_async(lambda: given_back(layer))
    await hold(layer)
    assert fast_path(layer)._held.driver.info.backend_pid == backend


async def test_a_server_that_grants_one_connection(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str
) -> None:
    """Others get it too, however many sends follow each other."""
    role = make_role(fragile, fragile_url, "secret", limit=1)
    url = url_as(fragile, fragile_url, role)
    layer = await hold(make_fragile(url=url, send_timeout=20))
    ends = False

    async def stream() -> None:
        while not ends:
            await layer.send("jobs", text(0))

    streaming = asyncio.create_task(stream())
    for number in range(3):
        await asyncio.wait_for(layer.group_add("group", f"member-{number}"), 5)
    ends = True
    await streaming


async def test_a_server_that_restarts_between_two_sends(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str
) -> None:
    """The next send waits until it is back."""
    layer = await hold(make_fragile())
    await asyncio.to_thread(fragile.postgres.restart)
    await layer.send("jobs", text(1))
    assert query(fragile_url, WAITING) == [(1,)]


async def test_tables_that_are_gone(make_own_layer: LayerFactory, layer_url: str) -> None:
    """The error names the command that mends it."""
    layer = await hold(make_own_layer())
    query(layer_url, "DROP TABLE channels_pg_sa_message")
    with pytest.raises(SchemaError, match="upgrade"):
        await layer.send("jobs", text(1))


async def test_a_secret_that_is_new_since_the_path_began(make_own_layer: LayerFactory, layer_url: str) -> None:
    """The topic that it knows is nobody's any more: the database tells the reader by the right one."""
    layer = await hold(make_own_layer())
    query(layer_url, "UPDATE channels_pg_sa_installation SET secret = gen_random_uuid()")
    reader = make_own_layer(heartbeat=60, lease=200)
    channel = await warm(reader)
    await layer.send(channel, text(1))
    assert await take(reader, channel, 1) == [text(1)]


async def test_group_sends_that_go_together_reach_queues(make_own_layer: LayerFactory, layer_url: str) -> None:
    """A member that any process may read gets as many as were sent."""
    layer = await hold(make_own_layer())
    await layer.group_add("group", "jobs")
    await asyncio.gather(*(layer.group_send("group", text(number)) for number in range(50)))
    assert query(layer_url, WAITING) == [(50,)]


async def test_what_the_server_refuses(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Its word is in the error, and nothing was sent; the next is sent."""
    layer = await hold(make_own_layer())
    query(layer_url, "ALTER TABLE channels_pg_sa_message ADD CONSTRAINT no_jobs CHECK (recipient <> 'jobs')")
    with pytest.raises(SendError, match="no_jobs") as caught:
        await layer.send("jobs", text(1))
    assert not caught.value.maybe_sent
    await layer.send("other", text(2))
    assert query(layer_url, WAITING) == [(1,)]


async def test_no_connection_is_held_for_what_the_server_refuses(make_own_layer: LayerFactory, layer_url: str) -> None:
    """However closely such calls follow each other."""
    layer = make_own_layer()
    await layer.group_send("nobody", text(0))
    query(layer_url, "ALTER TABLE channels_pg_sa_message ADD CONSTRAINT no_jobs CHECK (recipient <> 'jobs')")
    fast_path(layer)._slow_at = float("inf")  # as closely as may be
    with pytest.raises(SendError, match="no_jobs"):
        await layer.send("jobs", text(1))
    assert await at_rest(layer)


async def test_no_connection_is_held_that_others_wait_for(make_own_layer: LayerFactory) -> None:
    """Nor one waited for: whoever comes next needs it more."""
    layer = make_own_layer(PSYCOPG_OPTIONS={"max_size": 1})
    await layer.group_send("nobody", text(0))

    async def note_calls() -> bool:
        fast_path(layer)._slow_at = float("inf")
        fast_path(layer).note_calls([])
        return await given_back(layer)

    async def note_calls_while_it_is_lent() -> bool:
        async with inside(layer)._database.hold():
            return await note_calls()

    assert await within(layer, note_calls_while_it_is_lent())
    assert not await within(layer, note_calls())


async def test_what_others_wanted_is_not_held_again_at_once(make_own_layer: LayerFactory) -> None:
    """However closely sends follow each other."""
    layer = await hold(make_own_layer())
    fast_path(layer).release_soon()
    await eventually_async(lambda: given_back(layer))

    async def note_calls() -> bool:
        fast_path(layer)._slow_at = float("inf")
        fast_path(layer).note_calls([])
        return await given_back(layer)

    fast_path(layer)._not_before += 60  # however long a busy machine takes
    assert await within(layer, note_calls())


async def test_once_it_is_closed_none_is_held_any_more(make_own_layer: LayerFactory) -> None:
    """Nor after others wanted a connection, which otherwise ends no later than they have it."""
    layer = await hold(make_own_layer())

    async def close() -> float:
        await fast_path(layer).close()
        fast_path(layer).release_soon()
        return float(fast_path(layer)._not_before)

    assert await within(layer, close()) == float("inf")


async def test_none_is_held_for_a_call_now_and_then(make_own_layer: LayerFactory) -> None:
    """One that none has closely followed, nor follows closely."""
    layer = make_own_layer()
    for _ in range(2):
        await layer.group_send("nobody", text(0))
        assert await at_rest(layer)
        fast_path(layer)._slow_at -= 60


async def test_only_one_is_held(make_own_layer: LayerFactory) -> None:
    """Though calls take the slow path meanwhile, closely one after the other."""
    layer = await hold(make_own_layer(PSYCOPG_OPTIONS={"max_size": 4}))

    async def note_calls() -> Any:
        fast_path(layer)._slow_at = float("inf")
        before = fast_path(layer)._task
        fast_path(layer).note_calls([])
        return fast_path(layer)._task is before

    assert await within(layer, note_calls())


async def test_none_is_held_where_statements_are_not_prepared(make_own_layer: LayerFactory) -> None:
    """A pooler may stand in between, and always will: that is found out once."""

    async def never_prepare(connection: Any) -> None:
        connection.prepare_threshold = None

    layer = make_own_layer(PSYCOPG_OPTIONS={"configure": never_prepare})
    await layer.group_send("nobody", text(0))
    fast_path(layer)._slow_at = float("inf")  # as closely as may be
    await layer.group_send("nobody", text(0))
    await eventually_async(lambda: at_rest(layer))
    assert fast_path(layer)._not_before == float("inf")


async def test_what_others_want_under_a_statement_they_get_with_its_end(
    make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Not only when nobody has sent for a while."""
    layer = await hold(make_own_layer())
    path, open_at_the_end = fast_path(layer), list[bool]()
    statement = a_send(layer)
    with locked_messages(layer_url) as locker:
        assert path.run([statement], lambda *_: open_at_the_end.append(path.is_open))
        path.release_soon()
        assert path.is_open
        locker.commit()
        await eventually_async(lambda: given_back(layer))
    assert open_at_the_end == [False]


async def test_a_caller_whose_loop_stands_still_holds_nobody_up(make_own_layer: LayerFactory, layer_url: str) -> None:
    """It began a statement and does not look after it; another thread's sends go on, and so does its own in the end."""
    layer = await hold(make_own_layer())
    begun, others_sent = threading.Event(), threading.Event()

    async def begin_and_block() -> None:
        sending = asyncio.create_task(layer.send("jobs", text(1)))
        await asyncio.sleep(0)
        begun.set()
        assert others_sent.wait(10)
        await sending

    blocked = asyncio.create_task(asyncio.to_thread(asyncio.run, begin_and_block()))
    await asyncio.to_thread(begun.wait)
    await layer.send("jobs", text(2))
    await asyncio.to_thread(layer.send_sync, "jobs", text(3))
    others_sent.set()
    await blocked
    assert query(layer_url, WAITING) == [(3,)]


async def test_a_caller_whose_loop_ends_holds_nobody_up(make_own_layer: LayerFactory, layer_url: str) -> None:
    """What it began is done, and the next sends are too."""
    layer = await hold(make_own_layer())

    def begin_and_end() -> None:
        loop = asyncio.new_event_loop()
        sending = loop.create_task(layer.send("jobs", text(1)))
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
        sending.get_coro().close()  # type: ignore[union-attr]
        sending._log_destroy_pending = False  # type: ignore[attr-defined]

    with locked_messages(layer_url) as locker:
        await asyncio.to_thread(begin_and_end)
        await under_way(layer, layer_url)
        behind = asyncio.create_task(layer.send("jobs", text(2)))
        locker.commit()
        await behind
    assert query(layer_url, WAITING) == [(2,)]


@pytest.mark.parametrize("size", [1, 2])
async def test_others_that_want_a_connection_get_it(make_own_layer: LayerFactory, layer_url: str, size: int) -> None:
    """However many sends follow each other: joins, reads and deletions are not kept from a pool that small."""
    layer = await hold(make_own_layer(PSYCOPG_OPTIONS={"max_size": size}))
    ends = False

    async def stream() -> int:
        count = 0
        while not ends:
            await layer.send("jobs", text(count))
            count += 1
        return count

    streams = [asyncio.create_task(stream()) for _ in range(2)]
    for number in range(20):
        joins = (layer.group_add(f"group-{number}-{place}", "member") for place in range(3))
        await asyncio.wait_for(asyncio.gather(*joins, take(layer, "jobs", 2)), 5)
    ends = True
    count = sum(await asyncio.gather(*streams)) - 40
    await take(layer, "jobs", count)
    await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, WAITING) == [(0,)]))


async def test_it_is_given_back_when_nobody_sends(make_own_layer: LayerFactory) -> None:
    """After a moment, as it came, and held again when it is needed; nothing is left open."""
    layer = make_own_layer(PSYCOPG_OPTIONS={"max_size": 1})
    sockets = set()
    for _ in range(3):
        await hold(layer)
        await layer.group_send("nobody", text(0))
        await eventually_async(lambda: given_back(layer))
        assert await ask(layer, PREPARED) == []
        sockets.add(len(os.listdir("/proc/self/fd")))
    assert len(sockets) == 1


async def test_what_was_prepared_in_vain_is_left_in_no_session(make_own_layer: LayerFactory) -> None:
    """The next attempt could not prepare it again: a session that has some of the statements is given up."""
    layer = make_own_layer(PSYCOPG_OPTIONS={"max_size": 1})
    await layer.group_send("nobody", text(0))
    fast_path(layer)._prepared = HalfPrepared()
    fast_path(layer)._slow_at = float("inf")  # as closely as may be
    await layer.group_send("nobody", text(0))
    await eventually_async(lambda: at_rest(layer))
    assert await ask(layer, PREPARED) == []


class HalfPrepared:
    """In place of the statements, one that can be prepared and one that the server does not take."""

    prepare = "PREPARE channels_pg_sa_half AS SELECT 1; DO 'BEGIN RAISE division_by_zero; END'"


async def test_a_silence_while_statements_are_prepared(proxy: SwallowingProxy, make_own_layer: LayerFactory) -> None:
    """The connection is given up before those who wait for its place are."""
    layer = make_own_layer(url=proxy.url, send_timeout=6, PSYCOPG_OPTIONS={"max_size": 1})
    await layer.send("jobs", text(1))
    fast_path(layer)._prepared = SilentlyPrepared(proxy)
    fast_path(layer)._slow_at = float("inf")  # as closely as may be
    await layer.send("jobs", text(2))
    await eventually_async(lambda: asyncio.to_thread(lambda: fast_path(layer)._prepared.has_begun))
    await layer.send("jobs", text(3))
    assert await take(layer, "jobs", 3) == [text(1), text(2), text(3)]


class SilentlyPrepared:
    """In place of the statements, one under which the network forgets the connection."""

    has_begun = False

    def __init__(self, proxy: SwallowingProxy) -> None:
        self._proxy = proxy

    @property
    def prepare(self) -> str:
        """Have it forgotten, and return what nobody will answer."""
        self._proxy.forget()
        self.has_begun = True
        return "SELECT 1"


class SlowlyPrepared:
    """In place of the statements, one that takes a while."""

    prepare = "SELECT pg_sleep(1.5)"
    deallocate = "SELECT 1"

    def learn(self, _row: Any) -> None:
        """Nothing is to be learnt of that."""


async def test_closing_while_statements_are_prepared(
    make_own_layer: LayerFactory, layer_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection is not broken off for that: the pool would warn of it."""
    layer = make_own_layer()
    await layer.send("jobs", text(1))
    fast_path(layer)._prepared = SlowlyPrepared()
    await layer.send("jobs", text(2))
    preparing = (
        f"SELECT pid FROM pg_stat_activity WHERE query = '{SlowlyPrepared.prepare}' AND datname = current_database()"
    )
    await eventually_async(lambda: asyncio.to_thread(query, layer_url, preparing))
    await layer.close()
    assert caplog.messages == []


async def test_a_role_that_may_not_read_sends_by_the_slow_path(
    make_own_layer: LayerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Its statements cannot be prepared. That is not tried again each time, and costs no connection, nor a warning."""
    layer = make_own_layer(PSYCOPG_OPTIONS={"max_size": 1})
    await layer.send("jobs", text(1))
    backend = await ask(layer, "SELECT pg_backend_pid()")
    refused = RefusedPrepared()
    fast_path(layer)._prepared = refused
    for number in range(2, 6):
        await layer.send("jobs", text(number))
        await eventually_async(lambda: at_rest(layer))
        await asyncio.sleep(0.6 * KEPT)
    assert refused.attempts == 1
    assert await ask(layer, "SELECT pg_backend_pid()") == backend
    assert await take(layer, "jobs", 5) == [text(number) for number in range(1, 6)]
    assert caplog.messages == []


class RefusedPrepared:
    """In place of the statements, some that the server refuses."""

    attempts = 0

    @property
    def prepare(self) -> str:
        """Count, and return what is refused."""
        self.attempts += 1
        return "DO 'BEGIN RAISE insufficient_privilege; END'"


async def at_rest(layer: PostgresLayer) -> bool:
    """Tell whether no connection is held, nor about to be."""
    return fast_path(layer)._task is None


async def test_closing_while_a_statement_is_under_way(make_own_layer: LayerFactory, layer_url: str) -> None:
    """It is waited for, for a while, then broken off, and the server gives it up; the caller is told what happened."""
    layer = await hold(make_own_layer(send_timeout=30))
    with locked_messages(layer_url):
        sending = asyncio.create_task(layer.send("jobs", text(1)))
        await under_way(layer, layer_url)
        await asyncio.wait_for(layer.close(), 15)
        with pytest.raises(LayerClosed):
            await sending
        await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, BLOCKED) == [(0,)]))


async def test_closing_waits_for_what_is_nearly_done(make_own_layer: LayerFactory, layer_url: str) -> None:
    """A statement that ends in time is a message sent."""
    layer = await hold(make_own_layer())
    with locked_messages(layer_url) as locker:
        sending = asyncio.create_task(layer.send("jobs", text(1)))
        await under_way(layer, layer_url)
        sends = layer._node._outbox.sends  # type: ignore[attr-defined]
        closing = asyncio.create_task(layer.close())

        async def is_closing() -> bool:
            return sends._calls.is_closed

        await eventually_async(is_closing)
        locker.commit()
        await sending
        await closing
    assert query(layer_url, WAITING) == [(1,)]


async def test_a_caller_that_is_interrupted(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the moment between: the next sends are none the worse."""
    layer = await hold(make_own_layer())
    prepared = layer._node._outbox._prepared  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(type(prepared), "send", interrupted)
        with pytest.raises(KeyboardInterrupt):
            layer.send_sync("jobs", text(1))
    await layer.send("jobs", text(2))
    assert query(layer_url, WAITING) == [(1,)]


class Interrupted:
    """A libpq connection under which a signal comes before the statement is handed over, or right after."""

    def __init__(self, connection: Any, *, sent: bool) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._sent = sent
        connection.pgconn = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pgconn, name)

    def send_query_prepared(self, *arguments: Any) -> None:
        """Be interrupted, once."""
        self._connection.pgconn = self._pgconn
        if self._sent:
            self._pgconn.send_query_prepared(*arguments)
        raise KeyboardInterrupt


class Failing(Interrupted):
    """One that fails right after it has been handed the statement: nobody knows what of it has gone out."""

    def send_query_prepared(self, *arguments: Any) -> None:
        """Fail, once."""
        self._connection.pgconn = self._pgconn
        self._pgconn.send_query_prepared(*arguments)
        raise psycopg.OperationalError("out of memory")


class Unwritable(Interrupted):
    """One that fails when the rest of a statement is to be written."""

    def flush(self) -> int:
        """Fail, once."""
        self._connection.pgconn = self._pgconn
        raise psycopg.OperationalError("could not send data to server")


async def test_a_rest_that_cannot_be_written_is_not_tried_again(make_own_layer: LayerFactory) -> None:
    """Whoever reads the answer finds out why."""
    layer = await hold(make_own_layer())
    held, loop = fast_path(layer)._held, layer._node._thread.loop  # type: ignore[attr-defined]

    async def write_rest() -> int:
        fast_path(layer)._write_rest(held)
        Unwritable(held.driver, sent=False)
        fast_path(layer)._writable(held)
        return int(loop._selector.get_key(fast_path(layer)._socket).events)

    assert await within(layer, write_rest()) == selectors.EVENT_READ


async def test_a_statement_under_which_libpq_fails(make_own_layer: LayerFactory) -> None:
    """The caller is told at once, and the next has another connection."""
    layer = await hold(make_own_layer(send_timeout=60))
    backend = fast_path(layer)._held.driver.info.backend_pid
    Failing(fast_path(layer)._held.driver, sent=True)
    with pytest.raises(SendError, match=r"may have been done.*out of memory"):
        await layer.send("jobs", text(1))
    await hold(layer)
    assert fast_path(layer)._held.driver.info.backend_pid != backend


async def test_a_statement_that_follows_and_under_which_libpq_fails(
    make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Whoever waits for both is told at once, with the result of the first."""
    layer = await hold(make_own_layer(send_timeout=60))
    statement = a_send(layer)
    ended: list[tuple[Any, int]] = []
    with locked_messages(layer_url) as locker:
        assert fast_path(layer).run([statement] * 2, lambda error, results: ended.append((error, len(results))))
        await under_way(layer, layer_url)
        Failing(fast_path(layer)._held.driver, sent=True)
        locker.commit()
        await eventually_async(lambda: asyncio.to_thread(lambda: ended))
    ((error, count),) = ended
    assert (fate(error), count) == (Fate.UNKNOWN, 1)
    await eventually_async(lambda: given_back(layer))
    await layer.send("others", text(2))


async def test_a_caller_that_is_interrupted_in_the_middle_of_a_message(
    make_own_layer: LayerFactory, layer_url: str
) -> None:
    """The I/O thread writes the rest, and the next send need not wait until it is given up."""
    layer = await hold(make_own_layer())
    Interrupted(fast_path(layer)._held.driver, sent=True)
    with pytest.raises(KeyboardInterrupt):
        layer.send_sync("jobs", {"value": "x" * 4_000_000})
    await layer.send("jobs", text(2))
    assert query(layer_url, WAITING) == [(2,)]


def interrupted(*_: object) -> None:
    """Be interrupted."""
    raise KeyboardInterrupt
