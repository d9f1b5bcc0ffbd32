"""What operators do to a server, or what befalls it, and the layer goes on when that is over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from channels_pg_sa import ConfigurationError, SchemaError, SendError, migrate
from channels_pg_sa.backoff import Backoff
from channels_pg_sa.errors import words_of
from channels_pg_sa.receiving import listener
from channels_pg_sa.schema import REVISION
from channels_pg_sa.statements.compiled import compiled
from tests.support.databases import TestServer, database_name, query
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.waiting import eventually, eventually_async

from .breaking import WAITING, SwallowingProxy, impatient, inside, locked_messages, take, text, until_listening, warm


@contextlib.contextmanager
def read_only(server: TestServer, url: str) -> Iterator[None]:
    """Within the block new sessions of a database only read, as on a standby that its address leads to."""
    name = sql.Identifier(database_name(url))
    server.run(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
    server.terminate(server.connections(url))
    try:
        yield
    finally:
        server.run(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))


@pytest.mark.parametrize("way", ["send", "group_add"])
async def test_connections_to_a_server_that_only_reads_are_not_kept(
    server: TestServer, layer_url: str, make_own_layer: LayerFactory, way: str
) -> None:
    """A call waits for one that writes, as for one that answers; what came before is deleted when there is one."""
    layer = make_own_layer()
    channel = await warm(layer)
    with read_only(server, layer_url):
        call = layer.send(channel, text(1)) if way == "send" else layer.group_add("group", channel)
        calling = asyncio.create_task(call)
        _, waits = await asyncio.wait([calling], timeout=1.0)
        assert waits == {calling}
        # The listener has a backoff of its own; who sends must not have to wait for that.
    await asyncio.wait_for(calling, 8)
    if way == "send":
        assert await take(layer, channel, 1) == [text(1)]
    await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, WAITING) == [(0,)]))


async def test_a_server_that_only_reads_is_named_as_the_reason(
    server: TestServer, layer_url: str, make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that it did not answer."""
    layer = make_own_layer(send_timeout=2)
    for number in range(3):
        await layer.send("jobs", text(number))
    with read_only(server, layer_url), monkeypatch.context() as patched:
        patched.setattr(Backoff, "next", lambda _: 1.2)  # so that no attempt is under way at the deadline
        with pytest.raises(SendError, match="read-only transaction") as caught:
            await layer.send("jobs", text(3))
    assert not caught.value.maybe_sent
    await layer.send("jobs", text(4))
    assert await take(layer, "jobs", 4) == [text(number) for number in (0, 1, 2, 4)]


async def test_the_held_connection_of_the_fast_path_is_not_kept_either(
    layer_url: str, make_own_layer: LayerFactory
) -> None:
    """Once it leads to a server that only reads."""
    layer = make_own_layer()
    await layer.send("jobs", text(0))
    fast_path = layer._node._outbox._fast_path  # type: ignore[attr-defined]

    async def is_open() -> bool:
        await layer.send("jobs", text(1))
        return bool(fast_path.is_open)

    await eventually_async(is_open)
    with fast_path._lock:
        driver = fast_path._held.driver
        driver.pgconn.exec_(b"SET default_transaction_read_only = on")
    await layer.send("jobs", text(2))
    assert driver.closed
    await eventually_async(is_open)
    ((waiting,),) = query(layer_url, WAITING)
    assert waiting >= 4, "none was lost"


async def test_a_queue_of_notifications_that_was_full_is_freed_before_another_attempt(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NOTIFY that finds it full frees nothing of what all have read, this function does."""
    layer = make_own_layer()
    channel = await warm(layer)
    queries = layer._node._outbox._queries  # type: ignore[attr-defined]
    send, executed, tries = queries.send, [], []

    async def full(connection: Any, sends: Any) -> Any:
        tries.append(sends)
        if len(tries) > 1:
            return await send(connection, sends)
        monkeypatch.setattr(connection, "execute", noted(connection.execute))
        raise psycopg.errors.ProgramLimitExceeded("too many notifications in the NOTIFY queue")

    def noted(execute: Any) -> Any:
        async def execute_and_note(statement: Any, *arguments: Any, **options: Any) -> Any:
            executed.append(statement)
            return await execute(statement, *arguments, **options)

        return execute_and_note

    monkeypatch.setattr(queries, "send", full)
    monkeypatch.setattr(layer._node._outbox.sends, "_fast_path", None)  # type: ignore[attr-defined]
    await layer.send(channel, text(1))
    assert await take(layer, channel, 1) == [text(1)]
    assert executed[0] == "SELECT pg_notification_queue_usage()"


async def test_a_process_that_is_stopped_while_it_sweeps_keeps_nobody_from_starting(
    layer_url: str, make_own_layer: LayerFactory
) -> None:
    """The server ends its transaction, and with that its lock."""
    statement = compiled(None)["sweeping"]
    with psycopg.connect(layer_url, application_name="tests") as stopped:
        assert stopped.execute(statement.sql.encode(), statement.literals).fetchone()[0] is True  # type: ignore[index]
        await warm(make_own_layer())
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            stopped.execute("SELECT 1")


async def test_those_who_wait_behind_hear_the_reason_too(
    server: TestServer, layer_url: str, make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose time is over before the statement is tried for them."""
    monkeypatch.setattr(Backoff, "next", lambda _: 0.2)  # somebody's is tried while each waits
    layer = make_own_layer()
    await warm(layer)

    async def refused(number: int) -> str:
        await asyncio.sleep(0.05 * number)
        with pytest.raises(SendError) as caught:
            await layer.send("jobs", text(number))
        return str(caught.value)

    with read_only(server, layer_url), impatient(layer, 1):
        words = await asyncio.gather(*(refused(number) for number in range(30)))
    assert [word for word in words if "read-only transaction" not in word] == []


async def test_a_lock_timeout_of_the_database_is_no_reason_to_fail(
    layer_url: str, make_own_layer: LayerFactory
) -> None:
    """Nothing was done, and the lock may be gone before `send_timeout` is over."""
    query(layer_url, f"ALTER DATABASE {database_name(layer_url)} SET lock_timeout = '100ms'")
    layer = make_own_layer()
    channel = await warm(layer)
    with locked_messages(layer_url):
        sending = asyncio.create_task(layer.send(channel, text(1)))
        await asyncio.wait([sending], timeout=1)
        assert not sending.done()
    await sending
    assert await take(layer, channel, 1) == [text(1)]


async def test_the_session_that_listens_may_be_idle(layer_url: str, make_own_layer: LayerFactory) -> None:
    """For as long as a heartbeat; idle_session_timeout is meant for people who forgot to log out."""
    if query(layer_url, "SELECT 1 FROM pg_settings WHERE name = 'idle_session_timeout'") == []:
        pytest.skip("PostgreSQL 13 has no such setting")
    query(layer_url, f"ALTER DATABASE {database_name(layer_url)} SET idle_session_timeout = '1s'")
    layer = make_own_layer(heartbeat=5)
    await warm(layer)
    listeners = make_own_layer.listeners(layer)
    await asyncio.sleep(2.5)
    assert make_own_layer.listeners(layer) == listeners


async def test_a_new_secret_is_learnt(layer_url: str, make_own_layer: LayerFactory) -> None:
    """By the next heartbeat: who mends a table without its row, as we say one should, makes one."""
    layer, sender = make_own_layer(heartbeat=0.3, lease=2), make_own_layer()
    channel = await warm(layer)
    old = inside(layer)._recovery._topics.own
    query(layer_url, "DELETE FROM channels_pg_sa_installation")
    query(layer_url, f"INSERT INTO channels_pg_sa_installation (revision) VALUES ('{REVISION}')")

    async def has_learnt() -> bool:
        return bool(inside(layer)._recovery._topics.own != old and inside(layer)._listener.is_listening)

    await eventually_async(has_learnt)
    for number in range(2):
        await sender.send(channel, text(number))
    assert await take(layer, channel, 2) == [text(0), text(1)]


async def test_tables_of_an_older_version(layer_url: str, make_own_layer: LayerFactory) -> None:
    """Who receives is told so, and the remedy, before any statement fails for what the tables lack."""
    query(layer_url, "UPDATE channels_pg_sa_installation SET revision = '0000'")
    layer = make_own_layer()
    with pytest.raises(SchemaError, match="upgrade") as caught:
        await asyncio.wait_for(layer.receive("jobs"), 10)
    assert (caught.value.found, caught.value.needed) == ("0000", REVISION)


async def test_tables_of_a_newer_version(layer_url: str, make_own_layer: LayerFactory) -> None:
    """They serve: who upgrades them goes on with the processes one after the other."""
    query(layer_url, "UPDATE channels_pg_sa_installation SET revision = '9999'")
    layer = make_own_layer()
    channel = await warm(layer)
    await layer.send(channel, text(1))
    assert await take(layer, channel, 1) == [text(1)]


async def test_each_reason_of_an_outage_is_logged_once(
    proxy: SwallowingProxy, make_own_layer: LayerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """The first may be that the server closed the connection, and the next why there is no other."""
    layer = make_own_layer(listen_url=proxy.url)
    await warm(layer)
    proxy.cut()

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if "does not hear" in record.getMessage()]

    eventually(lambda: any("refused" in warning for warning in warnings()))
    await asyncio.sleep(1)  # more attempts
    assert len(warnings()) == 2


async def test_listening_in_another_database_is_an_error(
    server: TestServer, template: str, layer_url: str, make_own_layer: LayerFactory
) -> None:
    """That has the tables, too: a copy, or where the site was before; and whoever reads would wait for ever."""
    elsewhere = server.create(template)
    layer = make_own_layer(listen_url=elsewhere)
    channel = await layer.new_channel()
    await layer.send(channel, text(1))
    for call in (layer.receive(channel), layer.group_add("group", channel)):
        with pytest.raises(ConfigurationError, match=r"listen_url.*another database"):
            await asyncio.wait_for(call, 10)
    await layer.close()
    server.drop(elsewhere)


async def test_a_listener_needs_no_other_connection(
    make_own_layer: LayerFactory, proxy: SwallowingProxy, layer_url: str
) -> None:
    """While statements cannot be run, what others send is heard."""
    layer, sender = make_own_layer(url=proxy.url, listen_url=layer_url), make_own_layer()
    proxy.cut()
    channel = await layer.new_channel()
    reader = asyncio.create_task(take(layer, channel, 1))
    await until_listening(layer)
    await sender.send(channel, text(1))
    assert await reader == [text(1)]
    proxy.heal()


async def test_errors_do_not_tell_topics(layer_url: str) -> None:
    """The context of an error quotes the statement under which it came, and that one LISTENs."""
    with psycopg.connect(layer_url) as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute("SELECT channels_pg_sa_listen(ARRAY['secret', NULL], false)")
    assert "PL/pgSQL" in str(caught.value)
    assert "PL/pgSQL" not in words_of(caught.value)


@pytest.mark.parametrize("lost", ["FUNCTION channels_pg_sa_listen", "TABLE channels_pg_sa_node"])
async def test_who_waits_hears_what_is_missing(make_own_layer: LayerFactory, layer_url: str, lost: str) -> None:
    """And is served as before when it has been made again."""
    layer = make_own_layer()
    query(layer_url, f"DROP {lost}")
    channel = await layer.new_channel()
    for call in (lambda: layer.receive("jobs"), lambda: layer.group_add("group", channel)):
        with pytest.raises(SchemaError, match=f"not all of it is as it should be: .*{lost.split()[1]}.*downgrade base"):
            await asyncio.wait_for(call(), 10)
    migrate.downgrade(layer_url, revision="base")
    migrate.upgrade(layer_url)

    async def arrives() -> Any:
        with contextlib.suppress(SchemaError):
            return await layer.receive("jobs")

    await layer.send("jobs", text(1))
    assert await eventually_async(arrives) == text(1)


@pytest.mark.parametrize("name", ["registering", "sweeping", "flush", "unregister"])
def test_what_needs_no_disk_does_not_wait_for_it(layer_url: str, name: str) -> None:
    """Nor for a standby; that holds until the commit: behind a pooler the next transaction is somebody else's."""
    statement = compiled(None)[name]
    settings = "SELECT current_setting('synchronous_commit'), current_setting('idle_in_transaction_session_timeout')"
    with psycopg.connect(layer_url, autocommit=True, application_name="tests") as connection:
        connection.execute("SET synchronous_commit = on")
        before = connection.execute(settings).fetchone()
        with connection.transaction():
            connection.execute(statement.sql.encode(), {**statement.literals, "prefix": "asgi", "node": "0123456789ab"})
            assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",)
        assert connection.execute(settings).fetchone() == before


def test_who_enters_frees_the_queue_of_notifications() -> None:
    """A layer that starts because the queue was full must not leave that to others: this function has the effect."""
    assert "pg_notification_queue_usage()" in compiled(None)["enter"].sql


async def test_the_sessions_of_a_layer_wait_for_no_disk(make_own_layer: LayerFactory) -> None:
    """Of the pool, and the one that listens."""
    layer = make_own_layer()
    await warm(layer)
    await until_listening(layer)

    async def setting(connection: Any) -> Any:
        return await (await connection.execute("SHOW synchronous_commit")).fetchone()

    async def settings() -> list[Any]:
        async with inside(layer)._database.connection(5) as connection:
            return [await setting(connection), await inside(layer)._listener.lend(setting)]

    loop = inside(layer)._thread.loop
    assert await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(settings(), loop)) == [("off",), ("off",)]


async def test_messages_that_may_not_go_back_to_their_queue_keep_no_others_from_coming(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A right is missing, of which the log tells once. When it is there they go back."""
    layer, sender = make_own_layer(), make_own_layer()
    await warm(layer)
    queries = inside(layer)._queries
    put_back = queries.put_back

    monkeypatch.setattr(queries, "put_back", refused)
    await leave_unread(layer, sender, text(1))
    await asyncio.to_thread(eventually, lambda: told(caplog) == 1)
    await sender.send("jobs", text(2))
    assert await take(layer, "jobs", 1) == [text(2)]
    assert told(caplog) == 1
    monkeypatch.setattr(queries, "put_back", put_back)
    assert await take(sender, "jobs", 1) == [text(1)]


async def refused(connection: Any, _rows: Any) -> None:
    """Give nothing back: the role may not."""
    await connection.execute("DO 'BEGIN RAISE insufficient_privilege; END'")


async def leave_unread(layer: PostgresLayer, sender: PostgresLayer, message: dict[str, Any]) -> None:
    """Have the layer claim a message that none of its readers takes any more."""
    reader = asyncio.create_task(layer.receive("jobs"))
    queries, claimed = inside(layer)._queries, asyncio.Event()
    claim, loop = queries.claim, asyncio.get_running_loop()

    async def cancelling(connection: Any, claims: Any) -> Any:
        answer = await claim(connection, claims)
        if any(claimed.rows for claimed in answer):
            loop.call_soon_threadsafe(reader.cancel)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_ended(reader), loop))
            loop.call_soon_threadsafe(claimed.set)
        return answer

    queries.claim = cancelling
    await sender.send("jobs", message)
    await asyncio.wait_for(claimed.wait(), 10)
    queries.claim = claim


async def _ended(reader: asyncio.Task[Any]) -> None:
    await asyncio.wait([reader])


def told(caplog: pytest.LogCaptureFixture) -> int:
    """How often an error said that messages cannot go back."""
    return sum("cannot go back" in record.message for record in caplog.records if record.levelno >= logging.ERROR)


async def test_hosts_that_do_not_answer_come_before_one_that_does(
    fragile_url: str, make_fragile: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its time, and the listener waits for all of them."""
    monkeypatch.setattr(listener, "PATIENCE", 3.0)
    with contextlib.ExitStack() as silent:
        ports = [silent.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
        there = psycopg.conninfo.conninfo_to_dict(fragile_url)
        hosts = ",".join(["127.0.0.1"] * 3)
        address = {**there, "host": hosts, "port": ",".join(map(str, [*ports, there["port"]])), "connect_timeout": 2}
        layer = make_fragile(url=fragile_url, listen_url=psycopg.conninfo.make_conninfo(**address))
        reader = asyncio.create_task(layer.receive("jobs"))
        await layer.send("jobs", text(os.getpid()))
        assert await asyncio.wait_for(reader, 15) == text(os.getpid())


async def test_what_may_not_go_back_is_told_again_when_it_could_in_between(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The right was there, and somebody has taken it away once more."""
    layer, sender = make_own_layer(), make_own_layer()
    await warm(layer)
    queries = inside(layer)._queries
    put_back = queries.put_back

    for number in range(2):
        monkeypatch.setattr(queries, "put_back", refused)
        await leave_unread(layer, sender, text(number))
        await asyncio.to_thread(eventually, lambda count=number + 1: told(caplog) == count)
        monkeypatch.setattr(queries, "put_back", put_back)
        assert await take(sender, "jobs", 1) == [text(number)]
