"""How a CONFIG becomes Settings, and what is said about a wrong one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.engine import URL

from channels_pg_sa import ConfigurationError
from channels_pg_sa.address import parameters_from_url
from channels_pg_sa.config import ALL_KEYS, Config, Settings, checked_schema, settings_from_mapping
from channels_pg_sa.connections.database import Database
from channels_pg_sa.rules import LONGEST_PREFIX, RULES, shown
from tests.support.serializers import COMPRESSED_PATH

SECRET = "tiger"
ADDRESS = "postgresql://scott@db.example/app"

CAPACITY = "a whole number from 1 to 2,147,483,647, or None for no limit"
CAPACITIES = "a mapping of globs or compiled patterns to whole numbers from 1 to 2,147,483,647"


def settings(**config: Any) -> Settings:
    """Settings of a CONFIG that has an address."""
    return settings_from_mapping({"url": ADDRESS, **config})


def complaint(**config: Any) -> str:
    """What is said about a wrong CONFIG."""
    with pytest.raises(ConfigurationError) as caught:
        settings(**config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        ("postgresql://u:p%40@h/db", {"user": "u", "password": "p@", "host": "h", "dbname": "db"}),
        ("postgres://h/db?sslmode=require", {"host": "h", "dbname": "db", "sslmode": "require"}),
        (
            "postgresql+psycopg://u:p%40@h:6000/db",
            {"user": "u", "password": "p@", "host": "h", "port": 6000, "dbname": "db"},
        ),
        ("postgresql+asyncpg://h/db?ssl=require", {"host": "h", "dbname": "db", "sslmode": "require"}),
        ("postgresql+psycopg2://h/db?sslrootcert=/ca", {"host": "h", "dbname": "db", "sslrootcert": "/ca"}),
        ("postgresql:///db?host=/run/postgresql", {"host": "/run/postgresql", "dbname": "db"}),
        ("postgresql+psycopg:///db?host=/run/postgresql", {"host": "/run/postgresql", "dbname": "db"}),
        ("postgresql://%2Frun%2Fpostgresql/db", {"host": "/run/postgresql", "dbname": "db"}),
        ("postgresql://a:1,b:2/db", {"host": "a,b", "port": "1,2", "dbname": "db"}),
        ("postgresql://u@/db?host=a:1&host=b:2", {"user": "u", "host": "a,b", "port": "1,2", "dbname": "db"}),
        ("postgres://u@/db?host=a:1&host=b:2", {"user": "u", "host": "a,b", "port": "1,2", "dbname": "db"}),
        ("postgresql://[::1]:5433/db", {"host": "::1", "port": "5433", "dbname": "db"}),
        ("host=/tmp dbname='a b' password='a://b'", {"host": "/tmp", "dbname": "a b", "password": "a://b"}),
        ("service=chat", {"service": "chat"}),
        ("host=@abstract port=' 1'", {"host": "@abstract", "port": " 1"}),
        ("host=h password=p://q/@ dbname=a@b", {"host": "h", "password": "p://q/@", "dbname": "a@b"}),
        ("host=/run/user@1000/pg", {"host": "/run/user@1000/pg"}),
        (
            URL.create("postgresql+asyncpg", "u", "p/@", "h", 5, "db"),
            {"user": "u", "password": "p/@", "host": "h", "port": 5, "dbname": "db"},
        ),
        ("postgresql://h/d%40b", {"host": "h", "dbname": "d@b"}),
        ("postgresql://h/?dbname=d@b", {"host": "h", "dbname": "d@b"}),
        ("postgresql+psycopg://u:p/w@h/d", {"user": "u", "password": "p/w", "host": "h", "dbname": "d"}),
    ],
)
def test_an_address_in_any_usual_form_becomes_libpq_parameters(url: str | URL, parameters: dict[str, Any]) -> None:
    """SQLAlchemy URLs of any driver, libpq URIs and libpq strings all name a server."""
    assert settings(url=url).connect() == parameters


def test_a_callable_address_is_asked_for_each_connection() -> None:
    """A token in the address may change between two connections."""
    tokens: Iterator[int] = iter(range(10))
    made = settings(url=lambda: f"postgresql://u:token{next(tokens)}@h/db")
    assert [made.connect()["password"], made.listen()["password"], made.connect()["password"]] == [
        "token0",
        "token1",
        "token2",
    ]


def test_a_callable_that_ends_the_process_does_not_end_the_thread_that_asks() -> None:
    """As helpers that were made for the command line do; all of the layer depends on that thread."""
    with pytest.raises(RuntimeError, match=r'"url" wants to end the process: SystemExit\(.no token'):
        settings(url=lambda: sys.exit("no token")).connect()


def test_a_callable_that_returns_no_address_is_named_when_a_connection_is_made() -> None:
    """What a callable returns is checked like what stands in the CONFIG."""
    made = settings(url=lambda: 42)
    with pytest.raises(ConfigurationError, match=r'"url" must be an address .* not of type int'):
        made.connect()


def test_parameters_belong_to_the_one_who_asks() -> None:
    """One connection may change its parameters without the next one seeing it."""
    made = settings()
    made.connect()["dbname"] = "other"
    assert made.connect()["dbname"] == "app"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://u:tiger@h/db", '"url" must be an address of a PostgreSQL server, not of "mysql".'),
        ("postgresqlx://u:tiger@h/db", '"url" must be an address of a PostgreSQL server, not of "postgresqlx".'),
        (URL.create("sqlite"), '"url" must be an address of a PostgreSQL server, not of "sqlite".'),
        (
            "postgresql://u:tiger@h/db?sslmod=require",
            '"url" has the parameter "sslmod", which libpq does not know. Did you mean "sslmode"?',
        ),
        (
            "postgresql+psycopg://u:tiger@h/db?sslmod=x",
            '"url" has the parameter "sslmod", which libpq does not know. Did you mean "sslmode"?',
        ),
        ("postgresql://u:tiger@h/db?SSLMODE=require", 'Did you mean "sslmode"?'),
        ("postgresql+asyncpg://u:tiger@h/db?qqqqqq=x", '"url" has the parameter "qqqqqq", which libpq does not know.'),
        (
            "host=h pasword=tiger",
            '"url" has the parameter "pasword", which libpq does not know. Did you mean "password"?',
        ),
        ("postgresql://u:tiger%zz@h/db", '"url" is not an address that libpq can read.'),
        ("u:tiger@h/db", '"url" is not an address that libpq can read.'),
        ("postgresql://u:se@tiger@h/db", "with special characters percent-encoded"),
        ("postgres://u:t/tiger@h/db", "with special characters percent-encoded"),
        ("postgresql+psycopg://u:se@tiger@h/db", "with special characters percent-encoded"),
        ("postgresql://u:p@tiger/word@h/db", "with special characters percent-encoded"),
        ("postgresql://u:p%40@tiger/word@h/db", "with special characters percent-encoded"),
        ("postgresql+psycopg://u:p@tiger/word@h/db", "with special characters percent-encoded"),
        ("postgresql://h:tiger/db", "with special characters percent-encoded"),
        ("postgresql+psycopg://u:tiger@h:port/db", '"url" is not a URL that SQLAlchemy can read.'),
        ("", '"url" must be an address of a PostgreSQL server, such as postgresql://user:password@host/name'),
        ("  ", "or a callable that returns one, not an empty text."),
        (None, "not of type NoneType."),
        (b"postgresql://u:tiger@h/db", "not of type bytes."),
    ],
)
def test_a_wrong_address_is_refused_without_being_shown(url: Any, said: str) -> None:
    """An address may hold a password, so no part of it appears in the error."""
    found = complaint(url=url)
    assert said in found
    assert SECRET not in found


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:tiger@h:port/db",
        "postgresql+psycopg://u@/db?host=a&host=b&port=1&port=tiger",
        "postgresql://u:tiger%zz@h/db",
        "host=h pasword=tiger",
    ],
)
def test_an_error_about_an_address_holds_no_password_in_its_causes(url: str) -> None:
    """A traceback shows the causes of an error as well."""
    with pytest.raises(ConfigurationError) as caught:
        settings(url=url)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_without_an_address_there_are_no_settings() -> None:
    """Outside Django nothing else can say where the database is."""
    with pytest.raises(ConfigurationError, match="Nothing says where the database is"):
        settings_from_mapping({"prefix": "chat"})


def test_the_listener_uses_the_same_address_by_default() -> None:
    """Only those with a pooler need two."""
    made = settings()
    assert made.listen() == made.connect()
    assert settings(listen_url=None).listen() == made.connect()
    assert not made.listens_apart
    assert settings(listen_url="host=direct").listens_apart


@pytest.mark.parametrize(
    ("listen_url", "parameters"),
    [
        ("postgresql://direct", {"host": "direct", "user": "u", "password": "p", "dbname": "db", "sslmode": "require"}),
        ("port=5433", {"port": "5433", "user": "u", "password": "p", "dbname": "db", "sslmode": "require"}),
        ("hostaddr=::1", {"hostaddr": "::1", "user": "u", "password": "p", "dbname": "db", "sslmode": "require"}),
        ("host=direct user=v", {"host": "direct", "user": "v", "dbname": "db", "sslmode": "require"}),
        ("host=direct user=u", {"host": "direct", "user": "u", "password": "p", "dbname": "db", "sslmode": "require"}),
        (
            "host=direct dbname=x sslmode=disable",
            {"host": "direct", "user": "u", "password": "p", "dbname": "x", "sslmode": "disable"},
        ),
        ("service=direct", {"service": "direct"}),
        ("service=direct dbname=x", {"service": "direct", "dbname": "x"}),
    ],
)
def test_a_listen_url_is_completed_by_the_layer_s_own_address(listen_url: str, parameters: dict[str, str]) -> None:
    """A pooler's port never goes with the server's host, and a password goes only with its user.

    What libpq finds in a service's file would count for less than what stood beside it.
    """
    made = settings(url="postgresql://u:p@pooler:6432/db?sslmode=require", listen_url=listen_url)
    assert made.listen() == parameters


def test_a_file_of_passwords_goes_only_with_its_user() -> None:
    """As a password does."""
    made = settings(url="host=h user=u passfile=/p", listen_url="user=v")
    assert made.listen() == {"host": "h", "user": "v"}


def test_the_defaults() -> None:
    """What a CONFIG with an address alone means."""
    made = settings()
    assert (made.prefix, made.expiry, made.group_expiry, made.capacity) == ("asgi", 60, 0, None)
    assert (made.channel_capacity, made.symmetric_encryption_keys, made.serializer) == ((), (), "msgpack")
    assert (made.schema, made.pool, made.send_timeout, made.heartbeat, made.lease) == (None, {}, 10, 5, 60)
    assert (made.on_disconnect, made.on_reconnect, made.confirm_sends) == (None, None, True)


def test_type_checkers_know_every_key() -> None:
    """And no other."""
    assert set(Config.__annotations__) == set(RULES)


def test_every_key_arrives() -> None:
    """Nothing that a CONFIG says is lost on the way."""
    made = settings(
        prefix="chat",
        expiry=1.5,
        group_expiry=86400,
        capacity=100,
        symmetric_encryption_keys=["new", b"old"],
        serializer=COMPRESSED_PATH,
        schema="layer_1",
        PSYCOPG_OPTIONS={"min_size": 1, "max_size": None, "max_lifetime": 600, "name": "chat"},
        send_timeout=3,
        heartbeat=1,
        lease=3,
        confirm_sends=False,
        on_disconnect="layer.lost",
        on_reconnect="layer.back",
    )
    assert (made.prefix, made.expiry, made.group_expiry, made.capacity) == ("chat", 1.5, 86400, 100)
    assert (made.symmetric_encryption_keys, made.serializer) == (
        ("new", b"old"),
        "tests.support.serializers.COMPRESSED",
    )
    assert (made.schema, made.send_timeout, made.heartbeat, made.lease) == ("layer_1", 3, 1, 3)
    assert made.pool == {"min_size": 1, "max_size": None, "max_lifetime": 600, "name": "chat"}
    assert (made.on_disconnect, made.on_reconnect, made.confirm_sends) == ("layer.lost", "layer.back", False)


def test_channel_capacities_are_globs_or_patterns_in_their_order() -> None:
    """As in channels_redis: a text is a glob, and a compiled pattern stays as it is."""
    pattern = re.compile(r"^websocket\.send!.+")
    made = settings(channel_capacity={"http.request": 200, "http.response!*": 10, pattern: 20})
    assert [capacity for _, capacity in made.channel_capacity] == [200, 10, 20]
    exact, glob, compiled = (found for found, _ in made.channel_capacity)
    assert exact.match("http.request")
    assert not exact.match("http.request.more")
    assert glob.match("http.response!abc")
    assert compiled is pattern


def test_any_capacity_bounds_a_layer() -> None:
    """Then its senders count rows."""
    assert not settings().bounded
    assert settings(capacity=1).bounded
    assert settings(channel_capacity={"jobs": 1}).bounded


@pytest.mark.parametrize("key", ["channel_capacity", "symmetric_encryption_keys", "PSYCOPG_OPTIONS"])
def test_none_stands_for_an_empty_collection(key: str) -> None:
    """channels_redis has None as a default of these, so people write it."""
    made = settings(**{key: None})
    assert (made.channel_capacity, made.symmetric_encryption_keys, made.pool) == ((), (), {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expiry", 1_000_000_000),
        ("group_expiry", 0),
        ("capacity", None),
        ("schema", None),
        ("serializer", "tests.support.serializers.COMPRESSED"),
        ("on_disconnect", None),
        ("on_reconnect", None),
        ("listen_url", None),
    ],
)
def test_the_ends_of_each_range_are_in_it(key: str, value: Any) -> None:
    """And None, where it stands for nothing."""
    made = settings(**{key: value})
    assert made.listen() == made.connect() if key == "listen_url" else getattr(made, key) == value


def test_patterns_of_what_may_be_plain_are_globs_or_compiled() -> None:
    """In a list, a tuple or None, as keys are."""
    pattern = re.compile("^jobs$")
    for collection in (list, tuple):
        glob, compiled = settings(allow_unencrypted=collection(["feed-*", pattern])).allow_unencrypted
        assert glob.match("feed-1")
        assert not glob.match("my-feed-1")
        assert compiled is pattern
        keys = settings(symmetric_encryption_keys=collection(["new", b"old"])).symmetric_encryption_keys
        assert keys == ("new", b"old")
    assert settings(allow_unencrypted=None).allow_unencrypted == ()


@pytest.mark.parametrize(
    "options",
    [
        {"min_size": 0, "max_waiting": 0},
        {"min_size": 4, "max_size": 4},
        {"min_size": 4, "max_size": None},
        {"configure": None, "check": None, "reset": None, "reconnect_failed": None},
        {"timeout": 0.5, "max_lifetime": 600, "max_idle": 60, "reconnect_timeout": 5, "num_workers": 1},
    ],
)
def test_right_options_of_the_pool_pass(options: dict[str, Any]) -> None:
    """To the ends of their ranges."""
    assert settings(PSYCOPG_OPTIONS=options).pool == options


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 2),
        ({"max_size": 1}, 1),
        ({"max_size": None}, 2),
        ({"min_size": 1}, 2),
        ({"min_size": 4}, 4),
        ({"min_size": 4, "max_size": None}, 4),
        ({"min_size": 1, "max_size": None}, 1),
    ],
)
async def test_how_many_connections_the_pool_has_at_most(options: dict[str, Any], size: int) -> None:
    """Two, or as many as it is to have at least; without a largest size it has always as many."""
    assert Database(settings(PSYCOPG_OPTIONS=options))._pool.max_size == size


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("prefix", "", "a text of 1 to 100 characters"),
        ("prefix", 5, "a text of 1 to 100 characters"),
        ("prefix", None, "a text of 1 to 100 characters"),
        ("prefix", "x" * 101, "a text of 1 to 100 characters"),
        ("prefix", "a\0b", "a text of 1 to 100 characters"),
        ("expiry", 0, "a number of seconds above 0"),
        ("expiry", -1, "a number of seconds above 0"),
        ("expiry", True, "a number of seconds above 0"),
        ("expiry", "60", "a number of seconds above 0"),
        ("expiry", None, "a number of seconds above 0"),
        ("expiry", float("nan"), "a number of seconds above 0"),
        ("expiry", float("inf"), "a number of seconds above 0"),
        ("expiry", 1e14, "at most 1,000,000,000"),
        ("expiry", 10**400, "at most 1,000,000,000"),
        ("group_expiry", -1, "a number of seconds, at most 1,000,000,000, or 0 for never"),
        ("group_expiry", False, "a number of seconds, at most 1,000,000,000, or 0 for never"),
        ("group_expiry", None, "a number of seconds, at most 1,000,000,000, or 0 for never"),
        ("capacity", 0, CAPACITY),
        ("capacity", 2**31, CAPACITY),
        (
            "channel_capacity",
            {"big*": 2**31},
            CAPACITIES,
        ),
        ("prefix", "half\ud800", "a text"),
        ("capacity", 1.5, CAPACITY),
        ("capacity", True, CAPACITY),
        (
            "channel_capacity",
            {"a": 0},
            CAPACITIES,
        ),
        (
            "channel_capacity",
            {"a": None},
            CAPACITIES,
        ),
        (
            "channel_capacity",
            {1: 1},
            CAPACITIES,
        ),
        (
            "channel_capacity",
            {re.compile(b"a"): 1},
            CAPACITIES,
        ),
        (
            "channel_capacity",
            [("a", 1)],
            CAPACITIES,
        ),
        ("symmetric_encryption_keys", "tiger", "a list of keys (texts or bytes, none empty), such as [SECRET_KEY]"),
        ("symmetric_encryption_keys", b"tiger", "a list of keys (texts or bytes, none empty), such as [SECRET_KEY]"),
        ("symmetric_encryption_keys", ["tiger", ""], "a list of keys (texts or bytes, none empty)"),
        ("symmetric_encryption_keys", ["tiger", 5], "a list of keys (texts or bytes, none empty)"),
        ("allow_unencrypted", "jobs", "a list of globs or compiled patterns"),
        ("allow_unencrypted", [5], "a list of globs or compiled patterns"),
        ("serializer", "pickle", '"msgpack", "json" or the dotted path of a serializer'),
        ("serializer", None, '"msgpack", "json" or the dotted path of a serializer'),
        ("serializer", "a..b", '"msgpack", "json" or the dotted path of a serializer'),
        ("serializer", "a.b-c", '"msgpack", "json" or the dotted path of a serializer'),
        ("schema", "", "the name of a PostgreSQL schema"),
        ("schema", "a$b$c", "the name of a PostgreSQL schema"),
        ("schema", "a-b", "the name of a PostgreSQL schema"),
        ("schema", 'a"; drop', "the name of a PostgreSQL schema"),
        ("schema", "1a", "the name of a PostgreSQL schema"),
        ("schema", "pg_mine", "the name of a PostgreSQL schema"),
        ("schema", "é" * 32, "at most 63 bytes"),
        ("PSYCOPG_OPTIONS", [], "a mapping of psycopg_pool's options"),
        ("send_timeout", 0, "a number of seconds above 0"),
        ("confirm_sends", 1, "True or False"),
        ("heartbeat", 0, "a number of seconds above 0"),
        ("lease", None, "a number of seconds above 0"),
        ("on_disconnect", "", 'the type of a message, such as "layer.lost", or None'),
        ("on_reconnect", 5, 'the type of a message, such as "layer.lost", or None'),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(key: str, value: Any, right: str) -> None:
    """The error names the key and says what would be right, and never shows an encryption key."""
    found = complaint(**{key: value})
    assert found.startswith(f'"{key}" must be ')
    assert right in found
    assert SECRET not in found


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("expirey", 'Unknown key "expirey". Did you mean "expiry"?'),
        ("Prefix", 'Unknown key "Prefix". Did you mean "prefix"?'),
        ("PASSWRD", 'Unknown key "PASSWRD". Did you mean "PASSWORD"?'),
        ("listenurl", 'Did you mean "listen_url"?'),
        ("secret", 'Unknown key "secret". The keys are: '),
        ("symmetric_keys", 'Did you mean "symmetric_encryption_keys"?'),
        ("psycopg_options", 'Did you mean "PSYCOPG_OPTIONS"?'),
        ("hosts", "There is no Redis here: say where PostgreSQL is"),
        ("HOSTS", "There is no Redis here: say where PostgreSQL is"),
        ("config", 'Options of the pool go into "PSYCOPG_OPTIONS"; everything else stands in CONFIG itself.'),
        ("conninfo", 'Its name here is "url".'),
        ("alias", 'Its name here is "database".'),
        ("random_prefix_length", "Leave it out"),
        ("serializer_format", 'Its name here is "serializer".'),
        ("connection_kwargs", 'go into "url" or "OPTIONS"'),
        ("dsn", 'Its name here is "url".'),
        ("using", 'Its name here is "database".'),
        ("pool", 'Its name here is "PSYCOPG_OPTIONS".'),
        ("qqqqqqqq", "The keys are: ATOMIC_REQUESTS"),
        ("NAME", "It belongs to Django. Without Django, say where the database is"),
        ("database", "It belongs to Django."),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_one(key: str, said: str) -> None:
    """Also the keys of other layers are known, with what they are called here."""
    found = complaint(**{key: 1})
    assert f'"{key}"' in found
    assert said in found


def test_all_unknown_keys_are_told_at_once() -> None:
    """Who brings the CONFIG of another layer need not try again for each."""
    found = complaint(hosts=1, expiry=5, serializer_format=2)
    assert 'Unknown key "hosts". There is no Redis here' in found
    assert 'Unknown key "serializer_format". Its name here is "serializer".' in found
    with pytest.raises(ConfigurationError, match='Unknown key "1"'):
        settings_from_mapping({1: 2})  # type: ignore[dict-item]


def test_every_key_is_named_to_one_who_is_far_off() -> None:
    """A name unlike any other brings the list."""
    found = complaint(qqqqqqqq=1)
    assert all(key in found for key in ALL_KEYS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_sise": 1}, '"PSYCOPG_OPTIONS" has no option "min_sise". Did you mean "min_size"?'),
        ({"qqqqqqq": 1}, "The options are check, configure, max_idle"),
        ({"conninfo": "host=h"}, '"PSYCOPG_OPTIONS" must not hold "conninfo": the layer sets it itself.'),
        (
            {"kwargs": {}},
            '"kwargs": the layer sets it itself. Parameters of a connection go into "OPTIONS", or the "url".',
        ),
        ({"open": True}, '"PSYCOPG_OPTIONS" must not hold "open"'),
        ({"close_returns": False}, '"PSYCOPG_OPTIONS" must not hold "close_returns"'),
        ({"min_size": "1"}, '"min_size" in "PSYCOPG_OPTIONS" must be a whole number, not \'1\'.'),
        ({"min_size": True}, '"min_size" in "PSYCOPG_OPTIONS" must be a whole number, not True.'),
        ({"max_size": 0}, '"max_size" in "PSYCOPG_OPTIONS" must be a whole number above 0, or None, not 0.'),
        (
            {"min_size": 5, "max_size": 4},
            '"max_size" in "PSYCOPG_OPTIONS" must be at least its "min_size" of 5, not 4.',
        ),
        ({"timeout": 0}, '"timeout" in "PSYCOPG_OPTIONS" must be a number of seconds above 0, at most'),
        ({"configure": 5}, '"configure" in "PSYCOPG_OPTIONS" must be a function, or None, not 5.'),
        ({"num_workers": 0}, '"num_workers" in "PSYCOPG_OPTIONS" must be a whole number above 0, not 0.'),
        ({"max_waiting": -1}, '"max_waiting" in "PSYCOPG_OPTIONS" must be a whole number, not -1.'),
        ({"max_lifetime": 0}, '"max_lifetime" in "PSYCOPG_OPTIONS" must be a number of seconds above 0'),
        ({"max_idle": "60"}, '"max_idle" in "PSYCOPG_OPTIONS" must be a number of seconds above 0'),
        ({"reconnect_timeout": True}, '"reconnect_timeout" in "PSYCOPG_OPTIONS" must be a number of seconds above 0'),
        ({"check": 5}, '"check" in "PSYCOPG_OPTIONS" must be a function, or None, not 5.'),
        ({"reset": 5}, '"reset" in "PSYCOPG_OPTIONS" must be a function, or None, not 5.'),
        ({"reconnect_failed": 5}, '"reconnect_failed" in "PSYCOPG_OPTIONS" must be a function, or None, not 5.'),
    ],
)
def test_a_wrong_option_of_the_pool_is_refused(options: dict[str, Any], said: str) -> None:
    """The pool's own complaint would come only with the first connection."""
    assert said in complaint(PSYCOPG_OPTIONS=options)


def test_a_lease_outlives_three_heartbeats() -> None:
    """One late heartbeat must not sweep a living node."""
    assert settings(heartbeat=20, lease=60).lease == 60
    assert settings(heartbeat=0.1, lease=0.3).lease == 0.3, "although 3 * 0.1 > 0.3 in binary"
    assert complaint(heartbeat=20.5, lease=60).startswith(
        '"lease" must be at least 3 times "heartbeat", so 61.5 seconds or more, not 60'
    )


def test_settings_show_no_secret() -> None:
    """A repr goes into logs and error reports."""
    made = settings(url="postgresql://u:tiger@h/db", symmetric_encryption_keys=["tiger"], listen_url="password=tiger")
    assert SECRET not in repr(made)
    assert "prefix='asgi'" in repr(made)


@pytest.mark.parametrize("name", ["a", "_a1", "Tenant", "x" * 63, "straße"])
def test_a_plain_identifier_is_a_schema(name: str) -> None:
    """Letters of any alphabet, as PostgreSQL has it."""
    assert checked_schema(name) == name


def test_no_schema_is_left_to_the_search_path() -> None:
    """None is not the name of a schema."""
    assert checked_schema(None) is None


def test_the_longest_prefix_is_one() -> None:
    """And one character more is too many."""
    prefix = "é" * LONGEST_PREFIX
    assert settings_from_mapping({"prefix": prefix}, connect=dict).prefix == prefix
    with pytest.raises(ConfigurationError, match="prefix"):
        settings_from_mapping({"prefix": prefix + "x"}, connect=dict)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:secret@/db?host=a&host=b&port=1&port=secret&port=3",
    ],
)
def test_what_cannot_be_read_is_not_told_behind_the_error_either(url: str) -> None:
    """A traceback shows the context of an error, unless that is suppressed."""
    with pytest.raises(ConfigurationError) as caught:
        parameters_from_url(url, "url")
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("value", ["PASSWORD=hunter2", "Password is hunter2"])
def test_what_may_be_a_password_is_not_shown_however_it_is_written(value: str) -> None:
    """Libpq wants small letters; who writes the key wrongly has capitals too."""
    assert shown(value) == "of type str"
