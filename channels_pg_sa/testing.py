"""For the tests of a Django project: our tables in its test databases, and no connection when these are dropped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from django.db.models.signals import post_migrate
from django.test.runner import DiscoverRunner

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

    def setup_databases(self, **kwargs: Any) -> Any:
        """Make the test databases, with our tables."""
        with upgraded_with_migrate():
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
def upgraded_with_migrate() -> Iterator[None]:
    """Within the block `migrate`, which makes each test database, installs our tables as well where a layer uses it."""
    done: set[str] = set()

    def upgrade(using: str, **_: Any) -> None:
        if using not in done:  # it is told of each app
            done.add(using)
            _upgrade(using)

    post_migrate.connect(upgrade)
    try:
        yield
    finally:
        post_migrate.disconnect(upgrade)


def _upgrade(alias: str) -> None:
    for _, config in configs():
        if database_alias(config) == alias:
            settings = settings_from_config(config)
            migrate.upgrade(settings.connect, schema=settings.schema)
