"""Sizes around PostgreSQL's limit for a NOTIFY, where a message changes the way it travels."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.support.layers import Layer, Message

from .backends import Conversation, Maker

# 5,800 bytes in base64 are 7,736 characters; 7,999 are what a NOTIFY carries at most.
SIZES = range(5_800, 8_101)
BATCH = 100


def padded(number: int, size: int) -> Message:
    """Return a message with `size` bytes beyond its number."""
    return {"number": number, "bytes": b"\xa5" * size}


@pytest.mark.timeout(240)
async def test_each_size_arrives_once_one_by_one(layer: Layer, talk: Conversation) -> None:
    """Peer defect 17: a payload of exactly 8,000 bytes raised; here each size is alone in its notification."""
    channel = await layer.new_channel()
    for size in SIZES:
        await layer.send(channel, padded(size, size))
        assert await talk.next(layer, channel) == padded(size, size)
    assert await talk.is_empty(layer, channel)


async def test_each_size_arrives_once_in_batches(make: Maker, talk: Conversation) -> None:
    """Peer defect 17: many sizes share a statement, and small ones fill up the notifications of large ones."""
    layer = make(capacity=10_000)
    channel = await layer.new_channel()
    sizes = [*SIZES, *random.choices(range(200), k=len(SIZES))]
    random.shuffle(sizes)
    for start in range(0, len(sizes), BATCH):
        batch = list(enumerate(sizes[start : start + BATCH], start))
        await asyncio.gather(*(layer.send(channel, padded(number, size)) for number, size in batch))
        received = await talk.take(layer, channel, len(batch))
        assert received == [padded(number, size) for number, size in batch]
    assert await talk.is_empty(layer, channel)


async def test_each_size_arrives_once_through_a_group(make: Maker, talk: Conversation) -> None:
    """Peer defect 17: a group's name takes room in the notification too."""
    layer = make(capacity=10_000)
    group = "g" * 99
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    for start in range(SIZES.start, SIZES.stop, BATCH):
        sizes = range(start, min(start + BATCH, SIZES.stop))
        await asyncio.gather(*(layer.group_send(group, padded(size, size)) for size in sizes))
        assert await talk.take(layer, channel, len(sizes)) == [padded(size, size) for size in sizes]
    assert await talk.is_empty(layer, channel)


async def test_each_size_arrives_once_on_a_normal_channel(make: Maker, talk: Conversation) -> None:
    """Peer defect 17: on a channel that any process may read."""
    layer = make(capacity=10_000)
    for size in range(SIZES.start, SIZES.stop, 23):
        await layer.send("normal", padded(size, size))
        assert await talk.next(layer, "normal") == padded(size, size)
    assert await talk.is_empty(layer, "normal")
