"""What the value of each CONFIG key must be, in words and as a test."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from psycopg_pool import AsyncConnectionPool

from .address import connector
from .codec import SERIALIZERS, load_serializer
from .errors import ConfigurationError, short

MAX_SECONDS = 10**9  # more than 30 years; sums of times must not overflow
LONGEST_PREFIX = 100  # characters; it stands in keys of indexes, which are limited
MAX_IDENTIFIER = 63  # bytes; https://www.postgresql.org/docs/current/sql-syntax-lexical.html

_REFUSED = object()
_IDENTIFIER = re.compile(r"(?!pg_)[^\W\d]\w*")
_MAY_BE_SECRET = re.compile("://|@|password", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")
_DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
# The layer decides these itself: they are how the pool and SQLAlchemy's engine fit together.
_POOL_RESERVED = frozenset({"self", "conninfo", "kwargs", "connection_class", "open", "close_returns"})
_POOL_OPTIONS = frozenset(inspect.signature(AsyncConnectionPool.__init__).parameters) - _POOL_RESERVED


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value must be.

    Attributes:
        right: completes the sentence "it must be …".
        accepts: tells a right value.
        kept: makes of a right value what Settings holds; may itself raise ConfigurationError.
        if_none: what None stands for; without it None is a wrong value.
        secret: keep the value out of errors.
    """

    right: str
    accepts: Callable[[Any], bool]
    kept: Callable[[Any], Any] = lambda value: value
    if_none: Any = _REFUSED
    secret: bool = False

    def applied(self, name: str, value: Any) -> Any:
        """Return what Settings keeps of a value.

        Raises:
            ConfigurationError: the value is wrong; `name` says where it stands.
        """
        if value is None and self.if_none is not _REFUSED:
            return self.if_none
        if not self.accepts(value):
            raise ConfigurationError(f"{name} must be {self.right}, not {shown(value, secret=self.secret)}.")
        return self.kept(value)


def shown(value: object, *, secret: bool = False) -> str:
    """Return a wrong value as an error may show it: not if it is secret, or looks as if it held a password."""
    with contextlib.suppress(ValueError):  # of a number with more digits than Python writes
        if not secret and not _MAY_BE_SECRET.search(repr(value)):
            return short(value)
    return "this list" if isinstance(value, (list, tuple)) else f"of type {type(value).__name__}"


def named(key: str) -> str:
    """Return a wrong key as an error may show it: an address may stand where a key should."""
    return f'"{key}"' if shown(key) == repr(key) else shown(key)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_SECONDS


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_positive(value: object) -> TypeGuard[int]:
    return _is_count(value) and value > 0


def _is_text(value: object) -> bool:
    """A text that PostgreSQL can store: without NUL, and without half a character."""
    return isinstance(value, str) and value != "" and "\0" not in value and not _SURROGATE.search(value)


def _is_keys(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(key, (str, bytes)) and key for key in value)


def _is_serializer(value: object) -> bool:
    return isinstance(value, str) and (value in SERIALIZERS or _DOTTED_PATH.fullmatch(value) is not None)


def _loadable(name: str) -> str:
    if name not in SERIALIZERS:
        load_serializer(name)
    return name


def _is_schema(value: object) -> bool:
    return isinstance(value, str) and _IDENTIFIER.fullmatch(value) is not None and len(value.encode()) <= MAX_IDENTIFIER


def _is_pattern(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, re.Pattern) and isinstance(value.pattern, str))


def _is_capacities(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_pattern(pattern) and _is_capacity(capacity) for pattern, capacity in value.items()
    )


def _is_capacity(value: object) -> bool:
    return _is_positive(value) and value < 2**31  # PostgreSQL's integer


def _pattern(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern)) if isinstance(pattern, str) else pattern


def _compiled(capacities: Mapping[str | re.Pattern[str], int]) -> tuple[tuple[re.Pattern[str], int], ...]:
    return tuple((_pattern(pattern), capacity) for pattern, capacity in capacities.items())


def _is_patterns(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_pattern, value))


def _checked_pool(options: Mapping[str, Any]) -> dict[str, Any]:
    for name in options:
        if name in _POOL_RESERVED:
            where = ' Parameters of a connection go into "OPTIONS", or the "url".' if name == "kwargs" else ""
            raise ConfigurationError(f'"PSYCOPG_OPTIONS" must not hold "{name}": the layer sets it itself.{where}')
        if name not in _POOL_OPTIONS:
            near = difflib.get_close_matches(name, sorted(_POOL_OPTIONS), n=1)
            right = f'Did you mean "{near[0]}"?' if near else f"The options are {', '.join(sorted(_POOL_OPTIONS))}."
            raise ConfigurationError(f'"PSYCOPG_OPTIONS" has no option {named(name)}. {right}')
    kept = {
        name: _POOL_RULES[name].applied(f'"{name}" in "PSYCOPG_OPTIONS"', value) if name in _POOL_RULES else value
        for name, value in options.items()
    }
    _check_sizes(kept)
    return kept


def _check_sizes(options: Mapping[str, Any]) -> None:
    smallest, largest = options.get("min_size"), options.get("max_size")
    if smallest is not None and largest is not None and largest < smallest:
        raise ConfigurationError(
            f'"max_size" in "PSYCOPG_OPTIONS" must be at least its "min_size" of {smallest}, not {largest}.'
        )


_SECONDS = Rule(f"a number of seconds above 0, at most {MAX_SECONDS:,}", lambda value: _is_number(value) and value > 0)
_COUNT = Rule("a whole number", _is_count)
_FUNCTION = Rule("a function, or None", callable, if_none=None)
_MESSAGE_TYPE = Rule('the type of a message, such as "layer.lost", or None', _is_text, if_none=None)
_POOL_RULES: dict[str, Rule] = {
    "min_size": _COUNT,
    "max_size": Rule("a whole number above 0, or None", _is_positive, if_none=None),
    "max_waiting": _COUNT,
    "num_workers": Rule("a whole number above 0", _is_positive),
    **dict.fromkeys(("timeout", "max_lifetime", "max_idle", "reconnect_timeout"), _SECONDS),
    **dict.fromkeys(("configure", "check", "reset", "reconnect_failed"), _FUNCTION),
}
RULES: dict[str, Rule] = {
    "url": Rule("", lambda _: True, lambda value: connector(value, "url")),
    "listen_url": Rule("", lambda _: True, lambda value: connector(value, "listen_url"), if_none=None),
    "prefix": Rule(
        f"a text of 1 to {LONGEST_PREFIX} characters",
        lambda value: _is_text(value) and len(value) <= LONGEST_PREFIX,
    ),
    "expiry": _SECONDS,
    "group_expiry": Rule(
        f"a number of seconds, at most {MAX_SECONDS:,}, or 0 for never", lambda value: _is_number(value) and value >= 0
    ),
    "capacity": Rule("a whole number from 1 to 2,147,483,647, or None for no limit", _is_capacity, if_none=None),
    "channel_capacity": Rule(
        "a mapping of globs or compiled patterns to whole numbers from 1 to 2,147,483,647",
        _is_capacities,
        _compiled,
        if_none=(),
    ),
    "symmetric_encryption_keys": Rule(
        "a list of keys (texts or bytes, none empty), such as [SECRET_KEY]", _is_keys, tuple, if_none=(), secret=True
    ),
    "allow_unencrypted": Rule(
        "a list of globs or compiled patterns of names of channels and groups",
        _is_patterns,
        lambda patterns: tuple(map(_pattern, patterns)),
        if_none=(),
    ),
    "serializer": Rule(
        '"msgpack", "json" or the dotted path of a serializer, such as "site.codec"', _is_serializer, _loadable
    ),
    "schema": Rule(
        f'the name of a PostgreSQL schema (letters, digits and "_", at most {MAX_IDENTIFIER} bytes, '
        'neither starting with a digit nor with "pg_"), or None',
        _is_schema,
        if_none=None,
    ),
    "PSYCOPG_OPTIONS": Rule(
        "a mapping of psycopg_pool's options", lambda value: isinstance(value, Mapping), _checked_pool, if_none={}
    ),
    "send_timeout": _SECONDS,
    "confirm_sends": Rule("True or False", lambda value: isinstance(value, bool)),
    "heartbeat": _SECONDS,
    "lease": _SECONDS,
    "on_disconnect": _MESSAGE_TYPE,
    "on_reconnect": _MESSAGE_TYPE,
}
