"""What Channels looks at: attributes, new channel names, repr, and close."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from tests.support.layers import Layer, LayerFactory, PostgresLayer
from tests.support.waiting import eventually_async

from .backends import Conversation, Maker, in_memory_breaks, not_in_memory, text


async def test_the_extensions(layer: Layer) -> None:
    """Both extensions of the specification, by their names."""
    assert layer.extensions == ["groups", "flush"]


@in_memory_breaks("it has neither exception as an attribute")
async def test_the_exceptions(layer: Layer) -> None:
    """They are attributes of the layer, and ChannelFull is the one that Channels catches."""
    assert issubclass(layer.ChannelFull, ChannelFull)
    assert issubclass(layer.MessageTooLarge, Exception)


async def test_new_channels_differ(layer: Layer) -> None:
    """Each is a valid process-specific name, and none comes twice, however many are asked for at once."""
    names = await asyncio.gather(*(layer.new_channel() for _ in range(2000)))
    assert len(set(names)) == 2000
    assert all(name.count("!") == 1 and len(name) < 100 for name in names)


async def test_new_channels_take_a_prefix(layer: Layer, talk: Conversation) -> None:
    """Channels' own code asks for prefixes; the name begins with it and works."""
    for prefix in ("specific", "http.response", "a" * 30):
        channel = await layer.new_channel(prefix)
        assert channel.startswith(prefix)
        await layer.send(channel, text(1))
        assert await talk.next(layer, channel) == text(1)


@pytest.mark.parametrize("wrong", ["", "a!", "a b", "x" * 54, None])
async def test_a_wrong_prefix_is_refused(make_layer: LayerFactory, wrong: Any) -> None:
    """Its channels could be neither sent to nor read."""
    with pytest.raises(TypeError, match="The prefix of a new channel must be"):
        await make_layer().new_channel(wrong)


@not_in_memory("its names are of another form")
async def test_the_form_of_new_channels(make: Maker) -> None:
    """The node's id is in the name, so that a sender knows whom to notify."""
    first, second = make(), make()
    names = [await layer.new_channel() for layer in (first, first, second)]
    assert all(re.fullmatch(r"specific\.[0-9a-f]{12}![0-9a-f]{32}", name) for name in names)
    nodes = [name.partition("!")[0] for name in names]
    assert nodes[0] == nodes[1] != nodes[2]


@in_memory_breaks("Channels had other names for them", before="4.2.1")
async def test_the_layer_knows_the_specification_functions(layer: Layer) -> None:
    """What BaseChannelLayer offers to application code is there."""
    assert layer.non_local_name("a!b") == "a!"  # type: ignore[attr-defined]
    assert layer.require_valid_channel_name("a!b")  # type: ignore[attr-defined]
    assert layer.require_valid_group_name("a")  # type: ignore[attr-defined]


def test_names_are_checked_by_the_letter(make_layer: LayerFactory) -> None:
    """Also where Channels' own patterns are laxer: a name has one mark at most, and a group none."""
    layer: Any = make_layer()
    for name in ("a!b!c", "a b", "!"):
        with pytest.raises(TypeError, match="Channel name must be"):
            layer.require_valid_channel_name(name)
    with pytest.raises(TypeError, match="Group name must be"):
        layer.require_valid_group_name("a!b")
    assert all(layer.require_valid_channel_name(name, receive=True) for name in ("a", "a!"))
    with pytest.raises(TypeError, match="must end at the !"):
        layer.require_valid_channel_name("a!b", receive=True)


def test_what_is_set_is_shown(make_layer: LayerFactory) -> None:
    """Under the names that BaseChannelLayer and channels_redis have for it."""
    layer: Any = make_layer(expiry=5, group_expiry=7, capacity=9, channel_capacity={"a*": 3})
    assert (layer.expiry, layer.group_expiry, layer.capacity) == (5, 7, 9)
    ((pattern, capacity),) = layer.channel_capacity
    assert (pattern.match("abc") is not None, capacity) == (True, 3)
    assert [layer.get_capacity(name) for name in ("abc", "b")] == [3, 9]


async def test_closing_twice(make: Maker, talk: Conversation) -> None:
    """close() may be called by whoever thinks of it, used or not."""
    for used in (False, True):
        layer = make()
        if used:
            await layer.send("channel", text(1))
            assert await talk.next(layer, "channel") == text(1)
        await layer.close()
        assert await layer.close() is None  # type: ignore[func-returns-value]


async def test_a_layer_that_was_closed_is_another_node(make_layer: LayerFactory) -> None:
    """The one that leaves takes its channels and memberships along; one that was never opened stays what it is."""
    layer = make_layer()
    unused = layer.node
    await layer.close()
    assert layer.node == unused
    await layer.send("channel", text(1))
    await layer.close()
    assert layer.node != unused
    assert (await layer.new_channel()).startswith(f"specific.{layer.node}!")
    assert await Conversation(patience=10).next(layer, "channel") == text(1)


@not_in_memory("there is nothing to close")
async def test_closing_ends_a_waiting_reader(make: Maker, talk: Conversation) -> None:
    """A receive() that waits ends when its layer is closed; it does not hang."""
    layer = make()
    reader = asyncio.create_task(layer.receive(await layer.new_channel()))
    await layer.send("other", text(1))
    await layer.close()
    done, _ = await asyncio.wait([reader], timeout=talk.patience)
    assert done == {reader}
    assert reader.cancelled() or reader.exception() is not None


async def test_repr_is_the_dashboard(make_layer: LayerFactory) -> None:
    """It names the class and the node, and says how it is doing."""
    layer: PostgresLayer = make_layer()
    channel = await layer.new_channel()
    node = channel.partition("!")[0].removeprefix("specific.")
    assert repr(layer).startswith("<PostgresChannelLayer ")
    assert node in repr(layer)
    await layer.send(channel, text(1))
    waiting = asyncio.create_task(layer.receive(await layer.new_channel()))
    assert await layer.receive(channel) == text(1)

    async def listens() -> bool:  # what the node finds when it starts is here a moment before that
        return "listening, 1 waiting, 0 unread" in repr(layer)

    await eventually_async(listens)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
