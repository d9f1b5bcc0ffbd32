"""The NOTIFY channels that names make."""

from __future__ import annotations

import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from channels_pg_sa.topics import Topics, sign_of, topic

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


def test_a_sign_does_not_tell_the_secret() -> None:
    """It is sent with statements, which the server may log: it tells one secret from another, and makes no topic."""
    secret = "01234567-89ab-cdef-0123-456789abcdef"
    assert secret.startswith(sign_of(secret))
    assert len(sign_of(secret)) == 8


def test_a_node_listens_under_its_own_prefix() -> None:
    """To its own topic and to those of its queues: another application's may be called the same."""
    topics = Topics("other", "0123456789ab")
    topics.secret = "s"
    assert topics.own == topic("s", "node", "other", "0123456789ab")
    assert topics.of_queues(["jobs", "hub!"]) == [topic("s", "queue", "other", queue) for queue in ("jobs", "hub!")]
