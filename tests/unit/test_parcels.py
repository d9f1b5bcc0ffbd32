"""What a notification says, and what is made of one that says nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels_pg_sa.parcels import Acknowledged, Flushed, Frame, Joined, Left, Mark, Parcel, Ring, parse

FORMS: list[tuple[bytes, Frame]] = [
    (b"P7 12.5 a.b!c aGk=", Parcel(7, "a.b!c", False, 12.5, b"aGk=")),
    (b"P7 12.5 a aGk=\naGk=", Parcel(7, "a", False, 12.5, b"aGk=\naGk=")),
    (b"P7 12.5 a ", Parcel(7, "a", False, 12.5, b"")),
    (b"G7 12 g aGk=", Parcel(7, "g", True, 12.0, b"aGk=")),
    (b"p7 12.5 a", Parcel(7, "a", False, 12.5, None)),
    (b"g7 Infinity g", Parcel(7, "g", True, math.inf, None)),
    (b"p9223372036854775807 -Infinity a", Parcel(2**63 - 1, "a", False, -math.inf, None)),
    (b"Q0 jobs", Ring(0, "jobs")),
    (b"J171 g a.b!c Infinity", Joined("g", "a.b!c", math.inf)),
    (b"L171 g a.b!c", Left("g", "a.b!c")),
    (b"B12", Mark(12)),
    (b"B-12", Mark(-12)),
    (b"F0a1b channels_pg_sa_00", Flushed("0a1b", "channels_pg_sa_00")),
    (b"A0a1b 0123456789ab", Acknowledged("0a1b", "0123456789ab")),
]
GOOD = [form for form, _ in FORMS]


@pytest.mark.parametrize(("form", "frame"), FORMS)
def test_each_kind_of_frame_is_read(form: bytes, frame: Frame) -> None:
    """As the triggers and statements write it."""
    assert list(parse(form)) == [frame]


def test_frames_share_a_notification_in_their_order() -> None:
    """A bad one among them costs no other."""
    assert list(parse(b"B1,nonsense,Q2 q,,p3 4 c")) == [
        Mark(1), None, Ring(2, "q"), None, Parcel(3, "c", False, 4.0, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b" ",
        b"x",
        b"\xff",
        b"P",
        b"P7 12.5 a",  # a parcel without a content
        b"P7 12.5 a b c",
        b"p7 12.5 a aGk=",  # a doorbell with one
        b"p7 12.5",
        b"p 12.5 a",
        b"p7  a",
        b"p-1 12.5 a",
        b"p9223372036854775808 12.5 a",  # no bigint: no statement takes it, however often it is tried
        b"p" + b"9" * 7000 + b" 12.5 a",
        b"p7.0 12.5 a",
        b"p7 nan a",  # would never be over
        b"p7 x a",
        b"p7 12.5 \xff",
        b"G7 12.5 \xc3 aGk=",
        b"Q1",
        b"Q1 a b",
        b"Q-1 a",
        b"Q9223372036854775808 a",
        b"J1 g c",
        b"J1 g c 1 2",
        b"J1 g c nan",
        b"J1 g \xff 1",
        b"L1 g",
        b"L1 g c 1",
        b"B",
        b"B1 2",
        b"Bx",
        b"F1",
        b"F1 a b",
        b"A1",
        b"A1 a b",
    ],
)
def test_what_is_no_frame_is_none(form: bytes) -> None:
    """Wrong fields, numbers, text or kind."""
    assert list(parse(form)) == [None]


@given(
    payload=st.binary(max_size=8000)
    | st.lists(
        st.sampled_from(GOOD) | st.binary(max_size=9) | st.sampled_from(b"PGpgQJLBFA").map(chr).map(str.encode)
    ).map(b" ".join)
    | st.tuples(st.sampled_from(GOOD), st.integers(0, 30), st.binary(max_size=3)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + 1 :]
    )
)
def test_any_bytes_are_frames_or_none(payload: bytes) -> None:
    """Random bytes, jumbled frames and damaged ones raise nothing, and what they make fits a statement."""
    frames = list(parse(payload))
    assert len(frames) == payload.count(b",") + 1
    for frame in frames:
        if isinstance(frame, (Parcel, Ring)):
            assert 0 <= frame.id < 2**63
        if isinstance(frame, (Parcel, Joined)):
            assert not math.isnan(frame.expires)
