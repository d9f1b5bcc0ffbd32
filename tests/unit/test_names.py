"""Names of channels and groups."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels_pg_sa import names

ALPHABET = "abcxyzABCXYZ0189-_."
PLAIN = st.text(ALPHABET, min_size=1, max_size=names.MAX_LENGTH - 1)
NODES = st.builds(names.new_node)


@pytest.mark.parametrize("name", ["a", "A-b_c.9", "specific.abc!", "specific.abc!d.e-f", "x" * 99, "a!" + "b" * 97])
def test_valid_channel_names_pass(name: str) -> None:
    """Up to 99 characters, with at most one mark; the mark may end the name."""
    assert names.check_channel(name) == name


@pytest.mark.parametrize(
    "name", ["", "!", "!a", "a!b!c", "a!!", "x" * 100, "a b", "a\n", "ä", "a,b", "a\0", b"a", None, 1, "a!\n"]
)
def test_wrong_channel_names_are_a_type_error_that_tells_the_rule(name: object) -> None:
    """Empty, too long, with other characters, or no text at all."""
    with pytest.raises(TypeError, match=r"fewer than 100 characters.*at most one '!'"):
        names.check_channel(name)


@pytest.mark.parametrize("name", ["", "a!", "a!b", "x" * 100, "a b", "a\n", "ä", b"a", None])
def test_wrong_group_names_are_a_type_error_that_tells_the_rule(name: object) -> None:
    """What channels may not be called, and no mark at all."""
    with pytest.raises(TypeError, match="Group name must be a string of fewer than 100 characters"):
        names.check_group(name)


@given(name=PLAIN)
def test_every_valid_name_passes(name: str) -> None:
    """As a channel and as a group."""
    assert names.check_channel(name) == names.check_group(name) == name


@given(prefix=st.text(ALPHABET, min_size=1, max_size=names.MAX_PREFIX), node=NODES)
def test_a_new_channel_is_valid_and_names_its_node(prefix: str, node: str) -> None:
    """However long or odd the prefix may be; and no two are alike."""
    channel = names.new_channel(names.check_prefix(prefix), node)
    assert names.check_channel(channel) == channel
    assert names.node_of(channel) == names.recipient_of(channel) == node
    assert channel.startswith(prefix.rstrip("."))
    assert names.new_channel(prefix, node) != channel
    assert names.node_of(names.queue_of(channel)) == node, "so a reader of all channels of a node is known as its own"


def test_a_prefix_may_end_with_a_period_as_well_as_without() -> None:
    """Channels' own code asks for both."""
    assert names.new_channel("http.response.", "0123456789ab").startswith("http.response.0123456789ab!")


def test_only_so_many_names_are_remembered() -> None:
    """Each browser that comes has a new one."""
    for number in range(2 * names.CACHED):
        channel = names.check_channel(f"specific.0123456789ab!{number}")
        assert names.node_of(channel) == "0123456789ab"
    for cached in (names._is_channel, names.node_of):
        assert cached.cache_info().currsize == names.CACHED


@pytest.mark.parametrize("prefix", ["", "x" * 54, "a!", "a b", None, b"a"])
def test_a_wrong_prefix_is_a_type_error(prefix: object) -> None:
    """It must leave room for the node and the unique part."""
    with pytest.raises(TypeError, match="prefix of a new channel"):
        names.check_prefix(prefix)


@pytest.mark.parametrize(
    "channel",
    [
        "a",
        "a!b",
        "a.0123456789a!b",
        "a.0123456789abc!b",
        "a.0123456789aB!b",
        "a.0123456789ab",
        "0123456789ab!b",
        "a!b.0123456789ab",
    ],
)
def test_other_channels_have_no_node(channel: str) -> None:
    """Only twelve hexadecimal digits between a period and the mark are a node."""
    assert names.node_of(channel) is None


@pytest.mark.parametrize(
    ("channel", "queue"), [("a", "a"), ("a!", "a!"), ("a!b", "a!"), ("a.b!c", "a.b!"), ("a.b", "a.b")]
)
def test_a_channel_without_a_node_waits_in_the_queue_of_its_non_local_part(channel: str, queue: str) -> None:
    """The local part tells readers of one queue apart."""
    assert names.queue_of(channel) == names.recipient_of(channel) == queue


@pytest.mark.parametrize("check", [names.check_channel, names.check_group, names.check_prefix])
def test_a_name_from_anybody_is_not_shown_at_full_length(check: Callable[[object], str]) -> None:
    """It may be a browser's, of megabytes, and the error goes into a log."""
    for name in ("x" * 1_000_000, b"x" * 1_000_000, "\x00" * 1_000_000):
        with pytest.raises(TypeError) as caught:
            check(name)
        assert len(str(caught.value)) < 400


def test_the_longest_prefix_still_gives_a_channel() -> None:
    """And not one character more."""
    longest = "p" * names.MAX_PREFIX
    assert names.check_channel(names.new_channel(names.check_prefix(longest), "0" * 12))
    with pytest.raises(TypeError, match="at most 53"):
        names.check_prefix(longest + "p")
