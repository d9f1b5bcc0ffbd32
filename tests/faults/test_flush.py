"""Flushes, and the answers of all nodes for which they wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from channels_pg_sa import SendError
from channels_pg_sa.parcels import Acknowledged, Flushed
from channels_pg_sa.receiving import flushing
from channels_pg_sa.receiving.flushing import Answers, Flushes
from channels_pg_sa.statements.queries import Queries
from channels_pg_sa.topics import Topics
from tests.support.databases import query
from tests.support.layers import LayerFactory
from tests.support.waiting import eventually_async

from .breaking import SwallowingProxy, come_back, inside, take, text, warm

SEEMS_TO_LIVE = "INSERT INTO channels_pg_sa_node (id, prefix, pid, lease_until) VALUES ('dead', 'asgi', 1, 'infinity')"


async def test_a_flush_waits_for_the_word_of_others(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not answer may still hand out what was sent before."""
    monkeypatch.setattr(flushing, "PATIENCE", 3600)
    layer, other = make_own_layer(send_timeout=40), make_own_layer()
    for each in (layer, other):
        await warm(each)
    answer, asked, may_answer = inside(other)._flushes.answer, threading.Event(), threading.Event()

    async def late(flushed: Any) -> None:
        asked.set()
        await asyncio.to_thread(may_answer.wait, 10)
        await answer(flushed)

    monkeypatch.setattr(inside(other)._flushes, "answer", late)
    flush = asyncio.create_task(layer.flush())
    assert await asyncio.to_thread(asked.wait, 10)
    done, _ = await asyncio.wait([flush], timeout=0.5)
    assert not done
    may_answer.set()
    await flush


@pytest.mark.parametrize(("patience", "timeout"), [(3600, 6), (0.1, 50)])
async def test_a_flush_waits_for_answers_no_longer_than_it_may(
    make_own_layer: LayerFactory,
    layer_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    patience: float,
    timeout: float,
) -> None:
    """Half of the time that the call has, and no longer than is of use for the dead; then it succeeds all the same."""
    monkeypatch.setattr(flushing, "PATIENCE", patience)
    layer = make_own_layer(send_timeout=timeout)
    await warm(layer)
    query(layer_url, SEEMS_TO_LIVE)
    await asyncio.wait_for(layer.flush(), 15)
    assert "without an answer of the nodes dead" in caplog.text


async def test_a_flush_that_is_over_is_forgotten(make_own_layer: LayerFactory) -> None:
    """An answer that comes later means nothing."""
    layer = make_own_layer()
    await layer.flush()
    flushes = inside(layer)._flushes

    async def is_forgotten() -> bool:
        return not flushes._underway

    await eventually_async(is_forgotten)
    flushes.hear_answer(Acknowledged("1", "late"))
    assert not flushes._underway


async def test_why_a_flush_waits_is_told(proxy: SwallowingProxy, make_own_layer: LayerFactory) -> None:
    """It waits for the listener: the error has the reason that the listener met."""
    layer = make_own_layer(send_timeout=1, listen_url=proxy.url)
    proxy.cut()
    with pytest.raises(SendError, match="refused"):
        await layer.flush()


async def test_who_has_not_listened_hears_the_answers_to_its_flush(
    make_own_layer: LayerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """It begins to, for that."""
    layer, other = make_own_layer(), make_own_layer()
    await warm(other)
    await layer.flush()
    assert "without an answer" not in caplog.text


async def test_what_is_sent_after_a_flush_that_a_recovery_hears_late(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listens, the flush comes, and then the message; it reads its mailbox, and only then hears of the flush."""
    monkeypatch.setattr(flushing, "PATIENCE", 0.5)
    layer, other = (make_own_layer(heartbeat=60, lease=200) for _ in range(2))
    channel = await warm(layer)
    await warm(other)
    waiting, loop = Queries.waiting, asyncio.get_running_loop()

    async def flush_and_send() -> None:
        await other.flush()
        await other.send(channel, text(2))

    async def after_a_flush(self: Queries, connection: Any) -> Any:
        monkeypatch.setattr(Queries, "waiting", waiting)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(flush_and_send(), loop))
        return await waiting(self, connection)

    await other.send(channel, text(1))
    monkeypatch.setattr(Queries, "waiting", after_a_flush)
    await come_back(layer)
    await other.send(channel, text(3))
    assert await take(layer, channel, 2) == [text(2), text(3)]


async def test_an_answer_more_than_is_expected_delays_no_flush(caplog: pytest.LogCaptureFixture) -> None:
    """Who has registered meanwhile hears of it, too."""
    answers = Answers(0.1)
    answers.expected.add("expected")
    for node in ("new", "expected"):
        answers.add(node)
    await answers.wait()
    assert "without an answer" not in caplog.text


async def test_an_answer_that_cannot_be_given_is_no_mistake() -> None:
    """Who flushed does not wait for ever; the log need not tell of a task that died."""

    class Away:
        @contextlib.asynccontextmanager
        async def connection(self, _patience: float) -> AsyncIterator[None]:
            raise psycopg.OperationalError("the connection is lost")
            yield

    database: Any = Away()
    queries: Any = None
    flushes = Flushes("0123456789ab", database, queries, Topics("asgi", "0123456789ab"), timeout=1.0)
    await flushes.answer(Flushed("1", "topic"))


@pytest.mark.parametrize("capacity", [None, 10])
async def test_a_flush_while_a_node_recovers_takes_what_came_before(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch, capacity: int | None
) -> None:
    """With a capacity its row is there until it is read, so that the recovery has just seen it."""
    monkeypatch.setattr(flushing, "PATIENCE", 0.5)
    layer, other = (make_own_layer(heartbeat=60, lease=200, capacity=capacity) for _ in range(2))
    channel = await warm(layer)
    await warm(other)
    members, loop = Queries.members, asyncio.get_running_loop()
    await other.send(channel, text(1))

    async def is_here() -> bool:
        return bool(inside(layer).inbox._dispatcher.unread_count)

    async def after_a_flush(self: Queries, connection: Any) -> Any:
        monkeypatch.setattr(Queries, "members", members)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(other.flush(), loop))
        return await members(self, connection)

    await eventually_async(is_here)
    monkeypatch.setattr(Queries, "members", after_a_flush)
    await come_back(layer)
    await other.send(channel, text(2))
    assert await take(layer, channel, 1) == [text(2)]
