"""What a new connection of the listener's does before it is used, while others go on."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import Any

import psycopg
import pytest

from channels_pg_sa import ConfigurationError, PoolerError
from channels_pg_sa.receiving import listener, recovery
from channels_pg_sa.receiving.listener import Listener
from channels_pg_sa.receiving.recovery import Recovery
from channels_pg_sa.statements.queries import Queries
from tests.support.databases import TestServer, query
from tests.support.layers import LayerFactory
from tests.support.waiting import eventually_async

from .breaking import WAITING, come_back, inside, take, text, until_listening, warm
from .test_fast_path_memberships import MEMBERS
from .test_leaves import sweep
from .test_liveness import SWEEP_LOCK
from .test_operators import leave_unread
from .test_queues import heard, topics


async def test_who_joins_while_its_node_recovers(make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just before the mailbox is read: it holds what was sent to the group after that, and that is for the member."""
    layer, other = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    channel = await warm(layer)
    waiting = Queries.waiting

    async def after_a_join(self: Queries, connection: Any) -> Any:
        await other.group_add("group", channel)
        await other.group_send("group", text(1))
        return await waiting(self, connection)

    monkeypatch.setattr(Queries, "waiting", after_a_join)
    await come_back(layer)
    assert await take(layer, channel, 1) == [text(1)]


async def test_who_reads_a_queue_while_the_node_recovers(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is known already which queues are listened for, and nothing can be changed yet: then later."""
    layer, other = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    await warm(layer)
    members, queues, loop = Queries.members, inside(layer)._queues, asyncio.get_running_loop()
    reading = asyncio.Future[Any]()

    async def is_wanted() -> bool:
        return "late" in queues.book.queues

    async def after_a_reader(self: Queries, connection: Any) -> Any:
        loop.call_soon_threadsafe(lambda: reading.set_result(asyncio.create_task(layer.receive("late"))))
        await eventually_async(is_wanted)
        await queues.listens.finish(5)
        return await members(self, connection)

    monkeypatch.setattr(Queries, "members", after_a_reader)
    await come_back(layer)
    await other.send("late", text(1))
    assert await asyncio.wait_for(await reading, 10) == text(1)


async def test_what_a_recovery_in_vain_has_heard_is_not_passed_on(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one reads what holds by then."""
    layer, other = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    channel, stays = await warm(layer), await layer.new_channel()
    await layer.group_add("group", stays)
    members = Queries.members

    async def in_vain(self: Queries, connection: Any) -> Any:
        monkeypatch.setattr(Queries, "members", members)
        await other.group_add("group", channel)
        await members(self, connection)
        await other.group_discard("group", channel)
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(Queries, "members", in_vain)
    await come_back(layer)
    await other.group_send("group", text(1))
    await other.send(channel, text(2))
    assert await take(layer, stays, 1) == [text(1)]
    assert await take(layer, channel, 1) == [text(2)]


async def test_each_part_of_a_recovery_has_the_time_of_one(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them together may take longer: broken off, it would be begun again for ever."""
    layer = make_own_layer(heartbeat=60, lease=200)
    await warm(layer)
    monkeypatch.setattr(listener, "PATIENCE", 2.0)
    for name in ("register", "waiting", "members", "notify"):
        part = getattr(Queries, name)

        async def slow(self: Queries, *arguments: Any, part: Any = part, **more: Any) -> Any:
            await asyncio.sleep(1.1)
            return await part(self, *arguments, **more)

        monkeypatch.setattr(Queries, name, slow)
    await come_back(layer)


async def belongs_to(url: str, recipient: str) -> bool:
    """Whether there is one message, in that mailbox or queue."""
    return query(url, "SELECT recipient FROM channels_pg_sa_message") == [(recipient,)]


async def test_what_is_returned_and_claimed_again_while_its_node_recovers(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mailbox was read between the two: its deletion is not forgotten, so nobody gets it twice."""
    layer, sender = make_own_layer(heartbeat=60, lease=200), make_own_layer(heartbeat=60, lease=200)
    await warm(layer)
    await until_listening(layer)
    loop = asyncio.get_running_loop()
    put_back, waiting, members = Queries.put_back, Queries.waiting, Queries.members
    recovering, returning = threading.Event(), threading.Event()
    readers: list[Any] = []

    async def late_put_back(self: Queries, connection: Any, rows: Any) -> None:
        returning.set()
        await asyncio.to_thread(recovering.wait, 10)
        await put_back(self, connection, rows)

    async def after_the_return(self: Queries, connection: Any) -> Any:
        monkeypatch.setattr(Queries, "waiting", waiting)
        recovering.set()
        await eventually_async(functools.partial(belongs_to, layer_url, "jobs"))
        return await waiting(self, connection)

    async def after_the_claim(self: Queries, connection: Any) -> Any:
        monkeypatch.setattr(Queries, "members", members)
        readers.append(asyncio.run_coroutine_threadsafe(take(layer, "jobs", 1), loop))
        await asyncio.wait([asyncio.wrap_future(readers[0])], timeout=10)
        return await members(self, connection)

    monkeypatch.setattr(Queries, "put_back", late_put_back)
    await leave_unread(layer, sender, text(1))
    assert await asyncio.to_thread(returning.wait, 10)
    monkeypatch.setattr(Queries, "waiting", after_the_return)
    monkeypatch.setattr(Queries, "members", after_the_claim)
    await come_back(layer)
    assert await asyncio.wrap_future(readers[0]) == [text(1)]
    await eventually_async(lambda: asyncio.to_thread(lambda: query(layer_url, WAITING) == [(0,)]))
    await come_back(layer)
    await sender.send("jobs", text(2))
    assert await take(layer, "jobs", 1) == [text(2)]


async def test_a_renewal_that_a_crash_has_cost_is_restored(make_own_layer: LayerFactory, layer_url: str) -> None:
    """The membership is there with its older end; in memory is the one that its channel was promised."""
    layer = make_own_layer(heartbeat=30, lease=90, group_expiry=100)
    channel = await warm(layer)
    await layer.group_add("group", channel)
    members = inside(layer).inbox._dispatcher.members

    async def is_known() -> bool:
        return ("group", channel) in members

    await eventually_async(is_known)
    ((_, _, before),) = list(members)
    with psycopg.connect(layer_url, autocommit=True) as crash:
        crash.execute("SET session_replication_role = replica")  # so that nobody is told, as after a crash
        crash.execute("UPDATE channels_pg_sa_membership SET expires_at = now() + interval '1 s'")
        crash.execute("DELETE FROM channels_pg_sa_node")
    await come_back(layer)
    ((_, _, after),) = list(members)
    assert after == pytest.approx(before, abs=0.01)
    ((end,),) = query(layer_url, "SELECT date_part('epoch', expires_at) FROM channels_pg_sa_membership")
    assert end == pytest.approx(before, abs=0.01)


async def test_a_queue_that_is_wanted_while_its_node_recovers_is_listened_to(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The LISTEN of the recovery came before, and was not for it: nothing would ring until the next heartbeat."""
    layer, sender = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    await warm(layer)
    members, readers = Queries.members, list[asyncio.Task[Any]]()
    loop = asyncio.get_running_loop()

    async def is_wanted() -> bool:
        return "jobs" in inside(layer)._queues.book.queues and not len(inside(layer)._queues.listens)

    async def while_one_comes(self: Queries, connection: Any) -> Any:
        async def come() -> None:
            readers.append(asyncio.create_task(layer.receive("jobs")))

        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(come(), loop))
        await eventually_async(is_wanted)
        return await members(self, connection)

    monkeypatch.setattr(Queries, "members", while_one_comes)
    await come_back(layer)

    async def is_heard() -> bool:
        return await topics(layer) == heard(layer, "jobs")

    await eventually_async(is_heard)
    await sender.send("jobs", text(1))
    assert await asyncio.wait_for(readers[0], 20) == text(1)


async def test_another_database_is_found_out_when_something_can_be_asked(
    server: TestServer, template: str, make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time nothing could; whoever reads is told the next time."""
    elsewhere = server.create(template)
    layer, is_found, asked = make_own_layer(listen_url=elsewhere), Recovery._is_found, list[None]()

    async def not_at_first(self: Recovery) -> bool | None:
        asked.append(None)
        return None if len(asked) == 1 else await is_found(self)

    monkeypatch.setattr(Recovery, "_is_found", not_at_first)
    reader = asyncio.create_task(layer.receive("jobs"))
    await until_listening(layer)
    assert not reader.done()
    inside(layer)._thread.loop.call_soon_threadsafe(inside(layer)._listener.restart, "as if it were lost")
    with pytest.raises(ConfigurationError, match=r"listen_url.*another database"):
        await asyncio.wait_for(reader, 20)
    await layer.close()
    server.drop(elsewhere)


async def test_a_row_that_was_swept_meanwhile_is_no_other_database(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is missed where the node listens as well."""
    layer = make_own_layer(listen_url=layer_url)
    looked = list[None]()

    async def is_found(self: Recovery) -> bool:
        looked.append(None)
        if len(looked) > 1:
            return True
        await asyncio.to_thread(query, layer_url, "DELETE FROM channels_pg_sa_node")
        return False

    monkeypatch.setattr(Recovery, "_is_found", is_found)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.send(channel, text(1))
    assert await take(layer, channel, 1) == [text(1)]
    assert looked == [None, None]


async def test_a_node_that_is_swept_while_it_recovers_keeps_its_memberships(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still, or read for longer than its lease: what it has in memory is not exchanged for what was swept."""
    layer = make_own_layer(heartbeat=60, lease=200)
    channel = await warm(layer)
    await layer.group_add("group", channel)
    waiting = Queries.waiting

    async def swept_meanwhile(self: Queries, connection: Any) -> Any:
        monkeypatch.undo()
        await asyncio.to_thread(sweep, layer_url)
        return await waiting(self, connection)

    monkeypatch.setattr(Queries, "waiting", swept_meanwhile)
    await come_back(layer)
    assert query(layer_url, MEMBERS) == [("group", channel)]
    await layer.group_send("group", text(1))
    assert await take(layer, channel, 1) == [text(1)]


async def test_a_pooler_that_passed_one_notification_on_by_chance(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its one session of the server happened to be the same: the next goes another way."""
    layer, answers = make_own_layer(), [True, True, False]

    async def is_pooled(_connection: Any) -> bool:
        return True

    async def hears(self: Listener, *_: Any) -> bool:
        return answers.pop(0) if answers else False

    monkeypatch.setattr(recovery, "is_pooled", is_pooled)
    monkeypatch.setattr(Listener, "hears", hears)
    with pytest.raises(PoolerError, match="listen_url"):
        await asyncio.wait_for(layer.receive("jobs"), 10)


async def test_nobody_sweeps_while_a_node_registers(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was just restored would be taken for a dead node's, before its lease has begun."""
    layer = make_own_layer(heartbeat=60, lease=200)
    register, swept = Queries.register, list[Any]()

    async def is_free() -> list[tuple[Any, ...]]:
        return await asyncio.to_thread(query, layer_url, SWEEP_LOCK.replace("pg_advisory_lock", "pg_try_advisory_lock"))

    async def looking(self: Queries, connection: Any, **values: Any) -> None:
        swept.append(await is_free())
        await register(self, connection, **values)
        swept.append(await is_free())

    monkeypatch.setattr(Queries, "register", looking)
    await warm(layer)
    assert swept == [[(False,)]] * 2
    assert await is_free() == [(True,)]


async def test_a_node_that_comes_back_was_seen_then(make_own_layer: LayerFactory, layer_url: str) -> None:
    """And not when it last gave a sign of life, before the outage."""
    layer = make_own_layer(heartbeat=60, lease=200)
    await warm(layer)
    await asyncio.to_thread(query, layer_url, "UPDATE channels_pg_sa_node SET seen_at = '2001-01-01'")
    await come_back(layer)
    assert query(layer_url, "SELECT seen_at > '2001-01-02' FROM channels_pg_sa_node") == [(True,)]
