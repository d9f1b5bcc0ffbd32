"""Messages: which values they carry, that they arrive as they were sent, and that others are refused at send."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import math
import uuid
from typing import Any

import pytest
from django.utils.safestring import mark_safe

from tests.support.layers import Layer, Message

from .backends import Conversation, in_memory_breaks, not_in_memory, text

MIB = 1024 * 1024

VALUES: list[Any] = [
    *(
        "",
        "text",
        "\x00",
        "a\x00b",
        "\u65e5\u672c\u8a9e",
        "\U0001f600",
        "\uffff",
        "\uffffAAAA",
        "\ufeffmark",
        "'\"\\/\n\t",
    ),
    *(b"", b"bytes", bytes(range(256)), b"\xff\xfe", b"\x00"),
    *(0, 1, -1, 127, 128, 2**31, -(2**31) - 1, 2**32, 2**53 + 1, 2**63 - 1, -(2**63)),
    *(0.0, -0.0, 0.1, 1.0, 1e308, 5e-324, 1.7976931348623157e308, math.inf, -math.inf),
    *(True, False, None),
    *([], [1, "two", 3.0, None, True, b"six"], [[[[]]]], [{}], [b"\xff", "\uffff"]),
    *({}, {"": "empty key"}, {"\uffff": 1}, {"\u00e9": [{"deep": {"er": [b"bytes", {"k": None}]}}]}),
]


class Colour(enum.IntEnum):
    """An int of another class."""

    RED = 1


async def test_every_value_arrives_as_it_was_sent(layer: Layer, talk: Conversation) -> None:
    """Each type of the specification, at its limits, keeps its value and its type."""
    for value in VALUES:
        await layer.send("channel", {"type": "test", "value": value})
        assert_same((await talk.next(layer, "channel"))["value"], value)


async def test_not_a_number_arrives(layer: Layer, talk: Conversation) -> None:
    """NaN is a double too; it equals nothing, so it has a test of its own."""
    await layer.send("channel", {"type": "test", "value": math.nan})
    assert math.isnan((await talk.next(layer, "channel"))["value"])


async def test_all_values_travel_in_one_message_to_a_group(layer: Layer, talk: Conversation) -> None:
    """A group send carries what a send carries."""
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_send("group", {"values": VALUES})
    assert_same(await talk.next(layer, channel), {"values": VALUES})


async def test_the_order_of_keys_is_kept(layer: Layer, talk: Conversation) -> None:
    """A dict arrives in the order it was filled."""
    message = {key: index for index, key in enumerate("zyxabc")}
    await layer.send("channel", message)
    assert list(await talk.next(layer, "channel")) == list(message)


async def test_an_empty_message_arrives(layer: Layer, talk: Conversation) -> None:
    """Nothing in the specification asks for a key."""
    await layer.send("channel", {})
    assert await talk.next(layer, "channel") == {}


@in_memory_breaks("it copies the message and so keeps tuples")
async def test_tuples_arrive_as_lists(layer: Layer, talk: Conversation) -> None:
    """The specification encodes tuples as lists, at any depth."""
    await layer.send("channel", {"value": (1, ("two", [(3,)])), "deep": {"value": ()}})
    assert_same(await talk.next(layer, "channel"), {"value": [1, ["two", [[3]]]], "deep": {"value": []}})


@in_memory_breaks("it copies the message and so keeps the class")
async def test_subclasses_arrive_as_their_plain_type(layer: Layer, talk: Conversation) -> None:
    """Django's safe strings and enums are strings and ints, and arrive as such."""
    await layer.send("channel", {"html": mark_safe("<b>"), "colour": Colour.RED})
    assert_same(await talk.next(layer, "channel"), {"html": "<b>", "colour": 1})


UNENCODABLE: list[Any] = [
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc),
    dt.date(2024, 1, 1),
    decimal.Decimal("1.5"),
    uuid.UUID(int=7),
    {1, 2},
    frozenset(),
    {1: "int key"},
    {b"bytes": "key"},
    {None: "key"},
    {True: "key"},
    {(1, 2): "key"},
    2**63,
    -(2**63) - 1,
    2**64,
    10**400,
    1j,
    object(),
    print,
    ValueError("error"),
    "\ud800",
]


@in_memory_breaks("it copies what it is given, whatever that is")
async def test_what_receivers_could_not_decode_is_refused_at_send(layer: Layer, talk: Conversation) -> None:
    """Peer defect 28: TypeError at send, at any depth, and the channel goes on working."""
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    for value in UNENCODABLE:
        for message in ({"value": value}, {"list": [1, [value]]}, {"dict": {"deep": (value,)}}):
            with pytest.raises(TypeError):
                await layer.send(channel, message)
            with pytest.raises(TypeError):
                await layer.group_send("group", message)
    await layer.send(channel, text(1))
    assert await talk.next(layer, channel) == text(1)


@in_memory_breaks("it copies what it is given, a circle too")
async def test_a_circle_is_refused_at_send(layer: Layer, talk: Conversation) -> None:
    """A message that contains itself has no encoding: an error, not a hang."""
    circle: Message = {"type": "test"}
    circle["self"] = [circle]
    with pytest.raises((TypeError, ValueError)):
        await layer.send("channel", circle)
    assert await talk.is_empty(layer, "channel")


@pytest.mark.parametrize("message", [None, "text", b"bytes", 7, ["list"], ("tuple",)])
async def test_a_message_is_a_dict(layer: Layer, message: Any) -> None:
    """Anything else is refused at send, by an error and not by a dead consumer."""
    with pytest.raises((TypeError, AssertionError)):
        await layer.send("channel", message)
    with pytest.raises((TypeError, AssertionError)):
        await layer.group_send("group", message)


async def test_changing_the_message_after_send_changes_nothing(layer: Layer, talk: Conversation) -> None:
    """What was sent is what the message was at that time, at any depth."""
    message: Message = {"list": [1], "dict": {"key": "before"}}
    await layer.send("channel", message)
    message["list"].append(2)
    message["dict"]["key"] = "after"
    message["more"] = True
    assert await talk.next(layer, "channel") == {"list": [1], "dict": {"key": "before"}}


async def test_sending_leaves_the_message_alone(layer: Layer, talk: Conversation) -> None:
    """Neither send() nor group_send() writes into the caller's dict."""
    message = {"type": "test", "nested": {"list": [1, 2]}}
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.send(channel, message)
    await layer.group_send("group", message)
    assert message == {"type": "test", "nested": {"list": [1, 2]}}
    assert await talk.take(layer, channel, 2) == [message, message]


async def test_members_of_one_process_do_not_share_a_message(layer: Layer, talk: Conversation) -> None:
    """What one consumer does to its message the next does not see."""
    first, second = await layer.new_channel(), await layer.new_channel()
    for channel in (first, second):
        await layer.group_add("group", channel)
    await layer.group_send("group", {"list": [1]})
    received = await talk.next(layer, first)
    received["list"].append("changed")
    assert await talk.next(layer, second) == {"list": [1]}


@pytest.mark.parametrize(
    "value", ["x" * 1_000_000, "x" * MIB, b"\xff" * MIB, "\u65e5" * (MIB // 3), [0.123456789] * 80_000], ids=type
)
async def test_a_message_of_1_mb_arrives(layer: Layer, talk: Conversation, value: Any) -> None:
    """All channel layers must support messages of 1 MB encoded as JSON."""
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "test", "value": value})
    assert (await talk.next(layer, channel))["value"] == value
    await layer.send("normal", {"type": "test", "value": value})
    assert (await talk.next(layer, "normal"))["value"] == value


@not_in_memory("it has no limit")
async def test_a_message_over_the_limit_is_refused(layer: Layer, talk: Conversation) -> None:
    """MessageTooLarge at send and at group_send, and the channel goes on working."""
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    with pytest.raises(layer.MessageTooLarge):
        await layer.send(channel, {"value": "x" * (64 * MIB)})
    with pytest.raises(layer.MessageTooLarge):
        await layer.group_send("group", {"value": b"x" * (64 * MIB)})
    await layer.send(channel, text(1))
    assert await talk.next(layer, channel) == text(1)


def assert_same(found: Any, expected: Any) -> None:
    """Compare values and types, down to the last leaf; 1, 1.0 and True are three things, and so are 0.0 and -0.0."""
    assert type(found) is type(expected), (found, expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert repr(found) == repr(expected)
