"""Messages to bytes and back, and what is made of bytes that are no message."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import enum
import json
import pickle
import sys
import types
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
from cryptography.fernet import Fernet
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import strategies as st

from channels_pg_sa import codec as codec_module
from channels_pg_sa.codec import MAX_BYTES, MessageCodec
from channels_pg_sa.errors import ConfigurationError, DecodeError, MessageTooLarge
from tests.support.serializers import COMPRESSED_PATH

CODECS = {
    "msgpack": MessageCodec(),
    "json": MessageCodec("json"),
    "encrypted msgpack": MessageCodec("msgpack", ["secret"]),
    "encrypted json": MessageCodec("json", ["secret"]),
}
ANY_CODEC = st.sampled_from(list(CODECS.values()))
each_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)

# What the specification allows; text without lone surrogates, which no encoding has.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
TEXTS = TEXT | TEXT.map("\uffff".__add__)
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXTS | st.binary()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=8)
MESSAGES = st.dictionaries(TEXTS, VALUES, max_size=5)

# What a sender may try instead.
ODD_LEAVES = LEAVES | st.sampled_from([2**63, -(2**63) - 1, {1}, 1j, object(), "\ud800", float("nan"), memoryview(b"")])
ODD_KEYS = TEXTS | st.sampled_from([1, None, b"a", "\ud800", True])
ODD = st.recursive(
    ODD_LEAVES,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(ODD_KEYS, inner),
    max_leaves=8,
)


def exactly(value: object) -> object:
    """A value beside its type, all the way down, because True == 1 == 1.0."""
    if isinstance(value, dict):
        return [(key, exactly(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [exactly(item) for item in value]
    return type(value), repr(value)


@given(codec=ANY_CODEC, message=MESSAGES)
def test_what_the_specification_allows_comes_back_as_it_was(codec: MessageCodec, message: dict[str, Any]) -> None:
    """Values and their types survive, however nested, with either serializer, encrypted or not."""
    assert exactly(codec.decode(codec.encode(message))) == exactly(message)


@given(codec=ANY_CODEC, message=st.dictionaries(TEXTS, ODD, max_size=5))
def test_encode_raises_nothing_but_type_error(codec: MessageCodec, message: dict[str, Any]) -> None:
    """Whatever is in a message, it is encoded so that it can be decoded, or refused with TypeError."""
    payload = None
    with contextlib.suppress(TypeError):
        payload = codec.encode(message)
    if payload is not None:
        codec.decode(payload)


@given(serializer=st.sampled_from(["msgpack", "json"]), message=MESSAGES)
def test_keys_rotate(serializer: str, message: dict[str, Any]) -> None:
    """The first key encrypts; every key decrypts; a layer without the key refuses."""
    old, new = MessageCodec(serializer, ["old"]), MessageCodec(serializer, [b"new", "old"])
    assert exactly(new.decode(old.encode(message))) == exactly(message)
    with pytest.raises(DecodeError, match="not encrypted"):
        old.decode(new.encode(message))


@pytest.mark.parametrize("plain", ["msgpack", "json"])
def test_an_encrypting_layer_refuses_plain_frames_and_the_reverse(plain: str) -> None:
    """Neither takes the other's payload for a message."""
    secret, open_ = MessageCodec("msgpack", ["key"]), MessageCodec(plain)
    with pytest.raises(DecodeError):
        secret.decode(open_.encode({"type": "x"}))
    with pytest.raises(DecodeError, match="perhaps it is encrypted, and this layer has no symmetric_encryption_keys"):
        open_.decode(secret.encode({"type": "x"}))


def test_who_has_keys_is_not_told_to_give_some() -> None:
    """What may come unencrypted and is no message is not taken for an encrypted one."""
    with pytest.raises(DecodeError, match="is no message") as caught:
        MessageCodec("msgpack", ["key"]).decode(b"{", may_be_plain=True)
    assert "symmetric_encryption_keys" not in str(caught.value)


def test_encryption_hides_the_message() -> None:
    """The payload of an encrypting layer holds nothing of the message, and is a raw Fernet token."""
    payload = MessageCodec("json", ["key"]).encode({"type": "tell-tale"})
    assert b"tell-tale" not in payload
    Fernet._get_unverified_token_data(base64.urlsafe_b64encode(payload))  # raises if it is none


@given(message=MESSAGES)
def test_both_serializers_read_each_other(message: dict[str, Any]) -> None:
    """A layer may change its serializer while messages of the other kind are under way."""
    packed, text = CODECS["msgpack"], CODECS["json"]
    assert exactly(text.decode(packed.encode(message))) == exactly(message)
    assert exactly(packed.decode(text.encode(message))) == exactly(message)


@pytest.mark.parametrize("escape", [r"\uffff", r"\uFFFF", r"\uFfFf", "\uffff"])
def test_bytes_in_the_json_of_others_are_known_however_the_mark_is_written(escape: str) -> None:
    """JSON has upper-case and lower-case escapes for the same character."""
    assert MessageCodec().decode(f'{{"a": "{escape}aGk="}}'.encode()) == {"a": b"hi"}


class Colour(str, enum.Enum):
    """A str of the sender's own."""

    RED = "red"


class Level(enum.IntEnum):
    """An int of the sender's own."""

    HIGH = 3


class Point(NamedTuple):
    """A tuple of the sender's own."""

    x: int
    y: float


@each_codec
def test_subclasses_of_the_allowed_types_arrive_as_those(codec: MessageCodec) -> None:
    """Enum members, named tuples, ordered dicts and bytearrays are what they are subclasses of."""
    message = OrderedDict(colour=Colour.RED, level=Level.HIGH, point=Point(1, 2.0), raw=bytearray(b"\0"))
    message[Colour.RED] = True
    got = codec.decode(codec.encode(message))
    expected = {"colour": "red", "level": 3, "point": [1, 2.0], "raw": b"\0", "red": True}
    assert exactly(got) == exactly(expected)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ([], "A message is a dict, not list."),
        (None, "A message is a dict, not NoneType."),
        ({"a": [0, {"b": {1}}]}, "message['a'][1]['b'] is of type set; messages hold str"),
        ({"a": 2**63}, "message['a'] is an integer below -2**63 or above 2**63 - 1."),
        ({"a": {"b": {3: 4}}}, "message['a']['b'] has the key 3 of type int, not str."),
        ({"{}": ({b"{0}": 4},)}, "message['{}'][0] has the key b'{0}' of type bytes, not str."),
        ({"a": gettext_lazy("a")}, "message['a'] is of type lazy.<locals>.__proxy__; messages hold str"),
        ({"k" * 200: object()}, f"message['{'k' * 31}…{'k' * 38}'] is of type object;"),
    ],
)
@each_codec
def test_a_refusal_names_the_place(codec: MessageCodec, message: Any, text: str) -> None:
    """TypeError at send says which value is wrong, and why."""
    with pytest.raises(TypeError) as caught:
        codec.encode(message)
    assert text in str(caught.value)
    assert caught.value.__cause__ is None, "how it was found is nobody's affair"


@each_codec
def test_nesting_has_a_limit_that_circles_meet_too(codec: MessageCodec) -> None:
    """100 levels pass, more are refused, and so is a message that holds itself."""
    message: dict[str, Any] = {}
    for _ in range(100):
        message = {"a": message}
    assert codec.decode(codec.encode(message)) == message
    circle: list[Any] = []
    circle += [circle, circle]
    for wrong in ({"a": message}, {"a": circle}):
        with pytest.raises(TypeError, match="nested more than 100 deep, at message"):
            codec.encode(wrong)


@each_codec
def test_nesting_is_counted_on_the_longest_way_to_a_value(codec: MessageCodec) -> None:
    """A list that was seen near the top is refused when it is met again too far down."""
    shared: list[Any] = [[[]]]
    deep: list[Any] = shared
    for _ in range(97):
        deep = [deep]
    codec.encode({"near": shared, "far": deep})
    with pytest.raises(TypeError, match="100 deep"):
        codec.encode({"near": shared, "far": [deep]})


@each_codec
def test_a_small_list_that_unfolds_into_a_huge_one_is_refused_at_once(codec: MessageCodec) -> None:
    """Sixty lists, each holding the next twice, would be 2**60 values."""
    bomb: list[Any] = ["x"]
    for _ in range(60):
        bomb = [bomb, bomb]
    with pytest.raises(MessageTooLarge) as caught:
        codec.encode({"a": bomb})
    assert caught.value.size > MAX_BYTES == caught.value.limit


class Endless(dict[str, int]):
    """A dict that ends nowhere."""

    def items(self) -> Iterator[tuple[str, int]]:  # type: ignore[override]
        while True:
            yield "a", 1


class EndlessList(list[int]):
    """A list that ends nowhere."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 1


class Faulty(dict[str, int]):
    """A dict that fails when it is looked at."""

    def items(self) -> Any:
        raise LookupError("no items today")


class Fleeting(dict[str, Any]):
    """A dict that makes each value when it is asked for it, so the later ones lie where the first ones lay."""

    def items(self) -> Any:
        return ((str(place), {"a": 0} if place < 9 else {1: 0}) for place in range(10))


@each_codec
def test_a_value_that_lies_where_another_lay_is_not_taken_for_it(codec: MessageCodec) -> None:
    """What was looked at is known by its place in memory, and kept there meanwhile."""
    with pytest.raises(TypeError, match=r"message\['9'\] has the key 1 of type int"):
        codec.encode(Fleeting())


def test_classes_of_the_senders_own_cannot_hang_or_break_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without an end is too large; one that raises is a TypeError with its reason."""
    monkeypatch.setattr(codec_module, "MAX_BYTES", 1000)
    for endless in (Endless(), {"a": EndlessList()}):
        with pytest.raises(MessageTooLarge):
            MessageCodec().encode(endless)
    with pytest.raises(TypeError, match="no items today") as caught:
        MessageCodec().encode({"a": Faulty()})
    assert isinstance(caught.value.__cause__, LookupError)


@each_codec
def test_the_limit_is_exact(codec: MessageCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload of as many bytes as allowed passes both ways, one byte more neither."""
    size = len(codec.encode({"a": "x" * 1000}))
    monkeypatch.setattr(codec_module, "MAX_BYTES", size)
    payload = codec.encode({"a": "x" * 1000})
    assert codec.decode(payload) == {"a": "x" * 1000}
    with pytest.raises(MessageTooLarge) as caught:
        codec.encode({"a": "x" * 1016})  # 16: a block of the cipher
    assert caught.value.size > size
    assert caught.value.limit == size
    with pytest.raises(DecodeError, match="the limit is"):
        codec.decode(payload + b"x")


def test_a_serializer_of_the_users_own_may_make_much_of_a_message_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its messages are measured when they are encoded, not before: it may compress."""
    monkeypatch.setattr(codec_module, "MAX_BYTES", 1000)
    module = types.SimpleNamespace(dumps=lambda message: b"%d" % len(message["a"]), loads=lambda data: {"a": int(data)})
    monkeypatch.setitem(sys.modules, "tiny", module)
    codec = MessageCodec("tiny")
    assert codec.decode(codec.encode({"a": "x" * 5000})) == {"a": 5000}


# Hostile bytes ------------------------------------------------------------------------------------


def decodes_or_refuses(codec: MessageCodec, payload: bytes) -> None:
    """See that decode returns a dict or raises DecodeError, and nothing else."""
    with contextlib.suppress(DecodeError):
        assert isinstance(codec.decode(payload), dict)


@given(codec=ANY_CODEC, payload=st.binary() | st.binary().map(b"{".__add__) | st.binary().map(b"\x81\xa1a".__add__))
def test_random_bytes_are_a_message_or_a_decode_error(codec: MessageCodec, payload: bytes) -> None:
    """Also those that begin like JSON or like a msgpack map."""
    decodes_or_refuses(codec, payload)


@given(codec=ANY_CODEC, message=MESSAGES, data=st.data())
def test_damaged_payloads_are_a_message_or_a_decode_error(codec: MessageCodec, message: Any, data: Any) -> None:
    """One that was cut, or in which a byte was changed."""
    payload = codec.encode(message)
    cut = data.draw(st.integers(0, len(payload) - 1))
    decodes_or_refuses(codec, payload[:cut])
    with pytest.raises(DecodeError):
        codec.decode(payload[:cut])
    decodes_or_refuses(codec, payload[:cut] + data.draw(st.binary(min_size=1, max_size=1)) + payload[cut + 1 :])


@given(payload=st.binary(max_size=100))
def test_an_encrypting_layer_refuses_everything_that_is_not_its_own(payload: bytes) -> None:
    """Random bytes, with and without the version byte of a token, are not decrypted."""
    for data in (payload, b"\x80" + payload):
        with pytest.raises(DecodeError, match="not encrypted"):
            CODECS["encrypted msgpack"].decode(data)


HEADS = st.sampled_from(
    [
        *(bytes([kind]) + b"\xff" * 4 for kind in b"\xc4\xc5\xc6\xc7\xc8\xc9\xd9\xda\xdb\xdc\xdd\xde\xdf"),
        b"\xdd\x00\x00\x40\x00",
        b"\xdf\x00\x00\x10\x00\xa1a",
        b"\x91",
        b"\x81\xa1a",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\xd6\xff\xff\xff\xff\xff",
        b"\xc1",
    ]
)


@given(heads=st.lists(HEADS, min_size=1), times=st.sampled_from([1, 300, 5000]), rest=st.integers(0, 10_000))
def test_msgpack_that_claims_more_than_it_has_is_refused(heads: list[bytes], times: int, rest: int) -> None:
    """Huge lengths, extension types and nesting without an end cost neither time nor memory."""
    decodes_or_refuses(MessageCodec(), b"\x81\xa1a" + b"".join(heads) * times + b"\0" * rest)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"{}x",
        b"[1]",
        b"\xc0",
        b"\x93\x01\x02\x03",
        b"\x81\x01\x02",  # a key that is no text
        b"\x81\xa1\xff\x01",
        b"\xc1{}",  # a frame of somebody else's serializer
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"b":"\\uffffaGk=","a":' + b"[" * 900 + b"]" * 900 + b"",
        b'{"a":"\\uffffa"}',
        '{"a":"\uffffä"}'.encode(),
        b'{"a":' + b"9" * 1_000_000 + b"}",
        b"\x81\xa1a" * 100_000,
        b"\x91" * 100_000,
        b'{"a":\xff}',
    ],
    ids=lambda payload: f"{payload[:12]!r} {len(payload)}",
)
def test_what_is_no_message_is_a_decode_error(payload: bytes) -> None:
    """Whatever it is instead, and however deep."""
    with pytest.raises(DecodeError):
        MessageCodec().decode(payload)


def test_of_a_key_that_comes_twice_the_last_counts() -> None:
    """In JSON and in msgpack alike."""
    codec = MessageCodec()
    assert codec.decode(b'{"a":1,"a":2}') == codec.decode(b"\x82\xa1a\x01\xa1a\x02") == {"a": 2}


# Own serializers ----------------------------------------------------------------------------------


class Upper:
    """A serializer as a class: JSON in capitals."""

    def dumps(self, message: dict[str, Any]) -> bytes:
        return json.dumps(message).upper().encode()

    def loads(self, data: bytes) -> dict[str, Any]:
        got: dict[str, Any] = json.loads(data)
        return got


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Make an importable module of functions; return its name."""

    def make(**functions: Any) -> str:
        monkeypatch.setitem(sys.modules, "own_serializers", types.SimpleNamespace(**functions))  # type: ignore[misc]
        return "own_serializers"

    return make


@pytest.mark.parametrize("of", [Upper, Upper()], ids=["class", "object"])
def test_an_own_serializer_is_a_class_or_an_object(own: Callable[..., str], of: Any) -> None:
    """It makes the payload, and the frames of the layer's other serializers are read beside it."""
    codec = MessageCodec(own(Upper=of) + ".Upper", ["key"])
    assert codec.decode(codec.encode({"a": "b"})) == {"A": "B"}
    assert codec.decode(MessageCodec("json", ["key"]).encode({"a": "b"})) == {"a": "b"}


def test_an_own_serializer_is_a_module_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which nobody has imported before, so that the package does not know it yet."""
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "serializer.py").write_text("from pickle import dumps, loads")
    monkeypatch.syspath_prepend(tmp_path)
    codec = MessageCodec("own_package.serializer")
    assert codec.decode(codec.encode({"a": {1}})) == {"a": {1}}


def test_an_own_serializer_cannot_raise_what_no_caller_expects(own: Callable[..., str]) -> None:
    """TypeError at send, DecodeError at receive, with its own error as the cause."""

    def fail(_: object) -> Any:
        raise ZeroDivisionError("own fault")

    codec = MessageCodec(own(dumps=fail, loads=fail))
    with pytest.raises(TypeError, match="own fault"):
        codec.encode({})
    with pytest.raises(DecodeError, match="own fault"):
        codec.decode(b"\xc1anything")


@pytest.mark.parametrize("error", [AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError])
def test_each_fault_of_a_message_is_a_type_error(own: Callable[..., str], error: type[Exception]) -> None:
    """Whatever a serializer, or a class of the sender's own, meets in it."""

    def dumps(_: object) -> bytes:
        raise error("a fault")

    with pytest.raises(TypeError, match=f"The message cannot be encoded: {error.__name__}: .*a fault"):
        MessageCodec(own(dumps=dumps, loads=lambda _: {})).encode({})


def test_an_own_serializer_decides_what_it_takes(own: Callable[..., str]) -> None:
    """Its reason to be may be a date, or a key that is a number."""
    codec = MessageCodec(own(dumps=pickle.dumps, loads=pickle.loads))
    message = {"at": dt.datetime(2026, 11, 29, tzinfo=dt.timezone.utc), 1: {uuid.UUID(int=1)}}
    assert codec.decode(codec.encode(message)) == message  # type: ignore[arg-type]


def test_an_own_serializer_must_return_a_dict(own: Callable[..., str]) -> None:
    """Another value is no message; another type than bytes is a TypeError."""
    codec = MessageCodec(own(dumps=lambda _: "text", loads=lambda _: [1]))
    with pytest.raises(DecodeError, match="holds a list, not a dict"):
        codec.decode(b"\xc1x")
    with pytest.raises(TypeError, match=r"cannot be encoded: the serializer's dumps\(\) returns str, not bytes"):
        codec.encode({})


@pytest.mark.parametrize("path", ["no_such_module_here", "json.no_such_name", "json.decoder"])
def test_a_serializer_that_is_none_is_a_configuration_error(path: str) -> None:
    """One that cannot be imported, or that lacks the two functions."""
    with pytest.raises(ConfigurationError, match="serializer"):
        MessageCodec(path)


@pytest.mark.parametrize("name", ["dumps", "loads"])
def test_a_serializer_needs_both_functions(own: Callable[..., str], name: str) -> None:
    """One that can only write would fail with the first message that comes."""
    with pytest.raises(ConfigurationError, match="has no functions dumps"):
        MessageCodec(own(**{name: lambda _: b""}))


def test_payloads_of_any_bytes_like_type_are_read() -> None:
    """Drivers hand over bytes, bytearrays or memoryviews."""
    payload = msgpack.packb({"a": 1})
    for kind in (bytes, bytearray, memoryview):
        assert MessageCodec().decode(kind(payload)) == {"a": 1}


# Copies for many readers --------------------------------------------------------------------------


@pytest.mark.parametrize("message", [{"type": "a", "n": 1, "raw": b"x"}, {"type": "a", "rows": [{"n": 1}]}])
@pytest.mark.parametrize("keys", [(), ("secret",)], ids=["plain", "encrypted"])
def test_a_copier_gives_each_reader_a_message_of_its_own(message: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Whatever one reader does to its message, nobody else sees it."""
    codec = MessageCodec("msgpack", keys)
    copy = codec.copier(codec.encode(message))
    spoilt = copy()
    spoilt["new"] = True
    for value in spoilt.values():
        if isinstance(value, list):
            value[0]["n"] = 2
    assert copy() == message
    assert copy() is not copy()


def test_a_copier_shares_nothing_that_an_own_serializer_made(own: Callable[..., str]) -> None:
    """It may make things of any type, and only those that cannot be changed may be shared."""
    codec = MessageCodec(own(dumps=lambda message: b"", loads=lambda data: {"seen": set()}))
    copy = codec.copier(codec.encode({}))
    copy()["seen"].add(1)
    assert copy() == {"seen": set()}


class Itself(dict[str, int]):
    """A dict whose copy is none."""

    def copy(self) -> Itself:
        return self


def test_a_copier_does_not_rely_on_the_copies_of_an_own_serializer_s_dicts(own: Callable[..., str]) -> None:
    """They may be of any subclass."""
    codec = MessageCodec(own(dumps=lambda message: b"", loads=lambda data: Itself(seen=1)))
    copy = codec.copier(codec.encode({}))
    copy()["seen"] = 2
    assert copy() == {"seen": 1}


def test_a_copier_takes_what_may_be_plain() -> None:
    """As `decode` does: JSON, which is what SQL sends."""
    codec, plain = MessageCodec("msgpack", ["key"]), MessageCodec("json").encode({"a": 1})
    assert codec.copier(plain, may_be_plain=True)() == {"a": 1}
    with pytest.raises(DecodeError, match="not encrypted"):
        codec.copier(plain)


def test_no_serializer_of_one_s_own_reads_what_may_be_plain(own: Callable[..., str]) -> None:
    """It may be one that trusts whoever has the key, as pickle has to."""
    path = own(dumps=lambda message: b"x", loads=lambda data: {"type": "loaded"})
    codec, plain = MessageCodec(path, ["key"]), MessageCodec(path).encode({})
    assert codec.decode(codec.encode({}), may_be_plain=True) == {"type": "loaded"}
    for payload in (plain, MessageCodec().encode({"a": 1})):
        with pytest.raises(DecodeError, match="not encrypted"):
            codec.decode(payload, may_be_plain=True)


def test_a_copier_refuses_what_decode_refuses() -> None:
    """With the same error."""
    for payload in (b"", b"\xc1", b"\x01"):
        with pytest.raises(DecodeError):
            MessageCodec().copier(payload)


def test_an_exception_that_is_no_fault_of_the_message_is_not_taken_for_one(own: Callable[..., str]) -> None:
    """A time limit's may come from a signal handler while a message is encoded, and its handler must see it."""

    class TimeLimit(Exception):
        """As Celery's SoftTimeLimitExceeded."""

    def dumps(_: object) -> bytes:
        raise TimeLimit

    with pytest.raises(TimeLimit):
        MessageCodec(own(dumps=dumps, loads=lambda _: {})).encode({})


def test_a_serializer_of_one_s_own_leaves_messages_of_the_others_to_them() -> None:
    """A layer may change to it while messages of the other kinds are under way; SQL goes on to send JSON."""
    own = MessageCodec(COMPRESSED_PATH)
    for codec in CODECS["msgpack"], CODECS["json"], own:
        assert own.decode(codec.encode({"a": [1, b"b"]})) == {"a": [1, b"b"]}
