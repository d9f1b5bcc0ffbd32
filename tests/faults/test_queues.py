"""Queues that are flushed, or found, under a claim, and that nobody here reads any more."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from channels_pg_sa.claims import Claim
from channels_pg_sa.config import Settings
from channels_pg_sa.drops import DropLog
from channels_pg_sa.receiving.queuereader import MOST
from channels_pg_sa.statements.queries import Claimed, Queries
from tests.support.databases import query
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.waiting import eventually, eventually_async

from .breaking import PATIENCE, WAITING, come_back, end, inside, take, text, until_nothing_is_remembered, warm, within
from .test_closing import reads as begins_to_read
from .test_operators import leave_unread


async def reads(layer: PostgresLayer, channel: str) -> asyncio.Task[Any]:
    """Start a reader, and wait until its doorbell is heard, and what waited before has been asked for."""
    reader = await begins_to_read(layer, channel)
    await within(layer, inside(layer)._queues.finish(10))
    return reader


@pytest.mark.parametrize("has_claimed", [True, False])
async def test_a_flush_under_a_claim(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, has_claimed: bool
) -> None:
    """What was claimed before it does not come, though its claim is answered after it; what is sent after it does."""
    layer, other = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    reader = await reads(layer, "jobs")
    queries = inside(layer)._queries
    claim, under_way, go_on = queries.claim, threading.Event(), threading.Event()

    async def slow(connection: Any, claims: Any) -> Any:
        answer = await claim(connection, claims) if has_claimed else None
        under_way.set()
        await asyncio.to_thread(go_on.wait, 10)
        return answer or await claim(connection, claims)

    monkeypatch.setattr(queries, "claim", slow)
    await other.send("jobs", text(1))
    assert await asyncio.to_thread(under_way.wait, 10)
    await other.flush()
    await other.send("jobs", text(2))
    go_on.set()
    assert await asyncio.wait_for(reader, PATIENCE) == text(2)


async def test_a_flush_under_a_claim_of_whatever_there_is(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes what was sent after the flush, and nobody can tell: the mailbox is read again, where that lies now."""
    layer, other = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    reader = await reads(layer, "jobs")
    queries, loop = inside(layer)._queries, inside(layer)._thread.loop
    claim, under_way, go_on = queries.claim, threading.Event(), threading.Event()

    async def slow(connection: Any, claims: Any) -> Any:
        under_way.set()
        await asyncio.to_thread(go_on.wait, 10)
        return await claim(connection, claims)

    monkeypatch.setattr(queries, "claim", slow)
    loop.call_soon_threadsafe(inside(layer)._queues.on_filled, ["jobs"])
    assert await asyncio.to_thread(under_way.wait, 10)
    await other.flush()
    await other.send("jobs", text(1))
    go_on.set()
    assert await asyncio.wait_for(reader, PATIENCE) == text(1)


async def rest(layer: PostgresLayer) -> None:
    """Look once for queues that nobody reads, and wait until what follows from that is done."""
    queues = inside(layer)._queues

    async def look() -> None:
        queues.rest()
        await queues.listens.finish(10)

    await within(layer, look())


async def topics(layer: PostgresLayer) -> set[str]:
    """What the layer's session LISTENs to."""

    async def look(connection: Any) -> set[str]:
        cursor = await connection.execute("SELECT pg_listening_channels()")
        return {topic for (topic,) in await cursor.fetchall()}

    return set(await within(layer, inside(layer)._listener.lend(look)))


def heard(layer: PostgresLayer, *queues: str) -> set[str]:
    """What it has to, for the doorbells of these queues."""
    topics = inside(layer)._recovery._topics
    return {topics.own, *topics.of_queues(queues)}


@pytest.fixture
async def layer(make_own_layer: LayerFactory) -> AsyncIterator[PostgresLayer]:
    """One that does by itself nothing about queues while the test lasts, and reads two."""
    layer = make_own_layer(heartbeat=60, lease=200)
    reader = await reads(layer, "kept")
    await end(await reads(layer, "jobs"))
    assert await topics(layer) == heard(layer, "jobs", "kept")
    yield layer
    await end(reader)


async def test_a_queue_that_nobody_reads_is_not_listened_to_for_long(layer: PostgresLayer) -> None:
    """Twice, because its reader may be between two receive() calls; one who comes later is served at once."""
    queues = inside(layer)._queues
    await rest(layer)
    assert await topics(layer) == heard(layer, "jobs", "kept")
    await rest(layer)
    assert await topics(layer) == heard(layer, "kept")
    assert queues.book.queues == {"kept"}
    await layer.send("jobs", text(1))
    assert await take(layer, "jobs", 1) == [text(1)]


async def test_a_queue_that_is_read_now_and_then_is_listened_to(layer: PostgresLayer) -> None:
    """Not twice in succession without a reader."""
    for _ in range(3):
        await rest(layer)
        assert await topics(layer) == heard(layer, "jobs", "kept")
        reader = await reads(layer, "jobs")
        await rest(layer)
        await end(reader)


async def test_a_reader_that_comes_while_its_queue_is_given_up(layer: PostgresLayer) -> None:
    """Its LISTEN comes after the UNLISTEN."""
    queues = inside(layer)._queues
    listen = queues._listen

    async def just_before(gone: list[str], *, stop: bool = False) -> bool:
        if stop:
            queues.on_reader("jobs")
        done: bool = await listen(gone, stop=stop)
        return done

    queues._listen = just_before
    for _ in range(2):
        await rest(layer)

    async def is_heard() -> bool:
        return await topics(layer) == heard(layer, "jobs", "kept")

    await eventually_async(is_heard)


def lose_an_answer(queues: Any, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Have the next claim that gets rows lose its connection with the answer; return what is set then."""
    claim, lost = queues._queries.claim, threading.Event()

    async def lost_once(connection: Any, claims: Any) -> Any:
        answer = await claim(connection, claims)
        if any(claimed.rows for claimed in answer) and not lost.is_set():
            lost.set()
            raise psycopg.OperationalError("the connection is lost")
        return answer

    monkeypatch.setattr(queues._queries, "claim", lost_once)
    return lost


async def test_a_claim_whose_answer_was_lost_keeps_its_place(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is found in the mailbox before another is claimed; once, and later claims bring more again."""
    layer, sender = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    reader = await reads(layer, "jobs")
    queues = inside(layer)._queues
    lost, reread, rereads = lose_an_answer(queues, monkeypatch), queues._reread, list[None]()

    async def counted() -> None:
        rereads.append(None)
        await reread()

    monkeypatch.setattr(queues, "_reread", counted)
    await sender.send("jobs", text(1))
    assert await asyncio.to_thread(lost.wait, 10)
    await sender.send("jobs", text(2))
    assert [await asyncio.wait_for(reader, PATIENCE), *await take(layer, "jobs", 1)] == [text(1), text(2)]
    await sender.send("jobs", text(3))
    assert await take(layer, "jobs", 1) == [text(3)]
    assert rereads == [None]
    assert queues._most > 1


async def test_a_claim_whose_answer_was_lost_is_followed_by_smaller_ones(make_own_layer: LayerFactory) -> None:
    """Over a slow line it may have been too large; one that was refused was not."""
    layer = make_own_layer(heartbeat=60, lease=200)
    await warm(layer)
    queues, rows = inside(layer)._queues, inside(layer).inbox._dispatcher.rows

    async def most_after(error: psycopg.Error | None) -> int:
        queues.book.open("jobs")
        rows.begin_query()
        with contextlib.suppress(psycopg.Error), queues._outcome_known([Claim("jobs", 1, 90, 40)]):
            if error is not None:
                raise error
            rows.end_query()
        return int(queues._most)

    lost, refused = psycopg.OperationalError("the connection is lost"), psycopg.errors.InsufficientPrivilege("no")
    assert [await within(layer, most_after(error)) for error in (None, refused, lost, None)] == [MOST, MOST, 20, 21]


async def test_a_claim_takes_no_more_rows_than_it_may(make_own_layer: LayerFactory) -> None:
    """However many readers wait."""
    layer = make_own_layer(heartbeat=60, lease=200)
    readers = [await reads(layer, "jobs") for _ in range(3)]
    queues = inside(layer)._queues

    async def claim() -> list[int]:
        queues._most = 2
        queues.book.ring("jobs", 1)
        claims = queues._start_claims(["jobs"])
        queues._take_in(claims, [Claimed()], is_current=True)
        return [claim.count for claim in claims]

    assert await within(layer, claim()) == [2]
    for reader in readers:
        await end(reader)


async def test_a_mailbox_that_no_claim_was_lost_for_is_not_read_again(make_own_layer: LayerFactory) -> None:
    """Not at each heartbeat."""
    layer = make_own_layer(heartbeat=60, lease=200)
    await warm(layer)
    queues, rereads = inside(layer)._queues, list[Any]()
    queues.rereads.add = rereads.extend

    async def look() -> None:
        queues.reread_if_doubtful()

    await within(layer, look())
    assert rereads == []


async def test_an_answer_that_comes_after_its_row_was_found_read_and_deleted(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim moves a row at once, and tells of it when its answer is read: the mailbox may be read between the two."""
    layer, sender = make_own_layer(), make_own_layer()
    claim, moved, may_answer = Queries.claim, threading.Event(), threading.Event()

    async def slow(self: Queries, connection: Any, claims: Any) -> Any:
        got = await claim(self, connection, claims)
        if any(claimed.rows for claimed in got):
            moved.set()
            await asyncio.to_thread(may_answer.wait, 10)
        return got

    await warm(layer)
    monkeypatch.setattr(Queries, "claim", slow)
    reader = asyncio.create_task(take(layer, "jobs", 2))
    await sender.send("jobs", text(1))
    assert await asyncio.to_thread(moved.wait, 10)
    await within(layer, inside(layer)._reread())
    await asyncio.to_thread(eventually, lambda: query(layer_url, WAITING) == [(0,)])
    await asyncio.to_thread(eventually, inside(layer)._courier.deletions._task.done)
    may_answer.set()
    await sender.send("jobs", text(2))
    assert await reader == [text(1), text(2)]


async def test_what_is_deleted_while_the_mailbox_is_read_again(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Does not come twice, though the answer shows it."""
    layer, sender = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    reader = await reads(layer, "jobs")
    forget, waiting, shown = Queries.forget, Queries.waiting, threading.Event()

    async def late(self: Queries, connection: Any, rows: Any) -> int:
        await asyncio.to_thread(shown.wait, 10)
        return await forget(self, connection, rows)

    async def slow(self: Queries, connection: Any) -> Any:
        got = await waiting(self, connection)
        shown.set()
        await asyncio.to_thread(eventually, lambda: query(layer_url, WAITING) == [(0,)])
        await asyncio.to_thread(eventually, inside(layer)._courier.deletions._task.done)
        return got

    monkeypatch.setattr(Queries, "forget", late)
    monkeypatch.setattr(Queries, "waiting", slow)
    await sender.send("jobs", text(1))
    assert await asyncio.wait_for(reader, PATIENCE) == text(1)
    await within(layer, inside(layer)._reread())
    await sender.send("jobs", text(2))
    assert await take(layer, "jobs", 1) == [text(2)]
    assert layer.counters == {"received": 2}
    await until_nothing_is_remembered(layer)


async def test_a_claim_that_failed_is_over(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is deleted afterwards is forgotten, though nobody claims any more."""
    layer, loop = make_own_layer(), asyncio.get_running_loop()
    channel = await warm(layer)
    failed = threading.Event()

    async def fail(_self: Queries, _connection: Any, _claims: Any) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(end(reader), loop))
        failed.set()
        raise psycopg.OperationalError("the connection was lost")

    monkeypatch.setattr(Queries, "claim", fail)
    reader = asyncio.create_task(take(layer, "jobs", 1))
    assert await asyncio.to_thread(failed.wait, 10)
    await layer.send(channel, text(1))
    assert await take(layer, channel, 1) == [text(1)]
    await asyncio.to_thread(eventually, lambda: query(layer_url, WAITING) == [(0,)])
    await asyncio.to_thread(eventually, lambda: not inside(layer).inbox._dispatcher.rows._expires)


@pytest.mark.parametrize("is_empty", [True, False])
async def test_what_is_sent_behind_a_commit_does_not_overtake_it(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch, is_empty: bool
) -> None:
    """Its transaction began before another message was claimed, by a doorbell or without, and its own is late."""
    layer = make_own_layer(heartbeat=60, lease=200)
    reader = await reads(layer, "jobs") if is_empty else asyncio.ensure_future(layer.receive("jobs"))
    with psycopg.connect(layer_url, application_name="tests") as lasting:
        lasting.execute("""SELECT channels_pg_sa_send('jobs', '{"type": "test.message", "number": 1}')""")
        if not is_empty:
            reader.cancel()
            await asyncio.wait([reader])
        await layer.send("jobs", text(2))
        if not is_empty:
            reader = asyncio.ensure_future(layer.receive("jobs"))
        assert await asyncio.wait_for(reader, PATIENCE) == text(2)
        listener, late = inside(layer)._listener, list[bytes]()
        hear = listener._hear
        monkeypatch.setattr(listener, "_hear", late.extend)
        lasting.commit()
    await layer.send("jobs", text(3))
    receiving = asyncio.create_task(layer.receive("jobs"))
    await asyncio.wait([receiving], timeout=0.5)

    async def hear_late() -> None:
        monkeypatch.undo()
        hear(late)

    await within(layer, hear_late())
    assert [await receiving, *await take(layer, "jobs", 1)] == [text(1), text(3)]


async def test_what_a_claim_moves_long_after_it_was_given_up_is_found(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mailbox was read in vain before the server did it, and nobody rings for it."""
    layer, sender = make_own_layer(heartbeat=0.3, lease=10), make_own_layer()
    reader = await reads(layer, "jobs")
    queues = inside(layer)._queues
    claim, reread, lost = queues._queries.claim, queues._reread, list[Any]()

    async def lose_once(connection: Any, claims: Any) -> Any:
        if not lost:
            lost.append(claims)
            raise psycopg.OperationalError("the connection is lost")
        return await claim(connection, claims)

    async def and_then_it_is_done() -> None:
        await reread()
        async with await psycopg.AsyncConnection.connect(layer_url, autocommit=True, application_name="tests") as other:
            assert [claimed.rows for claimed in await claim(other, lost[0])] != [[]]

    monkeypatch.setattr(queues._queries, "claim", lose_once)
    monkeypatch.setattr(queues, "_reread", and_then_it_is_done)
    await sender.send("jobs", text(1))
    assert await asyncio.wait_for(reader, 20) == text(1)


async def test_a_mailbox_that_could_not_be_read_is_read_before_the_next_claim(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the lost claim has moved comes first, however often it takes to find it."""
    layer, sender = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    reader = await reads(layer, "jobs")
    queues = inside(layer)._queues
    lose_an_answer(queues, monkeypatch)
    reread, rereads = queues._reread, list[None]()

    async def fails_once() -> None:
        rereads.append(None)
        if len(rereads) == 1:
            await sender.send("jobs", text(2))
            raise psycopg.OperationalError("the connection is lost")
        await reread()

    monkeypatch.setattr(queues, "_reread", fails_once)
    await sender.send("jobs", text(1))
    assert [await asyncio.wait_for(reader, 20), *await take(layer, "jobs", 1)] == [text(1), text(2)]
    assert len(rereads) == 2


async def test_what_is_given_back_is_not_passed_over_before_its_doorbell_comes(
    make_own_layer: LayerFactory,
) -> None:
    """Nothing is heard meanwhile, but that a later one waits is known."""
    layer, sender = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    await warm(layer)
    await leave_unread(layer, sender, text(1))
    queues, loop = inside(layer)._queues, asyncio.get_running_loop()
    given_back, taken = asyncio.Event(), asyncio.Event()
    await sender.send("jobs", text(2))

    async def is_due() -> bool:
        return bool(queues.book.is_due("jobs"))

    async def before_anything_is_heard(_: Any) -> None:
        queues.give_back()
        loop.call_soon_threadsafe(given_back.set)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(taken.wait(), loop))

    await eventually_async(is_due)
    deaf = asyncio.create_task(within(layer, inside(layer)._listener.lend(before_anything_is_heard)))
    await given_back.wait()
    first = await take(layer, "jobs", 1)
    taken.set()
    await deaf
    assert [*first, *await take(layer, "jobs", 1)] == [text(1), text(2)]


async def test_a_job_that_a_rival_did_not_take_after_all(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Its claim passed over the row that the rival had locked; nobody rings again, and a heartbeat finds it."""
    layer, sender = make_own_layer(heartbeat=0.3, lease=10), make_own_layer()
    await warm(layer)
    await sender.send("jobs", text(1))
    with psycopg.connect(layer_url, application_name="tests") as rival:
        rival.execute("SELECT FROM channels_pg_sa_message FOR UPDATE")
        reader = await reads(layer, "jobs")
        assert not reader.done()
        rival.rollback()
        assert await asyncio.wait_for(reader, 20) == text(1)


async def test_what_is_not_claimed_is_not_taken_from_the_mailbox(make_own_layer: LayerFactory) -> None:
    """The node hears of it, in its order, and behind the joins that a message to a group is for."""
    layer, other = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    channel = await warm(layer)
    is_lent, go_on = threading.Event(), threading.Event()

    async def hold(_connection: Any) -> None:
        is_lent.set()
        await asyncio.to_thread(go_on.wait, PATIENCE)

    lending = asyncio.create_task(within(layer, inside(layer)._listener.lend(hold)))
    assert await asyncio.to_thread(is_lent.wait, PATIENCE)
    await other.group_add("group", channel)
    await other.group_send("group", text(1))
    await other.send(channel, text(2))
    await within(layer, inside(layer)._recovery.reread())
    go_on.set()
    await lending
    assert await take(layer, channel, 2) == [text(1), text(2)]


async def test_what_is_claimed_while_the_mailbox_is_read(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is not in what was read, and has not vanished: its row is deleted when it has been taken."""
    layer, sender = make_own_layer(heartbeat=60, lease=200), make_own_layer()
    reader = await reads(layer, "jobs")
    claim, members = Queries.claim, Queries.members
    under_way, go_on = threading.Event(), threading.Event()
    dispatcher = inside(layer).inbox._dispatcher

    async def slow(self: Queries, connection: Any, claims: Any) -> Any:
        under_way.set()
        await asyncio.to_thread(go_on.wait, 10)
        return await claim(self, connection, claims)

    async def is_known() -> bool:
        return bool(dispatcher.rows._expires)

    async def after_the_claim(self: Queries, connection: Any) -> Any:
        go_on.set()
        await eventually_async(is_known)
        return await members(self, connection)

    monkeypatch.setattr(Queries, "claim", slow)
    monkeypatch.setattr(Queries, "members", after_the_claim)
    await sender.send("jobs", text(1))
    assert await asyncio.to_thread(under_way.wait, 10)
    await come_back(layer)
    assert await asyncio.wait_for(reader, 20) == text(1)
    await asyncio.to_thread(eventually, lambda: query(layer_url, WAITING) == [(0,)])


async def test_what_goes_back_is_told_by_its_end(layer_url: str) -> None:
    """Since the server has crashed another message may have the id: it stays where it is."""
    node = "0123456789ab"
    queries = Queries(Settings(connect=dict, listen=dict), node)
    insert = """INSERT INTO channels_pg_sa_message (recipient, channel, payload, expires_at)
        VALUES (%s, 'jobs', 'x', now() + interval '60 s') RETURNING id, date_part('epoch', expires_at)"""
    recipients = "SELECT recipient FROM channels_pg_sa_message"
    ((row, until),) = query(layer_url, insert, [node])
    async with await psycopg.AsyncConnection.connect(layer_url, autocommit=True) as connection:
        await queries.put_back(connection, [(row, until - 10)])
        assert query(layer_url, recipients) == [(node,)]
        await queries.put_back(connection, [(row, until)])
        assert query(layer_url, recipients) == [("jobs",)]


async def test_what_has_gone_back_when_its_id_is_another_s(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server crashed while it was asked, and the id has come with another message: that is known from then on."""
    layer = make_own_layer(heartbeat=60, lease=200)
    await warm(layer)
    queues, dispatcher = inside(layer)._queues, inside(layer).inbox._dispatcher

    async def crash(_connection: Any, rows: Any) -> None:
        assert list(rows) == [(5, 100.0), (6, 100.0)]
        dispatcher.rows.note(5, 200.0)

    async def give_back() -> dict[int, float]:
        for row in (5, 6):
            dispatcher.rows.note(row, 100.0)
            queues._returning.add((row, 100.0))
        await queues._return_rows()
        return {row: end for row, end in dispatcher.rows._expires.items() if row in {5, 6}}

    monkeypatch.setattr(inside(layer)._queries, "put_back", crash)
    assert await within(layer, give_back()) == {5: 200.0}


async def test_what_is_left_unread_while_others_go_back_goes_back_next(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node has let go of it, so that nobody else would return it. The lowest comes first, as in its queue."""
    layer = make_own_layer(heartbeat=60, lease=200)
    await warm(layer)
    queues, given_back, rung = inside(layer)._queues, list[Any](), list[Any]()

    async def meanwhile(_connection: Any, rows: Any) -> None:
        given_back.append([row for row, _ in rows])
        queues._returning.add((4, 100.0))

    async def give_back() -> None:
        queues.book.open("jobs")
        queues._returning.update((row, 100.0) for row in range(100, 0, -7))
        for _ in range(2):
            await queues._return_rows()

    monkeypatch.setattr(inside(layer)._queries, "put_back", meanwhile)
    monkeypatch.setattr(queues, "on_ring", lambda *ring: rung.append(ring))
    await within(layer, give_back())
    assert given_back == [list(range(2, 101, 7)), [4]]
    assert rung == [("jobs", 2, 100), ("jobs", 4, 4)]


@pytest.mark.parametrize("has_rows", [True, False])
async def test_a_claim_that_lost_its_rows_to_another_of_its_queue_looks_again(
    make_own_layer: LayerFactory, has_rows: bool
) -> None:
    """As far as it would have looked: of the other, for the rows of one channel, that is not known. If it has any."""
    layer = make_own_layer(heartbeat=60, lease=200)
    await warm(layer)
    queues = inside(layer)._queues

    async def lose() -> Claim | None:
        for channel in ("w!x", "w!"):
            queues.book.open(channel)
        queues.book.listening("w!")
        claims = [queues.book.start(channel, 1) for channel in ("w!x", "w!")]
        narrow, wide = Claim("w!x", 5, 5, 1), Claim("w!", 5, 10, 1)
        assert [claim.channel for claim in claims] == [narrow.channel, wide.channel]
        won = Claimed([(5, "w!x", b"x", 0.0)]) if has_rows else Claimed()
        queues._take_in([narrow, wide], [won, Claimed()], is_current=True)
        again: Claim | None = queues.book.start("w!", 1)
        return again

    again = await within(layer, lose())
    assert again == (Claim("w!", 5, 10, 1) if has_rows else None)


async def test_what_nobody_has_heard_of_is_found_by_a_heartbeat(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Its doorbell may have been lost; a reader waits, and must not do so until the next one comes."""
    layer = make_own_layer(heartbeat=0.3, lease=10)
    await layer.send("elsewhere", text(1))
    reader = await reads(layer, "jobs")
    query(layer_url, "UPDATE channels_pg_sa_message SET recipient = 'jobs', channel = 'jobs'")  # which rings for nobody
    assert await asyncio.wait_for(reader, PATIENCE) == text(1)


async def test_a_listen_that_was_refused_is_made_up_for(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a new connection, which LISTENs to all; until the next heartbeat nobody would ring."""
    layer = make_own_layer(heartbeat=60, lease=200)
    await warm(layer)
    listen, refusals = Queries.listen, list[None]()

    async def refused(self: Queries, *arguments: Any, **more: Any) -> None:
        if not refusals:
            refusals.append(None)
            raise psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")
        await listen(self, *arguments, **more)

    monkeypatch.setattr(Queries, "listen", refused)
    reader = await reads(layer, "jobs")

    async def is_heard() -> bool:
        try:
            return await topics(layer) == heard(layer, "jobs")
        except Exception:
            return False  # it is on its way

    await eventually_async(is_heard)
    assert refusals
    await end(reader)


async def test_housekeeping_does_not_wait_for_the_connection(make_own_layer: LayerFactory) -> None:
    """It may be silent, for as long as a heartbeat; an UNLISTEN waits for it, but not what is to be freed meanwhile."""
    layer = make_own_layer(heartbeat=60, lease=200)
    await end(await reads(layer, "jobs"))
    reception = inside(layer)
    queues, drops = reception._queues, DropLog()

    async def keep_house_twice() -> set[str]:
        async with reception._listener._lock:
            for _ in range(2):
                reception.keep_house(drops, thoroughly=True)
                await asyncio.sleep(0)
            return set(queues.book.queues)

    assert await within(layer, asyncio.wait_for(keep_house_twice(), PATIENCE)) == set()
    await within(layer, queues.listens.finish(10))
    assert await topics(layer) == heard(layer)
