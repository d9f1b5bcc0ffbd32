"""Django settings of the tests; each test overrides what it is about."""

from __future__ import annotations

SECRET_KEY = "tests"
USE_TZ = True
INSTALLED_APPS = ["channels"]
DATABASES: dict[str, object] = {}
CHANNEL_LAYERS: dict[str, object] = {}
