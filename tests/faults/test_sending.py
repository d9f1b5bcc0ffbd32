"""Sending while the database is away, locked or cut: what is said of a message is true, and nothing is sent twice."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import capabilities, sql
from psycopg_pool import AsyncConnectionPool

from channels_pg_sa import LayerClosed, PrivilegeError, SendError, node
from channels_pg_sa.backoff import Backoff
from channels_pg_sa.connections.database import KEPT, Database
from tests.support.databases import AWAITED, TestServer, query
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.proxy import Proxy
from tests.support.urls import with_parameters
from tests.support.waiting import eventually, eventually_async

from .breaking import (
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
)

OWN = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'channels_pg_sa' AND datname = current_database()"
CALLED_FOR = """SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND query ~* 'insert|with emptied'"""
"""Counts the sends and flushes that wait for a lock; the node's own statements wait for it as well."""
HANGING = f"{AWAITED} AND locktype = 'advisory'"

Verb = Callable[[PostgresLayer], Any]

VERBS: dict[str, Verb] = {
    "send": lambda layer: layer.send("jobs", text(1)),
    "group_send": lambda layer: layer.group_send("group", text(1)),
    "group_add": lambda layer: layer.group_add("group", "jobs"),
    "group_discard": lambda layer: layer.group_discard("group", "jobs"),
    "flush": lambda layer: layer.flush(),
    "send_sync": lambda layer: asyncio.to_thread(layer.send_sync, "jobs", text(1)),
    "group_send_sync": lambda layer: asyncio.to_thread(layer.group_send_sync, "group", text(1)),
    "group_add_sync": lambda layer: asyncio.to_thread(layer.group_add_sync, "group", "jobs"),
    "group_discard_sync": lambda layer: asyncio.to_thread(layer.group_discard_sync, "group", "jobs"),
    "flush_sync": lambda layer: asyncio.to_thread(layer.flush_sync),
}


async def until_rested(layer: PostgresLayer) -> None:
    """Wait until the layer's connections are in its pool."""
    database = inside(layer)._database

    async def look() -> bool:
        return not database._kept and not database._lent and not database._resting and bool(database._pool._pool)

    await eventually_async(look)


async def test_certainly_not_sent(proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str) -> None:
    """No connection could be had: after send_timeout, and no sooner, an error that is sure, with the reason in it."""
    layer = make_own_layer(url=proxy.url, send_timeout=2)
    proxy.cut()
    started = time.monotonic()
    results = await asyncio.gather(*(verb(layer) for verb in VERBS.values()), return_exceptions=True)
    assert time.monotonic() - started >= 2
    for name, error in zip(VERBS, results, strict=True):
        assert isinstance(error, SendError), name
        assert not error.maybe_sent, name
        assert error.waited >= 2, name
        assert "Nothing was done" in str(error), name
        assert "refused" in str(error), name
    proxy.heal()
    await layer.send("other", text(2))
    assert query(layer_url, WAITING) == [(1,)]


async def test_the_reason_is_known_from_the_first_attempt(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool's own attempt tells it: nobody need ask the server once more, which may take as long as the call has."""

    async def ask_in_vain(_database: Database) -> bool:
        return await asyncio.Future()

    monkeypatch.setattr(Database, "_can_connect", ask_in_vain)
    layer = make_own_layer(url=proxy.url, send_timeout=4)
    proxy.cut()
    with pytest.raises(SendError, match="refused"):
        await layer.send("jobs", text(1))


async def test_a_send_waits_for_the_database(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Calls that come while it is away are done when it is back, in their order, once."""
    layer = make_own_layer(url=proxy.url)
    await layer.send("jobs", text(0))
    proxy.cut()
    threads = [threading.Thread(target=layer.send_sync, args=("sync", text(0)))]
    for thread in threads:
        thread.start()
    sends = asyncio.gather(*(layer.send("jobs", text(number)) for number in range(1, 200)))
    done, _ = await asyncio.wait([sends], timeout=0.5)
    assert not done
    proxy.heal()
    await sends
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert query(layer_url, WAITING) == [(201,)]
    assert [message["number"] for message in await take(layer, "jobs", 200)] == list(range(200))


class LastWords(Proxy):
    """A proxy that passes a server's last words on together, and hangs up only when the client says one thing more."""

    gathers = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await self._connect_or_hang_up()
        self._writers |= {writer, server_writer}
        self._start(self._tell(server_reader, writer))
        while (data := await reader.read(65_536)) and not server_reader.at_eof():
            server_writer.write(data)
        self._end(server_writer)
        self._end(writer)

    async def _tell(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        gathered = b""
        while data := await source.read(65_536):
            gathered += data
            if not self.gathers:
                sink.write(gathered)
                gathered = b""
        sink.write(gathered)


async def test_a_connection_whose_end_was_told_is_not_used(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Told together with the answer before, it is no answer to a statement; the end itself may come later."""
    with LastWords(layer_url) as proxy:
        layer = make_own_layer(url=proxy.url)
        await layer.send("jobs", text(1))
        (held,) = inside(layer)._database._kept
        proxy.gathers = True
        sending = asyncio.ensure_future(layer.send("jobs", text(2)))
        await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, WAITING) == [(2,)]))
        query(layer_url, "SELECT pg_terminate_backend(%s)", [held.driver.info.backend_pid])
        await sending
        proxy.gathers = False
        await layer.send("jobs", text(3))
        assert query(layer_url, WAITING) == [(3,)]
        await layer.close()


@pytest.mark.parametrize("kind", ["send", "group_send", "send_sync"])
async def test_perhaps_sent(proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str, kind: str) -> None:
    """The connection is lost under the statement: an error at once that says so, and the layer does not try again."""
    layer = make_own_layer(url=proxy.url, PSYCOPG_OPTIONS={"max_size": 1})
    await layer.group_add("group", "jobs")
    await VERBS[kind](layer)  # which prepares the statement, on the one connection: that would wait for the lock too
    await until_rested(layer)
    with locked_messages(layer_url) as locker:
        sending = asyncio.ensure_future(VERBS[kind](layer))
        await until_blocked(layer_url)
        proxy.drop()
        with pytest.raises(SendError, match="may have been done") as caught:
            await sending
        assert caught.value.maybe_sent
        locker.commit()
    # Here the server had the whole statement, and did it. Nobody did it again.
    await layer.send("other", text(2))
    eventually(lambda: query(layer_url, WAITING) == [(3,)])
    assert await take(layer, "jobs", 2) == [text(1)] * 2


async def test_perhaps_sent_after_a_silence(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """The network stalls under the statement: after send_timeout the error says that it may have been sent."""
    layer = make_own_layer(url=proxy.url, send_timeout=3, PSYCOPG_OPTIONS={"max_size": 1})
    await layer.send("jobs", text(0))  # which prepares the statement, on the one connection
    await until_rested(layer)
    with locked_messages(layer_url) as locker:
        sending = asyncio.create_task(layer.send("jobs", text(1)))
        await until_blocked(layer_url)
        proxy.stall()
        with pytest.raises(SendError) as caught:
            await sending
        assert caught.value.maybe_sent
        assert caught.value.waited >= 3
        locker.commit()
    # Before the proxy passes on that it was given up.
    await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, WAITING) == [(2,)]))
    proxy.heal()

    async def sent() -> bool:
        try:
            await layer.send("jobs", text(2))
        except SendError:
            return False
        return True

    await eventually_async(sent)
    assert [message["number"] for message in await take(layer, "jobs", 3)] == [0, 1, 2]


async def test_a_statement_that_the_server_ended_is_done_again(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str
) -> None:
    """pg_terminate_backend under the statement: the server said that it did not do it, so the caller need not know."""
    layer = make_own_layer()
    await layer.send("jobs", text(0))
    with locked_messages(layer_url) as locker:
        sends = [asyncio.create_task(layer.send("jobs", text(number))) for number in range(1, 20)]
        await until_blocked(layer_url)
        server.terminate(server.connections(layer_url))
        await until_blocked(layer_url)
        locker.commit()
        await asyncio.gather(*sends)
    assert [message["number"] for message in await take(layer, "jobs", 20)] == list(range(20))


async def test_a_deadlock_is_not_the_callers_business(make_own_layer: LayerFactory, layer_url: str) -> None:
    """The server cancels a statement to resolve a deadlock or a conflict: it is tried again."""
    query(
        layer_url,
        """CREATE SEQUENCE attempts; CREATE FUNCTION fail_twice() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            IF nextval('attempts') < 3 THEN
                RAISE EXCEPTION USING ERRCODE = CASE currval('attempts') WHEN 1 THEN '40P01' ELSE '40001' END;
            END IF;
            RETURN NULL;
        END $body$;
        CREATE TRIGGER fails BEFORE INSERT ON channels_pg_sa_message EXECUTE FUNCTION fail_twice()""",
    )
    layer = make_own_layer()
    await layer.send("jobs", text(1))
    assert query(layer_url, "SELECT last_value FROM attempts") == [(3,)]
    assert query(layer_url, WAITING) == [(1,)]


async def test_what_a_server_says_that_only_reads(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby did not send. There might be another server in time; if not, its word is in the error."""
    monkeypatch.setattr(Backoff, "next", lambda _: 1.2)  # so that no attempt is under way at the deadline
    read_only = with_parameters(layer_url, options="-c default_transaction_read_only=on")
    layer = make_own_layer(url=read_only, send_timeout=2)
    with pytest.raises(SendError, match="read-only") as caught:
        await layer.send("jobs", text(1))
    assert not caught.value.maybe_sent
    assert query(layer_url, WAITING) == [(0,)]


@pytest.mark.parametrize("break_it", ["terminate", "drop", "forget"])
async def test_connections_that_died_while_idle(
    proxy: SwallowingProxy,
    make_own_layer: LayerFactory,
    server: TestServer,
    layer_url: str,
    break_it: str,
) -> None:
    """Peer defects 11, 25: after one dropped connection every later call failed; here the caller does not notice."""
    layer = make_own_layer(url=proxy.url, send_timeout=4)
    for number in range(2):
        # Two at once, so that the pool has two connections.
        await asyncio.gather(layer.send("jobs", text(number)), layer.group_add("group", "members"))
        await until_rested(layer)
        if break_it == "terminate":
            server.terminate(server.connections(layer_url))
        else:
            getattr(proxy, break_it)()
    await asyncio.gather(layer.send("jobs", text(2)), layer.group_send("group", text(3)))
    await asyncio.to_thread(layer.send_sync, "jobs", text(4))
    assert query(layer_url, WAITING) == [(5,)]


async def test_a_connection_that_nobody_waits_for_any_more_is_given_back(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer is closed while it asks a new one for a sign of life: not even the garbage collector has to come by."""
    asked = threading.Event()

    async def ask(_: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    layer = make_own_layer()
    gc.disable()
    try:
        monkeypatch.setattr(AsyncConnectionPool, "check_connection", ask)
        monkeypatch.setattr(node, "CLOSING", 0.5)
        sending = asyncio.create_task(layer.send("jobs", text(1)))
        await asyncio.to_thread(asked.wait)
        await layer.close()
        with pytest.raises(LayerClosed):
            await sending
        await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, OWN) == [(0,)]))
    finally:
        gc.enable()


async def test_a_call_cancelled_while_it_waits_is_not_sent(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Who gives up before the database is back has sent nothing; the others' messages go."""
    layer = make_own_layer(url=proxy.url)
    await layer.send("jobs", text(0))
    proxy.cut()
    sends = [asyncio.create_task(layer.send("jobs", text(number))) for number in range(1, 9)]
    await asyncio.wait(sends, timeout=0.2)
    for sending in sends[::2]:
        sending.cancel()
    await asyncio.gather(*sends[::2], return_exceptions=True)
    assert all(sending.cancelled() for sending in sends[::2])
    proxy.heal()
    await asyncio.gather(*sends[1::2])
    assert query(layer_url, WAITING) == [(5,)]
    assert [message["number"] for message in await take(layer, "jobs", 5)] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("config", [{}, {"capacity": 10}], ids=["unbounded", "capacity"])
async def test_a_call_cancelled_while_its_batch_gathers_is_not_sent(
    make_own_layer: LayerFactory, layer_url: str, config: dict[str, int]
) -> None:
    """The rest of the batch is, whichever statement does it."""
    layer = make_own_layer(**config)
    await layer.send("others", text(0))

    async def two_wait() -> bool:
        return len(layer._node._outbox.sends) == 2  # type: ignore[attr-defined]

    with locked_messages(layer_url):
        first = asyncio.create_task(layer.send("first", text(1)))
        await until_blocked(layer_url)
        second, third = (asyncio.create_task(layer.send(name, text(2))) for name in ("second", "third"))
        await eventually_async(two_wait)
        second.cancel()
        await asyncio.wait([second])
    await asyncio.gather(first, third)
    found = query(layer_url, "SELECT channel FROM channels_pg_sa_message ORDER BY id")
    assert found == [("others",), ("first",), ("third",)]


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_a_call_too_many_is_refused_at_once(make_own_layer: LayerFactory, verb: Verb) -> None:
    """Where too many wait already; certainly nothing was done."""
    layer = make_own_layer()
    await warm(layer)
    outbox = layer._node._outbox  # type: ignore[attr-defined]
    for lane in (outbox.sends, outbox.memberships.others, outbox.flushes):
        lane._calls._limit = 0
    with pytest.raises(SendError, match="0 calls wait already") as caught:
        await verb(layer)
    assert not caught.value.maybe_sent


async def test_large_messages_do_not_all_go_together(make_own_layer: LayerFactory, layer_url: str) -> None:
    """A batch ends where it has enough bytes: both sides hold it in memory as a whole."""
    query(
        layer_url,
        """CREATE TABLE batches (number serial, rows bigint); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql
            AS $body$
        BEGIN
            INSERT INTO batches (rows) SELECT count(*) FROM sent;
            RETURN NULL;
        END $body$;
        CREATE TRIGGER notes AFTER INSERT ON channels_pg_sa_message REFERENCING NEW TABLE AS sent
            FOR EACH STATEMENT EXECUTE FUNCTION note()""",
    )
    layer = make_own_layer()
    large = {**text(1), "text": "x" * 3_000_000}

    async def all_wait() -> bool:
        return len(layer._node._outbox.sends) == 5  # type: ignore[attr-defined]

    with locked_messages(layer_url):
        sends = [asyncio.create_task(layer.send("jobs", text(0)))]
        await until_blocked(layer_url)
        sends += [asyncio.create_task(layer.send("jobs", large)) for _ in range(5)]
        await eventually_async(all_wait)
    await asyncio.gather(*sends)
    assert query(layer_url, "SELECT rows FROM batches ORDER BY number") == [(1,), (2,), (2,), (1,)]


async def test_the_reason_is_told_and_no_password(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong password: the error and the log say what the server says, and never the password."""
    role = make_role(fragile, fragile_url, "Right-Word")
    wrong = url_as(fragile, fragile_url, role, "Secret-Word")
    layer = make_fragile(url=wrong, send_timeout=3, heartbeat=1, lease=4)
    reader = asyncio.create_task(layer.receive("jobs"))
    with pytest.raises(SendError, match="password authentication failed") as caught:
        await layer.send("jobs", text(1))
    reader.cancel()
    assert not caught.value.maybe_sent
    assert "password authentication failed" in caplog.text
    for told in (str(caught.value), repr(caught.value), caplog.text, repr(layer)):
        assert not re.search("(?i)secret-word", told)


async def test_jobs_are_found_whose_claim_was_given_up(
    make_own_layer: LayerFactory, layer_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that the server finishes long after this process gave it up takes its jobs to nobody: they are found."""
    monkeypatch.setattr(capabilities, "has_cancel_safe", lambda: False)  # so with an older libpq
    query(
        layer_url,
        """CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            PERFORM pg_advisory_xact_lock(7);
            RETURN NEW;
        END $body$;
        CREATE TRIGGER hangs BEFORE UPDATE ON channels_pg_sa_message FOR EACH ROW EXECUTE FUNCTION hang()""",
    )
    sender, worker = make_own_layer(), make_own_layer(send_timeout=2, heartbeat=1, lease=20)
    await warm(worker)
    with psycopg.connect(layer_url, autocommit=True, application_name="tests") as locker:
        locker.execute("SELECT pg_advisory_lock(7)")
        reader = asyncio.create_task(take(worker, "jobs", 3))
        await sender.send("jobs", text(0))

        async def given_up() -> bool:
            return query(layer_url, HANGING) == [(1,)] and "claims" in caplog.text and "mailbox" not in caplog.text

        with caplog.at_level(logging.INFO, "channels_pg_sa"):
            await eventually_async(given_up)
        # It was made again in vain, because its row is locked, and the mailbox was read in vain.
        await sender.send("jobs", text(1))
        await sender.send("jobs", text(2))
        locker.execute("SELECT pg_advisory_unlock(7)")
        assert sorted(message["number"] for message in await reader) == [0, 1, 2]


@pytest.mark.parametrize("verb", ["send", "group_send", "flush", "send_sync"])
async def test_a_long_lock_piles_up_no_sessions(make_own_layer: LayerFactory, layer_url: str, verb: str) -> None:
    """What is given up here is given up by the server too, which would not notice while it waits for the lock."""
    layer = make_own_layer()
    await warm(layer)
    with locked_messages(layer_url), impatient(layer, 0.3):
        for _ in range(6):
            with pytest.raises(SendError):
                await VERBS[verb](layer)
        # While the table is locked: a flush that still waited would, once it is not, take what is sent below.
        await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, CALLED_FOR) == [(0,)]))
        await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, OWN) <= [(2,)]))
    await layer.send("others", text(2))
    assert await take(layer, "others", 1) == [text(2)]
    assert query(layer_url, "SELECT count(*) FROM channels_pg_sa_message WHERE channel = 'jobs'") == [(0,)]


async def test_a_role_that_may_not_is_told_so(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str
) -> None:
    """Rights that are missing are no outage: the server's word comes at once."""
    role = make_role(fragile, fragile_url, "secret")
    with psycopg.connect(fragile_url, autocommit=True) as connection:
        connection.execute(sql.SQL("REVOKE INSERT ON channels_pg_sa_message FROM {}").format(sql.Identifier(role)))
    url = url_as(fragile, fragile_url, role)
    layer = make_fragile(url=url)
    with pytest.raises(SendError, match=r"permission denied.*GRANT") as caught:
        await layer.send("jobs", text(1))
    assert not caught.value.maybe_sent


async def test_a_role_that_may_not_receive_is_told_so(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str
) -> None:
    """Readers and members hear at once which right their role lacks, and are served when it has it."""
    role = make_role(fragile, fragile_url, "secret")
    url = url_as(fragile, fragile_url, role)
    layer = make_fragile(url=url)
    channel = await layer.new_channel()
    with psycopg.connect(fragile_url, autocommit=True) as connection:
        of_role = sql.SQL("SELECT ON channels_pg_sa_installation {} {}")
        connection.execute(sql.SQL("REVOKE ") + of_role.format(sql.SQL("FROM"), sql.Identifier(role)))
        for attempt in (layer.receive(channel), layer.group_add("group", channel), layer.flush()):
            with pytest.raises(PrivilegeError, match=r"channels_pg_sa_installation.*GRANT"):
                await asyncio.wait_for(attempt, 5)
        connection.execute(sql.SQL("GRANT ") + of_role.format(sql.SQL("TO"), sql.Identifier(role)))

    async def joins() -> bool:
        with contextlib.suppress(PrivilegeError):
            await layer.group_add("group", channel)
            return True
        return False

    await eventually_async(joins)
    await layer.group_send("group", text(1))
    assert await take(layer, channel, 1) == [text(1)]


async def test_readers_are_told_what_is_wrong_now(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str
) -> None:
    """Of two things that are wrong one is mended, and the other remains; then the server lets nobody in."""
    role = make_role(fragile, fragile_url, "secret")
    layer = make_fragile(url=url_as(fragile, fragile_url, role))
    revoke, grant = ("REVOKE SELECT ON {} FROM {}", "GRANT SELECT ON {} TO {}")
    tables = [sql.Identifier(f"channels_pg_sa_{name}") for name in ("installation", "membership")]
    with psycopg.connect(fragile_url, autocommit=True) as connection:
        for table in tables:
            connection.execute(sql.SQL(revoke).format(table, sql.Identifier(role)))
        with pytest.raises(PrivilegeError, match="channels_pg_sa_installation"):
            await asyncio.wait_for(layer.receive("jobs"), 5)
        connection.execute(sql.SQL(grant).format(tables[0], sql.Identifier(role)))

        async def names_the_other() -> bool:
            with pytest.raises(PrivilegeError) as caught:
                await asyncio.wait_for(layer.receive("jobs"), 5)
            return "channels_pg_sa_membership" in str(caught.value)

        await eventually_async(names_the_other)
        connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(role)))

        async def waits() -> bool:
            try:
                await asyncio.wait_for(layer.receive("jobs"), 0.5)
            except asyncio.TimeoutError:
                return True
            except PrivilegeError:
                return False
            raise AssertionError

        await eventually_async(waits)


async def test_a_role_that_may_insert_and_not_read_sends_by_the_slow_path(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str
) -> None:
    """The fast path wants to read what it notifies of. It is tried once, and not with each send."""
    role = make_role(fragile, fragile_url, "secret")
    with psycopg.connect(fragile_url, autocommit=True) as connection:
        connection.execute(sql.SQL("REVOKE SELECT ON channels_pg_sa_message FROM {}").format(sql.Identifier(role)))
    url = url_as(fragile, fragile_url, role)
    layer = make_fragile(url=url)
    await layer.send("jobs", text(0))
    fast_path = layer._node._outbox._fast_path  # type: ignore[attr-defined]
    number = 1
    while fast_path._not_before < time.monotonic() + KEPT:
        await layer.send("jobs", text(number))
        number += 1
        assert number < 1000
    assert query(fragile_url, WAITING) == [(number,)]


async def test_a_right_that_is_missing_behind_the_scenes_is_told_as_an_error(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What no caller waits for, here a deletion, tells the log, and is made up for when the role has the right."""
    role = make_role(fragile, fragile_url, "secret")
    url = url_as(fragile, fragile_url, role)
    layer = make_fragile(url=url)
    channel = await layer.new_channel()
    with psycopg.connect(fragile_url, autocommit=True) as connection:
        of_role = sql.SQL("DELETE ON channels_pg_sa_message {} {}")
        connection.execute(sql.SQL("REVOKE ") + of_role.format(sql.SQL("FROM"), sql.Identifier(role)))
        await layer.send(channel, text(1))
        assert await take(layer, channel, 1) == [text(1)]
        eventually(lambda: "permission denied for table channels_pg_sa_message" in caplog.text)
        await asyncio.sleep(0.5)  # in which it is tried several times more
        (told,) = (record for record in caplog.records if record.name == "channels_pg_sa.receiving.backlog")
        assert told.levelno == logging.ERROR
        connection.execute(sql.SQL("GRANT ") + of_role.format(sql.SQL("TO"), sql.Identifier(role)))
        eventually(lambda: query(fragile_url, WAITING) == [(0,)])


async def test_closing_waits_for_no_server_that_is_gone(proxy: SwallowingProxy, make_own_layer: LayerFactory) -> None:
    """A process that only sends, too, ends soon: with the send that waits, which is told."""
    layer = make_own_layer(url=proxy.url, send_timeout=60)
    proxy.cut()
    sending = asyncio.create_task(layer.send("jobs", text(1)))

    async def waits() -> bool:
        return layer._node is not None and layer._node._database.trouble is not None

    await eventually_async(waits)
    started = time.monotonic()
    await layer.close()
    assert time.monotonic() - started < 4
    with pytest.raises(LayerClosed):
        await sending


async def test_closing_does_what_waits_where_connections_are_few(
    make_fragile: LayerFactory, fragile: FragileServer, fragile_url: str
) -> None:
    """A server that has no second connection to give, but works with one, is not gone."""
    role = make_role(fragile, fragile_url, "secret", limit=1)
    url = url_as(fragile, fragile_url, role)
    layer = make_fragile(url=url, confirm_sends=False)
    await layer.send("jobs", text(0))
    database = layer._node._database  # type: ignore[attr-defined]
    with locked_messages(fragile_url):
        await layer.send("jobs", text(1))  # keeps the only connection
        joining = asyncio.create_task(layer.group_add("group", "jobs"))
        await eventually_async(lambda: asyncio.to_thread(lambda: database.trouble is not None))
    await joining
    with locked_messages(fragile_url) as locker:
        for number in range(2, 12):
            await layer.send("jobs", text(number))
        closing = asyncio.create_task(layer.close())
        await asyncio.sleep(1.5)
        locker.commit()
        await closing
    assert query(fragile_url, WAITING) == [(12,)]


async def test_why_a_member_waits_is_told(proxy: SwallowingProxy, make_own_layer: LayerFactory) -> None:
    """A join waits for the listener: the error has the reason that the listener met."""
    layer = make_own_layer(send_timeout=1, listen_url=proxy.url)
    proxy.cut()
    channel = await layer.new_channel()
    with pytest.raises(SendError, match=r'"listen_url": .*refused'):
        await layer.group_add("group", channel)


# Sends that nobody confirms -----------------------------------------------------------------------

TRUSTING: dict[str, Verb] = {
    "send": lambda layer: layer.send("jobs", text(1)),
    "group_send": lambda layer: layer.group_send("group", text(1)),
    "send_sync": lambda layer: asyncio.to_thread(layer.send_sync, "jobs", text(1)),
    "group_send_sync": lambda layer: asyncio.to_thread(layer.group_send_sync, "group", text(1)),
}


@pytest.mark.parametrize("verb", TRUSTING.values(), ids=TRUSTING)
async def test_an_unconfirmed_send_returns_before_its_commit(
    make_own_layer: LayerFactory, layer_url: str, verb: Verb
) -> None:
    """And its message comes all the same."""
    layer = make_own_layer(confirm_sends=False)
    await layer.group_add("group", "jobs")
    with locked_messages(layer_url) as locker:
        await verb(layer)
        await until_blocked(layer_url)
        locker.commit()
    assert await take(layer, "jobs", 1) == [text(1)]


@pytest.mark.parametrize("verb", TRUSTING.values(), ids=TRUSTING)
async def test_an_unconfirmed_send_that_fails_is_counted_and_logged(
    make_own_layer: LayerFactory, layer_url: str, caplog: pytest.LogCaptureFixture, verb: Verb
) -> None:
    """Nobody else would hear of it."""
    layer = make_own_layer(confirm_sends=False, send_timeout=0.3)
    with locked_messages(layer_url):
        await verb(layer)
        told = r"Messages dropped: 1 to (jobs|group 'group'), which could not be sent: "
        await asyncio.to_thread(eventually, lambda: re.search(told, caplog.text))  # counted first, told then
    assert layer.counters["unsent"] == 1


async def test_an_unconfirmed_send_to_a_full_channel_is_counted(make_own_layer: LayerFactory) -> None:
    """It cannot raise ChannelFull any more."""
    layer = make_own_layer(confirm_sends=False, capacity=2)
    for number in range(3):
        await layer.send("jobs", text(number))
    await asyncio.to_thread(eventually, lambda: layer.counters["over_capacity"] == 1)
    assert await take(layer, "jobs", 2) == [text(0), text(1)]


async def test_unconfirmed_sends_wait_when_too_many_do(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So memory is bounded, and who sends faster than the database can take is slowed down."""
    monkeypatch.setattr(node, "MOST_UNCONFIRMED", 10)
    layer = make_own_layer(confirm_sends=False)

    async def flood() -> None:
        for number in range(100):
            await layer.send("jobs", text(number))

    with locked_messages(layer_url) as locker:
        flooding = asyncio.create_task(flood())
        await until_blocked(layer_url)
        waiting = len(layer._node._outbox.sends)  # type: ignore[attr-defined]
        assert waiting <= 11
        assert not flooding.done()
        locker.commit()
    await flooding
    assert await take(layer, "jobs", 100) == [text(number) for number in range(100)]


async def test_a_large_message_is_confirmed_all_the_same(make_own_layer: LayerFactory, layer_url: str) -> None:
    """A thousand of them would fill the memory; and one that is not quite so large is not."""
    layer = make_own_layer(confirm_sends=False)
    small = node.LARGEST_UNCONFIRMED - len(layer._codec.encode({"text": "x" * 1_000}))  # type: ignore[attr-defined]
    with locked_messages(layer_url) as locker:
        await layer.send("jobs", {"text": "x" * (small + 1_000)})
        sending = asyncio.create_task(layer.send("jobs", {"text": "x" * (small + 1_001)}))
        await until_blocked(layer_url)
        assert not sending.done()
        locker.commit()
    await sending


async def test_unconfirmed_sends_are_done_before_the_layer_closes(make_own_layer: LayerFactory) -> None:
    """close() finishes what was begun."""
    layer, reader = make_own_layer(confirm_sends=False), make_own_layer()
    for number in range(500):
        await layer.send("jobs", text(number))
    await layer.close()
    assert await take(reader, "jobs", 500) == [text(number) for number in range(500)]


async def test_what_is_done_does_not_wait_for_what_was_asked_for_with_it(
    make_own_layer: LayerFactory, layer_url: str
) -> None:
    """In a layer with capacities sends to channels and to groups are statements of their own, as lookups always are."""
    layer = make_own_layer(capacity=1, send_timeout=20)
    await layer.send("full", text(0))
    with psycopg.connect(layer_url, application_name="tests") as locker:
        locker.execute("LOCK TABLE channels_pg_sa_membership IN ACCESS EXCLUSIVE MODE")
        sends = [layer.send("jobs", text(1)), layer.send("full", text(2)), layer.group_send("group", text(3))]
        reads = [layer.nodes(), layer.group_channels("group")]  # type: ignore[attr-defined]
        sent, full, group_sent, nodes, members = (asyncio.ensure_future(call) for call in [*sends, *reads])
        await sent
        with pytest.raises(layer.ChannelFull):
            await full
        await nodes
        assert not group_sent.done()
        assert not members.done()
        locker.rollback()
        await asyncio.gather(group_sent, members)


@pytest.mark.parametrize("config", [{}, {"capacity": 10}], ids=["unbounded", "capacity"])
@pytest.mark.parametrize("kind", ["send", "group_send"])
async def test_perhaps_sent_and_not_sent_again(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, layer_url: str, kind: str, config: dict[str, int]
) -> None:
    """Though nothing is in the way of another attempt: the caller is told, whichever statement it was."""
    layer = make_own_layer(url=proxy.url, PSYCOPG_OPTIONS={"max_size": 1}, **config)
    await layer.group_add("group", "jobs")
    await VERBS[kind](layer)  # which prepares the statement, on the one connection
    await until_rested(layer)
    with locked_messages(layer_url) as locker:
        sending = asyncio.ensure_future(VERBS[kind](layer))
        await until_blocked(layer_url)
        proxy.drop()
        locker.commit()
        with pytest.raises(SendError, match="may have been done"):
            await sending


async def test_a_group_send_within_capacity_is_done_again_as_a_whole(
    make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Its second statement is refused for the moment: what the first has sent is sent once."""
    query(
        layer_url,
        """CREATE SEQUENCE attempts; CREATE FUNCTION fail_second() RETURNS trigger LANGUAGE plpgsql AS $body$
        BEGIN
            IF nextval('attempts') = 2 THEN
                RAISE EXCEPTION USING ERRCODE = '40P01';
            END IF;
            RETURN NULL;
        END $body$;
        CREATE TRIGGER fails BEFORE INSERT ON channels_pg_sa_message EXECUTE FUNCTION fail_second()""",
    )
    layer = make_own_layer(capacity=10)
    await layer.group_add("group", "jobs")
    await layer.group_send("group", text(1))
    assert query(layer_url, "SELECT last_value FROM attempts") == [(4,)]
    assert query(layer_url, WAITING) == [(1,)]


async def test_what_is_over_is_no_reason(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier call met it; this one came later, and waited for something else."""
    layer = make_own_layer()
    await warm(layer)
    outbox = layer._node._outbox  # type: ignore[attr-defined]
    send, errors = outbox._queries.send, [psycopg.errors.DeadlockDetected("deadlock detected")]

    async def fail_once(connection: Any, sends: Any) -> Any:
        if errors:
            raise errors.pop()
        return await send(connection, sends)

    monkeypatch.setattr(outbox.sends, "_fast_path", None)
    monkeypatch.setattr(outbox._queries, "send", fail_once)
    await layer.send("jobs", text(1))
    assert errors == []
    with locked_messages(layer_url), impatient(layer, 0.5), pytest.raises(SendError) as caught:
        await layer.send("jobs", text(2))
    assert "deadlock" not in str(caught.value)
