"""How Django's settings say where the database is."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.utils import ConnectionHandler
from django.test import override_settings

from channels_pg_sa.django_settings import configs, database_alias, settings_from_config

POSTGRESQL = "django.db.backends.postgresql"
CHANNELS_POSTGRES = {
    "ENGINE": POSTGRESQL,
    "NAME": "postgres",
    "USER": "postgres",
    "PASSWORD": "password",
    "HOST": "127.0.0.1",
    "PORT": "5432",
    "PSYCOPG_OPTIONS": {"min_size": 10, "max_size": 10},
}
LIBPQ = {"dbname": "postgres", "user": "postgres", "password": "password", "host": "127.0.0.1", "port": "5432"}


@pytest.fixture
def backend() -> Iterator[Callable[[type], str]]:
    """Make a third party's database backend of a class; give its ENGINE."""
    names: list[str] = []

    def make(wrapper: type) -> str:
        package, base = types.ModuleType("somebody_s_backend"), types.ModuleType("somebody_s_backend.base")
        package.__path__ = []
        base.DatabaseWrapper = wrapper  # type: ignore[attr-defined]
        sys.modules.update({package.__name__: package, base.__name__: base})
        names.extend((package.__name__, base.__name__))
        return package.__name__

    yield make
    for name in names:
        del sys.modules[name]


def connect(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the next connection."""
    return settings_from_config(config).connect()


def complaint(config: Mapping[str, Any]) -> str:
    """What is said about a wrong CONFIG."""
    with pytest.raises(ImproperlyConfigured) as caught:
        settings_from_config(config)
    return str(caught.value)


@pytest.mark.parametrize("use_tz", [True, False])
def test_a_config_of_channels_postgres_works_unchanged(use_tz: bool) -> None:
    """With USE_TZ=True that layer itself raised KeyError, and Channels made None of it."""
    with override_settings(USE_TZ=use_tz):
        made = settings_from_config(CHANNELS_POSTGRES)
    assert made.connect() == LIBPQ
    assert made.pool == {"min_size": 10, "max_size": 10}


def test_a_full_entry_of_databases_works() -> None:
    """`CONFIG: {**DATABASES["default"], ...}` carries what only Django's own connections need."""
    entry = ConnectionHandler({"default": {"ENGINE": POSTGRESQL, "NAME": "db"}}).settings["default"]
    made = settings_from_config(
        {**entry, "DISABLE_SERVER_SIDE_CURSORS": True, "TIME_ZONE": "Asia/Tokyo", "prefix": "p"}
    )
    assert made.connect() == {"dbname": "db"}
    assert made.prefix == "p"


@pytest.mark.parametrize(
    "engine", ["django.contrib.gis.db.backends.postgis", "django.db.backends.postgresql_psycopg2", POSTGRESQL]
)
def test_every_name_of_the_postgresql_backend_is_known(engine: str) -> None:
    """PostGIS needs no GDAL here, and old settings keep the name that Django once had."""
    assert connect({"ENGINE": engine, "NAME": "db"}) == {"dbname": "db"}


def test_without_an_engine_it_is_postgresql() -> None:
    """There is no other database for this layer."""
    assert connect({"NAME": "db", "HOST": "/run/postgresql"}) == {"dbname": "db", "host": "/run/postgresql"}


def test_options_mean_what_they_mean_in_django() -> None:
    """libpq's go to libpq, and what Django does with the others for its own connections does not hinder."""
    options = {"sslmode": "verify-full", "passfile": "/p", "pool": {"min_size": 2}, "isolation_level": 4}
    more = {"server_side_binding": True, "client_encoding": "UTF8", "prepare_threshold": 5, "connect_timeout": 3}
    more |= dict.fromkeys(("autocommit", "connection_factory", "context", "cursor_factory", "row_factory"), object())
    assert connect({"NAME": "db", "OPTIONS": {**options, **more}}) == {
        "dbname": "db",
        "sslmode": "verify-full",
        "passfile": "/p",
        "connect_timeout": 3,
    }


def test_a_service_needs_no_name() -> None:
    """The service file has the name."""
    assert connect({"OPTIONS": {"service": "chat"}}) == {"service": "chat"}


def test_an_assumed_role_is_assumed_from_the_start() -> None:
    """Django says SET ROLE after connecting; libpq can say it while connecting."""
    assert connect({"NAME": "db", "OPTIONS": {"assume_role": r"a b\c", "options": "-c x.y=1"}}) == {
        "dbname": "db",
        "options": r"-c x.y=1 -c role=a\ b\\c",
    }


def test_an_empty_role_is_none() -> None:
    """As Django takes it, of settings that read it from the environment."""
    assert connect({"NAME": "db", "OPTIONS": {"assume_role": ""}}) == {"dbname": "db"}


def test_options_of_the_config_stay_as_they_are() -> None:
    """Channels gives the same CONFIG to every layer it builds."""
    config = {"NAME": "db", "OPTIONS": {"pool": True, "assume_role": "r"}}
    settings_from_config(config).connect()
    assert config == {"NAME": "db", "OPTIONS": {"pool": True, "assume_role": "r"}}


def test_a_callable_password_is_asked_for_each_connection() -> None:
    """Tokens of cloud providers end after minutes; none is fetched before a connection is made."""
    asked: list[str] = []

    def token() -> str:
        asked.append(f"token {len(asked)}")
        return asked[-1]

    made = settings_from_config({"NAME": "db", "PASSWORD": token})
    assert asked == []
    assert [made.connect()["password"], made.listen()["password"]] == ["token 0", "token 1"]


def test_a_callable_password_does_not_end_the_thread_that_asks() -> None:
    """All of the layer depends on it."""

    def token() -> str:
        raise SystemExit(1)

    made = settings_from_config({"NAME": "db", "PASSWORD": token})
    with pytest.raises(RuntimeError, match='"PASSWORD" wants to end the process'):
        made.connect()


def test_a_callable_password_must_return_a_text() -> None:
    """A coroutine function, for instance, does not; then that is all that is said."""

    async def token() -> str:
        return "secret"

    for function in (lambda: 5, token):
        made = settings_from_config({"NAME": "db", "PASSWORD": function})
        with pytest.raises(ValueError, match='"PASSWORD" must be a text, or a function that returns one'):
            made.connect()


def test_an_alias_is_looked_up_anew_for_each_connection(databases: Callable[..., None]) -> None:
    """Django renames a database for tests after the layer may have been built."""
    databases(other={"ENGINE": POSTGRESQL, "NAME": "app", "USER": "u"})
    made = settings_from_config({"database": "other"})
    assert made.connect() == {"dbname": "app", "user": "u"}
    connections["other"].settings_dict["NAME"] = "test_app"
    assert made.connect() == {"dbname": "test_app", "user": "u"}
    assert made.listen() == {"dbname": "test_app", "user": "u"}


def test_a_renamed_database_is_listened_to_as_well(databases: Callable[..., None]) -> None:
    """A listen_url without a database name takes the one of the alias."""
    databases(default={"ENGINE": POSTGRESQL, "NAME": "app", "HOST": "pooler", "PORT": 6432})
    made = settings_from_config({"listen_url": "host=direct"})
    connections["default"].settings_dict["NAME"] = "test_app"
    assert made.listen() == {"dbname": "test_app", "host": "direct"}


def test_nothing_at_all_means_the_alias_of_our_name_or_the_default(databases: Callable[..., None]) -> None:
    """A project may keep the layer in a database of its own without a word in CONFIG."""
    databases(default={"ENGINE": POSTGRESQL, "NAME": "main"})
    assert (database_alias({}), connect({})["dbname"]) == ("default", "main")
    databases(default={"ENGINE": POSTGRESQL, "NAME": "main"}, channels_pg_sa={"ENGINE": POSTGRESQL, "NAME": "layer"})
    assert (database_alias({}), connect({})["dbname"]) == ("channels_pg_sa", "layer")
    assert connect({"database": "default"})["dbname"] == "main"


def test_only_an_alias_has_an_alias() -> None:
    """A layer with an address of its own belongs to no entry of DATABASES."""
    assert database_alias({"url": "host=h"}) is None
    assert database_alias(CHANNELS_POSTGRES) is None
    assert database_alias({"database": "other"}) == "other"


def test_a_url_needs_no_databases() -> None:
    """A project may have no database but this."""
    assert connect({"url": "postgresql://h/db"}) == {"host": "h", "dbname": "db"}


def test_a_third_party_s_backend_decides_its_parameters(backend: Callable[[type], str]) -> None:
    """Backends for cloud tokens override get_connection_params, and may have settings of their own."""

    class Tokens(DatabaseWrapper):
        def get_connection_params(self) -> dict[str, Any]:
            fetched.append(self.settings_dict["TOKEN_SOURCE"])
            return {**super().get_connection_params(), "password": "token"}

    fetched: list[str] = []
    made = settings_from_config({"ENGINE": backend(Tokens), "NAME": "db", "TOKEN_SOURCE": "vault"})
    assert fetched == []
    assert made.connect() == {"dbname": "db", "password": "token"}
    assert fetched == ["vault"]


def test_a_key_that_is_nearly_one_of_django_s_is_no_third_party_s(backend: Callable[[type], str]) -> None:
    """A password would be left out without a word."""
    assert 'Unknown key "PASWORD". Did you mean "PASSWORD"?' in complaint(
        {"ENGINE": backend(DatabaseWrapper), "NAME": "d", "PASWORD": "p"}
    )


def test_a_third_party_s_backend_for_another_server_is_refused(backend: Callable[[type], str]) -> None:
    """CockroachDB's backend, for one, inherits from PostgreSQL's, but the server has no LISTEN."""

    class Cockroach(DatabaseWrapper):
        vendor = "cockroachdb"

    assert 'has the ENGINE "somebody_s_backend", which is not PostgreSQL' in complaint(
        {"ENGINE": backend(Cockroach), "NAME": "d"}
    )


def test_a_backend_s_key_error_is_not_a_key_error(backend: Callable[[type], str]) -> None:
    """Channels takes a KeyError for "there is no such layer" and gives None to everybody."""

    class Careless(DatabaseWrapper):
        def __init__(self, settings: dict[str, Any], alias: str) -> None:
            super().__init__(settings, alias)
            settings["TOKEN_SOURCE"]

    assert "the database backend misses the key 'TOKEN_SOURCE'" in complaint({"ENGINE": backend(Careless), "NAME": "d"})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"database": "nowhere"}, "\"database\" must be an alias of DATABASES (default), not 'nowhere'."),
        ({"database": 5}, '"database" must be an alias of DATABASES (default), not 5.'),
        ({"database": ["default"]}, '"database" must be an alias of DATABASES (default), not'),
        ({"database": None}, '"database" must be an alias of DATABASES (default), not None.'),
        ({}, 'DATABASES["default"] has the ENGINE "django.db.backends.dummy", which is not PostgreSQL.'),
        ({"ENGINE": "django.db.backends.mysql", "NAME": "d"}, 'CONFIG has the ENGINE "django.db.backends.mysql"'),
        ({"ENGINE": "django.db.backends.postgres", "NAME": "d"}, 'Use "django.db.backends.postgresql"'),
        ({"ENGINE": "no.such.backend", "NAME": "d"}, "no.such.backend"),
        ({"ENGINE": "post-gres", "NAME": "d"}, '"ENGINE" must be the dotted path of a database backend'),
        ({"ENGINE": 5, "NAME": "d"}, '"ENGINE" must be the dotted path of a database backend'),
        ({"url": "host=h", "database": "default"}, '"url" and "database" both say where the database is.'),
        ({"url": "host=h", "NAME": "d"}, '"url" and "NAME" both say where the database is.'),
        ({"database": "default", "HOST": "h"}, '"database" and "HOST" both say where the database is.'),
        ({"HOST": "h"}, '"NAME" is missing: the name of the database.'),
        ({"NAME": ""}, '"NAME" is missing: the name of the database.'),
        ({"NAME": None}, '"NAME" must be the name of a database, not None.'),
        ({"NAME": "n" * 64}, "is longer than PostgreSQL's limit of 63 characters"),
        ({"NAME": "d", "PORT": "http"}, "\"PORT\" must be a port, not 'http'."),
        ({"NAME": "d", "PORT": True}, '"PORT" must be a port, not True.'),
        ({"NAME": "d", "USER": 5}, '"USER" must be a text, not 5.'),
        ({"NAME": "d", "PASSWORD": 5}, '"PASSWORD" must be a text, or a function that returns one, not of type int.'),
        ({"NAME": "d", "OPTIONS": "sslmode=require"}, '"OPTIONS" must be a mapping of connection parameters'),
        (
            {"NAME": "d", "OPTIONS": {"sslmod": 1}},
            '"OPTIONS" has the parameter "sslmod", which libpq does not know. Did',
        ),
        ({"NAME": "d", "PASWORD": "p"}, 'Unknown key "PASWORD". Did you mean "PASSWORD"?'),
        ({"NAME": "d", "TOKEN_SOURCE": "p"}, 'Unknown key "TOKEN_SOURCE".'),
        ({"ENGINE": POSTGRESQL, "NAME": "d", "TOKEN_SOURCE": "p"}, 'Unknown key "TOKEN_SOURCE".'),
        ({"ENGINE": "no.such.backend", "NAME": "d", 5: "p"}, "Unknown key"),
        ({"NAME": "d", "expirey": 5}, 'Unknown key "expirey". Did you mean "expiry"?'),
        ({"NAME": "d", "expiry": 0}, '"expiry" must be a number of seconds above 0, at most 1,000,000,000, not 0.'),
        ({"NAME": "d", "serializer": "no.such"}, "serializer: 'no.such' is neither"),
        ({"NAME": "d", "serializer": "datetime.timezone"}, "serializer: 'datetime.timezone' cannot be called without"),
        ({"url": "tiger"}, '"url" is not an address that libpq can read.'),
        ({"hosts": [("localhost", 6379)]}, 'Unknown key "hosts". There is no Redis here'),
    ],
)
def test_whatever_is_wrong_raises_improperly_configured(
    config: dict[str, Any], said: str, databases: Callable[..., None]
) -> None:
    """When the layer is built, and naming the key; never a KeyError, which Channels swallows."""
    databases()
    assert said in complaint(config)


@pytest.mark.parametrize(
    "config",
    [
        {"database": "postgresql://u:tiger@h/db"},
        {"ENGINE": "postgresql://u:tiger@h/db", "NAME": "d"},
        {"NAME": ["postgresql://u:tiger@h/db"]},
        {"NAME": "d", "USER": ["u:tiger@h"]},
        {"NAME": "d", "PORT": "5432/db?password=tiger"},
        {"NAME": "d", "PASSWORD": ["tiger"]},
        {"NAME": "d", "OPTIONS": "tiger"},
        {"NAME": "d", "PSYCOPG_OPTIONS": "host=h password=tiger"},
        {"NAME": "d", "prefix": ["postgresql://u:tiger@h/db"]},
        {"url": "postgresql+psycopg://u:p@/db?host=a:tiger&host=b:1"},
        {"NAME": "d", "capacity": {"password": "tiger"}},
    ],
)
def test_no_error_shows_a_password(config: dict[str, Any], databases: Callable[..., None]) -> None:
    """Wherever an address was written that belonged elsewhere; the error names that place."""
    databases()
    told = complaint(config)
    assert "tiger" not in told
    assert " must be " in told or "is not an address" in told


@pytest.mark.parametrize("place", [(), ("PSYCOPG_OPTIONS",)], ids=["a key", "an option"])
def test_an_address_in_place_of_a_key_is_not_shown(place: tuple[str, ...], databases: Callable[..., None]) -> None:
    """Nor how long it is."""
    databases()
    wrong: dict[str, Any] = {"postgresql://u:tiger@h/db": 1}
    told = complaint({"NAME": "d", **({place[0]: wrong} if place else wrong)})
    assert "of type str" in told
    assert "tiger" not in told


def test_a_number_of_many_digits_is_refused_as_any(databases: Callable[..., None]) -> None:
    """Python refuses to write it."""
    databases()
    assert '"expiry" must be a number of seconds above 0' in complaint({"NAME": "d", "expiry": 10**5000})


def test_another_database_s_alias_is_refused(databases: Callable[..., None]) -> None:
    """SQLite is Django's default, so people will meet this one."""
    databases(lite={"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"})
    assert 'DATABASES["lite"] has the ENGINE "django.db.backends.sqlite3"' in complaint({"database": "lite"})


def test_ports_of_several_hosts_pass() -> None:
    """libpq takes a list of hosts with a list of ports."""
    assert connect({"NAME": "d", "HOST": "a,b", "PORT": "1,2"}) == {"dbname": "d", "host": "a,b", "port": "1,2"}


def test_none_is_as_good_as_nothing_where_django_takes_it_so() -> None:
    """os.environ.get gives None."""
    config = {"NAME": "d", "USER": None, "PASSWORD": None, "HOST": None, "PORT": None, "OPTIONS": None}
    assert connect(config) == {"dbname": "d"}
    assert connect({**config, "OPTIONS": {"sslmode": None}}) == {"dbname": "d"}


def test_a_key_in_small_letters_is_no_third_party_s(backend: Callable[[type], str]) -> None:
    """Django's own are capitals: this one is ours, and wrong."""
    assert "nonsense" in complaint({"ENGINE": backend(DatabaseWrapper), "NAME": "d", "nonsense": 1})


def test_a_third_party_s_backend_may_take_its_own_options_out(backend: Callable[[type], str]) -> None:
    """They are there again for the next connection."""

    class Popping(DatabaseWrapper):
        def get_connection_params(self) -> dict[str, Any]:
            region = self.settings_dict["OPTIONS"].pop("region")
            return {**super().get_connection_params(), "password": f"token of {region}"}

    made = settings_from_config({"ENGINE": backend(Popping), "NAME": "db", "OPTIONS": {"region": "eu"}})
    for _ in range(2):
        assert made.connect() == {"dbname": "db", "password": "token of eu"}


@pytest.mark.parametrize(
    "layers",
    [
        *(None, [], {"default": None}, {"default": "channels_pg_sa"}, {"default": {}}),
        {"default": {"BACKEND": "django.utils.module_loading.import_string"}},  # a function, which Channels would call
    ],
)
def test_what_is_no_layer_of_ours_is_passed_over(layers: object) -> None:
    """What is wrong with it Channels will tell."""
    with override_settings(CHANNEL_LAYERS=layers):
        assert list(configs()) == []
