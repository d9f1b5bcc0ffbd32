"""Sends through Django's own connections: within atomic(), savepoints and TestCase, from code without an event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import django
import pytest
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.management import BaseCommand, CommandParser, call_command
from django.db import ProgrammingError, connection, connections, transaction
from django.db.backends.utils import CursorWrapper
from django.test import TestCase, override_settings
from psycopg.conninfo import conninfo_to_dict

from channels_pg_sa import MessageTooLarge, SchemaError
from channels_pg_sa.django import group_send, send
from tests.conformance.backends import KEY, Conversation, text
from tests.support.databases import TestServer, database_name, query
from tests.support.django_databases import entry
from tests.support.layers import LayerFactory, Message, PostgresLayer
from tests.support.schema import SCHEMA

from .conftest import IN_MEMORY, POSTGRES, run_case

TALK = Conversation(patience=10)
POOLED = [{"pool": {"min_size": 1, "max_size": 1}}] if django.VERSION >= (5, 1) else []
COUNT = "SELECT count(*) FROM channels_pg_sa_message"


@pytest.fixture
def default(databases: Callable[..., None], layer_url: str) -> Iterator[None]:
    """The alias `default` is the test's own database, and the default layer uses it."""
    databases(default=entry(layer_url))
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": POSTGRES}}):
        yield


def member(layer: PostgresLayer, group: str = "group") -> str:
    """Make a new channel a member."""
    channel = async_to_sync(layer.new_channel)()
    async_to_sync(layer.group_add)(group, channel)
    return channel


def take(layer: PostgresLayer, channel: str, count: int) -> list[Message]:
    """Receive so many messages, and see that there are no more."""
    found = async_to_sync(TALK.take)(layer, channel, count)
    assert is_empty(layer, channel)
    return found


def is_empty(layer: PostgresLayer, channel: str) -> bool:
    """Tell whether nothing waits in the channel."""
    return async_to_sync(TALK.is_empty)(layer, channel)


class Failure(Exception):
    """What ends a transaction."""


@contextmanager
def failing(using: str | None = None) -> Iterator[None]:
    """An atomic block that fails at its end."""
    with suppress(Failure), transaction.atomic(using):
        yield
        raise Failure


@pytest.mark.usefixtures("default")
def test_only_a_commit_delivers(make_own_layer: LayerFactory) -> None:
    """Without atomic() at once; within, when the outermost block ends well; and not what a savepoint takes back."""
    layer = make_own_layer()
    channel = member(layer)
    send(channel, text(1))
    group_send("group", text(2))
    assert take(layer, channel, 2) == [text(1), text(2)]
    with failing():
        send(channel, text(3))
        group_send("group", text(4))
    assert is_empty(layer, channel)
    with transaction.atomic():
        send(channel, text(5))
        with failing():
            send(channel, text(6))
            group_send("group", text(7))
        with transaction.atomic():
            group_send("group", text(8))
        assert is_empty(layer, channel)
    assert take(layer, channel, 2) == [text(5), text(8)]


@pytest.mark.usefixtures("default")
def test_who_wakes_sees_what_was_committed(make_own_layer: LayerFactory, layer_url: str) -> None:
    """The row that the message is about, as another connection has it."""
    query(layer_url, "CREATE TABLE orders (id int PRIMARY KEY)")
    layer = make_own_layer()
    channel = member(layer)
    with transaction.atomic(), connection.cursor() as cursor:
        group_send("group", text(7))
        cursor.execute("INSERT INTO orders VALUES (7)")
        assert is_empty(layer, channel)
    (message,) = take(layer, channel, 1)
    assert query(layer_url, "SELECT id FROM orders") == [(message["number"],)]


@pytest.mark.usefixtures("default")
def test_from_a_management_command(make_own_layer: LayerFactory) -> None:
    """It has no event loop; what it sends goes with its transaction."""
    layer = make_own_layer()
    channel = member(layer)

    class Command(BaseCommand):
        def add_arguments(self, parser: CommandParser) -> None:
            parser.add_argument("--number", type=int)

        def handle(self, *args: Any, number: int, **options: Any) -> None:
            with transaction.atomic():
                group_send("group", text(number))
                send(channel, text(12 // number))

    call_command(Command(), number=3)
    with pytest.raises(ZeroDivisionError):
        call_command(Command(), number=0)
    assert take(layer, channel, 2) == [text(3), text(4)]


@pytest.mark.usefixtures("default")
def test_in_a_testcase_nothing_is_delivered(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Its transaction never commits; but the test sees what would be sent."""
    layer = make_own_layer()
    channel = member(layer)
    seen: list[Any] = []

    class Case(TestCase):
        databases = {"default"}

        def test_sending(self) -> None:
            send(channel, text(1))
            group_send("group", text(2))
            with connection.cursor() as cursor:
                cursor.execute(COUNT)
                seen.append(cursor.fetchone())

    run_case(Case)
    assert seen == [(2,)]
    assert query(layer_url, COUNT) == [(0,)]
    assert is_empty(layer, channel)


@pytest.mark.parametrize(
    "options",
    [{}, {"server_side_binding": True}, {"prepare_threshold": 0}, *POOLED],
    ids=str,
)
def test_django_s_own_options(
    make_own_layer: LayerFactory, databases: Callable[..., None], layer_url: str, options: dict[str, Any]
) -> None:
    """However its connections bind parameters, and wherever they come from."""
    databases(default=entry(layer_url, **options))
    layer = make_own_layer()
    channel = member(layer)
    async_to_sync(layer.group_add)("group", "jobs")
    large = {"type": "test.message", "text": "é%s" * 10_000, "data": bytes(range(256))}
    try:
        with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": POSTGRES}}):
            for message in (text(1), large):
                send(channel, message)
                group_send("group", message)
    finally:
        if "pool" in options:
            connection.close()
            connection.close_pool()
    assert take(layer, channel, 4) == [text(1), text(1), large, large]
    assert take(layer, "jobs", 2) == [text(1), large]


@pytest.mark.parametrize(
    ("config", "elsewhere"),
    [
        ({"serializer": "json"}, [2, 3]),
        ({"symmetric_encryption_keys": [KEY]}, [3]),
        ({"schema": SCHEMA}, [3]),
        ({"prefix": "other"}, [3]),
    ],
    ids=["json", "encrypted", "schema", "prefix"],
)
def test_the_layer_s_configuration_counts(
    make_own_layer: LayerFactory,
    databases: Callable[..., None],
    layer_url: str,
    config: dict[str, Any],
    elsewhere: list[int],
) -> None:
    """Of the layer that is named; the default one gets what it can read of the messages to its own groups."""
    databases(default=entry(layer_url))
    named, other = make_own_layer(**config), make_own_layer()
    channel, channel_of_other = member(named), member(other)
    layers = {"default": {"BACKEND": POSTGRES}, "named": {"BACKEND": POSTGRES, "CONFIG": config}}
    with override_settings(CHANNEL_LAYERS=layers):
        send(channel, text(1), layer="named")
        group_send("group", text(2), layer="named")
        group_send("group", text(3))
    assert async_to_sync(TALK.take)(named, channel, 2) == [text(1), text(2)]
    assert take(other, channel_of_other, len(elsewhere)) == [text(number) for number in elsewhere]


def test_how_long_a_message_may_wait(databases: Callable[..., None], layer_url: str) -> None:
    """As long as the layer's expiry."""
    databases(default=entry(layer_url))
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": POSTGRES, "CONFIG": {"expiry": 86_400}}}):
        send("jobs", text(1))
    ((left,),) = query(
        layer_url, "SELECT date_part('epoch', expires_at - clock_timestamp()) FROM channels_pg_sa_message"
    )
    assert left == pytest.approx(86_400, abs=30)


def test_which_alias(server: TestServer, databases: Callable[..., None], layer_url: str, template: str) -> None:
    """The one the layer uses, unless another is named; and only that one's transaction counts."""
    elsewhere = server.create(template)
    databases(default=entry(layer_url), other=entry(elsewhere))
    layers = {
        "default": {"BACKEND": POSTGRES},
        "by-alias": {"BACKEND": POSTGRES, "CONFIG": {"database": "other"}},
        "by-url": {"BACKEND": POSTGRES, "CONFIG": {"url": elsewhere}},
    }
    with override_settings(CHANNEL_LAYERS=layers):
        with failing():
            send("jobs", text(1))
            send("jobs", text(2), layer="by-alias")
            send("jobs", text(3), layer="by-url", using="other")
            send("jobs", text(4), using="other")
        assert query(layer_url, COUNT) == [(0,)]
        assert query(elsewhere, COUNT) == [(3,)]
        with failing("other"):
            send("jobs", text(5))
            send("jobs", text(6), layer="by-alias")
        assert query(layer_url, COUNT) == [(1,)]
        assert query(elsewhere, COUNT) == [(3,)]
    connections["other"].close()
    server.drop(elsewhere)


def test_two_aliases_of_one_database(databases: Callable[..., None], layer_url: str) -> None:
    """Over that of the layer, a message would be committed whatever becomes of the other's transaction."""
    databases(default=entry(layer_url), channels_pg_sa=entry(layer_url))
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": POSTGRES}}):
        with failing():
            for verb in (send, group_send):
                with pytest.raises(ImproperlyConfigured, match='say using="default" to send with it'):
                    verb("jobs", text(1))
            send("jobs", text(2), using="default")
            send("jobs", text(3), using="channels_pg_sa")
            with failing("channels_pg_sa"):
                send("jobs", text(4))
        assert query(layer_url, COUNT) == [(1,)]
        send("jobs", text(5))
    assert query(layer_url, COUNT) == [(2,)]


def test_services_are_told_from_each_other(
    server: TestServer,
    databases: Callable[..., None],
    layer_url: str,
    template: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their aliases say the same in all else; a message in another database is no part of the transaction."""
    elsewhere = server.create(template)
    places = {"here": conninfo_to_dict(layer_url), "there": conninfo_to_dict(elsewhere)}
    text_of = "".join(f"[{name}]\n" + "".join(f"{k}={v}\n" for k, v in said.items()) for name, said in places.items())
    (tmp_path / "services").write_text(text_of)
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    engine = entry(layer_url)["ENGINE"]
    here, there = ({"ENGINE": engine, "OPTIONS": {"service": name}} for name in places)
    databases(default=here, channels_pg_sa=there)
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": POSTGRES}}), failing():
        send("jobs", text(1))
    assert query(elsewhere, COUNT) == [(1,)]
    connections["channels_pg_sa"].close()
    server.drop(elsewhere)


def test_a_test_case_that_does_not_name_the_layer_s_alias(databases: Callable[..., None], layer_url: str) -> None:
    """Django says what to do, and we do not blame the test's own transaction."""
    databases(default=entry(layer_url), channels_pg_sa=entry(layer_url))

    class Case(TestCase):
        def test_sending(self) -> None:
            with pytest.raises(AssertionError, match=r"Add 'channels_pg_sa' to .*databases"):
                send("jobs", text(1))

    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": POSTGRES}}):
        run_case(Case)


def test_an_alias_that_does_not_commit_by_itself(databases: Callable[..., None], layer_url: str) -> None:
    """Over it nothing is sent at once, opened before or not; and with nothing begun it is in nobody's way."""
    off = {**entry(layer_url), "AUTOCOMMIT": False}
    databases(default=entry(layer_url), channels_pg_sa=off)
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": POSTGRES}}):
        for _ in range(2):
            with transaction.atomic():
                send("jobs", text(1))
        assert query(layer_url, COUNT) == [(0,)]
        transaction.commit(using="channels_pg_sa")
        send("jobs", text(2), using="default")
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": POSTGRES, "CONFIG": {"database": "default"}}}):
        send("jobs", text(3))
    assert query(layer_url, COUNT) == [(4,)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("HOST", "db.example"), ("PORT", "6543"), ("NAME", "another"), ("ENGINE", "django.db.backends.sqlite3")),
        *(("OPTIONS", {"host": "db.example"}), ("OPTIONS", {"hostaddr": "192.0.2.1"})),
    ],
)
def test_a_transaction_of_another_database_does_not_count(
    databases: Callable[..., None], layer_url: str, key: str, value: object
) -> None:
    """One on another host or port, of another name, or of another kind: the layer's own commits at once beside it."""
    place = entry(layer_url)
    place["OPTIONS"] = {"host": place.pop("HOST")}
    change = {**place["OPTIONS"], **value} if isinstance(value, dict) else value
    databases(default=place, other={**place, key: change})
    layers = override_settings(CHANNEL_LAYERS={"default": {"BACKEND": POSTGRES}})
    with layers, patch.object(connections["other"], "in_atomic_block", True):
        send("jobs", text(1))
    assert query(layer_url, COUNT) == [(1,)]


def test_one_place_in_two_ways(databases: Callable[..., None], layer_url: str) -> None:
    """The same port as a string and as a number, and the same host in the entry itself and among its OPTIONS."""
    place = {"PORT": "5432", **entry(layer_url)}
    databases(
        default=place, other={**place, "PORT": int(place["PORT"]), "HOST": "", "OPTIONS": {"host": place["HOST"]}}
    )
    layers = override_settings(CHANNEL_LAYERS={"default": {"BACKEND": POSTGRES}})
    refused = pytest.raises(ImproperlyConfigured, match='say using="other" to send with it')
    with layers, patch.object(connections["other"], "in_atomic_block", True), refused:
        send("jobs", text(1))


def test_what_cannot_be_used_is_said(databases: Callable[..., None], layer_url: str) -> None:
    """A layer with an address of its own, one that is none of ours, and a database that is not PostgreSQL."""
    databases(default=entry(layer_url), lite={"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"})
    layers = {
        "default": {"BACKEND": POSTGRES, "CONFIG": {"url": layer_url}},
        "entry": {"BACKEND": POSTGRES, "CONFIG": entry(layer_url)},
        "memory": {"BACKEND": IN_MEMORY},
    }
    with override_settings(CHANNEL_LAYERS=layers):
        for name in ("default", "entry"):
            with pytest.raises(ImproperlyConfigured, match=rf'CHANNEL_LAYERS\["{name}"\] has an address of its own'):
                send("jobs", {}, layer=name)
        said = {"memory": r'"memory"\] is no layer of channels_pg_sa', "missing": 'no entry "missing"'}
        for name, words in said.items():
            with pytest.raises(ImproperlyConfigured, match=words):
                group_send("group", {}, layer=name)
        with pytest.raises(ImproperlyConfigured, match=r'DATABASES\["lite"\] is not PostgreSQL'):
            send("jobs", {}, using="lite")


@pytest.mark.usefixtures("default")
def test_a_wrong_message_leaves_the_transaction_alone(layer_url: str) -> None:
    """It is refused before the database hears of it."""
    with transaction.atomic():
        for verb in (send, group_send):
            with pytest.raises(TypeError, match="name must be a string"):
                verb("not a name", {})
            with pytest.raises(TypeError, match="is of type set"):
                verb("name", {"tags": {1}})
            with pytest.raises(MessageTooLarge):
                verb("name", {"text": "x" * 17_000_000})
        send("jobs", text(1))
    assert query(layer_url, COUNT) == [(1,)]


def test_missing_tables(databases: Callable[..., None], database_url: str) -> None:
    """The error names the command that mends it."""
    databases(default=entry(database_url))
    layers = override_settings(CHANNEL_LAYERS={"default": {"BACKEND": POSTGRES}})
    with layers:
        for verb in (send, group_send):
            with pytest.raises(SchemaError, match="upgrade") as caught:
                verb("jobs", text(1))
            assert isinstance(caught.value.__cause__, ProgrammingError)
            assert f'The database "{database_name(database_url)}"' in str(caught.value)
            assert database_name(database_url) == caught.value.database


@pytest.mark.usefixtures("default")
def test_tables_without_their_row(layer_url: str) -> None:
    """As a copy without data has them; the server only says that the name of some channel is empty."""
    query(layer_url, "DELETE FROM channels_pg_sa_installation")
    with pytest.raises(SchemaError, match=r"no row.*INSERT INTO channels_pg_sa_installation"):
        send("jobs", text(1))


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("name", ["sqlstate", "pgcode"])
@pytest.mark.parametrize(("code", "kind"), [("42P01", SchemaError), ("42883", ProgrammingError)])
def test_only_missing_tables_are_told_as_such(name: str, code: str, kind: type[Exception]) -> None:
    """By psycopg's name of the SQLSTATE, and by psycopg2's, which Django takes where it finds no other."""
    error, cause = ProgrammingError("what the server said"), Exception()
    setattr(cause, name, code)
    error.__cause__ = cause
    with patch.object(CursorWrapper, "execute", side_effect=error), pytest.raises(kind) as caught:
        send("jobs", text(1))
    assert error in (caught.value, caught.value.__cause__)


@pytest.mark.usefixtures("default")
def test_no_connection_of_the_layer_s_is_opened(server: TestServer, layer_url: str) -> None:
    """A process that only sends so has Django's connection and no other, and no thread."""
    send("jobs", text(1))
    group_send("group", text(2))
    assert server.connections(layer_url) == []
    assert "closed" in repr(get_channel_layer())


@pytest.mark.usefixtures("default")
async def test_not_in_a_coroutine() -> None:
    """As with all that Django does in a database."""
    with pytest.raises(SynchronousOnlyOperation):
        send("jobs", text(1))
