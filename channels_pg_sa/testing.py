"""For the tests of a Django project: our tables in its test databases, and no connection when these are dropped."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models.signals import post_migrate
from django.test.runner import DiscoverRunner
from django.test.utils import get_unique_databases_and_mirrors

from . import migrate
from .django_settings import configs, database_alias, settings_from_config
from .layer import close_layers

__all__ = ["Runner", "close_layers", "upgraded_with_migrate"]


class Runner(DiscoverRunner):  # type: ignore[misc]  # Django ships no types
    """`TEST_RUNNER = "channels_pg_sa.testing.Runner"`: runs the tests as Django does, `--parallel` too.

    https://docs.djangoproject.com/en/stable/topics/testing/advanced/#defining-a-test-runner
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names: list[tuple[dict[str, Any], str | None]] = []

    def get_databases(self, suite: Any) -> dict[str, bool]:
        """Return the aliases whose test databases are made: if any, those of layers too, lest these use real ones."""
        found: dict[str, bool] = super().get_databases(suite)
        return {**dict.fromkeys(_layers_aliases() if found else (), False), **found}

    def setup_databases(self, **kwargs: Any) -> Any:
        """Make the test databases, with our tables."""
        with upgraded_with_migrate(kwargs.get("aliases")):
            made = super().setup_databases(**kwargs)
        for connection, *_ in made:
            # The child process of a ChannelsLiveServerTestCase puts "test_" before the name a second time, unless
            # TEST has a NAME.
            names = connection.settings_dict["TEST"]
            self._names.append((names, names["NAME"]))
            names["NAME"] = connection.settings_dict["NAME"]
        return made

    def teardown_databases(self, old_config: Any, **kwargs: Any) -> None:
        """Close every layer, and drop the test databases, which nobody may be connected to."""
        close_layers()
        super().teardown_databases(old_config, **kwargs)
        while self._names:
            names, before = self._names.pop()
            names["NAME"] = before


@contextlib.contextmanager
def upgraded_with_migrate(aliases: Collection[str] | None = None) -> Iterator[None]:
    """Within the block `migrate`, which makes each test database, installs our tables as well where a layer uses it.

    Args:
        aliases: of DATABASES whose test databases are made; None for all.
    """
    homes = _homes(aliases)  # now, while the names are those of the project
    done: set[str] = set()

    def upgrade(using: str, **_: Any) -> None:
        if using not in done:  # it is told of each app
            done.add(using)
            _upgrade(using, homes)

    post_migrate.connect(upgrade)
    try:
        yield
    finally:
        post_migrate.disconnect(upgrade)


def _layers_aliases() -> set[str]:
    """Return the aliases of DATABASES that layers use, with those that their test databases mirror, or depend on."""
    found: set[str] = set()
    wanted = [alias for alias, _ in _with_alias()]
    while wanted:
        alias = wanted.pop()
        if alias in connections.settings and alias not in found:
            found.add(alias)
            test = connections[alias].settings_dict["TEST"]
            wanted += [test["MIRROR"]] if test["MIRROR"] else test.get("DEPENDENCIES", [DEFAULT_DB_ALIAS])
    return found


def _with_alias() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the alias and the CONFIG of each layer that has one; what is wrong with others the system checks say."""
    for _, config in configs():
        alias = database_alias(config) if isinstance(config, Mapping) else None
        if isinstance(alias, str):
            yield alias, config


def _homes(aliases: Collection[str] | None) -> dict[str, str]:
    """Return by alias the one that Django makes the test database by: the first of those that share it."""
    shared, mirrors = get_unique_databases_and_mirrors(aliases)
    homes = {alias: group[0] for _, group in shared.values() for alias in group}
    return {**homes, **{alias: homes.get(original, original) for alias, original in mirrors.items()}}


def _upgrade(using: str, homes: Mapping[str, str]) -> None:
    for alias, config in _with_alias():
        if homes.get(alias, alias) == using:
            settings = settings_from_config({**config, "database": using})
            migrate.upgrade(settings.connect, schema=settings.schema)
