"""What is told of new messages: how many notifications, to whom, and in which order."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.pq import ExecStatus

from channels_pg_sa.config import Settings
from channels_pg_sa.names import node_of, recipient_of
from channels_pg_sa.parcels import Frame, Joined, Left, Parcel, Ring, parse
from channels_pg_sa.statements.jobs import GroupSend, Send
from channels_pg_sa.statements.prepared import Bound, Prepared
from channels_pg_sa.topics import topic

NODES = ["0123456789a0", "0123456789a1"]
# In a statement of at most so many rows, each has a notification of its own.
FEW = 8
JOIN = "INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel) VALUES ('asgi', 'group', %s, %s)"


@pytest.fixture
def connection(layer_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection that listens for two nodes and a queue."""
    with psycopg.connect(layer_url, autocommit=True, application_name="tests") as connected:
        for name, kind in [(NODES[0], "node"), (NODES[1], "node"), ("jobs", "queue")]:
            connected.execute(f'LISTEN "{topic_of(connected, kind, name)}"'.encode())
        yield connected


def topic_of(connection: psycopg.Connection[Any], kind: str, name: str, prefix: str = "asgi") -> str:
    """The NOTIFY channel of a node or queue in this database."""
    ((secret,),) = connection.execute("SELECT secret FROM channels_pg_sa_installation").fetchall()
    return topic(secret, kind, prefix, name)


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
    """The notifications of all that was committed before, in that order: the channel of each, and its frames."""
    connection.execute("LISTEN mark")
    connection.execute("NOTIFY mark")
    before_mark = itertools.takewhile(lambda heard: heard.channel != "mark", connection.notifies())
    return [(notification.channel, list(parse(notification.payload.encode()))) for notification in before_mark]


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


@pytest.mark.parametrize(("count", "rung"), [(1, [0]), (FEW, range(FEW)), (FEW + 1, [0, FEW])])
def test_a_queue_is_rung(connection: psycopg.Connection[Any], count: int, rung: Iterable[int]) -> None:
    """For each row, or for the first and the last of many: who claims asks for all between them."""
    insert(connection, [("jobs", b"x")] * count)
    ((first,),) = connection.execute("SELECT min(id) FROM channels_pg_sa_message").fetchall()
    frames = [frame for _, some in heard(connection) for frame in some]
    assert frames == [Ring(first + number, "jobs") for number in rung]


@pytest.mark.parametrize("count", [1, FEW + 1])
def test_what_does_not_fit_is_a_doorbell(connection: psycopg.Connection[Any], count: int) -> None:
    """Payload and name of 5,849 bytes travel, one more does not."""
    channel = f"specific.{NODES[0]}!a"
    fits = 5849 - len(channel)
    for size, travels in [(fits, True), (fits + 1, False)]:
        insert(connection, [(channel, b"x" * size)] * count)
        frames = [frame for _, some in heard(connection) for frame in some if isinstance(frame, Parcel)]
        assert [frame.encoded is not None for frame in frames] == [travels] * count


def test_messages_share_a_notification_to_its_last_byte(connection: psycopg.Connection[Any]) -> None:
    """It may have 7,999; 127 frames of 62 would have one more, with the commas between them."""
    channel = f"specific.{NODES[0]}!".ljust(43, "a")
    connection.execute(
        """INSERT INTO channels_pg_sa_message (id, recipient, channel, payload, expires_at)
        SELECT number, %s, %s, 'x', 'infinity' FROM generate_series(100, 226) number""",
        (NODES[0], channel),
    )
    assert [len(frames) for _, frames in heard(connection)] == [126, 1]


def test_joins_share_a_notification_to_its_last_byte(connection: psycopg.Connection[Any]) -> None:
    """It may have 7,999; 63 frames of 126 would have one more, with the commas between them."""
    channel = f"specific.{NODES[0]}!".ljust(58, "a")
    connection.execute(
        """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel)
        SELECT 'asgi', lpad(number::text, 40, '0'), %s, %s FROM generate_series(1, 63) number""",
        (NODES[0], channel),
    )
    assert [len(frames) for _, frames in heard(connection)] == [62, 1]


def test_prefixes_of_one_statement_are_told_apart(connection: psycopg.Connection[Any]) -> None:
    """A queue may be called the same in several."""
    prefixes = ["asgi", "other"]
    topics = [topic_of(connection, "queue", "jobs", prefix) for prefix in prefixes]
    connection.execute(f'LISTEN "{topics[1]}"'.encode())
    connection.execute(
        """INSERT INTO channels_pg_sa_message (id, prefix, recipient, channel, payload)
        SELECT number, (%s::text[])[number %% 2 + 1], 'jobs', 'jobs', 'x' FROM generate_series(0, 9) number""",
        [prefixes],
    )
    rung = [[Ring(0, "jobs"), Ring(8, "jobs")], [Ring(1, "jobs"), Ring(9, "jobs")]]
    assert heard(connection) == list(zip(topics, rung, strict=True))


def test_each_node_hears_at_once_who_joined_and_left(connection: psycopg.Connection[Any]) -> None:
    """Also where the members of several lie in turn in one statement."""
    connection.execute(
        """INSERT INTO channels_pg_sa_node (id, prefix, pid, lease_until)
        SELECT id, 'asgi', 1, 'infinity' FROM unnest(%s::text[]) id""",
        [NODES],
    )
    connection.execute(
        """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel)
        SELECT 'asgi', 'group', (%s::text[])[number %% 2 + 1], number::text FROM generate_series(0, 9) number""",
        [NODES],
    )
    joined = heard(connection)
    connection.execute("DELETE FROM channels_pg_sa_membership")
    left = heard(connection)
    topics = [topic_of(connection, "node", node) for node in NODES]
    assert [name for name, _ in joined] == [name for name, _ in left] == topics
    for (_, joins), (_, leaves), first in zip(joined, left, (0, 1), strict=True):
        channels = [str(number) for number in range(first, 10, 2)]
        assert sorted(frame.channel for frame in joins if isinstance(frame, Joined)) == channels
        assert sorted(frame.channel for frame in leaves if isinstance(frame, Left)) == channels


def test_nobody_is_told_of_members_that_any_process_may_read(connection: psycopg.Connection[Any]) -> None:
    """Each notification wakes all who listen in the database."""
    connection.execute(f'LISTEN "{topic_of(connection, "node", "")}"'.encode())
    connection.execute(JOIN, ("", "jobs"))
    connection.execute("UPDATE channels_pg_sa_membership SET expires_at = 'infinity'")
    connection.execute("DELETE FROM channels_pg_sa_membership")
    assert heard(connection) == []


def test_who_joins_leaves_and_joins_in_one_transaction_is_a_member(connection: psycopg.Connection[Any]) -> None:
    """Of notifications that are the same a transaction sends one, in the place of the first."""
    channel = f"specific.{NODES[0]}!a"
    connection.execute(
        "INSERT INTO channels_pg_sa_node (id, prefix, pid, lease_until) VALUES (%s, 'asgi', 1, 'infinity')", NODES[:1]
    )
    with connection.transaction():
        for statement in (JOIN, "DELETE FROM channels_pg_sa_membership", JOIN):
            connection.execute(statement, (NODES[0], channel) if statement == JOIN else ())
    joined, left = Joined("group", channel, math.inf), Left("group", channel)
    assert [frames for _, frames in heard(connection)] == [[joined], [left], [joined]]


@pytest.mark.parametrize("count", [1, FEW + 1])
def test_times_are_told_in_full(connection: psycopg.Connection[Any], count: int) -> None:
    """However few digits the session that sends writes of a number: rows are told from others by their ends."""
    with psycopg.connect(connection.info.dsn, autocommit=True, password=connection.info.password) as writer:
        writer.execute("SET extra_float_digits = -15")
        insert(writer, [(f"specific.{NODES[0]}!a", b"x")] * count)
    frames = [frame for _, some in heard(connection) for frame in some if isinstance(frame, Parcel)]
    told = {frame.id: frame.expires for frame in frames}
    rows = connection.execute("SELECT id, date_part('epoch', expires_at) FROM channels_pg_sa_message").fetchall()
    assert told == pytest.approx(dict(rows), abs=1e-5)
    assert len(told) == count


# The layer's own statements for one message notify in the trigger's place.


@pytest.fixture
def sender(layer_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Another connection."""
    with psycopg.connect(layer_url, autocommit=True, application_name="tests") as connected:
        yield connected


@pytest.fixture
def prepared(sender: psycopg.Connection[Any]) -> Prepared:
    """The layer's own statements, prepared there."""
    statements = Prepared(Settings(connect=dict, listen=dict))
    statements.learn(sender.execute(statements.prepare.encode()).fetchone())
    return statements


def run(sender: psycopg.Connection[Any], statement: Bound) -> None:
    """Run a prepared statement as the layer does."""
    result = sender.pgconn.exec_prepared(statement.name, statement.values, [1] * len(statement.values))
    assert result.status == ExecStatus.TUPLES_OK, result.get_error_message()


def alike(frames: list[Frame | None]) -> list[Frame | None]:
    """The frames, without what makes each unique."""
    return [
        replace(frame, id=0, expires=0.0)
        if isinstance(frame, Parcel)
        else replace(frame, id=0)
        if isinstance(frame, Ring)
        else frame
        for frame in frames
    ]


@pytest.mark.parametrize("channel", [f"specific.{NODES[0]}!a", "jobs"])
@pytest.mark.parametrize("size", [1, 5800, 5900])
def test_a_lone_send_is_told_as_the_trigger_tells_it(
    connection: psycopg.Connection[Any], sender: psycopg.Connection[Any], prepared: Prepared, channel: str, size: int
) -> None:
    """Once, on the same topic, with the same words."""
    run(sender, prepared.send([Send(recipient_of(channel), channel, b"x" * size)]))
    ((own, own_frames),) = heard(connection)
    insert(sender, [(channel, b"x" * size)])
    ((triggered, triggered_frames),) = heard(connection)
    assert own == triggered
    assert alike(own_frames) == alike(triggered_frames)
    ((first, second),) = connection.execute("SELECT min(id), max(id) FROM channels_pg_sa_message").fetchall()
    ids = [frame.id for frame in own_frames + triggered_frames if isinstance(frame, Parcel | Ring)]
    assert ids == [first, second]


def test_a_lone_send_to_a_group_is_told_as_the_trigger_tells_it(
    connection: psycopg.Connection[Any], sender: psycopg.Connection[Any], prepared: Prepared
) -> None:
    """To each node with members, and to each queue that is one."""
    members = [f"specific.{node}!{name}" for node in NODES for name in "ab"] + ["jobs", "others"]
    for member in members:
        connection.execute(
            "INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel)"
            " VALUES ('asgi', 'group', %s, %s)",
            (node_of(member) or "", member),
        )
    heard(connection)
    run(sender, prepared.send([GroupSend("group", b"hello")]))
    own = {name: alike(frames) for name, frames in heard(connection)}
    connection.execute("""SELECT channels_pg_sa_group_send('group', '{"type": "hello"}')""")
    told = {name: alike(frames) for name, frames in heard(connection)}
    to_node: list[Frame | None] = [Parcel(0, "group", True, 0.0, base64.b64encode(b"hello"))]
    nodes = [topic_of(connection, "node", node) for node in NODES]
    assert own == {**dict.fromkeys(nodes, to_node), topic_of(connection, "queue", "jobs"): [Ring(0, "jobs")]}
    assert own.keys() == told.keys()


def test_a_lone_send_to_tables_that_were_made_anew(
    connection: psycopg.Connection[Any], sender: psycopg.Connection[Any], prepared: Prepared
) -> None:
    """The session goes on with the old secret, under whose topics nobody listens: then the trigger notifies."""
    channel = f"specific.{NODES[0]}!a"
    prepared.learn(("an old secret",))
    run(sender, prepared.send([Send(NODES[0], channel, b"x")]))
    ((name, frames),) = heard(connection)
    assert name == topic_of(connection, "node", NODES[0])
    assert [frame.encoded for frame in frames if isinstance(frame, Parcel)] == [base64.b64encode(b"x")]


def test_what_a_trigger_of_somebody_s_sends_under_a_lone_send(
    connection: psycopg.Connection[Any], sender: psycopg.Connection[Any], prepared: Prepared
) -> None:
    """It is told by the layer's trigger, which is silent for the lone send alone."""
    connection.execute("""CREATE FUNCTION copy() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
            INSERT INTO channels_pg_sa_message (recipient, channel, payload) VALUES (''jobs'', ''jobs'', ''x'');
            RETURN NULL; END';
        CREATE TRIGGER copy AFTER INSERT ON channels_pg_sa_message FOR EACH ROW WHEN (NEW.recipient <> 'jobs')
            EXECUTE FUNCTION copy()""")
    run(sender, prepared.send([Send(NODES[0], f"specific.{NODES[0]}!a", b"x")]))
    names = sorted(name for name, _ in heard(connection))
    assert names == sorted([topic_of(connection, "node", NODES[0]), topic_of(connection, "queue", "jobs")])


def test_a_lone_send_to_an_empty_group(
    connection: psycopg.Connection[Any], sender: psycopg.Connection[Any], prepared: Prepared
) -> None:
    """Nobody is told of anything."""
    run(sender, prepared.send([GroupSend("nobody", b"hello")]))
    assert heard(connection) == []


def test_the_trigger_is_silent_for_no_longer_than_the_statement(
    connection: psycopg.Connection[Any], sender: psycopg.Connection[Any], prepared: Prepared
) -> None:
    """What the same session inserts afterwards it tells of, whether the lone send was done or failed."""
    channel = f"specific.{NODES[0]}!a"
    send = prepared.send([Send(NODES[0], channel, b"x")])
    for failing in (False, True):
        if failing:
            values = [None if value == b"x" else value for value in send.values]
            result = sender.pgconn.exec_prepared(send.name, values, [1] * len(values))
            assert result.status == ExecStatus.FATAL_ERROR
        else:
            run(sender, send)
            assert len(heard(connection)) == 1
        insert(sender, [(channel, b"y")])
        ((_, frames),) = heard(connection)
        assert [frame.encoded for frame in frames if isinstance(frame, Parcel)] == [base64.b64encode(b"y")]


def test_no_parameter_is_the_secret(prepared: Prepared, sender: psycopg.Connection[Any]) -> None:
    """A server's log may have the parameters of each statement; who knows the secret can listen to every topic."""
    ((secret,),) = sender.execute("SELECT secret FROM channels_pg_sa_installation").fetchall()
    for job in (Send("jobs", "jobs", b"x"), GroupSend("group", b"x")):
        assert secret.encode() not in [bytes(value) for value in prepared.send([job]).values]
