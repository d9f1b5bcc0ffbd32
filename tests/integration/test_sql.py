"""Messages that SQL sends: from psql, from a trigger, by a plain INSERT."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from channels_pg_sa.codec import MAX_BYTES, MessageCodec
from channels_pg_sa.config import Settings
from channels_pg_sa.names import check_channel, check_group, queue_of, recipient_of
from tests.conformance.backends import Conversation, text
from tests.support.databases import query, run_script
from tests.support.layers import LayerFactory, Message, PostgresLayer
from tests.support.markdown import DOCS, blocks
from tests.support.schema import SCHEMA
from tests.support.waiting import let_pass

TALK = Conversation(patience=10)
PAGE = "sql.md"
DEFAULTS = {field.name: field.default for field in fields(Settings)}

SEND = "SELECT channels_pg_sa_send(%s, %s)"
GROUP_SEND = "SELECT channels_pg_sa_group_send(%s, %s)"
JOIN = "INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel) VALUES ('asgi', 'group', '', %s)"
SENT = "SELECT recipient, channel, group_name FROM channels_pg_sa_message ORDER BY id"


@pytest.fixture
def connection(layer_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the test's own database, whose transaction the test ends."""
    with psycopg.connect(layer_url, application_name="tests") as connected:
        yield connected
        connected.rollback()


def examples(heading: str) -> str:
    """The SQL under a heading of the documentation."""
    return "\n".join(blocks(PAGE, heading, "sql"))


async def members(*layers: PostgresLayer, group: str = "group") -> list[tuple[PostgresLayer, str]]:
    """Make a channel of each layer a member."""
    found = [(layer, await layer.new_channel()) for layer in layers]
    for layer, channel in found:
        await layer.group_add(group, channel)
    return found


@pytest.mark.parametrize("size", [1, 6_000, 1_000_000], ids=["small", "medium", "large"])
@pytest.mark.parametrize("kind", ["own", "normal", "hub!x"])
async def test_a_channel_gets_what_sql_sends(
    make_own_layer: LayerFactory, layer_url: str, kind: str, size: int
) -> None:
    """Of one process or of any, in a notification or fetched, once."""
    layer = make_own_layer()
    channel = await layer.new_channel() if kind == "own" else kind
    message = {**text(1), "text": "x" * size}
    query(layer_url, SEND, (channel, Jsonb(message)))
    assert await TALK.next(layer, channel) == message
    assert await TALK.is_empty(layer, channel)


async def test_a_group_gets_what_sql_sends(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Each member once, in every process, and one reader of a normal channel."""
    here, there = make_own_layer(), make_own_layer()
    everybody = await members(here, there, here)
    for channel in ("jobs", "hub!x"):
        await here.group_add("group", channel)
        everybody.append((there, channel))
    query(layer_url, GROUP_SEND, ("group", Jsonb(text(1))))
    for layer, channel in everybody:
        assert await TALK.next(layer, channel) == text(1)
        assert await TALK.is_empty(layer, channel)


async def test_a_group_costs_one_row_for_each_process(
    make_own_layer: LayerFactory, layer_url: str, connection: psycopg.Connection[Any]
) -> None:
    """However many members it has there; one more for each normal channel; and none for what ended, or is elsewhere."""
    here, there, gone = make_own_layer(), make_own_layer(), make_own_layer(group_expiry=0.001)
    elsewhere = make_own_layer(prefix="other")
    await members(here, there, gone, here, there)
    await here.group_add("group", "jobs")
    await here.group_add("group", "hub!x")
    await gone.group_add("group", "late")
    await members(here, group="other")
    await members(elsewhere)
    await elsewhere.group_add("group", "others")
    connection.execute(GROUP_SEND, ("group", Jsonb(text(1))))
    to_nodes = {(layer.node, None, "group") for layer in (here, there)}
    assert set(connection.execute(SENT)) == {*to_nodes, ("jobs", "jobs", None), ("hub!", "hub!x", None)}


def test_a_group_send_does_not_read_every_member(layer_url: str, connection: psycopg.Connection[Any]) -> None:
    """The processes are found by as many looks into the index, whatever the number of members."""
    query(
        layer_url,
        """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel)
        SELECT 'asgi', 'group', 'node' || number % 3, number FROM generate_series(1, 10000) number""",
    )
    connection.execute(GROUP_SEND, ("group", Jsonb(text(1))))
    assert len(list(connection.execute(SENT))) == 3
    ((scanned, fetched),) = connection.execute(
        """SELECT seq_scan, idx_tup_fetch FROM pg_stat_xact_user_tables
        WHERE relid = 'channels_pg_sa_membership'::regclass"""
    )
    assert scanned == 0
    assert fetched < 20


async def test_messages_arrive_as_they_are(make_own_layer: LayerFactory, layer_url: str) -> None:
    """U+FFFF before a text, too, which is how the layer's own JSON marks bytes."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    mark = "\uffff"
    message = {
        "type": "test.message",
        "values": [None, True, False, 0, -1, 1.5, 2**63 - 1, -(2**63), "", "\u00e9\U0001f600\t\\\"'%s@:name"],
        "marked": [mark, mark * 3, f"{mark}AAAA", f"a{mark}", [mark, {"in": mark}], f'\\"{mark}', f'{mark}"{mark}\\'],
        mark: f'{mark}": ',
        f'{mark}"{mark}': {mark: f'", "{mark}'},
    }
    query(layer_url, SEND, (channel, Jsonb(message)))
    assert await TALK.next(layer, channel) == message


@pytest.mark.parametrize(
    "name",
    [
        *("jobs", "hub!", "hub!x", "a.0123456789ab!x", ".0123456789ab!", "a.b.0123456789ab!c.0123456789ac"),
        *("0123456789ab!x", "a.0123456789ab", "a.0123456789AB!x", "a.0123456789abc!x", "a.00123456789ab!x"),
        *("-_.!-_.", "n" * 99),
    ],
)
def test_a_channel_s_mailbox_is_the_layer_s(connection: psycopg.Connection[Any], name: str) -> None:
    """The function in the database and the layer tell alike who reads a channel."""
    connection.execute(SEND, (name, Jsonb(text(1))))
    assert list(connection.execute(SENT)) == [(recipient_of(name), name, None)]


@pytest.mark.parametrize(
    "name",
    [
        *("a", "a!", "a!b", "a-_.Z9", "n" * 99, "n" * 100, "", "!", "!a", "a!b!c", "a b", "a,b", "a\n", "\na", "a!b c"),
        *("a/b", "a'b", "a\\b", "\u00e9", "\uff41", "a\u0130"),
    ],
)
@pytest.mark.parametrize(("statement", "rule"), [(SEND, check_channel), (GROUP_SEND, check_group)])
def test_names_are_the_layer_s(connection: psycopg.Connection[Any], statement: Any, rule: Any, name: str) -> None:
    """What the layer refuses, the function refuses, and says the rule; what the one takes, the other takes."""
    try:
        rule(name)
    except TypeError:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="is not a valid name") as caught:
            connection.execute(statement, (name, Jsonb(text(1))))
        assert "fewer than 100 characters" in str(caught.value.diag.message_hint)
    else:
        connection.execute(statement, (name, Jsonb(text(1))))


@pytest.mark.parametrize("collation", ["POSIX", "lax"])
@pytest.mark.parametrize("name", ["jobs", "hub!x", "a.0123456789ab!x"])
def test_a_name_may_have_any_collation(connection: psycopg.Connection[Any], name: str, collation: str) -> None:
    """It may come out of a column that has one, such as one to which A is the same as a."""
    if collation == "lax":
        try:
            connection.execute("CREATE COLLATION lax (provider=icu, locale='und-u-ks-level2', deterministic=false)")
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("this server has no such collation")
    connection.execute(JOIN, [name])
    ours = f'%s::text COLLATE "{collation}"'
    connection.execute(f"SELECT channels_pg_sa_send({ours}, '{{}}', {ours})".encode(), [name, "asgi"])
    connection.execute(f"SELECT channels_pg_sa_group_send({ours}, '{{}}', {ours})".encode(), ["group", "asgi"])
    assert list(connection.execute(SENT)) == [(recipient_of(name), name, None), (queue_of(name), name, None)]


async def test_only_a_commit_delivers(
    make_own_layer: LayerFactory, layer_url: str, connection: psycopg.Connection[Any]
) -> None:
    """Not the call, and not if it is rolled back, be it to a savepoint."""
    layer = make_own_layer()
    ((_, channel),) = await members(layer)
    for number, statement in enumerate((SEND, GROUP_SEND)):
        where = channel if statement is SEND else "group"
        connection.execute(statement, (where, Jsonb(text(-1))))
        assert await TALK.is_empty(layer, channel)
        connection.rollback()
        connection.execute(statement, (where, Jsonb(text(number))))
        with connection.transaction(force_rollback=True):
            connection.execute(statement, (where, Jsonb(text(-2))))
        connection.commit()
        assert await TALK.next(layer, channel) == text(number)
        assert await TALK.is_empty(layer, channel)


async def test_order_within_a_transaction(
    make_own_layer: LayerFactory, layer_url: str, connection: psycopg.Connection[Any]
) -> None:
    """Messages arrive in the order of the calls, large and small, to the channel and to its group."""
    layer = make_own_layer()
    ((_, channel),) = await members(layer)
    sent = [{**text(number), "text": "x" * (20_000 if number % 5 == 0 else 5)} for number in range(20)]
    for number, message in enumerate(sent):
        connection.execute(
            *((GROUP_SEND, ("group", Jsonb(message))) if number % 2 else (SEND, (channel, Jsonb(message))))
        )
    connection.commit()
    assert await TALK.take(layer, channel, len(sent)) == sent


async def test_the_documented_trigger_pushes_to_a_group(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Whatever changes the table, browsers see it."""
    layer = make_own_layer()
    ((_, channel),) = await members(layer, group="orders")
    run_script(layer_url, examples("From a trigger"))
    query(layer_url, "INSERT INTO orders VALUES (7, 'new'), (8, 'new')")
    query(layer_url, "UPDATE orders SET state = 'paid' WHERE id = 7")
    found = await TALK.take(layer, channel, 3)
    assert {message["type"] for message in found} == {"order.changed"}
    assert [(message["id"], message["state"]) for message in found] == [(7, "new"), (8, "new"), (7, "paid")]


async def test_a_trigger_that_fires_for_replicated_rows_sends(make_own_layer: LayerFactory, layer_url: str) -> None:
    """They are applied with session_replication_role = replica, in which other triggers are silent."""
    layer = make_own_layer()
    ((_, channel),) = await members(layer, group="orders")
    run_script(layer_url, examples("From a trigger"))
    query(layer_url, "ALTER TABLE orders ENABLE ALWAYS TRIGGER push")
    run_script(layer_url, "SET session_replication_role = replica; INSERT INTO orders VALUES (7, 'new')")
    assert await TALK.next(layer, channel) == {"type": "order.changed", "id": 7, "state": "new"}


async def test_the_documented_statements_send(make_own_layer: LayerFactory, layer_url: str) -> None:
    """By the functions, and by a plain INSERT."""
    layer = make_own_layer()
    ((_, channel),) = await members(layer, group="orders")
    run_script(layer_url, examples("Sending from SQL"))
    run_script(layer_url, examples("Inserting into the table"))
    assert await TALK.take(layer, "jobs", 2) == [{"type": "job.run", "id": number} for number in (7, 8)]
    assert await TALK.next(layer, channel) == {"type": "order.changed", "id": 7}


def test_a_row_cannot_be_larger_than_a_message(connection: psycopg.Connection[Any]) -> None:
    """A node that fetches it would do nothing else."""
    insert = """INSERT INTO channels_pg_sa_message (recipient, channel, payload)
        VALUES ('jobs', 'jobs', repeat('x', %s)::bytea)"""
    connection.execute(insert, [MAX_BYTES])
    with pytest.raises(psycopg.errors.CheckViolation, match="payload_size"):
        connection.execute(insert, [MAX_BYTES + 1])


@pytest.mark.parametrize("function", ["channels_pg_sa_send", "channels_pg_sa_group_send"])
@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ("NULL, '{}'", psycopg.errors.NullValueNotAllowed, "(channel|group_name) is NULL"),
        ("'a', NULL", psycopg.errors.NullValueNotAllowed, "message is NULL"),
        ("'a', '{}', NULL", psycopg.errors.NullValueNotAllowed, "prefix is NULL"),
        ("'a', '{}', expiry => NULL", psycopg.errors.NullValueNotAllowed, "expiry is NULL"),
        ("'a', '[{}]'", psycopg.errors.InvalidParameterValue, "not a JSON object but: array"),
        ("'a', '\"{}\"'", psycopg.errors.InvalidParameterValue, "not a JSON object but: string"),
        ("'a', 'null'", psycopg.errors.InvalidParameterValue, "not a JSON object but: null"),
        ("'a', '{}', ''", psycopg.errors.InvalidParameterValue, "prefix is empty"),
        ("'a', '{}', repeat('x', 101)", psycopg.errors.InvalidParameterValue, "prefix has 101 characters"),
        ("'a', '{}', expiry => '0'", psycopg.errors.InvalidParameterValue, "expiry is not positive: 00:00:00"),
        ("'a', '{}', expiry => '-1 s'", psycopg.errors.InvalidParameterValue, "expiry is not positive: -00:00:01"),
    ],
)
def test_a_wrong_argument_is_told_with_a_hint(
    connection: psycopg.Connection[Any], function: str, arguments: str, error: type[psycopg.Error], said: str
) -> None:
    """Each by its SQLSTATE, so that a trigger can catch it."""
    with pytest.raises(error, match=said) as caught:
        connection.execute(f"SELECT {function}({arguments})".encode())
    assert caught.value.diag.message_hint


@pytest.mark.parametrize(
    ("call", "state"),
    [
        ("SELECT channels_pg_sa_send('jobs', '{}'::text)", "42883"),
        ("SELECT channels_pg_sa_send('jobs', '{}'::json)", "42883"),
        ("SELECT channels_pg_sa_send('jobs', '{}', expiry => 60)", "42883"),
        ("SET search_path = ''; SELECT channels_pg_sa_send('jobs', '{}')", "42883"),
        ("SELECT channels_pg_sa_send('jobs', '{')", "22P02"),
        (r"""SELECT channels_pg_sa_send('jobs', '{"half": "\ud83d"}')""", "22P02"),
        (r"""SELECT channels_pg_sa_send('jobs', '{"nul": "\u0000"}')""", "22P05"),
        ("SET TRANSACTION READ ONLY; SELECT channels_pg_sa_send('jobs', '{}')", "25006"),
    ],
)
def test_what_postgresql_refuses_is_documented(connection: psycopg.Connection[Any], call: str, state: str) -> None:
    """Before the function is called, or by what it does."""
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(call.encode())
    assert caught.value.sqlstate == state
    assert f"`{state}`" in (DOCS / PAGE).read_text(encoding="utf-8")


def nested(depth: int, kind: type) -> Any:
    """An array or object within another, so many times over."""
    value: Any = kind()
    for _ in range(depth - 1):
        value = [value] if kind is list else {"a": value}
    return value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (nested(100, list), None),
        (nested(101, list), "nested more than 100 deep"),
        (nested(100, dict), None),
        (nested(101, dict), "nested more than 100 deep"),
        ([[]] * 1000, None),
        ("[{" * 1000, None),
        (2**63 - 1, None),
        (2**63, "integer of more than 64 bits .*: 9223372036854775808\n"),
        (-(2**63), None),
        (-(2**63) - 1, "integer of more than 64 bits .*: -9223372036854775809\n"),
        ([{"a": 10**4000}], "integer of more than 64 bits .*: 10{39}\n"),
        ("9" * 30, None),
        ({"9" * 30: "9" * 30}, None),
        (-0.1, None),
        (1e-300, None),
    ],
    ids=[
        "arrays 100",
        "arrays 101",
        "objects 100",
        "objects 101",
        "many arrays",
        "brackets in a text",
        "largest",
        "too large",
        "smallest",
        "too small",
        "huge",
        "digits in a text",
        "digits in a key",
        "fraction",
        "tiny",
    ],
)
@pytest.mark.parametrize("function", [SEND, GROUP_SEND])
async def test_what_a_message_may_hold_is_as_for_the_layer(
    make_own_layer: LayerFactory, layer_url: str, function: str, value: Any, said: str | None
) -> None:
    """What the layer's own send refuses is refused here, to the sender; everything else arrives as it was."""
    layer = make_own_layer()
    ((_, channel),) = await members(layer)
    sent = function, ("group" if function == GROUP_SEND else channel, Jsonb({"value": value}))
    if said is not None:
        with pytest.raises(TypeError, match=r"deep|integer below -2\*\*63 or above"):
            MessageCodec().encode({"value": value})
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=said) as caught:
            query(layer_url, *sent)
        assert caught.value.diag.message_hint
    else:
        MessageCodec().encode({"value": value})
        query(layer_url, *sent)
        assert await TALK.next(layer, channel) == {"value": value}


@pytest.mark.parametrize(("number", "passes"), [("1.7e308", True), ("-1.9e308", False), ("1.5", True)])
def test_a_number_no_float_can_hold_is_refused(connection: psycopg.Connection[Any], number: str, passes: bool) -> None:
    """The database has numbers without end; a consumer would read infinity."""
    statement = f"SELECT channels_pg_sa_send('a', jsonb_build_object('a', {number} + 0.5))".encode()
    if passes:
        connection.execute(statement)
    else:
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"a number over 1\.8e308: -1") as caught:
            connection.execute(statement)
        assert caught.value.diag.message_hint


@pytest.mark.parametrize("function", ["channels_pg_sa_send", "channels_pg_sa_group_send"])
@pytest.mark.parametrize("character", ["x", "\uffff"], ids=["plain", "marked"])
def test_the_limit_is_the_layer_s(connection: psycopg.Connection[Any], function: str, character: str) -> None:
    """16 MiB of JSON text pass, with what the mark before a text adds, and a byte more does not."""
    statement = f"SELECT {function}('a', jsonb_build_object('a', %s || repeat('x', %s)))".encode()
    room = MAX_BYTES - len('{"a": ""}') - len(character.encode()) * (1 if character == "x" else 2)
    connection.execute(statement, (character, room))
    with pytest.raises(
        psycopg.errors.ProgramLimitExceeded, match="16777217 bytes, and 16777216 are the limit"
    ) as caught:
        connection.execute(statement, (character, room + 1))
    assert caught.value.diag.message_hint


async def test_an_encrypting_layer_refuses_what_sql_sends(
    make_own_layer: LayerFactory, layer_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Dropped, counted and logged, whether it came to a channel or through a group."""
    layer = make_own_layer(symmetric_encryption_keys=["key"])
    ((_, channel),) = await members(layer)
    with caplog.at_level(logging.WARNING, "channels_pg_sa"):
        query(layer_url, SEND, (channel, Jsonb(text(1))))
        query(layer_url, GROUP_SEND, ("group", Jsonb(text(2))))
        query(layer_url, SEND, ("jobs", Jsonb(text(3))))
        assert await TALK.is_empty(layer, channel)
        assert await TALK.is_empty(layer, "jobs")
    assert layer.counters["undecodable"] == 3
    assert "could not be decoded" in caplog.text


async def test_an_encrypting_layer_takes_what_it_allows_by_name(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Channels and groups; from all others plain messages are refused as before, and encrypted ones come everywhere."""
    layer = make_own_layer(symmetric_encryption_keys=["key"], allow_unencrypted=["jobs", re.compile(r"feed\.\w+")])
    first, second = [await layer.new_channel() for _ in range(2)]
    for channel in (first, second):
        await layer.group_add("feed.orders", channel)
        await layer.group_add("news", channel)
    query(layer_url, GROUP_SEND, ("news", Jsonb(text(1))))
    query(layer_url, SEND, (first, Jsonb(text(2))))
    query(layer_url, SEND, ("jobs.other", Jsonb(text(3))))
    query(layer_url, GROUP_SEND, ("feed.orders", Jsonb(text(4))))
    query(layer_url, SEND, ("jobs", Jsonb(text(5))))
    await layer.group_send("feed.orders", text(6))
    await layer.group_send("news", text(7))
    for channel in (first, second):
        assert await TALK.take(layer, channel, 3) == [text(4), text(6), text(7)]
    assert await TALK.next(layer, "jobs") == text(5)
    assert await TALK.is_empty(layer, "jobs.other")
    assert layer.counters["undecodable"] == 4


async def test_prefixes_stay_apart(make_own_layer: LayerFactory, layer_url: str) -> None:
    """A message reaches the application of its prefix; without one, the layer that is configured without one."""
    layers = {prefix: make_own_layer(prefix=prefix) for prefix in (DEFAULTS["prefix"], "other")}
    channels = {prefix: (await members(layer))[0][1] for prefix, layer in layers.items()}
    query(layer_url, SEND, ("jobs", Jsonb(text(1))))
    query(layer_url, GROUP_SEND, ("group", Jsonb(text(2))))
    query(layer_url, "SELECT channels_pg_sa_send('jobs', %s, 'other')", (Jsonb(text(3)),))
    query(layer_url, "SELECT channels_pg_sa_group_send('group', %s, prefix => 'other')", (Jsonb(text(4)),))
    for number, (prefix, layer) in enumerate(layers.items()):
        assert await TALK.next(layer, "jobs") == text(1 + 2 * number)
        assert await TALK.next(layer, channels[prefix]) == text(2 + 2 * number)
        assert await TALK.is_empty(layer, "jobs")
        assert await TALK.is_empty(layer, channels[prefix])


async def test_an_expired_message_is_not_read(make_own_layer: LayerFactory, layer_url: str) -> None:
    """It may wait for as long as the call says, and no longer."""
    layer = make_own_layer()
    ((_, channel),) = await members(layer)
    for name, target in (("send", channel), ("send", "jobs"), ("group_send", "group")):
        query(layer_url, f"SELECT channels_pg_sa_{name}('{target}', '{{}}', expiry => '0.1 s')")
    await let_pass(0.3)
    assert await TALK.is_empty(layer, channel)
    assert await TALK.is_empty(layer, "jobs")


async def test_how_long_a_message_may_wait(
    make_own_layer: LayerFactory, layer_url: str, connection: psycopg.Connection[Any]
) -> None:
    """As long as the call says, else as long as a layer's own would by default."""
    await members(make_own_layer())
    for name, target in (("send", "jobs"), ("group_send", "group")):
        for expiry, seconds in (("", DEFAULTS["expiry"]), (", expiry => '1 day'", 86_400)):
            connection.execute(f"SELECT channels_pg_sa_{name}('{target}', '{{}}'{expiry})".encode())
            left = "SELECT date_part('epoch', expires_at - clock_timestamp()) FROM channels_pg_sa_message"
            assert [left for (left,) in connection.execute(left)] == [pytest.approx(seconds, abs=5)]
            connection.rollback()


async def test_a_message_s_life_begins_with_the_call(
    make_own_layer: LayerFactory, connection: psycopg.Connection[Any]
) -> None:
    """And not with the transaction, which may have been open for longer than a message may wait."""
    await members(make_own_layer())
    ((began,),) = connection.execute("SELECT now()")
    connection.execute(SEND, ("jobs", Jsonb(text(1))))
    connection.execute(GROUP_SEND, ("group", Jsonb(text(2))))
    sent = connection.execute("SELECT expires_at - interval '60 s' FROM channels_pg_sa_message").fetchall()
    assert [moment > began for (moment,) in sent] == [True, True]


async def test_the_schema_is_the_function_s(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Tables in a schema of their own have functions of their own, which need no search_path."""
    ours, public = make_own_layer(schema=SCHEMA), make_own_layer()
    members_of = {layer: (await members(layer))[0][1] for layer in (ours, public)}
    query(layer_url, f"SELECT {SCHEMA}.channels_pg_sa_send('jobs', %s)", (Jsonb(text(1)),))
    query(layer_url, f"SELECT {SCHEMA}.channels_pg_sa_group_send('group', %s)", (Jsonb(text(2)),))
    assert await TALK.next(ours, "jobs") == text(1)
    assert await TALK.next(ours, members_of[ours]) == text(2)
    assert await TALK.is_empty(public, "jobs")
    assert await TALK.is_empty(public, members_of[public])


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
async def test_any_serializer_reads_it(make_own_layer: LayerFactory, layer_url: str, serializer: str) -> None:
    """JSON is told by its first byte; and the layer's capacity does not hold SQL back."""
    layer = make_own_layer(serializer=serializer, capacity=1)
    sent: list[Message] = [text(number) for number in range(3)]
    for message in sent:
        query(layer_url, SEND, ("jobs", Jsonb(message)))
    assert await TALK.take(layer, "jobs", 3) == sent
