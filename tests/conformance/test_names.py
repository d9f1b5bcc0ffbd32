"""Channel and group names: which are valid, and that invalid ones are refused everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.support.layers import Layer

from .backends import Conversation, in_memory_breaks, text

VALID = ["a", "A-z_0.9", "specific.reply", "-", "_", ".", "0", "a" * 95, "a" * 99]
VALID_SPECIFIC = ["hub!", "hub!x", "a.b-c_d!e.f-g_h", "a" * 49 + "!" + "b" * 49]
INVALID = ["", " ", "a b", "a/b", "a:b", "a*", "a,b", "a'b", 'a"b', "a\\b", "a\x00", "a\u2028", "a" * 101]
ACCENTS = ["caf\u00e9", "\u65e5\u672c", "\U0001f600"]
NOT_TEXT: list[Any] = [b"bytes", 7, None, ["list"]]


async def test_a_valid_channel_carries_a_message(layer: Layer, talk: Conversation) -> None:
    """ASCII letters, digits, hyphens, underscores and periods, and one `!`; up to 99 characters."""
    for name in [*VALID, *VALID_SPECIFIC]:
        await layer.send(name, text(1))
        assert await talk.next(layer, name) == text(1), name


async def test_a_valid_group_carries_a_message(layer: Layer, talk: Conversation) -> None:
    """Peer defect 15: a valid group name of 95 characters failed; 99 are valid."""
    channel = await layer.new_channel()
    for name in VALID:
        await layer.group_add(name, channel)
        await layer.group_send(name, text(1))
        assert await talk.next(layer, channel) == text(1), name
        await layer.group_discard(name, channel)


async def test_an_invalid_channel_is_refused(layer: Layer) -> None:
    """Each method that takes a channel raises TypeError."""
    await assert_channels_refused(layer, [*INVALID, *ACCENTS, *NOT_TEXT, "a!b!c", "!", "!a", "a!b c"])


@in_memory_breaks("its pattern takes digits and letters of every script, and a newline at the end")
async def test_a_channel_is_ascii(layer: Layer) -> None:
    """The specification names ASCII letters and digits only."""
    await assert_channels_refused(layer, ["a\n", "a!\u00e9", "\u0663", "a!\u0663", "a!\n"])


async def test_an_invalid_group_is_refused(layer: Layer) -> None:
    """Peer defect 15: invalid group names were taken; each method that takes one raises TypeError."""
    await assert_groups_refused(layer, [*INVALID, *ACCENTS, *NOT_TEXT, "a!b", "a!", "!"])


@in_memory_breaks("its pattern takes digits of every script, and a newline at the end")
async def test_a_group_is_ascii(layer: Layer) -> None:
    """The specification names ASCII letters and digits only."""
    await assert_groups_refused(layer, ["a\n", "\u0663"])


async def test_a_refused_name_leaves_the_layer_working(layer: Layer, talk: Conversation) -> None:
    """What is invalid in one call does not touch the next."""
    with pytest.raises(TypeError):
        await layer.send("not valid", text(1))
    await layer.send("valid", text(2))
    assert await talk.next(layer, "valid") == text(2)


async def assert_channels_refused(layer: Layer, names: Iterable[Any]) -> None:
    """Expect TypeError of every method that takes a channel."""
    for name in names:
        with pytest.raises(TypeError):
            await layer.send(name, text(1))
        with pytest.raises(TypeError):
            await layer.receive(name)
        with pytest.raises(TypeError):
            await layer.group_add("group", name)
        with pytest.raises(TypeError):
            await layer.group_discard("group", name)


async def assert_groups_refused(layer: Layer, names: Iterable[Any]) -> None:
    """Expect TypeError of every method that takes a group."""
    for name in names:
        with pytest.raises(TypeError):
            await layer.group_add(name, "channel")
        with pytest.raises(TypeError):
            await layer.group_discard(name, "channel")
        with pytest.raises(TypeError):
            await layer.group_send(name, text(1))
