"""Messages to bytes and back: serializers and encryption."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgpack
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from .errors import ConfigurationError, DecodeError, MessageTooLarge, short

Message = dict[str, Any]

MAX_BYTES = 16 * 1024 * 1024
"""The largest encoded message accepted, in bytes."""

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_MAX_DEPTH = 100
_BOXED = "\uffff"  # bytes in JSON, as the specification suggests
_MAY_BE_BOXED = re.compile(rb"\xef\xbf\xbf|\\u[fF]{4}")
_JSON_MARK = b"{"
_OWN_MARK = b"\xc1"  # the one byte msgpack never uses: a frame of the project's own serializer
_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What values of classes of the sender's own, and serializers, raise. The rest is no fault of the message's: a time
limit's exception, for example, may come from a signal handler at any moment."""
_UNCHANGING = frozenset({str, bytes, int, float, bool, type(None)})


class Serializer(Protocol):
    """What a dotted path in the setting `serializer` must lead to: a module, object or class with these two."""

    def dumps(self, message: Message, /) -> bytes:
        """Return the message as bytes; raise TypeError or ValueError if it cannot be."""

    def loads(self, data: bytes, /) -> Message:
        """Return the message; raise ValueError or TypeError if the data is none."""


class MessageCodec:
    """Turn messages into payloads, and payloads into messages, as one layer is configured.

    Args:
        serializer: "msgpack", "json" or the dotted path of a Serializer.
        keys: the first encrypts, all decrypt; none means no encryption.
    """

    def __init__(self, serializer: str = "msgpack", keys: Sequence[str | bytes] = ()) -> None:
        self._own = None if serializer in SERIALIZERS else load_serializer(serializer)
        self._dumps = SERIALIZERS.get(serializer, self._dump_own)
        self._fernet = MultiFernet([_fernet(key) for key in keys]) if keys else None

    def encode(self, message: Message) -> bytes:
        """Return the payload.

        Raises:
            TypeError: the message, or a value in it, is of a type the specification does not allow; names the place. A
                serializer of the user's own decides by itself what a message may hold.
            MessageTooLarge: the payload is over MAX_BYTES; one that must be is not encoded just to learn its size.
        """
        if not isinstance(message, dict):
            raise TypeError(f"A message is a dict, not {type(message).__name__}.")
        try:
            if self._own is None:  # which knows what it takes
                _weigh(message, 0, {})
            data = self._dumps(message)
        except _Refusal as refusal:
            raise TypeError(str(refusal)) from None
        except MessageTooLarge:
            raise
        except _FAULTS as error:
            raise TypeError(f"The message cannot be encoded: {type(error).__name__}: {error}") from error
        if self._fernet is not None:
            data = base64.urlsafe_b64decode(self._fernet.encrypt(data))
        if len(data) > MAX_BYTES:
            raise MessageTooLarge(len(data), MAX_BYTES)
        return data

    def decode(self, payload: bytes, *, may_be_plain: bool = False) -> Message:
        """Return the message, or raise DecodeError for whatever else the payload is.

        Args:
            payload: what `encode` or a function of the database has made.
            may_be_plain: whether JSON may be unencrypted although there are keys.
        """
        return self._load(self._decrypt(payload, may_be_plain))

    def copier(self, payload: bytes, *, may_be_plain: bool = False) -> Callable[[], Message]:
        """Return a function that gives the message, a copy of its own to each caller; raises as `decode` does.

        A message in which nothing can be changed, as in most, is decoded only once.
        """
        data = self._decrypt(payload, may_be_plain)
        message = self._load(data)
        if type(message) is dict and _UNCHANGING.issuperset(map(type, message.values())):
            return message.copy
        return functools.partial(self._load, data)

    def _load(self, data: bytes) -> Message:
        try:
            mark = data[:1]
            if mark == _JSON_MARK:
                message = _load_json(data)
            elif mark == _OWN_MARK and self._own is not None:
                message = self._own.loads(data[1:])
            else:
                message = msgpack.unpackb(data)
        except Exception as error:  # a serializer may raise anything on hostile bytes
            encrypted = "; perhaps it is encrypted, and this layer has no symmetric_encryption_keys"
            hint = encrypted if self._fernet is None else ""
            raise DecodeError(f"The payload is no message: {type(error).__name__}: {error}{hint}") from error
        if not isinstance(message, dict):
            raise DecodeError(f"The payload holds a {type(message).__name__}, not a dict.")
        return message

    def _decrypt(self, payload: bytes, may_be_plain: bool) -> bytes:
        if len(payload) > MAX_BYTES:
            raise DecodeError(f"The payload has {len(payload):,} bytes; the limit is {MAX_BYTES:,}.")
        if self._fernet is None:
            return payload
        try:
            return self._fernet.decrypt(base64.urlsafe_b64encode(payload))
        except InvalidToken as error:
            if may_be_plain and payload[:1] == _JSON_MARK:  # as SQL sends; a serializer trusts whoever has the key
                return payload
            raise DecodeError("The payload was not encrypted with any of this layer's keys.") from error

    def _dump_own(self, message: Message) -> bytes:
        assert self._own is not None  # noqa: S101 - for the type checker
        data: bytes | str = self._own.dumps(message)
        if isinstance(data, str):  # as json's does
            raise _Refusal("", " cannot be encoded: the serializer's dumps() returns str, not bytes.")
        return _OWN_MARK + data


class _Refusal(Exception):
    """Says what a receiver could not read; on its way up it learns the place, from the innermost part on."""

    def __init__(self, before: str, after: str) -> None:
        self.before = before
        self.after = after
        self.place: list[str] = []

    def __str__(self) -> str:
        place = "message" + "".join(reversed(self.place))
        return self.before + (place if len(place) <= 100 else f"{place[:40]}…{place[-40:]}") + self.after


_Weighed = dict[int, tuple[object, int, int]]


def _weigh(value: object, depth: int, weighed: _Weighed) -> int:
    """Refuse what a receiver could not read, and what is too large for sure; return how many bytes it has at least.

    Exact types first: they are nearly all there are. A container that stands in several places is weighed once, so that
    nested shared ones take no exponential time.
    """
    kind = type(value)
    if kind is str or kind is bytes:
        return len(value)  # type: ignore[arg-type]
    if kind is bool or kind is float or value is None:
        return 1
    if isinstance(value, int):
        if not _INT64_MIN <= value <= _INT64_MAX:
            raise _Refusal("", " is an integer below -2**63 or above 2**63 - 1.")
        return 1
    if isinstance(value, (dict, list, tuple)):
        known = weighed.get(id(value))
        if known is None or depth > known[1]:
            if depth > _MAX_DEPTH:
                raise _Refusal(f"The message is nested more than {_MAX_DEPTH} deep, at ", ".")
            if isinstance(value, dict):
                weight = _weigh_dict(value, depth, weighed)
            else:
                weight = _weigh_items(value, depth, weighed)
            known = weighed[id(value)] = value, depth, weight
        return known[2]
    if not isinstance(value, (str, float, bytes, bytearray)):
        right = "messages hold str, bytes, int, float, bool, None, lists and dicts"
        raise _Refusal("", f" is of type {kind.__qualname__}; {right}.")
    return 1


def _weigh_dict(value: dict[object, object], depth: int, weighed: _Weighed) -> int:
    total = 1
    for key, item in value.items():
        if not isinstance(key, str):
            raise _Refusal("", f" has the key {short(key)} of type {type(key).__name__}, not str.")
        try:
            total += 1 + _weigh(item, depth + 1, weighed)
        except _Refusal as refusal:
            refusal.place.append(f"[{short(key)}]")
            raise
        if total > MAX_BYTES:
            raise MessageTooLarge(total, MAX_BYTES)
    return total


def _weigh_items(value: list[object] | tuple[object, ...], depth: int, weighed: _Weighed) -> int:
    total = 1
    for position, item in enumerate(value):
        try:
            total += _weigh(item, depth + 1, weighed)
        except _Refusal as refusal:
            refusal.place.append(f"[{position}]")
            raise
        if total > MAX_BYTES:
            raise MessageTooLarge(total, MAX_BYTES)
    return total


def _dump_msgpack(message: Message) -> bytes:
    return bytes(msgpack.packb(message))


def _dump_json(message: Message) -> bytes:
    try:
        text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    except TypeError:  # there are bytes in it
        text = _BOXED
    if _BOXED in text:
        text = json.dumps(_box(message), ensure_ascii=False, separators=(",", ":"))
    return text.encode()


def _load_json(data: bytes) -> Any:
    message = json.loads(data)
    return _unbox(message) if _MAY_BE_BOXED.search(data) else message


def _box(value: Any) -> Any:
    """Put bytes into strings that begin with the mark; a string that begins with it by itself gets one more."""
    if isinstance(value, (bytes, bytearray)):
        return _BOXED + base64.b64encode(value).decode()
    if isinstance(value, str) and value.startswith(_BOXED):
        return _BOXED + value
    if isinstance(value, dict):
        return {key: _box(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_box(item) for item in value]
    return value


def _unbox(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_BOXED):
        return value[1:] if value.startswith(_BOXED, 1) else base64.b64decode(value[1:])
    if isinstance(value, dict):
        return {key: _unbox(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unbox(item) for item in value]
    return value


def _fernet(key: str | bytes) -> Fernet:
    """A key of any length, hashed with SHA-256, as channels_redis and channels_postgres do."""
    raw = key.encode() if isinstance(key, str) else key
    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(raw).digest()))


def _import(path: str) -> Any:
    """Import what stands in a module, or a module, which its package knows only once it is imported."""
    parent, _, name = path.rpartition(".")
    if parent and hasattr(module := importlib.import_module(parent), name):
        return getattr(module, name)
    return importlib.import_module(path)


def load_serializer(path: str) -> Serializer:
    """Import a serializer.

    Raises:
        ConfigurationError: the path leads to none.
    """
    try:
        found = _import(path)
    except ImportError as error:
        message = f'serializer: {path!r} is neither "msgpack", "json" nor importable: {error}'
        raise ConfigurationError(message) from error
    try:
        serializer: Serializer = found() if isinstance(found, type) else found
    except Exception as error:
        raise ConfigurationError(f"serializer: {path!r} cannot be called without arguments: {error}") from error
    if not callable(getattr(serializer, "dumps", None)) or not callable(getattr(serializer, "loads", None)):
        raise ConfigurationError(f"serializer: {path!r} has no functions dumps(message) and loads(data).")
    return serializer


SERIALIZERS: dict[str, Callable[[Message], bytes]] = {"msgpack": _dump_msgpack, "json": _dump_json}
"""Those of the package, by name."""
