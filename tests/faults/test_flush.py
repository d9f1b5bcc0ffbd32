"""Flushes, and the answers of all nodes for which they wait."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from channels_pg_sa import SendError, flushing
from tests.support.databases import query
from tests.support.layers import LayerFactory

from .breaking import SwallowingProxy, inside, warm


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


async def test_a_flush_waits_for_answers_no_longer_than_it_may(
    make_own_layer: LayerFactory, layer_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the time that the call has they get half, and then it succeeds all the same."""
    monkeypatch.setattr(flushing, "PATIENCE", 3600)
    layer = make_own_layer(send_timeout=6)
    await warm(layer)
    lives = "INSERT INTO channels_pg_sa_node (id, prefix, pid, lease_until) VALUES ('dead', 'asgi', 1, %s)"
    query(layer_url, lives, ["infinity"])
    await layer.flush()
    assert "without an answer of the nodes dead" in caplog.text


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
