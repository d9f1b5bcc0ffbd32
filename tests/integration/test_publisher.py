"""Sends of programs that do not receive, and sends within a transaction of the caller's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import psycopg2  # type: ignore[import-untyped] # It ships no types.
import pytest
from sqlalchemy import Column, Insert, Integer, MetaData, Select, Table, create_engine, event, insert, select, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from channels_pg_sa import ConfigurationError, Layer, MessageTooLarge, Publisher, SchemaError
from tests.conformance.backends import KEY, Conversation
from tests.conformance.backends import text as words
from tests.support.databases import TestServer, query
from tests.support.engines import ASYNC_DRIVERS, DRIVERS, async_engine_on, engine_on
from tests.support.layers import LISTENER, LayerFactory, PostgresLayer
from tests.support.schema import SCHEMA
from tests.support.serializers import BACKWARDS_PATH, COMPRESSED_PATH
from tests.support.waiting import eventually, let_pass

TALK = Conversation(patience=10)
BIG = {"type": "test.message", "text": "é" * 20_000, "data": bytes(range(256))}

orders = Table("orders", MetaData(), Column("id", Integer, primary_key=True))


class Base(DeclarativeBase):
    """The host project's models."""


class Order(Base):
    """A thing that browsers are told of."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


async def member(layer: PostgresLayer, group: str = "group") -> str:
    """Make a new channel a member."""
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    return channel


class Transaction:
    """What the four kinds of connection and session have in common, awaitable."""

    def __init__(self, target: Any) -> None:
        self._target = target

    async def execute(self, statement: Insert) -> None:
        """Execute a statement."""
        await self._do(self._target.execute, statement)

    async def commit(self) -> None:
        """Commit."""
        await self._do(self._target.commit)

    async def rollback(self) -> None:
        """Roll back."""
        await self._do(self._target.rollback)

    async def within_savepoint(self, statement: Insert) -> None:
        """Execute a statement in a savepoint, and roll back to that."""
        savepoint = await self._do(self._target.begin_nested)
        await self.execute(statement)
        await self._do(savepoint.rollback)

    @staticmethod
    async def _do(function: Callable[..., Any], *arguments: Any) -> Any:
        result = function(*arguments)
        return await result if isinstance(result, Awaitable) else result


@asynccontextmanager
async def connection(url: str) -> AsyncIterator[Any]:
    """A Connection."""
    with engine_on(url) as engine, engine.connect() as connected:
        yield connected


@asynccontextmanager
async def async_connection(url: str) -> AsyncIterator[Any]:
    """An AsyncConnection."""
    async with async_engine_on(url) as engine, engine.connect() as connected:
        yield connected


@asynccontextmanager
async def session(url: str) -> AsyncIterator[Any]:
    """A Session."""
    with engine_on(url) as engine, Session(engine) as opened:
        yield opened


@asynccontextmanager
async def async_session(url: str) -> AsyncIterator[Any]:
    """An AsyncSession."""
    async with async_engine_on(url) as engine, AsyncSession(engine) as opened:
        yield opened


@pytest.mark.parametrize("kind", ["send", "group_send"])
@pytest.mark.parametrize("opened", [connection, async_connection, session, async_session], ids=lambda f: f.__name__)
async def test_only_a_commit_delivers(
    make_layer: LayerFactory, shared_url: str, prefix: str, opened: Callable[[str], Any], kind: str
) -> None:
    """Not the execution, and not if it is rolled back, be it to a savepoint; whatever takes the statement."""
    layer = make_layer()
    channel = await member(layer)
    publisher = Publisher(url=shared_url, prefix=prefix)
    make = publisher.send_statement if kind == "send" else publisher.group_send_statement
    where = channel if kind == "send" else "group"
    async with opened(shared_url) as target:
        transaction = Transaction(target)
        await transaction.execute(make(where, words(0)))
        assert await TALK.is_empty(layer, channel)
        await transaction.rollback()
        assert await TALK.is_empty(layer, channel)
        await transaction.execute(make(where, words(1)))
        await transaction.within_savepoint(make(where, words(2)))
        await transaction.execute(make(where, words(3)))
        assert await TALK.is_empty(layer, channel)
        await transaction.commit()
    assert await TALK.take(layer, channel, 2) == [words(1), words(3)]
    assert await TALK.is_empty(layer, channel)


async def orders_seen_by_who_wakes(
    layer: PostgresLayer, url: str, tell: Callable[[AsyncConnection, str], Awaitable[None]]
) -> list[int]:
    """Save an order, tell of it, and commit once the one who is told has looked, or certainly was not told yet."""
    channel = await layer.new_channel()
    async with async_engine_on(url) as engine, engine.connect() as writer, engine.connect() as reader:
        await writer.execute(insert(orders).values(id=7))
        await tell(writer, channel)
        if await TALK.is_empty(layer, channel):
            await writer.commit()
            assert (await TALK.next(layer, channel))["type"] == "order.saved"
        return list((await reader.execute(select(orders.c.id))).scalars())


async def test_who_wakes_sees_what_was_committed(make_own_layer: LayerFactory, layer_url: str) -> None:
    """The row that the message is about is there; after a send past the transaction it is not."""
    query(layer_url, "CREATE TABLE orders (id int PRIMARY KEY)")
    layer: Any = make_own_layer()
    saved = {"type": "order.saved"}

    async def within(writer: AsyncConnection, channel: str) -> None:
        await writer.execute(layer.send_statement(channel, saved))

    async def past(_writer: AsyncConnection, channel: str) -> None:
        await layer.send(channel, saved)

    assert await orders_seen_by_who_wakes(layer, layer_url, past) == []
    assert await orders_seen_by_who_wakes(layer, layer_url, within) == [7]


async def test_a_session_s_objects_and_messages_go_together(make_own_layer: LayerFactory, layer_url: str) -> None:
    """An object that was added is flushed before the commit, and so is there when the message is read."""
    query(layer_url, "CREATE TABLE orders (id serial PRIMARY KEY)")
    layer: Any = make_own_layer()
    channel = await member(layer)
    with engine_on(layer_url) as engine, Session(engine) as opened:
        order = Order()
        opened.add(order)
        opened.flush()
        opened.execute(layer.group_send_statement("group", words(order.id)))
        opened.commit()
    assert await TALK.next(layer, channel) == words(1)
    assert query(layer_url, "SELECT id FROM orders") == [(1,)]


@pytest.mark.parametrize("driver", DRIVERS)
async def test_every_driver_sends(make_layer: LayerFactory, shared_url: str, prefix: str, driver: str) -> None:
    """Each statement its own message, small or large, to channels and groups of every kind, in order."""
    layer = make_layer()
    channel = await member(layer)
    for plain in ("jobs", "hub!x"):
        await layer.group_add("group", plain)
    with engine_on(shared_url, driver) as engine:
        publisher = Publisher(engine=engine, prefix=prefix)
        with engine.begin() as connected:
            for message in (words(1), BIG, words(2)):
                connected.execute(publisher.send_statement(channel, message))
                connected.execute(publisher.group_send_statement("group", message))
        publisher.send_sync(channel, words(3))
        publisher.group_send_sync("group", words(4))
        await publisher.send(channel, words(5))
        await publisher.group_send("group", words(6))
    twice = [words(1), words(1), BIG, BIG, words(2), words(2)]
    assert await TALK.take(layer, channel, 10) == [*twice, *(words(number) for number in (3, 4, 5, 6))]
    for plain in ("jobs", "hub!x"):
        assert await TALK.take(layer, plain, 5) == [words(1), BIG, words(2), words(4), words(6)]


@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
async def test_every_async_driver_sends(make_layer: LayerFactory, shared_url: str, prefix: str, driver: str) -> None:
    """As the others do."""
    layer = make_layer()
    channel = await member(layer)
    await layer.group_add("group", "jobs")
    async with async_engine_on(shared_url, driver) as engine:
        publisher = Publisher(engine=engine, prefix=prefix)
        async with engine.begin() as connected:
            for message in (words(1), BIG, words(2)):
                await connected.execute(publisher.send_statement(channel, message))
                await connected.execute(publisher.group_send_statement("group", message))
        await publisher.send(channel, words(3))
        await publisher.group_send("group", words(4))
    twice = [words(1), words(1), BIG, BIG, words(2), words(2)]
    assert await TALK.take(layer, channel, 8) == [*twice, words(3), words(4)]
    assert await TALK.take(layer, "jobs", 4) == [words(1), BIG, words(2), words(4)]


@pytest.mark.parametrize("connect", [psycopg.connect, psycopg2.connect], ids=["psycopg", "psycopg2"])
async def test_a_plain_cursor_sends(
    make_layer: LayerFactory, shared_url: str, prefix: str, connect: Callable[[str], Any]
) -> None:
    """Of a program without SQLAlchemy, in its transaction."""
    layer = make_layer()
    channel = await member(layer)
    await layer.group_add("group", "jobs")
    publisher = Publisher(url=shared_url, prefix=prefix)
    connected = connect(shared_url)
    with connected.cursor() as cursor:
        cursor.execute(*publisher.send_sql(channel, words(1)))
        cursor.execute(*publisher.group_send_sql("group", BIG))
    assert await TALK.is_empty(layer, channel)
    connected.commit()
    connected.close()
    assert await TALK.take(layer, channel, 2) == [words(1), BIG]
    assert await TALK.next(layer, "jobs") == BIG


async def test_a_publisher_with_a_url_has_connections_of_its_own(
    server: TestServer, make_own_layer: LayerFactory, layer_url: str
) -> None:
    """It batches as a layer does, listens to nothing, is no node, and leaves nothing behind."""
    layer = make_own_layer()
    channel = await member(layer)
    before = set(server.connections(layer_url))
    publisher = Publisher(url=layer_url)
    await asyncio.gather(*(publisher.send(channel, words(number)) for number in range(100)))
    await publisher.group_send("group", words(100))
    await asyncio.to_thread(publisher.send_sync, channel, words(101))
    await asyncio.to_thread(publisher.group_send_sync, "group", words(102))
    assert await TALK.take(layer, channel, 103) == [words(number) for number in range(103)]
    assert set(server.connections(layer_url)) - before
    assert server.connections(layer_url, LISTENER) == make_own_layer.listeners(layer)
    assert [node.id for node in await publisher.nodes()] == [layer.node]
    await publisher.close()
    eventually(lambda: set(server.connections(layer_url)) <= before)
    await publisher.send(channel, words(103))
    await asyncio.to_thread(publisher.close_sync)
    eventually(lambda: set(server.connections(layer_url)) <= before)
    assert await TALK.next(layer, channel) == words(103)


async def test_an_engine_without_coroutines_holds_up_no_loop(shared_url: str, prefix: str) -> None:
    """Its transactions run in other threads."""
    threads: list[threading.Thread] = []
    with engine_on(shared_url) as engine:
        event.listen(engine, "begin", lambda _: threads.append(threading.current_thread()))
        publisher = Publisher(engine=engine, prefix=prefix)
        await publisher.send("jobs", words(1))
        await publisher.group_send("group", words(2))
        assert await publisher.group_count("group") == 0
    assert len(threads) == 3
    assert threading.current_thread() not in threads


async def test_an_engine_is_the_service_s_own(make_layer: LayerFactory, shared_url: str, prefix: str) -> None:
    """Closing the publisher leaves it open, and statements need no engine of the publisher's at all."""
    layer = make_layer()
    channel = await layer.new_channel()
    async with async_engine_on(shared_url) as engine:
        publisher = Publisher(engine=engine, prefix=prefix)
        await publisher.close()
        await publisher.send(channel, words(1))
        with engine_on(shared_url) as other, other.begin() as connected:
            connected.execute(publisher.send_statement(channel, words(2)))
    assert await TALK.take(layer, channel, 2) == [words(1), words(2)]


@pytest.mark.parametrize(
    "config",
    [
        {"serializer": "json"},
        {"serializer": COMPRESSED_PATH},
        {"symmetric_encryption_keys": [KEY]},
        {"schema": SCHEMA},
    ],
    ids=["json", "own", "encrypted", "schema"],
)
@pytest.mark.parametrize("carried", ["url", "engine"])
async def test_a_publisher_is_configured_as_the_layer(
    make_layer: LayerFactory, shared_url: str, prefix: str, carried: str, config: dict[str, Any]
) -> None:
    """The same keys mean the same; a layer without them does not get, or not read, what it sends."""
    layer, other = make_layer(**config), make_layer(schema=config.get("schema"), prefix=f"{prefix}-other")
    channel = await member(layer)
    async with async_engine_on(shared_url) as engine:
        where: dict[str, Any] = {"url": shared_url} if carried == "url" else {"engine": engine}
        publisher = Publisher(**where, prefix=prefix, **config)
        await publisher.send(channel, BIG)
        await publisher.group_send("group", BIG)
        await publisher.send("jobs", BIG)
        async with engine.begin() as connected:
            await connected.execute(publisher.send_statement(channel, BIG))
            await connected.execute(publisher.group_send_statement("group", BIG))
        await publisher.close()
    assert await TALK.take(layer, channel, 4) == [BIG] * 4
    assert await TALK.is_empty(other, "jobs")
    assert await TALK.next(layer, "jobs") == BIG


@pytest.mark.parametrize("serializer", ["msgpack", "json", BACKWARDS_PATH])
@pytest.mark.parametrize("carried", ["url", "engine"])
async def test_only_a_layer_with_the_same_serializer_reads_one_s_own(
    make_layer: LayerFactory, shared_url: str, prefix: str, carried: str, serializer: str
) -> None:
    """Any other drops what it cannot read, counts it, and gives what comes after."""
    same, other = make_layer(serializer=COMPRESSED_PATH), make_layer(serializer=serializer)
    channels = [await member(layer) for layer in (same, other)]
    async with async_engine_on(shared_url) as engine:
        where: dict[str, Any] = {"url": shared_url} if carried == "url" else {"engine": engine}
        publisher = Publisher(**where, prefix=prefix, serializer=COMPRESSED_PATH)
        await publisher.group_send("group", BIG)
        for channel in channels:
            await publisher.send(channel, BIG)
        await publisher.close()
    for channel in channels:
        await make_layer().send(channel, words(1))
    assert await TALK.take(same, channels[0], 3) == [BIG, BIG, words(1)]
    assert await TALK.next(other, channels[1]) == words(1)
    assert (same.counters["undecodable"], other.counters["undecodable"]) == (0, 2)


async def test_how_long_a_message_may_wait(make_own_layer: LayerFactory, layer_url: str) -> None:
    """As long as the publisher's expiry, from the execution."""
    layer = make_own_layer()
    await layer.group_add("group", "jobs")
    publisher = Publisher(url=layer_url, expiry=86_400)
    left = text("SELECT date_part('epoch', expires_at - clock_timestamp()) FROM channels_pg_sa_message")
    with engine_on(layer_url) as engine, engine.connect() as connected:
        for statement in (publisher.send_statement("jobs", {}), publisher.group_send_statement("group", {})):
            connected.execute(statement)
            assert connected.execute(left).scalars().all() == [pytest.approx(86_400, abs=30)]
            connected.rollback()
        for sql in (publisher.send_sql("jobs", {}), publisher.group_send_sql("group", {})):
            connected.exec_driver_sql(*sql)
            assert connected.execute(left).scalars().all() == [pytest.approx(86_400, abs=30)]
            connected.rollback()


async def test_a_transaction_that_outlasts_the_expiry_delivers_nothing(
    layer: PostgresLayer, shared_url: str, prefix: str
) -> None:
    """The time counts from the execution, and not from the commit."""
    publisher = Publisher(url=shared_url, expiry=0.1, prefix=prefix)
    channel = await layer.new_channel()
    with engine_on(shared_url) as engine, engine.begin() as connected:
        connected.execute(publisher.send_statement(channel, words(1)))
        await let_pass(0.3)
    assert await TALK.is_empty(layer, channel)


async def test_a_group_costs_one_row_for_each_process(make_own_layer: LayerFactory, layer_url: str) -> None:
    """However many members it has there; one more for each normal channel, and none for memberships that ended."""
    here, there, gone = make_own_layer(), make_own_layer(), make_own_layer(group_expiry=0.001)
    for layer in (here, there, gone, here):
        await member(layer)
    for plain in ("jobs", "hub!x"):
        await here.group_add("group", plain)
    await gone.group_add("group", "late")
    sent = text("SELECT recipient, channel, group_name FROM channels_pg_sa_message")
    with engine_on(layer_url) as engine, engine.connect() as connected:
        connected.execute(Publisher(engine=engine).group_send_statement("group", words(1)))
        rows = connected.execute(sent).all()
    to_nodes = {(layer.node, None, "group") for layer in (here, there)}
    assert sorted(rows, key=str) == sorted({*to_nodes, ("jobs", "jobs", None), ("hub!", "hub!x", None)}, key=str)


def test_a_group_send_does_not_read_every_member(layer_url: str) -> None:
    """The processes are found by as many looks into the index, whatever the number of members."""
    query(
        layer_url,
        """INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel)
        SELECT 'asgi', 'group', 'node' || number % 3, number FROM generate_series(1, 10000) number""",
    )
    looked = text(
        """SELECT seq_scan, idx_tup_fetch FROM pg_stat_xact_user_tables
        WHERE relid = 'channels_pg_sa_membership'::regclass"""
    )
    with engine_on(layer_url) as engine, engine.connect() as connected:
        connected.execute(Publisher(engine=engine).group_send_statement("group", words(1)))
        assert connected.execute(text("SELECT count(*) FROM channels_pg_sa_message")).scalar() == 3
        ((scanned, fetched),) = connected.execute(looked).all()
    assert scanned == 0
    assert fetched < 20


async def test_a_host_that_translates_schemas(make_layer: LayerFactory, shared_url: str, prefix: str) -> None:
    """Its own tables are elsewhere for each tenant; ours are where the publisher says."""
    layer = make_layer(schema=SCHEMA)
    channel = await member(layer)
    publisher = Publisher(url=shared_url, prefix=prefix, schema=SCHEMA)
    options = {"schema_translate_map": {None: "somewhere"}}
    with engine_on(shared_url, execution_options=options) as engine, engine.begin() as connected:
        connected.execute(publisher.send_statement(channel, words(1)))
        connected.execute(publisher.group_send_statement("group", words(2)))
        assert connected.execute(publisher.group_count_statement("group")).scalar() == 1
    assert await TALK.take(layer, channel, 2) == [words(1), words(2)]


def test_what_is_wrong_is_told_when_the_statement_is_made(shared_url: str) -> None:
    """By the same errors as a send's, so that no transaction fails for it."""
    publisher = Publisher(url=shared_url)
    for make in (
        *(publisher.send_statement, publisher.group_send_statement),
        *(publisher.send_sql, publisher.group_send_sql),
    ):
        with pytest.raises(TypeError, match="name must be a string"):
            make("not a name", {})
        with pytest.raises(TypeError, match="is of type set"):
            make("name", {"tags": {1}})
        with pytest.raises(MessageTooLarge):
            make("name", {"text": "x" * 17_000_000})


def test_statements_are_made_without_a_connection() -> None:
    """And each is a statement of its own, that can be executed again."""
    publisher = Publisher(url="postgresql://nobody@nowhere.invalid/nothing")
    assert isinstance(publisher.send_statement("a", {}), Insert)
    assert isinstance(publisher.group_send_statement("a", {}), Insert)
    assert isinstance(publisher.nodes_statement(), Select)
    assert repr(publisher).startswith("<Publisher through <Layer node=")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, 'Nothing says where the database is. Give "url"'),
        ({"url": "postgresql://h/d", "prefx": "a"}, 'Unknown key "prefx". Did you mean "prefix"?'),
        ({"engine": True, "prefx": "a"}, 'Unknown key "prefx". Did you mean "prefix"?'),
        ({"engine": True, "expiry": 0}, '"expiry" must be a number of seconds above 0, at most 1,000,000,000, not 0'),
        ({"engine": True, "url": "postgresql://h/d"}, '"url" and "engine" both say where the database is. Keep one.'),
        ({"engine": True, "capacity": 9}, '"capacity" is for a Publisher with connections of its own'),
        ({"engine": True, "serializer": "no.such"}, "serializer: 'no.such' is neither"),
        ({"engine": "postgresql://h/d"}, '"engine" must be a SQLAlchemy Engine or AsyncEngine, not of type str. An'),
        ({"engine": create_engine("sqlite://")}, '"engine" must be one for PostgreSQL'),
    ],
)
def test_a_wrong_configuration_is_refused(config: dict[str, Any], said: str) -> None:
    """In the words of the layer's CONFIG."""
    if config.get("engine") is True:
        config = {**config, "engine": create_engine("postgresql+psycopg://h/d")}
    with pytest.raises(ConfigurationError) as caught:
        Publisher(**config)
    assert said in str(caught.value)


def test_an_async_engine_cannot_be_used_without_a_loop() -> None:
    """The error says what to do instead; and the URL's password is nowhere to be seen."""
    publisher = Publisher(engine=create_async_engine("postgresql+psycopg://user:secret@host/name"))
    for verb in (publisher.send_sync, publisher.group_send_sync):
        with pytest.raises(ConfigurationError, match="AsyncEngine, which works in coroutines only"):
            verb("name", {})
    assert "secret" not in repr(publisher)


async def test_missing_tables(database_url: str) -> None:
    """A publisher of its own says what is missing; on an engine SQLAlchemy does."""
    own = Publisher(url=database_url)
    with pytest.raises(SchemaError, match="upgrade"):
        await own.send("jobs", {})
    with pytest.raises(SchemaError, match="upgrade"):
        await own.group_count("group")
    await own.close()
    async with async_engine_on(database_url) as engine:
        with pytest.raises(ProgrammingError, match="channels_pg_sa_message"):
            await Publisher(engine=engine).send("jobs", {})


def test_the_layer_makes_the_same_statements(shared_url: str) -> None:
    """A program that receives needs no publisher to send within its transactions."""
    layer, publisher = Layer(url=shared_url), Publisher(url=shared_url)
    for name in ("send_statement", "group_send_statement", "send_sql", "group_send_sql"):
        assert str(getattr(layer, name)("name", {})) == str(getattr(publisher, name)("name", {}))


@pytest.mark.parametrize("name", ["", "with space", "käse", "x" * 100, 1])
async def test_a_wrong_name_is_refused_on_an_engine_too(layer_url: str, name: str) -> None:
    """Before anything is written: nobody could read it."""
    with engine_on(layer_url) as engine:
        publisher = Publisher(engine=engine)
        for send, send_sync in (
            (publisher.send, publisher.send_sync),
            (publisher.group_send, publisher.group_send_sync),
        ):
            with pytest.raises(TypeError, match="name must"):
                await send(name, {"type": "test.message"})
            with pytest.raises(TypeError, match="name must"):
                await asyncio.to_thread(send_sync, name, {"type": "test.message"})
    assert query(layer_url, "SELECT count(*) FROM channels_pg_sa_message") == [(0,)]


async def test_tables_without_their_row(layer_url: str) -> None:
    """A send says what is missing, and how to mend it: the server has no topic to notify."""
    query(layer_url, "DELETE FROM channels_pg_sa_installation")
    async with Publisher(url=layer_url) as own:
        with pytest.raises(SchemaError, match=r"no row.*INSERT INTO channels_pg_sa_installation"):
            await own.send("jobs", {})
