"""`manage.py channels_pg_sa`: installs, updates, checks and removes a layer's tables, and shows what is in them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from alembic.util import CommandError as AlembicError
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from sqlalchemy.exc import DBAPIError

from channels_pg_sa.cli import MISUSED, add_commands, check_arguments, run
from channels_pg_sa.config import Settings
from channels_pg_sa.django_settings import BACKEND, configs, settings_from_config
from channels_pg_sa.errors import ChannelLayerError, ConfigurationError
from channels_pg_sa.migrate import reason_of


class Command(BaseCommand):
    """Run `channels-pg-sa` on the database of an entry of CHANNEL_LAYERS."""

    help = "Install, update, check and remove the tables of the channel layer, and show what is in them."
    requires_system_checks: Sequence[str] = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add what `channels-pg-sa` has, and which layer or database is meant."""
        add_commands(parser)
        parser.add_argument("--layer", default="default", help="the entry of CHANNEL_LAYERS; default: default")
        parser.add_argument("--database", help="an alias of DATABASES, in place of the layer's own database")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it.

        Raises:
            CommandError: with exit code 1 if the database is not as it should be, or refuses; 2 for wrong arguments.
        """
        try:
            arguments = Namespace(**options)
            check_arguments(arguments)
            settings = settings_for(options["layer"], options["database"])
            run(arguments, settings.connect, settings.schema, self.stdout)
        except (ImproperlyConfigured, ConfigurationError, AlembicError) as error:
            raise CommandError(str(error), returncode=MISUSED) from error
        except (ChannelLayerError, DBAPIError) as error:
            raise CommandError(reason_of(error)) from error


def settings_for(layer: str, database: str | None = None) -> Settings:
    """Return the settings of an entry of CHANNEL_LAYERS, or of one that would use an alias of DATABASES.

    Raises:
        CommandError: the layer is not ours, and no alias says where to go instead; or there is no such alias.
        django.core.exceptions.ImproperlyConfigured: its CONFIG is wrong.
    """
    config = dict(configs()).get(layer)
    if database is not None:
        if database not in connections.settings:
            known = ", ".join(sorted(connections.settings))
            raise CommandError(f"--database must be an alias of DATABASES ({known}).", returncode=MISUSED)
        schema = config.get("schema") if isinstance(config, Mapping) else None
        return settings_from_config({"database": database, "schema": schema})
    if config is None:
        raise CommandError(
            f'CHANNEL_LAYERS["{layer}"] does not have the BACKEND "{BACKEND}". '
            "Name a layer that has with --layer, or an alias of DATABASES with --database."
        )
    return settings_from_config(config)
