"""Channel and group names, and the node in a name."""

from __future__ import annotations

import functools
import re
import secrets
import uuid

from .errors import short

MAX_LENGTH = 100  # exclusive, as in channels.layers.BaseChannelLayer
CACHED = 1_000  # channels whose names need not be looked at again with each message
MAX_PREFIX = 53  # what is left beside the node and the 32 digits that make a name unique

_CHANNEL = re.compile(r"[a-zA-Z0-9\-_.]+(![a-zA-Z0-9\-_.]*)?")
_GROUP = re.compile(r"[a-zA-Z0-9\-_.]+")
_NODE = re.compile(r"\.([0-9a-f]{12})!")
_RULE = (
    "{} name must be a string of fewer than 100 characters, made of ASCII letters, digits, hyphens, underscores "
    "and periods{}, not {}."
)


@functools.lru_cache(maxsize=CACHED)
def _is_channel(name: str) -> bool:
    return _CHANNEL.fullmatch(name) is not None


def check_channel(name: object) -> str:
    """Return the channel's name, or raise TypeError that tells the rule it breaks."""
    if not isinstance(name, str) or len(name) >= MAX_LENGTH or not _is_channel(name):
        raise TypeError(_RULE.format("Channel", " with at most one '!'", short(name)))
    return name


def check_group(name: object) -> str:
    """Return the group's name, or raise TypeError that tells the rule it breaks."""
    if not isinstance(name, str) or len(name) >= MAX_LENGTH or not _GROUP.fullmatch(name):
        raise TypeError(_RULE.format("Group", "", short(name)))
    return name


def check_prefix(prefix: object) -> str:
    """Return what the names of new channels may begin with, or raise TypeError that tells the rule it breaks."""
    if not isinstance(prefix, str) or len(prefix) > MAX_PREFIX or not _GROUP.fullmatch(prefix):
        raise TypeError(
            f"The prefix of a new channel must be a string of at most {MAX_PREFIX} ASCII letters, digits, hyphens, "
            f"underscores and periods, not {short(prefix)}."
        )
    return prefix


def new_node() -> str:
    """Return a random node id, 12 hexadecimal digits."""
    return secrets.token_hex(6)


def new_channel(prefix: str, node: str) -> str:
    """Return a new process-specific channel of the node: `prefix.node!uuid`."""
    return f"{prefix.rstrip('.')}.{node}!{uuid.uuid4().hex}"


@functools.lru_cache(maxsize=CACHED)
def node_of(channel: str) -> str | None:
    """Return the node that reads the channel, None if any process may."""
    found = _NODE.search(channel)
    return found[1] if found else None


def queue_of(channel: str) -> str:
    """Return the queue a channel without a node waits in: its name up to and including a `!`."""
    head, mark, _ = channel.partition("!")
    return head + mark


def recipient_of(channel: str) -> str:
    """Return the `recipient` of a message to the channel: the node that reads it, or the queue that it waits in."""
    return node_of(channel) or queue_of(channel)
