"""Turns a CONFIG mapping into one frozen Settings, and says plainly what is wrong with it."""

from __future__ import annotations

import datetime as dt
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict

from .address import Connector, Url, overlaid
from .errors import ConfigurationError
from .rules import RULES, named

# What an entry of Django's DATABASES can carry.
DATABASE_KEYS = frozenset(
    {"ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS", "TIME_ZONE", "TEST", "AUTOCOMMIT"}
    | {"ATOMIC_REQUESTS", "CONN_MAX_AGE", "CONN_HEALTH_CHECKS", "DISABLE_SERVER_SIDE_CURSORS"}
)
ALL_KEYS = frozenset({*RULES, *DATABASE_KEYS, "database"})
HEARTBEATS_PER_LEASE = 3

# What the keys of other layers, and of other people's habits, are called here.
_HINTS = {
    "hosts": 'There is no Redis here: say where PostgreSQL is with "url", "database" or Django\'s NAME, HOST, ….',
    "dsn": 'Its name here is "url".',
    "conninfo": 'Its name here is "url".',
    "alias": 'Its name here is "database".',
    "using": 'Its name here is "database".',
    "config": 'Options of the pool go into "PSYCOPG_OPTIONS"; everything else stands in CONFIG itself.',
    "pool": 'Its name here is "PSYCOPG_OPTIONS".',
    "serializer_format": 'Its name here is "serializer".',
    "random_prefix_length": "Leave it out: messages need no random prefix here.",
    "connection_kwargs": 'Connection parameters go into "url" or "OPTIONS", pool options into "PSYCOPG_OPTIONS".',
}


_Address: TypeAlias = "Url | Callable[[], Url]"


class Config(TypedDict, total=False):
    """The keys that a Layer or a Publisher takes, for type checkers; docs/configuration.md tells what they mean.

    A mapping that has a name needs this annotation, for `Layer(**config)`: `config: Config = {"url": …, "expiry": 5}`.
    """

    url: _Address
    listen_url: _Address | None
    prefix: str
    expiry: float
    group_expiry: float
    capacity: int | None
    channel_capacity: Mapping[Any, int] | None
    symmetric_encryption_keys: Sequence[str | bytes] | None
    allow_unencrypted: Sequence[str | re.Pattern[str]] | None
    serializer: str
    schema: str | None
    PSYCOPG_OPTIONS: Mapping[str, Any] | None
    send_timeout: float
    confirm_sends: bool
    heartbeat: float
    lease: float
    on_disconnect: str | None
    on_reconnect: str | None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a layer needs to know, checked.

    Attributes:
        connect: gives the libpq parameters of a new connection; called anew for each.
        listen: the same for the connection that listens.
        prefix: the boundary between applications in one database.
        expiry: seconds after which an unread message is dropped.
        group_expiry: seconds after which a membership ends; 0 for never.
        capacity: most unread messages of a channel; None for no limit.
        channel_capacity: patterns of channel names, each with its capacity; the first that matches counts.
        symmetric_encryption_keys: the first encrypts, all decrypt; none for plain messages.
        allow_unencrypted: patterns of channels and groups that may send plain messages to a layer with keys.
        serializer: "msgpack", "json" or a dotted path.
        schema: the PostgreSQL schema of the tables; None leaves it to the connection's search_path.
        pool: options of psycopg_pool.AsyncConnectionPool.
        send_timeout: seconds until a send gives up.
        confirm_sends: whether a send waits until its message is committed.
        heartbeat: seconds between a node's signs of life.
        lease: seconds of silence after which a node's members are swept.
        on_disconnect: type of the message that local channels get when the server is lost; None for none.
        on_reconnect: type of the message that they get when it is back; None for none.
    """

    connect: Connector = field(repr=False)
    listen: Connector = field(repr=False)
    prefix: str = "asgi"
    expiry: float = 60
    group_expiry: float = 0
    capacity: int | None = None
    channel_capacity: tuple[tuple[re.Pattern[str], int], ...] = ()
    symmetric_encryption_keys: tuple[str | bytes, ...] = field(default=(), repr=False)
    allow_unencrypted: tuple[re.Pattern[str], ...] = ()
    serializer: str = "msgpack"
    schema: str | None = None
    pool: Mapping[str, Any] = field(default_factory=dict)
    send_timeout: float = 10
    confirm_sends: bool = True
    heartbeat: float = 5
    lease: float = 60
    on_disconnect: str | None = None
    on_reconnect: str | None = None

    @property
    def listens_apart(self) -> bool:
        """Whether the connection that listens has an address of its own, `listen_url`."""
        return self.listen is not self.connect

    @property
    def bounded(self) -> bool:
        """Whether any channel has a capacity, so that senders count rows."""
        return self.capacity is not None or bool(self.channel_capacity)

    def capacity_of(self, channel: str) -> int | None:
        """Return the most unread messages of a channel, None for no limit."""
        for pattern, capacity in self.channel_capacity:
            if pattern.match(channel):
                return capacity
        return self.capacity

    @property
    def message_life(self) -> dt.timedelta:
        """How long a message may wait."""
        return dt.timedelta(seconds=self.expiry)

    @property
    def membership_life(self) -> dt.timedelta | None:
        """How long a membership lasts; None for ever."""
        return dt.timedelta(seconds=self.group_expiry) if self.group_expiry else None


def settings_from_mapping(config: Mapping[str, Any], connect: Connector | None = None) -> Settings:
    """Check every key of a CONFIG and make Settings of it.

    Args:
        config: "url", "listen_url", "PSYCOPG_OPTIONS" and the other fields of Settings.
        connect: gives the connection parameters if the mapping has no "url".

    Raises:
        ConfigurationError: a key is unknown, or its value has the wrong type or range; the message names the key
            and what would be right.
    """
    check_keys(config)
    values = {key: RULES[key].applied(f'"{key}"', value) for key, value in config.items()}
    connect = values.pop("url", connect)
    if connect is None:
        raise ConfigurationError('Nothing says where the database is. Give "url": "postgresql://user@host/name".')
    over = values.pop("listen_url", None)
    listen = connect if over is None else overlaid(connect, over)
    settings = Settings(connect=connect, listen=listen, pool=values.pop("PSYCOPG_OPTIONS", {}), **values)
    _check_lease(settings)
    return settings


def check_keys(config: Mapping[str, Any]) -> None:
    """Make sure that every key is one that `settings_from_mapping` knows.

    Raises:
        ConfigurationError: some are not; the message names for each the nearest right one.
    """
    unknown = [f"Unknown key {named(key)}. {_advice(str(key))}" for key in config if key not in RULES]
    if unknown:
        raise ConfigurationError(" ".join(unknown))


def checked_schema(name: object) -> str | None:
    """Return the name of a PostgreSQL schema if it is a plain identifier, or None.

    Raises:
        ConfigurationError: it is neither.
    """
    schema: str | None = RULES["schema"].applied('"schema"', name)
    return schema


def nearest_key(name: str) -> str | None:
    """Return the CONFIG key that looks most like a name, None if none does."""
    by_lower = {key.lower(): key for key in ALL_KEYS}
    near = difflib.get_close_matches(name.lower(), sorted(by_lower), n=1, cutoff=0.7)  # "secret" is no "USER"
    return by_lower[near[0]] if near else None


def _advice(key: str) -> str:
    if key in ALL_KEYS:
        return 'It belongs to Django. Without Django, say where the database is with "url".'
    if key.lower() in _HINTS:
        return _HINTS[key.lower()]
    near = nearest_key(key)
    return f'Did you mean "{near}"?' if near else f"The keys are: {', '.join(sorted(ALL_KEYS))}."


def _check_lease(settings: Settings) -> None:
    least = HEARTBEATS_PER_LEASE * settings.heartbeat
    if settings.lease < least and not math.isclose(settings.lease, least):
        raise ConfigurationError(
            f'"lease" must be at least {HEARTBEATS_PER_LEASE} times "heartbeat", so {least:g} seconds or more, '
            f"not {settings.lease:g}: one late heartbeat must not sweep a living node."
        )
