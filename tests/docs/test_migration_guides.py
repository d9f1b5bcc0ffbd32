"""docs/from_channels_redis.md, docs/from_channels_postgres.md: the options are real, and ours are accepted."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from channels.layers import channel_layers, get_channel_layer
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from channels_pg_sa.config import Settings
from channels_pg_sa.core import PostgresChannelLayer
from channels_pg_sa.django import settings_from_config
from tests.conformance.backends import Conversation
from tests.support.django_databases import databases, entry
from tests.support.markdown import DOCS, all_blocks, blocks, run

REDIS, POSTGRES = "from_channels_redis.md", "from_channels_postgres.md"
PAGES = [REDIS, POSTGRES]
OURS = "channels_pg_sa.core.PostgresChannelLayer"
TALK = Conversation(patience=10)
FACTS = {name: field.default for name, field in Settings.__dataclass_fields__.items()}


def layers(page: str) -> list[dict[str, Any]]:
    """Return every CHANNEL_LAYERS of a page."""
    found = []
    for code in all_blocks(page):
        names: dict[str, Any] = {"INSTALLED_APPS": [], "SECRET_KEY": "a secret"}
        run(code, names)
        found += [names["CHANNEL_LAYERS"]] if "CHANNEL_LAYERS" in names else []
    return found


def table(page: str) -> list[tuple[list[str], str, str]]:
    """Return the table of options: their names there, the default there, the default here."""
    rows = []
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            name, there, _, here = (cell.strip() for cell in line.strip("|").split("|"))
            rows.append((re.findall(r"`(\w+)`", name), there, here))
    return rows


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
    empty: dict[str, Any] = {"channel_capacity": {}, "symmetric_encryption_keys": []}
    names = {"serializer_format": "serializer"}
    told = [(names.get(found[0], found[0]), here) for found, _, here in table(page)]
    told = [(name, here) for name, here in told if name in FACTS and here.startswith("`")]
    assert len(told) >= 4
    assert {name: value(here) for name, here in told} == {name: empty.get(name, FACTS[name]) for name, _ in told}


def test_the_options_of_channels_redis_are_all_there() -> None:
    """Names and defaults are those of the package that is installed."""
    core = pytest.importorskip("channels_redis.core")
    pubsub = pytest.importorskip("channels_redis.pubsub")
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


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("hosts", "There is no Redis here"),
        ("serializer_format", '"serializer"'),
        ("random_prefix_length", "Leave it out"),
    ],
)
def test_what_is_not_named_here_is_refused_with_a_hint(layer_url: str, option: str, hint: str) -> None:
    """As the guide says."""
    with databases(default=entry(layer_url)), pytest.raises(ImproperlyConfigured, match=hint):
        settings_from_config({option: 12})


def test_what_databases_may_have_is_accepted(layer_url: str) -> None:
    """Every option of channels_postgres that the table names, those of Django too."""
    samples: dict[str, Any] = {
        **entry(layer_url),
        "prefix": "shop",
        "expiry": 60,
        "group_expiry": 0,
        "symmetric_encryption_keys": ["key"],
        "PSYCOPG_OPTIONS": {"min_size": 4, "max_size": 4},
        "TIME_ZONE": "UTC",
        "CONN_MAX_AGE": 60,
        "capacity": 100,
        "channel_capacity": {"jobs": 10},
    }
    told = {name for names, _, _ in table(POSTGRES) for name in names} - {"DATABASES"}
    assert told - set(samples) <= {"USER", "PASSWORD", "HOST", "PORT"}
    assert settings_from_config(samples).capacity == 100
