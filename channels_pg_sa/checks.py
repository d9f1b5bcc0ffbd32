"""Django's system checks: a wrong CONFIG is an error, missing or old tables are a warning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from sqlalchemy.exc import DBAPIError

from .django_settings import BACKEND, configs, database_alias, entries, is_ours, settings_from_config
from .errors import ChannelLayerError, SchemaError


@checks.register("channels")
def check_config(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report each CONFIG that no layer can be built with."""
    messages: list[checks.CheckMessage] = []
    for name, config in configs():
        try:
            settings_from_config(config)
        except ImproperlyConfigured as error:
            reason = str(error).removeprefix("CHANNEL_LAYERS: ")  # which the place says more exactly
            messages.append(checks.Error(reason, obj=_place(name), id="channels_pg_sa.E001"))
    return messages


@checks.register("channels")
def check_entries(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report a BACKEND that is meant to be ours and is not, and settings where Channels does not look for them."""
    messages: list[checks.CheckMessage] = []
    for name, entry in entries():
        backend = entry.get("BACKEND")
        if is_ours(backend):
            if unread := sorted(map(str, entry.keys() - {"BACKEND", "CONFIG", "TEST_CONFIG"})):
                said = f"Channels does not read {', '.join(unread)}."
                hint = 'What is for the layer goes into "CONFIG".'
                messages.append(checks.Warning(said, hint, obj=_place(name), id="channels_pg_sa.W002"))
        elif str(backend).startswith("channels_pg_sa."):
            hint = f'The one of channels_pg_sa is "{BACKEND}".'
            messages.append(
                checks.Error(f'"{backend}" is no BACKEND.', hint, obj=_place(name), id="channels_pg_sa.E002")
            )
    return messages


@checks.register(checks.Tags.database)
def check_tables(
    app_configs: Sequence[AppConfig] | None = None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """Report each database without our tables, or with old ones; Django asks only for the databases it is told."""
    if not databases:
        return []
    found = (_about_tables(name, config, databases) for name, config in configs())
    return [message for message in found if message is not None]


def _about_tables(name: str, config: Mapping[str, Any], databases: Sequence[str]) -> checks.Warning | None:
    try:
        made = settings_from_config(config)
    except ImproperlyConfigured:
        return None  # check_config says so
    alias = database_alias(config)
    if alias is not None and alias not in databases:
        return None
    from . import migrate  # not before: Alembic, which it imports, is slow to load and no concern of a web server

    try:
        migrate.check(made.connect, schema=made.schema)
    except (ChannelLayerError, DBAPIError) as error:
        outdated = isinstance(error, SchemaError) and error.is_outdated
        hint = f"For this layer: manage.py channels_pg_sa upgrade --layer {name}" if outdated else None
        return checks.Warning(migrate.reason_of(error), hint, obj=_place(name), id="channels_pg_sa.W001")
    return None


def _place(name: str) -> str:
    return f'CHANNEL_LAYERS["{name}"]'
