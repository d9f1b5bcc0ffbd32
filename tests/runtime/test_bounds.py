"""What is bounded: memory, batches of the sweeper, the message table, and the harm that bad rows and signs can do."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import msgpack
import psycopg
import pytest

from channels_pg_sa import Layer
from channels_pg_sa.receiving import vacuum
from channels_pg_sa.receiving.heartbeat import SWEEP
from channels_pg_sa.statements.queries import BUDGET, Queries
from tests.support.databases import TestServer, query
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.schema import install
from tests.support.temp_postgres import TempPostgres
from tests.support.waiting import PATIENCE, eventually, eventually_async

from .programs import at_most, run
from .scenarios import text

BRISK = {"heartbeat": 0.2, "lease": 2}


async def take(layer: PostgresLayer | Layer, channel: str, count: int) -> list[int]:
    """Receive so many messages, and return their numbers."""
    return [(await asyncio.wait_for(layer.receive(channel), PATIENCE))["number"] for _ in range(count)]


# Memory and tables -------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_memory_stays_flat(server: TestServer, layer_url: str) -> None:
    """Peer defect 27: unread channels leaked memory; 100,000 messages that nobody reads pass through a process."""
    with at_most(server, layer_url, 1):
        unread_messages = "-m", "tests.runtime.scenarios", "unread_messages", layer_url
        assert run(*unread_messages, strict=False, patience=270) == ""


async def test_large_messages_that_come_together_are_fetched_by_and_by(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one answer brings is bounded: over a slow line it would be given up, and asked for again, for ever."""
    layer, sender = make_own_layer(), make_own_layer()
    channel = await layer.new_channel()
    await layer.send(channel, text(0))
    assert await take(layer, channel, 1) == [0]
    answers: list[int] = []
    fetch = Queries.fetch

    async def noted(self: Queries, connection: Any, rows: Any) -> dict[int, bytes | None]:
        found = await fetch(self, connection, rows)
        answers.append(sum(len(payload) for payload in found.values() if payload is not None))
        return found

    monkeypatch.setattr(Queries, "fetch", noted)
    large = {**text(0), "ballast": b"x" * 1_000_000}
    await asyncio.gather(*(sender.send(channel, {**large, "number": number}) for number in range(20)))
    assert await take(layer, channel, 20) == list(range(20))
    assert max(answers) < BUDGET + 1_100_000
    assert sum(answers) > 20_000_000


async def test_claims_that_bring_too_much_become_smaller(
    make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a slow line the answer to many readers at once is given up, and so would be the next and the next."""
    layer, sender = make_own_layer(), make_own_layer()
    readers = [asyncio.create_task(layer.receive("jobs")) for _ in range(12)]
    claim, counts = Queries.claim, []

    async def too_slow_for_many(self: Queries, connection: Any, claims: Any) -> Any:
        counts.append(sum(one.count for one in claims))
        if counts[-1] > 3:
            raise psycopg.OperationalError("no answer")
        return await claim(self, connection, claims)

    monkeypatch.setattr(Queries, "claim", too_slow_for_many)
    await asyncio.gather(*(sender.send("jobs", text(number)) for number in range(12)))
    read = await asyncio.wait_for(asyncio.gather(*readers), PATIENCE)
    assert sorted(message["number"] for message in read) == list(range(12))
    assert max(counts) > 3


@pytest.fixture
def unvacuumed_url() -> Iterator[str]:
    """A database on a server whose autovacuum does not come in time."""
    with TempPostgres(settings={"autovacuum": "off"}) as postgres:
        install(postgres.url)
        yield postgres.url


AT_REST = """SELECT (SELECT count(*) FROM channels_pg_sa_message),
    (SELECT count(*) FROM pg_stat_activity
        WHERE query LIKE 'VACUUM%' AND state = 'active' AND datname = current_database())"""
SIZE = "SELECT pg_total_relation_size('channels_pg_sa_message')"


async def pass_through(url: str, rounds: int) -> int:
    """Send and read 1,250 messages in each of so many rounds; return the size of their table in bytes."""
    reader, sender = Layer(url=url), Layer(url=url)
    channel = await reader.new_channel()
    for _ in range(rounds):
        readers = asyncio.gather(take(reader, channel, 1000), take(reader, "jobs", 250))
        messages = [{**text(number), "text": "x" * 200} for number in range(1000)]
        sends = [sender.send(channel, message) for message in messages]
        await asyncio.gather(*sends, *(sender.send("jobs", message) for message in messages[:250]))
        assert await readers == [list(range(1000)), list(range(250))]
        # No race with deletions and vacuums, which a busy machine delays.
        await asyncio.to_thread(eventually, lambda: query(url, AT_REST) == [(0, 0)])
    await asyncio.gather(reader.close(), sender.close())
    ((size,),) = query(url, SIZE)
    return int(size)


@pytest.mark.timeout(300)
async def test_the_message_table_stays_small(unvacuumed_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peer defect 31: a message table of 60 GB; 25,000 messages would fill 11 MB, were their pages not used again."""
    monkeypatch.setattr(vacuum, "ROOM", 1_200_000)
    assert await pass_through(unvacuumed_url, 20) < 5_000_000


@pytest.mark.timeout(300)
async def test_it_stays_small_when_messages_are_large(unvacuumed_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 of 100 kB would fill 8 MB, most of it in the TOAST table."""
    monkeypatch.setattr(vacuum, "ROOM", 1_000_000)
    async with Layer(url=unvacuumed_url) as layer:
        channel = await layer.new_channel()
        for _ in range(20):
            await asyncio.gather(*(layer.send(channel, {**text(n), "data": b"x" * 100_000}) for n in range(4)))
            assert await take(layer, channel, 4) == [0, 1, 2, 3]
            await asyncio.to_thread(eventually, lambda: query(unvacuumed_url, AT_REST) == [(0, 0)])
    assert query(unvacuumed_url, SIZE)[0][0] < 4_000_000


@pytest.mark.timeout(300)
async def test_who_does_not_own_the_table_leaves_it_to_autovacuum(
    unvacuumed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server would say so in its log, each time."""
    monkeypatch.setattr(vacuum, "ROOM", 1_200_000)
    query(unvacuumed_url, "CREATE ROLE application LOGIN")
    query(unvacuumed_url, "GRANT ALL ON ALL TABLES IN SCHEMA public TO application")
    query(unvacuumed_url, "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO application")
    assert await pass_through(unvacuumed_url.replace("postgres@", "application@"), 8) > 4_000_000
    vacuums = "SELECT vacuum_count FROM pg_stat_user_tables WHERE relname = 'channels_pg_sa_message'"
    assert query(unvacuumed_url, vacuums) == [(0,)]


@pytest.mark.timeout(300)
async def test_vacuums_get_fewer_where_they_can_remove_nothing(
    unvacuumed_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody's transaction is open; afterwards they come as often as before."""
    monkeypatch.setattr(vacuum, "ROOM", 400_000)
    vacuums = "SELECT vacuum_count FROM pg_stat_user_tables WHERE relname = 'channels_pg_sa_message'"
    with psycopg.connect(unvacuumed_url) as connection:
        if connection.info.server_version < 15_00_00:
            pytest.skip("what the statistics tell is too old: there are as many vacuums as ever")
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM channels_pg_sa_message")
        await pass_through(unvacuumed_url, 10)
        ((count,),) = query(unvacuumed_url, vacuums)
    assert 1 <= count <= 4, "12,500 deletions, and twice as many from one to the next"


# Sweeping ----------------------------------------------------------------------------------------

EXPIRED = {
    "message": """INSERT INTO channels_pg_sa_message (prefix, recipient, channel, payload, expires_at)
        SELECT 'asgi', 'queue-' || n, 'queue-' || n, '', now() - interval '1 s' FROM generate_series(1, %s) n""",
    "membership": """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel, expires_at)
        SELECT 'asgi', 'group-' || n %% 9, '', 'channel-' || n, now() - interval '1 s' FROM generate_series(1, %s) n""",
}
WATCH_SWEEPS = """
    CREATE TABLE swept (rows bigint, transaction bigint DEFAULT txid_current());
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO swept SELECT count(*) FROM gone; RETURN NULL; END';
    CREATE TRIGGER note AFTER DELETE ON channels_pg_sa_{0} REFERENCING OLD TABLE AS gone
        FOR EACH STATEMENT EXECUTE FUNCTION note()"""
SWEEPER = "SELECT pg_advisory_xact_lock(hashtextextended(secret, 0)) FROM channels_pg_sa_installation"
BEATS = "SELECT min(seen_at) FROM channels_pg_sa_node"


async def listening(make_layer: LayerFactory, count: int) -> list[PostgresLayer]:
    """Return layers that are registered, and have time for their beats, each of which may look for what to sweep."""
    layers = [make_layer(heartbeat=1, lease=10) for _ in range(count)]
    for layer in layers:
        await layer.group_add("group", await layer.new_channel())
    return layers


@pytest.mark.parametrize("table", EXPIRED)
async def test_expired_rows_go_in_bounded_batches(make_own_layer: LayerFactory, layer_url: str, table: str) -> None:
    """Peer defect 31: out of memory in one DELETE; no transaction deletes more than a batch, whoever sweeps."""
    await listening(make_own_layer, 3)
    count = 2 * SWEEP + 1000
    query(layer_url, WATCH_SWEEPS.format(table))  # type: ignore[arg-type]
    query(layer_url, EXPIRED[table], [count])
    eventually(lambda: query(layer_url, "SELECT sum(rows) FROM swept") == [(count,)])
    batches = query(layer_url, "SELECT sum(rows) FROM swept GROUP BY transaction HAVING sum(rows) > 0 ORDER BY 1")
    assert batches == [(1000,), (SWEEP,), (SWEEP,)]


@pytest.mark.parametrize("table", EXPIRED)
async def test_one_sweeps_at_a_time(make_own_layer: LayerFactory, layer_url: str, table: str) -> None:
    """Peer defect 31: every worker ran the same clean-up; while one does, the others neither sweep nor wait for it."""
    await listening(make_own_layer, 3)
    rest = f"SELECT count(*) FROM channels_pg_sa_{table} WHERE expires_at < now()"
    with psycopg.connect(layer_url) as sweeper:
        sweeper.execute(SWEEPER)
        query(layer_url, EXPIRED[table], [100])
        for _ in range(3):
            ((before,),) = query(layer_url, BEATS)
            eventually(lambda before=before: query(layer_url, BEATS) > [(before,)])  # type: ignore[misc]
        assert query(layer_url, rest) == [(100,)]  # type: ignore[arg-type]
    eventually(lambda: query(layer_url, rest) == [(0,)])  # type: ignore[arg-type]


# Poison ------------------------------------------------------------------------------------------

FRAME = msgpack.packb({"type": "test.message", "text": "x" * 100})
POISON = {
    "nothing": b"",
    "random bytes": os.urandom(300),
    "many random bytes": os.urandom(300_000),
    "half a message": FRAME[: len(FRAME) // 2],
    "a message and a half": FRAME + FRAME[:50],
    "another type": msgpack.packb([1, 2, 3]),
    "deeply nested": b"\x91" * 100_000,
    "a promise of 4 GB": b"\xdf\xff\xff\xff\xff",
    "half of JSON": b'{"type": "te',
}
INSERT = """INSERT INTO channels_pg_sa_message (prefix, recipient, channel, group_name, payload)
    VALUES ('asgi', %s, %s, %s, %s)"""


@pytest.mark.parametrize("keys", [(), ("a key",)], ids=["plain", "encrypted"])
@pytest.mark.parametrize("poison", POISON)
async def test_a_poisoned_row_is_dropped(
    make_own_layer: LayerFactory, layer_url: str, poison: str, keys: tuple[str, ...]
) -> None:
    """Peer defect 16: what could not be decrypted raised out of receive(); here it is counted, and the next comes."""
    layer = make_own_layer(symmetric_encryption_keys=list(keys))
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    for recipient, name, group in ((layer.node, channel, None), (layer.node, None, "group"), ("jobs", "jobs", None)):
        query(layer_url, INSERT, [recipient, name, group, POISON[poison]])
    await layer.send(channel, text(1))
    await layer.group_send("group", text(2))
    await layer.send("jobs", text(3))
    assert await take(layer, channel, 2) == [1, 2]
    assert await take(layer, "jobs", 1) == [3]
    assert layer.counters["undecodable"] == 3


async def test_another_key_is_poison(make_own_layer: LayerFactory) -> None:
    """Peer defect 16: a message under a key that this process does not have is counted and dropped."""
    layer = make_own_layer(symmetric_encryption_keys=["ours"])
    stranger = make_own_layer(symmetric_encryption_keys=["theirs"])
    channel = await layer.new_channel()
    await stranger.send(channel, text(1))
    await stranger.send("jobs", text(1))
    await layer.send(channel, text(2))
    await layer.send("jobs", text(2))
    assert await take(layer, channel, 1) + await take(layer, "jobs", 1) == [2, 2]
    assert layer.counters["undecodable"] == 2


LONG = "x" * 2_000_000


def insert_row(url: str, recipient: str, channel: str, *, unseen: bool) -> None:
    """Insert a row as SQL may; unseen: past the trigger. It may be refused."""
    with contextlib.suppress(psycopg.Error), psycopg.connect(url, autocommit=True) as connection:
        if unseen:
            connection.execute("SET channels_pg_sa.notified = 'on'")
        connection.execute(INSERT, [recipient, channel, None, POISON["random bytes"]])


@pytest.mark.parametrize("unseen", [False, True], ids=["notified", "unseen"])
@pytest.mark.parametrize("recipient", ["node", "jobs", "prefix!"])
@pytest.mark.parametrize("start", ["prefix!", "", "strange!"])
async def test_a_name_of_2_mb_harms_nobody(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str, recipient: str, start: str, unseen: bool
) -> None:
    """A row with an absurd name, which only SQL can write, holds nobody up: what follows it comes."""
    layer = make_own_layer(**BRISK)
    channel = await layer.new_channel()
    readers = [asyncio.create_task(take(layer, name, 3)) for name in (channel, "jobs", "prefix!")]
    for number in range(3):
        await layer.send(channel, text(number))
        await layer.send("jobs", text(number))
        await layer.send("prefix!a", text(number))
        if number == 0:
            insert_row(layer_url, layer.node if recipient == "node" else recipient, start + LONG, unseen=unseen)
            server.terminate(make_own_layer.listeners(layer))
    assert await asyncio.gather(*readers) == [[0, 1, 2]] * 3


@pytest.mark.parametrize("columns", [("", None), (None, "")], ids=["channel", "group"])
async def test_rows_without_a_name_harm_nobody(
    make_own_layer: LayerFactory, server: TestServer, layer_url: str, columns: tuple[str | None, str | None]
) -> None:
    """A recovery that finds some in the mailbox drops them, all at once."""
    layer = make_own_layer(**BRISK)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    with psycopg.connect(layer_url, autocommit=True) as connection:
        connection.execute("SET channels_pg_sa.notified = 'on'")
        for _ in range(3):
            connection.execute(INSERT, [layer.node, *columns, b"x"])
    server.terminate(make_own_layer.listeners(layer))
    await layer.send(channel, text(1))
    assert await take(layer, channel, 1) == [1]
    assert layer.counters["malformed"] == 3


async def test_a_row_that_no_queue_could_take_back_holds_nobody_up(
    make_own_layer: LayerFactory, layer_url: str
) -> None:
    """Under a name too long for an index it is claimed and dropped; under one of another queue it stays where it is."""
    layer = make_own_layer(**BRISK)
    await layer.send("prefix!a", text(1))
    assert await take(layer, "prefix!", 1) == [1]
    reader = asyncio.create_task(take(layer, "prefix!", 1))
    await asyncio.sleep(0)
    for name in (LONG, "prefix!" + LONG):
        insert_row(layer_url, "prefix!", name, unseen=False)
    await eventually_async(lambda: dropped(layer))
    await layer.send("prefix!a", text(2))
    assert await reader == [2]


async def dropped(layer: Any) -> bool:
    """Tell whether the layer has dropped a malformed row."""
    return bool(layer.counters["malformed"])


async def test_the_longest_names_fit(make_layer: LayerFactory) -> None:
    """Together they are the key of an index, of which PostgreSQL takes 2,704 bytes."""
    layer = make_layer(prefix="\N{GRINNING FACE}" * 100)
    channel = (await layer.new_channel("x" * 40)).ljust(99, "x")
    for group, member in (("g" * 99, channel), ("h" * 99, "j" * 99)):
        await layer.group_add(group, member)
        await layer.group_send(group, text(1))
        await layer.send(member, text(2))
        assert await take(layer, member, 2) == [1, 2]


async def test_what_is_given_back_keeps_its_place(make_layer: LayerFactory) -> None:
    """A message that was claimed for a reader who went away is put back, and comes before those that followed it."""
    layer, sender = make_layer(), make_layer()
    await layer.send("jobs", text(-1))
    assert await take(layer, "jobs", 1) == [-1]
    for number in range(0, 20, 2):
        reader = asyncio.create_task(layer.receive("jobs"))
        await asyncio.sleep(0)
        before = layer.counters["received"]
        sender.send_sync("jobs", text(number))  # and this loop stands still until it has been claimed
        eventually(lambda before=before: layer.counters["received"] > before)  # type: ignore[misc]
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await sender.send("jobs", text(number + 1))
        reception: Any = layer._node._reception  # type: ignore[attr-defined]
        reception._soon(reception._queues.give_back)
        assert await take(layer, "jobs", 2) == [number, number + 1]
