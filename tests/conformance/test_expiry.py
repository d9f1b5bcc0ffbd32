"""Messages and memberships that end with time."""

from __future__ import annotations

import time

import pytest

from tests.support.layers import Layer, Message
from tests.support.waiting import let_pass

from .backends import Conversation, Maker, in_memory_breaks, not_in_memory, text

HOUR = 3600.0


async def listening(make: Maker, **config: float) -> Layer:
    """Make a layer that listens, so that a message's short time does not go by while it begins to."""
    layer = make(**config)
    await layer.group_add("listening", await layer.new_channel())
    return layer


async def test_an_unread_message_expires(make: Maker, talk: Conversation) -> None:
    """Messages expire after a set time sitting unread in a channel."""
    layer = await listening(make, expiry=3)
    for channel in (await layer.new_channel(), "normal"):
        await layer.send(channel, text(1))
    own = await layer.new_channel()
    await layer.send(own, text(1))
    await let_pass(3.3)
    for channel in (own, "normal"):
        assert await talk.is_empty(layer, channel)


async def test_an_unread_message_to_a_group_expires(make: Maker, talk: Conversation) -> None:
    """The same for what came through a group."""
    layer = await listening(make, expiry=3)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_send("group", text(1))
    await let_pass(3.3)
    assert await talk.is_empty(layer, channel)


async def test_a_large_message_expires(make: Maker, talk: Conversation) -> None:
    """A message of which only the announcement has arrived expires as others do."""
    layer = await listening(make, expiry=3)
    channel = await layer.new_channel()
    await layer.send(channel, {"value": "x" * 100_000})
    await let_pass(3.3)
    assert await talk.is_empty(layer, channel)


async def test_only_old_messages_expire(make: Maker, talk: Conversation) -> None:
    """A newer message behind an expired one arrives."""
    layer = await listening(make, expiry=3)
    channel = await layer.new_channel()
    await layer.send(channel, text(1))
    await let_pass(2.8)  # so that the second has all but its whole time left when the first is over
    await layer.send(channel, text(2))
    await let_pass(0.4)
    assert await talk.next(layer, channel) == text(2)


@in_memory_breaks("it asks the wall clock, which may be set while it runs")
@pytest.mark.parametrize("offset", [HOUR, -HOUR])
async def test_a_wrong_clock_loses_nothing(
    make: Maker, talk: Conversation, monkeypatch: pytest.MonkeyPatch, offset: float
) -> None:
    """Peer defect 20: clock skew lost messages; the database's clock decides, and ours may be off by an hour."""
    layer = make(expiry=5)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    real = time.time
    if offset < 0:
        monkeypatch.setattr(time, "time", lambda: real() + offset)
    await layer.send(channel, text(1))
    await layer.group_send("group", text(2))
    await layer.send("normal", text(3))
    monkeypatch.setattr(time, "time", lambda: real() if offset < 0 else real() + offset)
    assert await talk.take(layer, channel, 2) == [text(1), text(2)]
    assert await talk.next(layer, "normal") == text(3)


async def test_a_membership_ends_with_group_expiry(make: Maker, talk: Conversation) -> None:
    """Peer defect 14: a membership outlived its time by 1.5 s. In whole seconds, as in memory, it is up to 1 s late."""
    layer = make(group_expiry=3)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_send("group", text(1))
    assert await talk.next(layer, channel) == text(1)
    await let_pass(4.2)
    await layer.group_send("group", text(2))
    assert await talk.is_empty(layer, channel)


@not_in_memory("it has no second layer on the same groups")
async def test_a_membership_ends_for_every_sender(make: Maker, talk: Conversation) -> None:
    """Peer defect 14: half a second later nothing arrives, from elsewhere too, nor at normal channels."""
    layer, sender = make(group_expiry=1), make(group_expiry=1)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_add("group", "normal")
    await let_pass(1.5)
    await sender.group_send("group", text(2))
    assert await talk.is_empty(layer, channel, through=channel)
    assert await talk.is_empty(layer, "normal")


async def test_joining_again_renews_a_membership(make: Maker, talk: Conversation) -> None:
    """The time counts from the most recent group_add()."""
    layer = make(group_expiry=4)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await let_pass(3.5)
    await layer.group_add("group", channel)
    await let_pass(0.8)
    await layer.group_send("group", text(1))
    assert await talk.next(layer, channel) == text(1)


@not_in_memory("its default is a day")
async def test_memberships_last_unless_group_expiry_is_set(make: Maker) -> None:
    """0 means that a live channel never loses its groups."""
    assert make().group_expiry == 0


async def test_expiry_is_shown(make: Maker) -> None:
    """The layer's attributes say what it was given."""
    layer = make(expiry=7, group_expiry=8, capacity=9)
    shown: Message = {"expiry": layer.expiry, "group_expiry": layer.group_expiry, "capacity": layer.capacity}
    assert shown == {"expiry": 7, "group_expiry": 8, "capacity": 9}
