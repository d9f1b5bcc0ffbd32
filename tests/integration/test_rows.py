"""Which rows each statement takes, and which it leaves: they may be, or have become, somebody else's."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from channels_pg_sa.claims import ANYWHERE, Claim
from channels_pg_sa.config import Settings
from channels_pg_sa.statements import queries as queries_module
from channels_pg_sa.statements.jobs import GroupSend, Send
from channels_pg_sa.statements.messages import ROW
from channels_pg_sa.statements.queries import Queries
from channels_pg_sa.topics import Topics
from tests.support.databases import query
from tests.support.schema import SCHEMA
from tests.support.waiting import eventually_async

NODE, OTHER = "0123456789ab", "ba9876543210"
INSERT = """INSERT INTO channels_pg_sa_message (prefix, recipient, channel, payload, expires_at)
    VALUES (%s, %s, %s, 'x', now() + make_interval(secs => %s)) RETURNING id, date_part('epoch', expires_at)"""


@pytest.fixture
async def connection(layer_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """One as the layer's statements want it; what waits for a lock fails."""
    options = "-c lock_timeout=1s"
    async with await psycopg.AsyncConnection.connect(layer_url, autocommit=True, options=options) as connected:
        yield connected


@pytest.fixture
def queries() -> Queries:
    """Those of a node."""
    return Queries(Settings(connect=dict, listen=dict), NODE)


def insert(url: str, recipient: str, channel: str, *, seconds: float = 60, prefix: str = "asgi") -> tuple[int, float]:
    """Insert a message as it is; return its id and its end."""
    ((row, until),) = query(url, INSERT, [prefix, recipient, channel, seconds])
    return row, until


def recipients(url: str) -> list[str]:
    """Whose the rows are, in their order."""
    return [recipient for (recipient,) in query(url, "SELECT recipient FROM channels_pg_sa_message ORDER BY id")]


@pytest.mark.parametrize("owner", [OTHER, "jobs"])
async def test_what_is_in_no_mailbox_of_the_node_is_left_alone(
    layer_url: str, connection: Any, queries: Queries, owner: str
) -> None:
    """Its row may have gone back to its queue, and on to another node, since this one heard of it."""
    row, until = insert(layer_url, owner, "jobs")
    assert await queries.fetch(connection, [(row, until)]) == {}
    await queries.forget(connection, [(row, until)])
    await queries.put_back(connection, [(row, until)])
    assert recipients(layer_url) == [owner]


async def test_another_row_that_has_the_id_by_now_is_left_alone(
    layer_url: str, connection: Any, queries: Queries
) -> None:
    """It is told by its end, but not by how that was written."""
    row, until = insert(layer_url, NODE, "jobs")
    for other in (until - 0.01, until + 0.01):
        assert await queries.fetch(connection, [(row, other)]) == {}
        await queries.forget(connection, [(row, other)])
        await queries.put_back(connection, [(row, other)])
    assert recipients(layer_url) == [NODE]
    assert await queries.fetch(connection, [(row, until + 0.0004)]) == {row: b"x"}
    await queries.forget(connection, [(row, until - 0.0004)])
    assert recipients(layer_url) == []


async def test_what_is_over_is_neither_claimed_nor_found_waiting(
    layer_url: str, connection: Any, queries: Queries
) -> None:
    """It lies there until it is swept, and takes no reader's place."""
    for owner in ("jobs", NODE):
        insert(layer_url, owner, "jobs", seconds=-1)
    row, _ = insert(layer_url, "jobs", "jobs")
    (claimed,) = await queries.claim(connection, [Claim("jobs", *ANYWHERE, 1)])
    assert [found[0] for found in claimed.rows] == [row]
    assert [parcel.id for parcel in await queries.waiting(connection)] == [row]


async def test_a_claim_begins_where_it_says(layer_url: str, connection: Any, queries: Queries) -> None:
    """And ends there, and takes no other prefix's."""
    insert(layer_url, "jobs", "jobs", prefix="other")
    first, second, third = (insert(layer_url, "jobs", "jobs")[0] for _ in range(3))
    (claimed,) = await queries.claim(connection, [Claim("jobs", second, second, 5)])
    assert [found[0] for found in claimed.rows] == [second]
    assert claimed.end is None
    (claimed,) = await queries.claim(connection, [Claim("jobs", second, ANYWHERE[1], 5)])
    assert ([found[0] for found in claimed.rows], claimed.end) == ([third], third)
    (claimed,) = await queries.claim(connection, [Claim("jobs", *ANYWHERE, 5)])
    assert ([found[0] for found in claimed.rows], claimed.end) == ([first], first)


async def test_a_queue_ends_with_the_last_of_its_own_prefix(layer_url: str, connection: Any, queries: Queries) -> None:
    """Of another prefix is the later id, and who claims up to that would overtake what is on its way."""
    row, _ = insert(layer_url, "jobs", "jobs")
    insert(layer_url, "jobs", "jobs", prefix="other")
    (claimed,) = await queries.claim(connection, [Claim("jobs", *ANYWHERE, 5)])
    assert ([found[0] for found in claimed.rows], claimed.end) == ([row], row)


@pytest.mark.parametrize("table", ["message", "membership"])
async def test_a_sweep_waits_for_no_row_that_somebody_has(
    layer_url: str, connection: Any, queries: Queries, table: str
) -> None:
    """A membership may be about to be renewed, a message about to be claimed or deleted; the next sweep comes soon."""
    if table == "message":
        insert(layer_url, "jobs", "jobs", seconds=-1)
        insert(layer_url, "jobs", "jobs", seconds=-1)
    else:
        query(
            layer_url,
            """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel, expires_at)
            VALUES ('asgi', 'g', '', 'a', now() - interval '1 s'), ('asgi', 'g', '', 'b', now() - interval '1 s')""",
        )
    with psycopg.connect(layer_url) as rival:
        rival.execute(f"SELECT FROM channels_pg_sa_{table} LIMIT 1 FOR UPDATE")
        swept = await queries.sweep(connection, 10)
        assert swept == ((1, 0) if table == "message" else (0, 1))
    assert await queries.sweep(connection, 10) == swept


async def test_a_sweep_takes_no_more_than_it_may(layer_url: str, connection: Any, queries: Queries) -> None:
    """Nor what is not over."""
    for seconds in (-1, -1, -1, 60):
        insert(layer_url, "jobs", "jobs", seconds=seconds)
    swept = [await queries.sweep(connection, 2) for _ in range(3)]
    assert swept == [(2, 0), (1, 0), (0, 0)]
    assert recipients(layer_url) == ["jobs"]


async def test_of_a_membership_that_is_restored_and_there_the_later_end_counts(
    layer_url: str, connection: Any, queries: Queries
) -> None:
    """It was renewed by others, or a crash has cost a renewal; and none is written anew for nothing."""
    query(
        layer_url,
        """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel, expires_at) VALUES
        ('asgi', 'g', %(node)s, 'a', to_timestamp(2000000000)), ('asgi', 'g', %(node)s, 'b', to_timestamp(1900000000)),
        ('asgi', 'g', %(node)s, 'c', 'infinity'), ('asgi', 'g', %(node)s, 'd', to_timestamp(1900000000))""",
        {"node": NODE},
    )
    ends = {"a": 1900000000.0, "b": 2000000000.0, "c": float("inf"), "d": 1900000000.5, "e": float("inf")}
    places = "SELECT channel, ctid::text FROM channels_pg_sa_membership"
    before = dict(query(layer_url, places))
    await queries.restore(connection, [("g", channel, end) for channel, end in ends.items()], lambda: None)
    expected = {**ends, "a": 2000000000.0, "d": 1900000000.0}
    assert {channel: end for _, channel, end in await queries.members(connection)} == expected
    after = dict(query(layer_url, places))
    assert [channel for channel in before if before[channel] != after[channel]] == ["b"]


async def test_the_oldest_comes_first_wherever_it_lies(layer_url: str, connection: Any, queries: Queries) -> None:
    """However the planner walks through the table: a row that was moved to a queue and back lies behind later ones."""
    await connection.execute("SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off")
    mine, theirs = ([insert(layer_url, owner, "jobs")[0] for _ in range(3)] for owner in (NODE, "jobs"))
    query(layer_url, "UPDATE channels_pg_sa_message SET payload = 'y' WHERE id = ANY (%s)", [[mine[0], theirs[0]]])
    assert [parcel.id for parcel in await queries.waiting(connection)] == mine
    (claimed,) = await queries.claim(connection, [Claim("jobs", *ANYWHERE, 2)])
    assert sorted(row[0] for row in claimed.rows) == theirs[:2]


async def test_a_capacity_counts_what_is_unread_of_its_own_channel(
    layer_url: str, connection: Any, queries: Queries
) -> None:
    """Not another prefix's, nor what is over; of one batch the first find room, and a channel without one takes all."""
    for _ in range(2):
        insert(layer_url, "jobs", "jobs", prefix="other")
        insert(layer_url, "jobs", "jobs", seconds=-1)
    insert(layer_url, "jobs", "jobs")
    capacities = [("jobs", 2), ("free", None), ("jobs", 2), ("more", 1), ("free", None), ("more", 1)]
    sends = [Send(channel, channel, b"x", capacity) for channel, capacity in capacities]
    assert await queries.send(connection, sends) == {2, 5}
    assert recipients(layer_url)[5:] == ["jobs", "free", "more", "free"]


async def test_what_goes_back_rings_for_the_first_and_the_last(
    layer_url: str, connection: Any, queries: Queries
) -> None:
    """Of each queue, because nobody claims what is behind the last of which it has heard."""
    topics, heard = Topics("asgi", NODE), list[Any]()
    topics.secret, _, _ = await queries.enter(connection)
    await queries.listen(connection, topics.of_queues(["jobs", "hub!"]))
    connection.add_notify_handler(heard.append)
    rows = [insert(layer_url, NODE, channel) for channel in ("jobs", "hub!a", "jobs", "hub!b", "jobs")]
    await queries.put_back(connection, rows)
    ids = [row for row, _ in rows]
    expected = [f"Q{ids[0]} jobs,Q{ids[4]} jobs", f"Q{ids[1]} hub!,Q{ids[3]} hub!"]
    assert sorted(notification.payload for notification in heard) == sorted(expected)


async def test_an_answer_ends_when_there_is_enough_in_it(
    layer_url: str, connection: Any, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest come first, at least one of them, and of the others it is told that they are there."""
    monkeypatch.setattr(queries_module, "BUDGET", 2)
    rows = [insert(layer_url, NODE, "jobs") for _ in range(4)]
    first, second, third, fourth = (row for row, _ in rows)
    assert await queries.fetch(connection, rows[::-1]) == {first: b"x", second: b"x", third: None, fourth: None}
    query(layer_url, "UPDATE channels_pg_sa_message SET payload = 'xxx' WHERE id = %s", [first])
    assert await queries.fetch(connection, rows[:2]) == {first: b"xxx", second: None}


async def test_who_does_not_own_the_table_does_not_try_to_vacuum_it(
    layer_url: str, connection: Any, queries: Queries
) -> None:
    """The server would warn in its log, each time."""
    role = f"sender_{secrets.token_hex(4)}"
    notices = list[Any]()
    connection.add_notice_handler(notices.append)
    await connection.execute(f"CREATE ROLE {role}; SET ROLE {role}")
    try:
        await queries.vacuum(connection)
    finally:
        await connection.execute(f"RESET ROLE; DROP ROLE {role}")
    assert notices == []


async def test_the_table_of_a_schema_is_vacuumed_there(layer_url: str, connection: Any) -> None:
    """And the dead rows are counted there, though there are tables in the search path, too."""
    queries = Queries(Settings(schema=SCHEMA, connect=dict, listen=dict), NODE)
    ((name, _),) = await queries._run(connection, "message_table")
    there = f"{SCHEMA}.channels_pg_sa_message"
    insert = f"INSERT INTO {there} (recipient, channel, payload) SELECT 'jobs', 'jobs', 'x' FROM generate_series(1, 5)"
    query(layer_url, f"{insert}; DELETE FROM {there}")
    assert name == there

    async def are_counted() -> bool:  # the server does so a moment after their session has ended
        return await queries._run(connection, "dead_room") == [(5 * ROW,)]

    await eventually_async(are_counted)


async def test_the_room_of_a_large_payload_counts(layer_url: str, connection: Any, queries: Queries) -> None:
    """When it is deleted; and where the statistics are asked, which know the 51 pieces that it was in."""
    async with await psycopg.AsyncConnection.connect(layer_url, autocommit=True) as other:
        await queries.send(other, [Send(NODE, f"specific.{NODE}!a", b"x" * size, None) for size in (1, 100_000)])
        mailbox = await queries.waiting(other)
        assert await queries.forget(other, [(parcel.id, parcel.expires) for parcel in mailbox]) == 2 * ROW + 100_001

    async def are_counted() -> bool:
        return await queries._run(connection, "dead_room") == [(2 * ROW + 51 * 2000,)]

    await eventually_async(are_counted)


async def test_no_more_is_counted_than_there_is_room_for(layer_url: str, connection: Any, queries: Queries) -> None:
    """A queue that filled up before it had a capacity costs those who are refused no more than any other."""
    query(layer_url, MANY)
    await connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
    async with connection.transaction():
        assert await queries.send(connection, [Send("jobs", "jobs", b"x", 3)]) == {0}
        ((looked_at,),) = await (await connection.execute(LOOKED_AT)).fetchall()
    assert looked_at == 3


MANY = """INSERT INTO channels_pg_sa_message (prefix, recipient, channel, payload)
    SELECT 'asgi', 'jobs', 'jobs', 'x' FROM generate_series(1, 100)"""
LOOKED_AT = """SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables
    WHERE relid = 'channels_pg_sa_message'::regclass"""


@pytest.mark.parametrize(("queues", "expected"), [(True, [NODE, "hub!", "jobs"]), (False, [NODE])])
async def test_members_that_any_process_may_read_may_be_left_out(
    layer_url: str, connection: Any, queries: Queries, queues: bool, expected: list[str]
) -> None:
    """Where they have a capacity the caller sends to them, and would send twice. What ended or is elsewhere is out."""
    for prefix, node, channel, seconds in (
        ("asgi", NODE, "a", 60),
        ("asgi", NODE, "b", 60),
        ("asgi", OTHER, "c", -1),
        ("asgi", "", "jobs", 60),
        ("asgi", "", "hub!x", 60),
        ("asgi", "", "late", -1),
        ("other", OTHER, "d", 60),
        ("other", "", "others", 60),
    ):
        query(layer_url, ADD_MEMBER, [prefix, node, channel, seconds])
    await queries.publish(connection, [GroupSend("g", b"x")], queues=queues)
    assert sorted(recipients(layer_url)) == expected


ADD_NODE = """INSERT INTO channels_pg_sa_node (id, prefix, pid, lease_until)
    VALUES (%s, %s, %s, now() + make_interval(secs => %s))"""
ADD_MEMBER = """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel, expires_at)
    VALUES (%s, 'g', %s, %s, now() + make_interval(secs => %s))"""
NODES = "SELECT id FROM channels_pg_sa_node ORDER BY id"
MEMBERS = "SELECT channel FROM channels_pg_sa_membership ORDER BY channel"


def every(url: str, statement: Any) -> str:
    """The letters that a statement finds."""
    return "".join(found for (found,) in query(url, statement))


async def test_a_placeholder_is_nobody_s_registration(layer_url: str, connection: Any, queries: Queries) -> None:
    """It has a lease, and no process: who finds it in its own place must register, and restore its members."""
    topics = Topics("asgi", NODE)
    topics.secret = "of no installation"
    query(layer_url, ADD_NODE, [NODE, "asgi", None, 60])
    assert not await queries.is_known(connection)
    assert not (await queries.renew(connection, topics)).alive
    assert not (await queries.beat(connection, topics, [])).alive
    await queries.register(connection, host="h", pid=1, version="1")
    assert await queries.is_known(connection)
    assert (await queries.renew(connection, topics)).alive


async def test_who_registers_again_is_as_it_is_now(layer_url: str, connection: Any, queries: Queries) -> None:
    """Its row may be a sweeper's placeholder, or tell of a moment before it was cut off."""
    query(layer_url, ADD_NODE, [NODE, "asgi", None, -1])
    query(layer_url, "UPDATE channels_pg_sa_node SET seen_at = now() - interval '1 h'")
    await queries.register(connection, host="h", pid=1, version="v")
    told = "SELECT host, pid, version, seen_at > now() - interval '1 min', lease_until > now() FROM channels_pg_sa_node"
    assert query(layer_url, told) == [("h", 1, "v", True, True)]


async def test_each_thing_that_is_over_is_a_reason_to_sweep(layer_url: str, connection: Any, queries: Queries) -> None:
    """And nothing else is; in a queue a message waits that can be claimed."""
    topics = Topics("asgi", NODE)
    topics.secret = "of no installation"
    query(layer_url, ADD_NODE, ["a", "asgi", 1, 60])
    query(layer_url, ADD_MEMBER, ["asgi", "", "jobs", 60])
    insert(layer_url, "jobs", "jobs")
    insert(layer_url, "others", "others", prefix="other")
    pulse = await queries.beat(connection, topics, ["jobs", "others"])
    assert (pulse.sweep_due, pulse.filled) == (False, ["jobs"])
    reasons: list[tuple[str, list[Any]]] = [
        (INSERT, ["asgi", "late", "late", -1]),
        (ADD_NODE, ["b", "asgi", 1, -1]),
        (ADD_MEMBER, ["asgi", "", "late", -1]),
    ]
    for statement, values in reasons:
        query(layer_url, statement, values)
        pulse = await queries.beat(connection, topics, ["late"])
        assert (pulse.sweep_due, pulse.filled) == (True, ())
        await queries.sweep(connection, 10)
        assert not (await queries.beat(connection, topics, ["late"])).sweep_due


async def test_a_flush_asks_those_who_can_answer(layer_url: str, connection: Any, queries: Queries) -> None:
    """Not the dead, nor those of other prefixes, whose messages and members stay."""
    for node, prefix, pid, lease in (("a", "asgi", 1, 60), ("b", "asgi", 1, -1), ("c", "asgi", None, 60)):
        query(layer_url, ADD_NODE, [node, prefix, pid, lease])
    query(layer_url, ADD_NODE, ["d", "other", 1, 60])
    for prefix in ("asgi", "other"):
        insert(layer_url, f"of-{prefix}", "jobs", prefix=prefix)
        query(layer_url, ADD_MEMBER, [prefix, "", f"of-{prefix}", 60])
    assert await queries.flush(connection, "F1 t") == ["a"]
    assert (recipients(layer_url), every(layer_url, MEMBERS)) == (["of-other"], "of-other")


async def test_who_lives_is_not_swept(layer_url: str, connection: Any, queries: Queries) -> None:
    """Nor who has a lease to come back in; of the dead all members go, and at last they themselves."""
    rows = (("a", 1, 60), ("b", None, 60), ("c", 1, -1), ("d", None, -1))
    for node, pid, lease in rows:
        query(layer_url, ADD_NODE, [node, "asgi", pid, lease])
        for prefix in ("asgi", "other") if node == "c" else ("asgi",):
            query(layer_url, ADD_MEMBER, [prefix, node, f"{node}{prefix[0]}", 60])
    query(layer_url, ADD_NODE, ["e", "asgi", None, 60])
    assert await queries.sweep(connection, 1) == (0, 1)
    assert every(layer_url, NODES) in {"abce", "abde"}, "one whose members are not all gone stays to be found again"
    for _ in range(2):
        await queries.sweep(connection, 1)
    assert every(layer_url, NODES) == "abe"
    assert every(layer_url, "SELECT id FROM channels_pg_sa_node WHERE pid IS NOT NULL") == "a"
    assert every(layer_url, MEMBERS) == "aabaco"


async def test_whose_node_has_no_row_is_given_one(layer_url: str, connection: Any, queries: Queries) -> None:
    """All of them at once, however the planner walks through their memberships."""
    await connection.execute("SET enable_indexscan = off; SET enable_indexonlyscan = off")
    for number, node in enumerate("cab"):
        query(layer_url, ADD_MEMBER.replace("'g'", f"'g{number}'"), ["asgi", node, node, 60])
    await queries.sweep(connection, 10)
    assert every(layer_url, NODES) == "abc"


async def test_who_registers_waits_for_a_sweep_and_for_nobody_else(
    layer_url: str, connection: Any, queries: Queries
) -> None:
    """A sweep that did not see it would take the memberships that it restores for those of the dead."""
    async with await psycopg.AsyncConnection.connect(layer_url) as other:
        await queries.keep_from_sweeping(other)
        async with connection.transaction():
            await queries.keep_from_sweeping(connection)
        await other.rollback()
        assert await queries._run(other, "sweeping") == [(True, "3s", "off")]
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await queries.keep_from_sweeping(connection)


async def test_a_lease_that_ends_during_a_sweep_is_for_the_next(
    layer_url: str, connection: Any, queries: Queries
) -> None:
    """The dead have been marked before: one who is not would be told that its members are gone, and forget them."""
    query(layer_url, ADD_NODE, ["a", "asgi", 1, -1])
    query(layer_url, ADD_MEMBER, ["asgi", "a", "a", 60])
    await queries._execute(connection, "sweep_memberships", batch=10)
    assert every(layer_url, MEMBERS) == "a"
    assert await queries.sweep(connection, 10) == (0, 1)
