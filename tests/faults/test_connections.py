"""Connections that fall silent while they are made, looked at or given back: others are made in their place."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import pytest_asyncio
from psycopg_pool import AsyncConnectionPool

from channels_pg_sa import SendError
from channels_pg_sa.backoff import Backoff
from channels_pg_sa.connections.connection import CleanConnection
from channels_pg_sa.connections.database import Database
from channels_pg_sa.connections.held import Held
from tests.support.databases import query, run_script
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.waiting import eventually_async, let_pass

from .breaking import WAITING, FragileServer, SwallowingProxy, inside, make_role, text, url_as, within
from .test_fast_path import fast_path
from .test_sending import until_rested

if TYPE_CHECKING:
    from typing_extensions import LiteralString

Work = Callable[[Any], Awaitable[None]]


class Silence:
    """Forgets all connections that are open at a certain moment, the first time that it comes."""

    def __init__(self, proxy: SwallowingProxy) -> None:
        self._proxy = proxy
        self._has_come = False

    def fall(self) -> None:
        """Swallow what is sent over the connections of this moment; later ones work."""
        if not self._has_come:
            self._has_come = True
            self._proxy.forget()


def opened(layer: PostgresLayer) -> Database:
    """Open the layer, and return what lends its connections."""
    layer._open()  # type: ignore[attr-defined]
    lender: Database = inside(layer)._database
    return lender


@pytest.mark.parametrize("moment", ["configure", "initialize", "check", "reset"])
async def test_a_silence_while_a_connection_is_made_or_given_back(
    proxy: SwallowingProxy,
    make_own_layer: LayerFactory,
    layer_url: str,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """Of the pool's own worker, of SQLAlchemy, which asks the first what the server is, or of a project's functions."""
    silence = Silence(proxy)
    configure = Database._configure

    async def silent(connection: Any) -> None:
        silence.fall()
        await connection.execute("SELECT 1")

    async def configured(self: Database, connection: Any) -> None:
        if moment == "configure":
            silence.fall()
        await configure(self, connection)
        if moment == "initialize":
            silence.fall()

    monkeypatch.setattr(Database, "_configure", configured)
    monkeypatch.setattr("channels_pg_sa.connections.database.KEPT", 0.01)
    monkeypatch.setattr("channels_pg_sa.connections.database.SET_UP", 60)  # half of a call's time is less
    options = {"check": None, "reset": None, **({moment: silent} if moment in {"check", "reset"} else {})}
    layer = make_own_layer(url=proxy.url, send_timeout=6, PSYCOPG_OPTIONS={**options, "max_size": 1})

    async def has_gone_back() -> bool:
        database = inside(layer)._database
        return not database._kept and not database._resting

    for number in range(3):
        await layer.send("jobs", text(number))
        await eventually_async(has_gone_back)
    assert query(layer_url, WAITING) == [(3,)]


async def test_who_asks_the_first_connection_is_cancelled(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While SQLAlchemy asks it what the server is: its place in the pool is free, with versions before 2.1 as well.

    Later ones close it themselves; given back twice, it would leave the pool with one more than it may have.
    """
    silence, fallen = Silence(proxy), asyncio.Event()
    configure = Database._configure
    loop = asyncio.get_running_loop()

    async def configured(self: Database, connection: Any) -> None:
        await configure(self, connection)
        silence.fall()
        loop.call_soon_threadsafe(fallen.set)

    putconn, returned = AsyncConnectionPool.putconn, list[Any]()

    async def counted(self: AsyncConnectionPool, connection: Any) -> None:
        returned.append(connection)
        await putconn(self, connection)

    monkeypatch.setattr(Database, "_configure", configured)
    monkeypatch.setattr(AsyncConnectionPool, "putconn", counted)
    layer = make_own_layer(url=proxy.url, PSYCOPG_OPTIONS={"max_size": 1})
    layer._open()  # type: ignore[attr-defined]

    ends: list[None] = []

    async def ask() -> None:
        try:
            async with inside(layer)._database.connection(10):
                pass
        finally:
            ends.append(None)

    async def has_ended() -> bool:
        return bool(ends)

    asking = asyncio.ensure_future(within(layer, ask()))
    await fallen.wait()
    await let_pass(0.3)
    asking.cancel()
    await layer.send("jobs", text(1))
    assert query(layer_url, WAITING) == [(1,)]
    await eventually_async(has_ended)
    assert len(returned) == len(set(returned))


async def test_many_that_rest_in_the_pool_are_not_asked_in_turn(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Each would take a quarter of a call's time, and there are more."""
    layer = make_own_layer(url=proxy.url, send_timeout=4, PSYCOPG_OPTIONS={"min_size": 8, "max_size": 8})
    await layer.send("jobs", text(1))

    async def all_rest() -> bool:
        return inside(layer)._database._idle() == 8

    await eventually_async(all_rest)
    proxy.forget()
    await layer.send("jobs", text(2))
    assert query(layer_url, WAITING) == [(2,)]


async def test_a_sign_of_life_that_comes_too_late(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stood still: the answer is there, and the connection has been severed."""
    layer = make_own_layer(send_timeout=4)
    await layer.send("jobs", text(1))
    check = AsyncConnectionPool.check_connection
    stand_still = [True]

    async def late(connection: Any) -> None:
        await check(connection)
        if stand_still:
            stand_still.clear()
            time.sleep(1.1)  # noqa: ASYNC251 - it is what stands still
            await asyncio.sleep(0.01)

    monkeypatch.setattr(AsyncConnectionPool, "check_connection", staticmethod(late))

    async def doubt() -> None:
        inside(layer)._database.doubt()

    await within(layer, doubt())
    await layer.send("jobs", text(2))
    assert query(layer_url, WAITING) == [(2,)]


async def test_a_connection_that_was_quick_enough_outlasts_its_limits(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of its making, of its first sign of life and of a statement on it."""
    monkeypatch.setattr("channels_pg_sa.connections.database.KEPT", 60)
    layer = make_own_layer(send_timeout=2)
    await layer.send("jobs", text(1))
    (held,) = inside(layer)._database._kept
    await let_pass(2.2)
    assert held.is_alive()
    assert not held.doubted


async def test_a_connection_keeps_nothing_of_who_had_it(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it has gone back to the pool."""
    monkeypatch.setattr("channels_pg_sa.connections.database.KEPT", 0.01)
    layer = make_own_layer(PSYCOPG_OPTIONS={"max_size": 1})
    database = opened(layer)
    drivers = []

    async def use() -> None:
        async with database.hold() as held:
            drivers.append(held.driver)

    for _ in range(5):
        await within(layer, use())
        await until_rested(layer)
    assert len(set(drivers)) == 1
    gc.collect()
    assert [thing for thing in gc.get_objects() if type(thing) is Held and thing.driver in drivers] == []


async def test_an_outage_lasts_no_longer_than_the_server_is_away(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Whatever a project's pool would wait: after an attempt in vain it does not look again by itself."""
    layer = make_own_layer(url=proxy.url, send_timeout=25, PSYCOPG_OPTIONS={"timeout": 60, "reconnect_timeout": 0.1})
    await layer.send("jobs", text(1))
    proxy.cut()
    sending = asyncio.create_task(layer.send("jobs", text(2)))

    async def is_noticed() -> bool:
        return inside(layer)._database.trouble is not None

    await eventually_async(is_noticed)
    proxy.heal()
    await sending
    assert query(layer_url, WAITING) == [(2,)]


class OnlyConnection:
    """That of a layer whose role may have no other; who waits for it and misses it looks again after a minute or more.

    Args:
        layer: that has sent something.
    """

    def __init__(self, layer: PostgresLayer) -> None:
        self.layer = layer
        self.database = inside(layer)._database

    async def use(self) -> None:
        """Wait for it, and be done with it."""
        async with self.database.hold():
            pass

    async def is_wanted(self) -> bool:
        """Tell whether somebody waits for it."""
        return bool(self.database._offers)


@pytest_asyncio.fixture
async def only(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str, monkeypatch: pytest.MonkeyPatch
) -> OnlyConnection:
    """A server that grants one connection."""
    monkeypatch.setattr("channels_pg_sa.connections.database.Backoff", lambda: Backoff(first=100, cap=100))
    role = make_role(fragile, fragile_url, "secret", limit=1)
    url = url_as(fragile, fragile_url, role)
    layer = make_fragile(url=url, send_timeout=20, PSYCOPG_OPTIONS={"max_size": 4})
    await layer.send("jobs", text(0))
    return OnlyConnection(layer)


async def test_who_waits_for_the_only_connection_asks_it_if_it_is_in_doubt(only: OnlyConnection) -> None:
    """As soon as another is done with it, and not at the next look."""

    async def hand_on() -> None:
        async with only.database.hold():
            using = asyncio.create_task(only.use())
            await eventually_async(only.is_wanted)
            only.database.doubt()
        await asyncio.wait_for(using, 20)

    await within(only.layer, hand_on())


async def test_one_in_doubt_is_not_handed_on_unasked(only: OnlyConnection) -> None:
    """Who has waited for it does not trust it before it has shown a sign of life."""

    async def is_in_doubt() -> bool:
        async with only.database.hold() as held:
            return held.doubted

    async def hand_on() -> bool:
        async with only.database.hold():
            using = asyncio.create_task(is_in_doubt())
            await eventually_async(only.is_wanted)
            only.database.doubt()
        return await asyncio.wait_for(using, 20)

    assert not await within(only.layer, hand_on())


async def test_who_waits_for_one_that_ends_asks_the_server_for_another(only: OnlyConnection, fragile_url: str) -> None:
    """Which may grant some by now."""
    ((role,),) = query(fragile_url, "SELECT rolname FROM pg_roles WHERE rolconnlimit = 1")

    async def end_it() -> None:
        async with only.database.hold() as held:
            using = asyncio.create_task(only.use())
            await eventually_async(only.is_wanted)
            run_script(fragile_url, f'ALTER ROLE "{role}" CONNECTION LIMIT 4')
            held.driver.pgconn.finish()
        await asyncio.wait_for(using, 20)

    await within(only.layer, end_it())


async def test_who_gives_up_just_when_it_is_handed_a_connection_passes_it_on(only: OnlyConnection) -> None:
    """The server grants no other."""

    async def hand_on() -> None:
        async with only.database.hold():
            using = asyncio.create_task(only.use())
            await eventually_async(only.is_wanted)
        assert not using.done()
        using.cancel()
        await asyncio.wait([using])
        assert using.cancelled()
        await asyncio.wait_for(only.use(), 10)

    await within(only.layer, hand_on())


async def test_one_that_comes_back_while_the_server_is_asked_for_another_is_found(
    only: OnlyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At hand, and not at the next look: nobody would hand it on."""
    connect = only.database._connect
    refused, is_back = asyncio.Event(), asyncio.Event()

    async def slowly() -> Any:
        held = await connect()
        refused.set()
        await is_back.wait()
        return held

    async def give_back() -> None:
        async with only.database.hold():
            using = asyncio.create_task(only.use())
            await refused.wait()
        is_back.set()
        await asyncio.wait_for(using, 20)

    monkeypatch.setattr(only.database, "_connect", slowly)
    await within(only.layer, give_back())


async def test_the_only_connection_is_not_held_for_sends_while_somebody_waits_for_it(only: OnlyConnection) -> None:
    """Though the pool could have more."""
    holder = fast_path(only.layer)

    async def note_calls() -> bool:
        async with only.database.hold():
            using = asyncio.create_task(only.use())
            await eventually_async(only.is_wanted)
            holder._not_before, holder._slow_at = float("-inf"), float("inf")  # as closely as may be
            holder.note_calls([])
            is_held = holder._task is not None
        await asyncio.wait_for(using, 20)
        return is_held

    assert not await within(only.layer, note_calls())


async def test_the_only_connection_is_not_handed_on_once_it_is_broken_off(
    only: OnlyConnection, fragile_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is when the server does not prepare all that is sent over it: who has waited for it makes another."""
    monkeypatch.setattr("channels_pg_sa.connections.database.Backoff", lambda: Backoff(first=2, cap=2))
    only.database.check_timeout = 20
    holder = fast_path(only.layer)
    holder._prepared = LateRefused()

    async def use() -> None:
        async with only.database.hold() as held:
            await held.driver.execute("SELECT 1")

    async def hold_and_use() -> None:
        holder._not_before, holder._slow_at = float("-inf"), float("inf")  # as closely as may be
        holder.note_calls([])
        await asyncio.sleep(0)  # it begins before the other
        using = asyncio.create_task(use())
        await eventually_async(only.is_wanted)
        other.execute("SELECT pg_advisory_unlock_all()")
        await asyncio.wait_for(using, 20)

    with psycopg.connect(fragile_url, autocommit=True, application_name="tests") as other:
        other.execute("SELECT pg_advisory_lock(1)")
        await within(only.layer, hold_and_use())


class LateRefused:
    """In place of the statements that are prepared, some that the server refuses when a lock is free."""

    prepare = "SELECT pg_advisory_lock(1); DO 'BEGIN RAISE division_by_zero; END'"


async def test_a_connection_that_only_reads_is_kept_for_nobody(make_own_layer: LayerFactory) -> None:
    """Whatever met that on it: it leads to a server that has become a standby."""
    layer = make_own_layer(PSYCOPG_OPTIONS={"max_size": 1})
    database = opened(layer)

    async def write(*first: LiteralString) -> None:
        async with database.hold() as held:
            for statement in (*first, "DELETE FROM channels_pg_sa_message"):
                await held.driver.execute(statement)

    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        await within(layer, write("SET default_transaction_read_only = on"))
    await within(layer, write())


@pytest.mark.parametrize("doubted", [False, True])
async def test_a_warning_of_the_server_puts_no_connection_in_doubt(make_own_layer: LayerFactory, doubted: bool) -> None:
    """Only that it ends the session does; nor does a warning take a doubt away."""
    layer = make_own_layer()
    database = opened(layer)

    async def be_warned() -> bool:
        async with database.hold() as held:
            held.doubted = doubted
            heard = list[str | None]()
            held.driver.add_notice_handler(lambda notice: heard.append(notice.severity_nonlocalized))
            await held.driver.execute("DO 'BEGIN RAISE WARNING $$mind the gap$$; END'")
            assert heard == ["WARNING"]
            return held.doubted

    assert await within(layer, be_warned()) is doubted


async def test_what_a_child_lets_go_of_leaves_no_number_to_others(layer_url: str) -> None:
    """Who still knows the parent's sockets by their numbers, and closes them, closes nothing else."""
    connection = await CleanConnection.connect(layer_url)
    nothing, end = os.pipe()
    with connection.twin() as twin:
        numbers = {twin, connection.fileno()}
        connection._let_go(nothing)
        assert {os.fstat(number).st_ino for number in numbers} == {os.fstat(nothing).st_ino}
    await connection.close()
    os.close(nothing)
    os.close(end)


async def test_a_connection_that_is_still_lent_when_all_are_closed_is_broken_off(make_own_layer: LayerFactory) -> None:
    """Whoever waits for an answer over it is told."""
    layer = make_own_layer()
    database = opened(layer)

    async def outlast() -> None:
        async with database.hold() as held:
            answer = asyncio.ensure_future(held.driver.execute("SELECT pg_sleep(60)"))
            await database.close(patience=0.1)
            await asyncio.wait_for(answer, 20)

    with pytest.raises(psycopg.OperationalError):
        await within(layer, outlast())


async def test_a_connection_that_comes_back_when_all_are_closed_is_closed(make_own_layer: LayerFactory) -> None:
    """At once: nobody has it at hand any more."""
    layer = make_own_layer()
    database = opened(layer)

    async def outlast() -> bool:
        async with database.hold() as held:
            await database.close(patience=0.1)
        return held.driver.closed

    assert await within(layer, outlast())


async def test_a_project_s_function_that_refuses_connections_is_the_reason(make_own_layer: LayerFactory) -> None:
    """As long as it does."""
    is_refusing = True

    async def configure(_connection: Any) -> None:
        if is_refusing:
            raise ValueError("not today")

    layer = make_own_layer(send_timeout=4, PSYCOPG_OPTIONS={"configure": configure})
    with pytest.raises(SendError, match="not today"):
        await layer.send("jobs", text(1))
    is_refusing = False
    await eventually_async(lambda: sent(layer))
    assert opened(layer).trouble is None


async def sent(layer: PostgresLayer) -> bool:
    """Send; tell whether that was possible."""
    with suppress(SendError):
        await layer.send("jobs", text(2))
        return True
    return False


async def test_a_server_that_grants_no_more_connections_is_not_away(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one is lent, or at hand: whoever closes the layer then waits for what is still to be done."""
    monkeypatch.setattr("channels_pg_sa.connections.database.KEPT", 60)
    layer = make_own_layer(PSYCOPG_OPTIONS={"max_size": 1})
    await layer.group_send("nobody", text(0))
    database = inside(layer)._database

    async def look() -> list[bool]:
        seen = []
        async with database.hold():
            database.trouble = "too many connections"
            seen.append(database.is_away)
        return [*seen, database.is_away]

    assert await within(layer, look()) == [False, False]


async def test_what_the_pool_makes_for_nobody_is_no_trouble(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be refused one more, for later, after all who wanted one have it: then the server is not away."""
    role = make_role(fragile, fragile_url, "secret", limit=1)
    options = {"min_size": 2, "reconnect_timeout": 1}
    layer = make_fragile(url=url_as(fragile, fragile_url, role), PSYCOPG_OPTIONS=options)
    await layer.send("jobs", text(1))
    await eventually_async(lambda: asyncio.to_thread(lambda: "reconnection attempt" in caplog.text))
    await until_rested(layer)
    assert opened(layer).trouble is None  # which would be the reason of whatever fails
    assert not opened(layer).is_away  # for which who closes the layer has less time


async def test_a_server_that_lets_in_again_but_is_silent_refuses_nobody(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What prevented the connections before it did is no reason any more."""
    layer = make_own_layer(url=proxy.url, send_timeout=8)
    configure = Database._configure

    async def silent(database: Database, connection: Any) -> None:
        proxy.forget()
        await configure(database, connection)

    monkeypatch.setattr(Database, "_configure", silent)
    proxy.cut()
    sending = asyncio.create_task(layer.send("jobs", text(1)))
    await eventually_async(lambda: asyncio.to_thread(lambda: "refused" in str(opened(layer).trouble)))
    proxy.heal()
    with pytest.raises(SendError, match="the database does not answer"):
        await sending
