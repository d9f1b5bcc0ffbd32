"""docs/from_channels_redis.md, docs/from_channels_postgres.md: the options are real, and ours are accepted."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import psycopg2  # type: ignore[import-untyped] # It ships no types.
import pytest
from channels.layers import channel_layers, get_channel_layer
from channels_redis import core, pubsub, utils
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import ProgrammingError, connection
from django.db.utils import ConnectionHandler
from django.test import override_settings

from channels_pg_sa.config import DATABASE_KEYS, Settings
from channels_pg_sa.core import PostgresChannelLayer
from channels_pg_sa.django_settings import settings_from_config
from channels_pg_sa.management.commands import channels_pg_sa as command
from tests.conformance.backends import Conversation
from tests.support.databases import TestServer
from tests.support.django_databases import databases, entry
from tests.support.markdown import DOCS, all_blocks, blocks, run

REDIS, POSTGRES = "from_channels_redis.md", "from_channels_postgres.md"
PAGES = [REDIS, POSTGRES]
OURS = "channels_pg_sa.core.PostgresChannelLayer"
TALK = Conversation(patience=10)
FACTS = {name: field.default for name, field in Settings.__dataclass_fields__.items()}
# Copied, because the tests do not install it: the parameters of its PostgresChannelLayer, and what that takes out of
# **kwargs. All releases from 0.0.1 to 1.1.4 have those without a comment.
CHANNELS_POSTGRES: dict[str, Any] = {
    "prefix": "asgi",
    "expiry": 60,
    "group_expiry": 0,
    "symmetric_encryption_keys": None,
    "config": {},  # 0.0.4 to 1.0.6
    "PYSCOPG_OPTIONS": {},  # 1.1.0 to 1.1.3
    "PSYCOPG_OPTIONS": {},  # 1.1.4
}
# What a project may have set, beside the default of the layer that it comes from.
SAMPLES: dict[str, Any] = {
    "hosts": [("redis.example", 6379)],
    "prefix": "shop:",
    "expiry": 30,
    "group_expiry": 3600,
    "capacity": 100,
    "channel_capacity": {"http.request": 200, re.compile("^websocket"): 20},
    "symmetric_encryption_keys": ["key"],
    "serializer_format": "json",
    "random_prefix_length": 0,
    "on_disconnect": "redis.disconnect",
    "on_reconnect": "redis.reconnect",
    "config": {"maxsize": 20},
    "PYSCOPG_OPTIONS": {"min_size": 10},
    "PSYCOPG_OPTIONS": {"min_size": 10},
    "ENGINE": "django.db.backends.postgresql_psycopg2",
    "NAME": "chat",
    "USER": "chat",
    "PASSWORD": "secret",
    "HOST": "db.example",
    "PORT": "5432",
    "OPTIONS": {"connect_timeout": 5},
    "TIME_ZONE": "UTC",
    "CONN_MAX_AGE": 60,
}
WHO = {"user": "user", "password": "secret", "dbname": "name"}
# For each row of the table of hosts: what Redis is told there, and PostgreSQL here.
HOSTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"host": "redis.example", "port": 6379, "username": "user", "password": "secret", "db": 0},
        {**WHO, "host": "db.example", "port": "5432"},
    ),
    ({"host": "redis.example", "port": 6379}, {**WHO, "host": "db.example", "port": "5432"}),
    (
        {"host": "redis.example", "username": "user", "password": "secret", "db": 1},
        {**WHO, "host": "db.example"},
    ),
    (
        {"host": "redis.example", "socket_connect_timeout": 5},
        {"dbname": "name", "host": "db.example", "connect_timeout": "5"},
    ),
    (
        {"host": "redis.example"},
        {"dbname": "name", "host": "db.example", "sslmode": "verify-full", "sslrootcert": "/etc/ssl/db.pem"},
    ),
    (
        {"host": "redis.example", "ssl_cert_reqs": None},
        {"dbname": "name", "host": "db.example", "sslmode": "require"},
    ),
    ({"path": "/run/redis/redis.sock"}, {"dbname": "name", "host": "/run/postgresql"}),
    (
        {},
        {**WHO, "host": "one.example,two.example", "port": "5432,5432", "target_session_attrs": "read-write"},
    ),
    ({"host": "one.example"}, {**WHO, "host": "db.example"}),
]


def layers(page: str) -> list[dict[str, Any]]:
    """Return every CHANNEL_LAYERS of a page."""
    found = []
    for code in all_blocks(page):
        names: dict[str, Any] = {"INSTALLED_APPS": [], "SECRET_KEY": "a secret"}
        run(code, names)
        found += [names["CHANNEL_LAYERS"]] if "CHANNEL_LAYERS" in names else []
    return found


def unwrapped(page: str) -> str:
    """Return the text of a page with each paragraph on one line."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", (DOCS / page).read_text(encoding="utf-8"))


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading."""
    section = re.split(r"\n#+ ", (DOCS / page).read_text(encoding="utf-8").partition(f"# {heading}\n")[2])[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def table(page: str) -> list[tuple[list[str], str, str]]:
    """Return the table of options: their names there, the default there, the default here."""
    return [(re.findall(r"`(\w+)`", name), there, here) for name, there, _, here in rows(page, "Option for option")]


def options(page: str) -> list[tuple[str, str, str]]:
    """Return each option of the table with its default there, and what is said of it here."""
    return [
        (name, there, here)
        for names, there, here, _ in rows(page, "Option for option")
        for name in re.findall(r"`(\w+)`", names)
        if name != "DATABASES"
    ]


def hosts() -> list[tuple[Any, dict[str, Any]]]:
    """Return the table of hosts: what stands there, and the CONFIG here."""
    found = [(there, re.findall(r"`(\{.*\})`", here)) for there, here in rows(REDIS, "What stands in `hosts`")]
    return [(value(there), ast.literal_eval(here)) for there, (here,) in found]


def value(cell: str) -> Any:
    """Return the first value that stands in a cell of the table."""
    return ast.literal_eval(re.findall(r"^`([^`]+)`|^$", cell)[0] or "None")


@contextmanager
def using(url: str, settings: dict[str, Any]) -> Iterator[None]:
    """Set DATABASES as a project of the guides may have them, and CHANNEL_LAYERS."""
    aliases = {"default": entry(url), "channels_postgres": entry(url)}
    with databases(**aliases), override_settings(CHANNEL_LAYERS=settings):
        yield
        for layer in channel_layers.backends.values():
            if isinstance(layer, PostgresChannelLayer):
                layer.close_sync()


@pytest.mark.parametrize("page", PAGES)
def test_the_settings_are_accepted(layer_url: str, page: str) -> None:
    """Each CHANNEL_LAYERS of a guide builds our layer where it names it."""
    built = 0
    for settings in layers(page):
        for alias, layer in settings.items():
            if layer["BACKEND"] == OURS:
                with using(layer_url, settings):
                    assert isinstance(get_channel_layer(alias), PostgresChannelLayer)
                built += 1
    assert built >= 2


@pytest.mark.parametrize("page", PAGES)
async def test_each_listener_hears_once_while_both_layers_are_in_use(layer_url: str, page: str) -> None:
    """Listeners of the old layer and of the new one get what `tell` sends once, before the swap and after."""
    _, tell = blocks(page, "Deploying it")
    old, new = {"BACKEND": "channels.layers.InMemoryChannelLayer"}, {"BACKEND": OURS, "CONFIG": {"url": layer_url}}
    for settings in ({"default": old, "other": new}, {"default": new, "other": old}):
        with override_settings(CHANNEL_LAYERS=settings):
            names: dict[str, Any] = {}
            run(tell, names)
            both = [get_channel_layer(alias) for alias in settings]
            channels = [await layer.new_channel() for layer in both]
            for layer, channel in zip(both, channels, strict=True):
                await layer.group_add("news", channel)
            for number in (1, 2):
                await names["tell"]("news", {"type": "news.published", "id": number})
            for layer, channel in zip(both, channels, strict=True):
                assert [message["id"] for message in await TALK.take(layer, channel, 2)] == [1, 2]
            await next(layer for layer in both if isinstance(layer, PostgresChannelLayer)).close()


@pytest.mark.parametrize("page", PAGES)
def test_our_defaults_are_told(page: str) -> None:
    """The last column has what the settings have; {} and [] are what nothing is called in a CONFIG."""
    empty: dict[str, Any] = {"channel_capacity": {}, "symmetric_encryption_keys": [], "pool": {}}
    names = {
        "serializer_format": "serializer",
        **dict.fromkeys(("PSYCOPG_OPTIONS", "PYSCOPG_OPTIONS", "config"), "pool"),
    }
    told = [(names.get(found[0], found[0]), here) for found, _, here in table(page)]
    told = [(name, here) for name, here in told if name in FACTS and here.startswith("`")]
    assert len(told) >= 4
    assert {name: value(here) for name, here in told} == {name: empty.get(name, FACTS[name]) for name, _ in told}


def test_the_options_of_channels_redis_are_all_there() -> None:
    """Names and defaults are those of the package that is installed."""
    real = dict(inspect.signature(core.RedisChannelLayer.__init__).parameters)
    for layer in (pubsub.RedisPubSubChannelLayer, pubsub.RedisPubSubLoopLayer):
        real.update(inspect.signature(layer.__init__).parameters)
    for other in ("self", "args", "kwargs", "channel_layer"):
        real.pop(other, None)
    told = {names[0]: there for names, there, _ in table(REDIS)}
    assert set(told) == set(real)
    assert {name: value(there) for name, there in told.items() if name != "hosts"} == {
        name: parameter.default for name, parameter in real.items() if name != "hosts"
    }
    theirs = [
        layer for settings in layers(REDIS) for layer in settings.values() if "channels_redis" in layer["BACKEND"]
    ]
    for layer in theirs:
        with override_settings(CHANNEL_LAYERS={"default": layer}):
            assert isinstance(get_channel_layer(), core.RedisChannelLayer)
    assert len(theirs) == 2


def test_the_options_of_channels_postgres_are_all_there() -> None:
    """Names and defaults are those of its releases, with each key of DATABASES that a project is likely to have."""
    told = {name: there for name, there, _ in options(POSTGRES)}
    assert {name: value(told[name]) for name in CHANNELS_POSTGRES} == CHANNELS_POSTGRES
    others = set(told) - set(CHANNELS_POSTGRES) - {"capacity", "channel_capacity"}
    assert others <= DATABASE_KEYS
    assert others >= {"ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS"}


@pytest.mark.parametrize(
    ("option", "there", "here"),
    [pytest.param(*row, id=f"{page}-{row[0]}") for page in PAGES for row in options(page)],
)
def test_each_old_option_is_taken_or_refused_with_what_to_write(option: str, there: str, here: str) -> None:
    """An option that stays is accepted as it was; of another the error names the one of the third column."""
    written = re.findall(r"`(\w+)`", re.sub(r"\[[^]]*\]\(.*?\)", "", here))
    stays = written[:1] == [option] or here.startswith(("The same", "They hold", "Accepted"))
    literal = there.startswith("`") and option != "hosts"
    with databases(default=entry("postgresql:///chat")):
        for given in [SAMPLES[option], *([value(there)] if literal else [])]:
            config = {**({"NAME": "chat"} if option in DATABASE_KEYS else {}), option: given}
            if stays:
                settings_from_config(config)
            else:
                hint = f'"{written[0]}"' if written else "Leave it out"
                with pytest.raises(ImproperlyConfigured, match=hint):
                    settings_from_config(config)


def test_what_django_puts_into_databases_is_accepted() -> None:
    """Each key that Django itself fills in, so that an entry of DATABASES may be the CONFIG."""
    filled = ConnectionHandler({"default": entry("postgresql://chat@db.example/chat")}).settings["default"]
    assert settings_from_config(filled).connect() == {"user": "chat", "host": "db.example", "dbname": "chat"}


def test_the_options_of_the_old_pool_have_the_names_that_are_told() -> None:
    """Each name that `config` had is refused in PSYCOPG_OPTIONS, and the one in its place is accepted."""
    [here] = [here for option, _, here in options(POSTGRES) if option == "config"]
    pairs = re.findall(r"`(\w+)` is called `(\w+)`", here)
    assert [old for old, _ in pairs] == ["minsize", "maxsize", "pool_recycle"]  # of aiopg.create_pool(), 1.4
    for old, new in pairs:
        with databases(default=entry("postgresql:///chat")):
            assert settings_from_config({"PSYCOPG_OPTIONS": {new: 5}}).pool == {new: 5}
            with pytest.raises(ImproperlyConfigured, match=new):
                settings_from_config({"PSYCOPG_OPTIONS": {old: 5}})


@pytest.mark.parametrize("pool", [{"min_size": 4}, {"max_size": None}, {"min_size": 3, "max_size": None}])
async def test_a_pool_of_channels_postgres_serves_the_layer(layer_url: str, pool: dict[str, Any]) -> None:
    """What psycopg_pool takes beside its own defaults, and so channels_postgres, is taken beside ours."""
    layer = PostgresChannelLayer(**entry(layer_url), PSYCOPG_OPTIONS=pool)
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "hello"})
    assert await TALK.take(layer, channel, 1) == [{"type": "hello"}]
    await layer.close()


@pytest.mark.parametrize("row", range(len(HOSTS)))
def test_what_stands_in_hosts_is_real_there_and_works_here(row: int) -> None:
    """channels_redis makes a pool of the left side, and our layer connects to where the right side says."""
    assert len(hosts()) == len(HOSTS)
    (there, here), (redis, libpq) = hosts()[row], HOSTS[row]
    pool = utils.create_pool(utils.decode_hosts(there)[0])
    assert {name: pool.connection_kwargs.get(name) for name in redis} == redis
    pool.make_connection()  # TypeError for an argument that it does not have
    assert ("sentinels" in str(there)) == (type(pool).__name__ == "SentinelConnectionPool")
    assert ("rediss:" in str(there)) == (pool.connection_class.__name__ == "SSLConnection")
    made = settings_from_config(here).connect()
    assert {name: str(what) for name, what in made.items()} == libpq
    assert repr(PostgresChannelLayer(**here)).endswith("closed>")


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_can_be_installed_beside_the_old_layer(server: TestServer, page: str) -> None:
    """While CHANNEL_LAYERS has no layer of ours, the command of a guide does; one without --database says so."""
    text = (DOCS / page).read_text(encoding="utf-8")
    [line] = re.findall(r"`manage.py channels_pg_sa (upgrade --database .*?)`", text)
    url = server.create()
    old = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    with databases(default=entry(url), channels_postgres=entry(url)), override_settings(CHANNEL_LAYERS=old):
        with pytest.raises(CommandError, match="--database"):
            call_command(command.Command(), "upgrade")
        call_command(command.Command(), *shlex.split(line))
        call_command(command.Command(), *shlex.split(line.replace("upgrade", "check")))
    server.drop(url)


@pytest.mark.parametrize("page", PAGES)
def test_django_takes_psycopg_3_and_what_the_guides_name_is_written_anew(layer_url: str, page: str) -> None:
    """Though psycopg2 is installed as well, Django's own connections are psycopg 3's, which has no `IN %s`."""
    [(old, new)] = re.findall(r"`(IN %s)` with a tuple becomes `(= ANY\(%s\))` with a list", unwrapped(page))
    with closing(psycopg2.connect(layer_url)) as found, found.cursor() as cursor:
        cursor.execute(f"SELECT 7 WHERE 'b' {old}", [("a", "b")])
        assert cursor.fetchall() == [(7,)]
    with databases(default=entry(layer_url)), connection.cursor() as cursor:
        assert isinstance(connection.connection, psycopg.Connection)
        with pytest.raises(ProgrammingError):
            cursor.execute(f"SELECT 7 WHERE 'b' {old}", [("a", "b")])
        cursor.execute(f"SELECT 7 WHERE 'b' {new}", [["a", "b"]])
        assert cursor.fetchall() == [(7,)]


async def test_what_code_borrows_from_channels_redis_is_there_and_not_here() -> None:
    """Each attribute that the guide names is one of channels_redis, and none of ours; the methods in its place are."""
    [paragraph] = re.findall(r"\*\*The layer's Redis\.\*\*.*", unwrapped(REDIS))
    borrowed = re.findall(r"`layer\.(\w+)", paragraph)
    assert borrowed == ["connection", "_group_key", "_shards"]
    theirs = [core.RedisChannelLayer(), pubsub.RedisPubSubChannelLayer()._get_layer()]
    ours = PostgresChannelLayer(url="postgresql:///chat")
    for name in borrowed:
        assert any(hasattr(layer, name) for layer in theirs), name
        assert not hasattr(ours, name)
    for name in re.findall(r"`(\w+)\(\)`", paragraph):
        assert callable(getattr(ours, name))
