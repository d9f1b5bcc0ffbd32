"""docs/transactions.md: its code runs as it stands, and what it says of PostgreSQL is so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.db import models, transaction
from django.test import override_settings
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert
from sqlalchemy.ext.asyncio import AsyncSession

from channels_pg_sa import Layer, Publisher, migrate
from channels_pg_sa.django import group_send
from tests.conformance.backends import Conversation, text
from tests.support.databases import query
from tests.support.django_databases import databases, entry
from tests.support.engines import async_engine_on
from tests.support.layers import LayerFactory, Message, PostgresLayer
from tests.support.markdown import all_blocks, blocks, run, run_async
from tests.support.temp_postgres import TempPostgres
from tests.support.urls import with_parameters
from tests.support.waiting import eventually

PAGE = "transactions.md"
TALK = Conversation(patience=10)
BACKEND = "channels_pg_sa.core.PostgresChannelLayer"


class Order(models.Model):
    """What the documentation saves."""

    state = models.TextField()

    class Meta:
        """Where it is."""

        app_label = "documentation"
        db_table = "orders"


@pytest.fixture
def names(make_own_layer: LayerFactory, layer_url: str) -> Iterator[dict[str, Any]]:
    """What Django's blocks need: a model, and the layer of the alias `default`, which is closed before the others."""
    query(layer_url, "CREATE TABLE orders (id serial PRIMARY KEY, state text NOT NULL)")
    layers = {"default": {"BACKEND": BACKEND}}
    with databases(default=entry(layer_url)), override_settings(CHANNEL_LAYERS=layers):
        layer = get_channel_layer()
        yield {"transaction": transaction, "Order": Order, "layer": layer, "group_send": group_send}
        layer.close_sync()


@pytest.fixture
def hear(make_own_layer: LayerFactory) -> Callable[[int], list[Message]]:
    """Receive so many messages to the group `orders`."""
    layer = make_own_layer()
    channel = async_to_sync(member)(layer)
    return lambda count: async_to_sync(TALK.take)(layer, channel, count)


async def member(layer: PostgresLayer) -> str:
    """Make a new channel a member of `orders`."""
    channel = await layer.new_channel()
    await layer.group_add("orders", channel)
    return channel


class Failure(Exception):
    """What ends a transaction."""


@contextmanager
def failing() -> Iterator[None]:
    """Make the transaction around a block fail."""
    with suppress(Failure), transaction.atomic():
        yield
        raise Failure


def test_why_the_order_matters(names: dict[str, Any], hear: Callable[[int], list[Message]]) -> None:
    """The first block tells of an order that never was; the second does not."""
    wrong, right = blocks(PAGE, "Why the order matters")
    with failing():
        run(wrong, names)
    assert hear(1) == [{"type": "order.changed", "id": 1}]
    assert not Order.objects.exists()
    with failing():
        run(right, names)
    run(right, names)
    assert hear(1) == [{"type": "order.changed", "id": 3}]
    assert Order.objects.get().id == 3


def test_django_s_functions(names: dict[str, Any], hear: Callable[[int], list[Message]]) -> None:
    """As they are shown."""
    (code,) = blocks(PAGE, "How")
    run(code, names)
    assert hear(1) == [{"type": "order.changed", "id": 7}]


def test_after_the_commit_in_django(names: dict[str, Any], hear: Callable[[int], list[Message]]) -> None:
    """on_commit() with a function of the layer's that needs no loop."""
    code, _ = blocks(PAGE, "When to send after the commit instead")
    with failing():
        run(code, names)
    run(code, names)
    assert hear(1) == [{"type": "order.changed", "id": 2}]


async def test_after_the_commit_in_sqlalchemy(make_own_layer: LayerFactory, layer_url: str) -> None:
    """A send of the publisher's own."""
    _, code = blocks(PAGE, "When to send after the commit instead")
    query(layer_url, "CREATE TABLE orders (id serial PRIMARY KEY, state text NOT NULL)")
    orders = Table("orders", MetaData(), Column("id", Integer, primary_key=True), Column("state", Text))
    layer, publisher = make_own_layer(), Publisher(url=layer_url)
    channel = await member(layer)
    async with async_engine_on(layer_url) as engine:
        names = {"AsyncSession": AsyncSession, "engine": engine, "insert": insert, "orders": orders}
        await run_async(code, {**names, "publisher": publisher})
    assert await TALK.next(layer, channel) == {"type": "orders.changed"}
    assert query(layer_url, "SELECT state FROM orders") == [("new",)]
    await publisher.close()


def test_how_full_the_queue_is(layer_url: str) -> None:
    """The documented query answers with a share."""
    (statement,) = all_blocks(PAGE, "sql")
    with psycopg.connect(layer_url, autocommit=True) as connection:
        ((usage,),) = connection.execute(statement.encode()).fetchall()
    assert 0 <= usage < 1


def test_a_read_only_transaction_cannot_send(layer_url: str) -> None:
    """As it is said."""
    publisher = Publisher(url=layer_url)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="cannot execute INSERT"):
        query(
            with_parameters(layer_url, options="-c default_transaction_read_only=on"),
            *publisher.send_sql("jobs", text(1)),
        )


@pytest.mark.processes
async def test_commits_that_notify_wait_for_one_another() -> None:
    """For one that waits for its standby, too; if this fails, PostgreSQL has become better than the page says."""
    settings = {"synchronous_standby_names": "lost", "max_prepared_transactions": 1}
    with TempPostgres(settings=settings) as postgres:
        hasty = with_parameters(postgres.url, options="-c synchronous_commit=off")
        careful = with_parameters(postgres.url, options="-c synchronous_commit=on")
        migrate.upgrade(hasty)
        query(hasty, "CREATE TABLE orders (id int)")
        publisher, layer = Publisher(url=hasty), Layer(url=hasty)
        saved = psycopg.connect(careful)
        saved.execute("INSERT INTO orders VALUES (1)")
        saved.execute(*publisher.send_sql("jobs", text(1)))
        await layer.send("jobs", text(2))  # as long as it has not come to its commit, nobody waits
        committing = asyncio.create_task(asyncio.to_thread(saved.commit))
        await asyncio.to_thread(eventually, lambda: waits(hasty, "SyncRep"))
        sending = asyncio.create_task(layer.send("jobs", text(3)))
        await asyncio.to_thread(eventually, lambda: waits(hasty, "object"))
        query(hasty, "INSERT INTO orders VALUES (2)")  # without a message it does not wait
        assert not sending.done()
        query(hasty, "SELECT pg_cancel_backend(%s)", (saved.info.backend_pid,))  # it gives up waiting, and is committed
        await committing
        await sending
        saved.close()
        await layer.close()
        with psycopg.connect(hasty) as prepared:
            prepared.execute(*publisher.send_sql("jobs", text(4)))
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="cannot PREPARE a transaction"):
                prepared.execute("PREPARE TRANSACTION 'order'")


def waits(url: str, event: str) -> bool:
    """Tell whether a connection waits for this."""
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = %s AND datname = current_database()"
    return bool(query(url, waiting, (event,)))
