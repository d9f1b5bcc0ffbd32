"""What the trigger tells of new messages: how many notifications, to whom, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from channels_pg_sa.names import recipient_of, topic
from channels_pg_sa.parcels import Frame, Parcel, Ring, parse

NODES = ["0123456789a0", "0123456789a1"]
# In a statement of at most so many rows, each has a notification of its own.
FEW = 8


@pytest.fixture
def connection(layer_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection that listens for two nodes and a queue."""
    with psycopg.connect(layer_url, autocommit=True, application_name="tests") as connected:
        for name, kind in [(NODES[0], "node"), (NODES[1], "node"), ("jobs", "queue")]:
            connected.execute(f'LISTEN "{topic_of(connected, kind, name)}"'.encode())
        yield connected


def topic_of(connection: psycopg.Connection[Any], kind: str, name: str) -> str:
    """The NOTIFY channel of a node or queue in this database."""
    ((secret,),) = connection.execute("SELECT secret FROM channels_pg_sa_installation").fetchall()
    return topic(secret, kind, "asgi", name)


def insert(connection: psycopg.Connection[Any], messages: list[tuple[str, bytes]]) -> None:
    """Insert messages, each to a channel, in one statement."""
    connection.execute(
        "INSERT INTO channels_pg_sa_message (recipient, channel, payload)"
        " SELECT * FROM unnest(%s::text[], %s::text[], %s::bytea[])",
        (
            [recipient_of(channel) for channel, _ in messages],
            [channel for channel, _ in messages],
            [payload for _, payload in messages],
        ),
    )


def heard(connection: psycopg.Connection[Any]) -> list[tuple[str, list[Frame | None]]]:
    """The notifications that have come: the channel of each, and its frames."""
    return [
        (notification.channel, list(parse(notification.payload.encode())))
        for notification in connection.notifies(timeout=0.2)
    ]


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 200])
def test_a_node_hears_of_each_message_in_order(connection: psycopg.Connection[Any], count: int) -> None:
    """Few are told one by one, many in as few notifications as they fit into."""
    channel = f"specific.{NODES[0]}!a"
    insert(connection, [(channel, bytes([number])) for number in range(count)])
    notifications = heard(connection)
    frames = [frame for _, some in notifications for frame in some if isinstance(frame, Parcel)]
    ids = [frame.id for frame in frames]
    assert len(frames) == sum(len(some) for _, some in notifications) == count
    assert ids == sorted(ids)
    assert {frame.name for frame in frames} == {channel}
    assert len(notifications) == (count if count <= FEW else -(-count * 60 // 7999))


@pytest.mark.parametrize("count", [FEW, FEW + 2])
def test_each_node_hears_of_its_own(connection: psycopg.Connection[Any], count: int) -> None:
    """Also where the messages of several lie in turn in one statement."""
    channels = [f"specific.{NODES[number % 2]}!{number}" for number in range(count)]
    insert(connection, [(channel, b"x") for channel in channels])
    told = {name: [] for name in (topic_of(connection, "node", node) for node in NODES)}
    for name, frames in heard(connection):
        told[name] += [frame.name for frame in frames if isinstance(frame, Parcel)]
    assert list(told.values()) == [channels[0::2], channels[1::2]]


@pytest.mark.parametrize(("count", "rings"), [(1, 1), (FEW, FEW), (FEW + 1, 1)])
def test_a_queue_is_rung(connection: psycopg.Connection[Any], count: int, rings: int) -> None:
    """For each row, or for the first of many: who claims asks for all from there on."""
    insert(connection, [("jobs", b"x")] * count)
    ((first,),) = connection.execute("SELECT min(id) FROM channels_pg_sa_message").fetchall()
    frames = [frame for _, some in heard(connection) for frame in some]
    assert frames == [Ring(first + number, "jobs") for number in range(rings)]


@pytest.mark.parametrize("count", [1, FEW + 1])
def test_what_does_not_fit_is_a_doorbell(connection: psycopg.Connection[Any], count: int) -> None:
    """Payload and name of 5,849 bytes travel, one more does not."""
    channel = f"specific.{NODES[0]}!a"
    fits = 5849 - len(channel)
    for size, travels in [(fits, True), (fits + 1, False)]:
        insert(connection, [(channel, b"x" * size)] * count)
        frames = [frame for _, some in heard(connection) for frame in some if isinstance(frame, Parcel)]
        assert [frame.content is not None for frame in frames] == [travels] * count
