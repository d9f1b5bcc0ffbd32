"""The NOTIFY channels that names make."""

from __future__ import annotations

import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from channels_pg_sa.topics import topic

NAMES = st.text("abcxyzABCXYZ0189-_.", min_size=1)


@given(secret=st.text(max_size=9), kind=st.sampled_from(["node", "queue"]), prefix=st.text(max_size=9), name=NAMES)
def test_a_topic_fits_an_identifier_and_depends_on_all_it_is_made_of(
    secret: str, kind: str, prefix: str, name: str
) -> None:
    """PostgreSQL cuts at 63 bytes and folds what is not quoted."""
    made = topic(secret, kind, prefix, name)
    assert re.fullmatch("channels_pg_sa_[0-9a-f]{32}", made)
    others = [
        topic(secret + "x", kind, prefix, name),
        topic(secret, kind + "x", prefix, name),
        topic(secret, kind, prefix + "x", name),
        topic(secret, kind, prefix, name + "x"),
        topic(secret, kind, prefix + name[0], name[1:]),
    ]
    assert made not in others


def test_a_topic_is_what_the_database_makes_of_it() -> None:
    """The separator and the cut are those of its twin in SQL."""
    digest = hashlib.sha256(b"s\x1fnode\x1fasgi\x1f0123456789ab").hexdigest()
    assert topic("s", "node", "asgi", "0123456789ab") == f"channels_pg_sa_{digest[:32]}"
