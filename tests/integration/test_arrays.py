"""Arrays that this package encodes by itself arrive in PostgreSQL as psycopg's own would."""

from __future__ import annotations

import math
from typing import Any

import psycopg
import pytest

from channels_pg_sa.statements.arrays import BytesArray, FloatArray, IntArray, TextArray

CASES: list[tuple[Any, str]] = [
    (TextArray(), "text"),
    (TextArray(["", "a", "\u00e9\u65e5\U0001f600", "NULL", "{},\\\"'", "x" * 100_000]), "text"),
    (TextArray(["a", None, "b", None]), "text"),
    (TextArray([None]), "text"),
    (BytesArray(), "bytea"),
    (BytesArray([b"", b"\x00\xff", bytes(range(256)) * 1000]), "bytea"),
    (IntArray(), "bigint"),
    (IntArray([0, -1, 2**63 - 1, -(2**63)]), "bigint"),
    (IntArray(range(5000)), "bigint"),
    (FloatArray(), "double precision"),
    (FloatArray([0.0, -1.5, 1796020306.480616, math.inf]), "double precision"),
]


@pytest.mark.parametrize(("items", "kind"), CASES)
@pytest.mark.parametrize("prepare", [False, True])
def test_an_array_arrives_as_it_is(shared_url: str, items: list[Any], kind: str, prepare: bool) -> None:
    """Items, NULLs, type and bounds are those of the same list adapted by psycopg."""
    columns = f"%s::{kind}[], array_lower(%s::{kind}[], 1), array_length(%s::{kind}[], 1)"
    with psycopg.connect(shared_url) as connection:
        ours = connection.execute(f"SELECT {columns}", [items] * 3, prepare=prepare, binary=True).fetchone()
        theirs = connection.execute(f"SELECT {columns}", [list(items)] * 3).fetchone()
        kinds = connection.execute("SELECT pg_typeof(%s)::text", [items]).fetchone()
    assert ours == theirs
    assert kinds == (f"{kind}[]",)
