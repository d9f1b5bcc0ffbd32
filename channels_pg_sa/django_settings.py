"""Makes Settings of a CONFIG and Django's DATABASES."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.utils import ConnectionHandler, load_backend
from django.utils.module_loading import import_string

from .address import Connector, asked, check_keywords
from .config import DATABASE_KEYS, Settings, check_keys, nearest_key, settings_from_mapping
from .errors import ConfigurationError
from .rules import Rule, shown

BACKEND = "channels_pg_sa.core.PostgresChannelLayer"
OWN_ALIAS = "channels_pg_sa"

_POSTGRESQL = "django.db.backends.postgresql"
# Taken for PostgreSQL without being loaded: PostGIS would want GDAL, and the old name is gone from Django.
_NAMES_OF_POSTGRESQL = frozenset(
    {_POSTGRESQL, "django.db.backends.postgresql_psycopg2", "django.contrib.gis.db.backends.postgis"}
)
# What Django puts beside libpq's parameters: for its own connections, not for ours.
_FOR_DJANGO_ONLY = frozenset(
    {"assume_role", "async_", "autocommit", "connection_factory", "context", "cursor_factory", "isolation_level"}
    | {"pool", "prepare_threshold", "row_factory", "server_side_binding", "client_encoding"}
)


def _is_dotted_path(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.]+", value) is not None


def _is_port(value: object) -> bool:
    """A port, or one for each of several hosts; libpq reads "" as the usual port."""
    return re.fullmatch(r"(\d*)(,\d*)*", str(value)) is not None


_TEXT_OR_NONE = Rule("a text", lambda value: isinstance(value, str), if_none="")
_ENTRY_RULES: dict[str, Rule] = {
    "ENGINE": Rule(f'the dotted path of a database backend, such as "{_POSTGRESQL}"', _is_dotted_path),
    "NAME": Rule("the name of a database", lambda value: isinstance(value, str)),
    "USER": _TEXT_OR_NONE,
    "HOST": _TEXT_OR_NONE,
    "PORT": Rule("a port", _is_port, if_none=""),
    "PASSWORD": Rule(
        "a text, or a function that returns one", lambda v: isinstance(v, str) or callable(v), if_none="", secret=True
    ),
    "OPTIONS": Rule(
        "a mapping of connection parameters", lambda value: isinstance(value, Mapping), dict, if_none={}, secret=True
    ),
}


def configs() -> Iterator[tuple[str, Any]]:
    """Give the name and the CONFIG, whatever that is, of each entry of CHANNEL_LAYERS that is ours."""
    return ((name, entry.get("CONFIG", {})) for name, entry in entries() if is_ours(entry.get("BACKEND")))


def entries() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give the name of each entry of CHANNEL_LAYERS, and the entry."""
    layers = getattr(settings, "CHANNEL_LAYERS", {})
    for name, entry in layers.items() if isinstance(layers, Mapping) else ():
        if isinstance(entry, Mapping):
            yield name, entry


def is_ours(backend: object) -> bool:
    """Tell whether a BACKEND is our layer, or a class of the project's that is made of it and takes the same CONFIG."""
    if not isinstance(backend, str) or backend == BACKEND:
        return backend == BACKEND
    try:
        found = import_string(backend)
    except Exception:  # noqa: BLE001 - Channels tells what is wrong with it, as soon as somebody wants that layer
        return False
    ours = import_string(BACKEND)
    return isinstance(found, type) and issubclass(found, ours) and found.__init__ is ours.__init__  # type: ignore[misc]


def settings_from_config(config: Mapping[str, Any]) -> Settings:
    """Make Settings of the CONFIG of a CHANNEL_LAYERS entry.

    Args:
        config: the layer's own keys and one way to say where the database is: "url", "database" (an alias of
            DATABASES) or the keys of a DATABASES entry; without any, the alias "channels_pg_sa" or "default".

    Raises:
        django.core.exceptions.ImproperlyConfigured: for whatever is wrong, naming the key.
    """
    try:
        _check_mapping(config)
        database = _database_keys(config)
        rest = {key: value for key, value in config.items() if key not in database and key != "database"}
        # First: whoever brings the CONFIG of another layer is told so, and not that a database is missing.
        check_keys(rest)
        _check_one_way(config, database)
        if "url" in config:
            return settings_from_mapping(rest)
        return settings_from_mapping(
            rest, _connector_of_entry(database) if database else _connector_of_alias(database_alias(config))
        )
    except ConfigurationError as error:
        raise ImproperlyConfigured(f"CHANNEL_LAYERS: {error}") from error
    except KeyError as error:
        # From a database backend. Channels would take it for a missing layer and give None to everybody.
        raise ImproperlyConfigured(f"CHANNEL_LAYERS: the database backend misses the key {error}.") from error


def database_alias(config: Mapping[str, Any]) -> str | None:
    """Return the alias of DATABASES that a CONFIG uses, None if it has an address of its own."""
    if "url" in config or _database_keys(config):
        return None
    alias: str = config.get("database", OWN_ALIAS if OWN_ALIAS in connections.settings else DEFAULT_DB_ALIAS)
    return alias


def _database_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a CONFIG that is an entry of DATABASES.

    A third party's ENGINE may have keys of its own: with one, other capitalised keys are its affair.
    """
    foreign = "ENGINE" in config and not str(config["ENGINE"]).startswith("django.")
    return {
        key: value
        for key, value in config.items()
        if key in DATABASE_KEYS or (foreign and str(key).isupper() and nearest_key(str(key)) is None)
    }


def _libpq_parameters(wrapper: DatabaseWrapper) -> dict[str, Any]:
    """Return what libpq needs for a connection like the ones that a Django backend makes.

    Raises:
        ConfigurationError: OPTIONS has a parameter that libpq does not know, or PASSWORD is neither a text nor a
            callable that returns one.
    """
    parameters = _parameters(wrapper)
    password = parameters.get("password")
    if callable(password):
        parameters["password"] = password = asked(password, "PASSWORD")
    if password is not None and not isinstance(password, str):
        raise ConfigurationError(
            f'"PASSWORD" must be a text, or a function that returns one; this is of type {type(password).__name__}.'
        )
    return parameters


def _parameters(wrapper: DatabaseWrapper) -> dict[str, Any]:
    given = wrapper.get_connection_params()
    parameters = {key: value for key, value in given.items() if key not in _FOR_DJANGO_ONLY and value is not None}
    check_keywords(parameters, "OPTIONS")
    role = wrapper.settings_dict["OPTIONS"].get("assume_role")
    if role:
        escaped = re.sub(r"([\\\s])", r"\\\1", role)
        parameters["options"] = f"{parameters.get('options', '')} -c role={escaped}".lstrip()
    return parameters


def _check_mapping(config: object) -> None:
    if not isinstance(config, Mapping):
        raise ConfigurationError(f'"CONFIG" must be a mapping of keys to values, not {type(config).__name__}.')


def _check_one_way(config: Mapping[str, Any], database: Mapping[str, Any]) -> None:
    ways = [key for key in ("url", "database") if key in config] + list(database)[:1]
    if len(ways) > 1:
        raise ConfigurationError(
            f'"{ways[0]}" and "{ways[1]}" both say where the database is. Keep one of "url", "database" and '
            "the keys of a DATABASES entry (ENGINE, NAME, …)."
        )


def _connector_of_alias(alias: object) -> Connector:
    if not isinstance(alias, str) or alias not in connections.settings:
        known = ", ".join(sorted(connections.settings))
        raise ConfigurationError(f'"database" must be an alias of DATABASES ({known}), not {shown(alias)}.')
    wrapper_class = _wrapper_class(connections.settings[alias]["ENGINE"], f'DATABASES["{alias}"]')
    # The entry is looked at anew for each connection: Django renames the database while tests run.
    return _connector(lambda: wrapper_class(connections.settings[alias], alias))


def _connector_of_entry(database: Mapping[str, Any]) -> Connector:
    entry = {"ENGINE": _POSTGRESQL, **database}
    for key, rule in _ENTRY_RULES.items():
        if key in entry:
            entry[key] = rule.applied(f'"{key}"', entry[key])
    if not entry.get("NAME") and "service" not in entry.get("OPTIONS", {}):
        raise ConfigurationError('"NAME" is missing: the name of the database.')
    wrapper_class = _wrapper_class(entry["ENGINE"], "CONFIG")
    filled = ConnectionHandler({DEFAULT_DB_ALIAS: entry}).settings[DEFAULT_DB_ALIAS]
    return _connector(lambda: wrapper_class({**filled, "OPTIONS": dict(filled["OPTIONS"])}, OWN_ALIAS))


def _connector(wrapper: Callable[[], DatabaseWrapper]) -> Connector:
    now = wrapper()
    # A third party's own method may go and fetch a token: that can wait for the first connection.
    if type(now).get_connection_params is DatabaseWrapper.get_connection_params:
        _parameters(now)
    return lambda: _libpq_parameters(wrapper())


def _wrapper_class(engine: str, place: str) -> Any:
    """Return the subclass of DatabaseWrapper that an ENGINE names; Django ships no types."""
    if engine in _NAMES_OF_POSTGRESQL:
        return DatabaseWrapper
    # Of Django's own no other will do, and loading one may fail for want of its driver.
    wrapper_class = None if engine.startswith("django.") else load_backend(engine).DatabaseWrapper
    if getattr(wrapper_class, "vendor", None) != DatabaseWrapper.vendor:
        raise ConfigurationError(
            f'{place} has the ENGINE "{engine}", which is not PostgreSQL. Use "{_POSTGRESQL}", or say with "database" '
            'or "url" where a PostgreSQL database is.'
        )
    return wrapper_class
