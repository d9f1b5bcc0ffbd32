"""Makes the package a Django app, for its management command and system checks."""

from __future__ import annotations

from django.apps import AppConfig


class ChannelsPgSaConfig(AppConfig):
    """The app `channels_pg_sa`. It has no models: its tables are the affair of its own migrations."""

    name = "channels_pg_sa"
    verbose_name = "Channel layer on PostgreSQL"

    def ready(self) -> None:
        """Register the system checks."""
        from . import checks  # noqa: F401  Registering is all that importing does, and it needs the app registry.
