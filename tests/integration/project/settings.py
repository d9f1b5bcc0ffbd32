"""Settings of the project, on the database(s) of the environment, in each way that CONFIG can name one."""

from __future__ import annotations

import json
import os
from typing import Any

from psycopg.conninfo import conninfo_to_dict


def database(url: str) -> dict[str, Any]:
    """Return the DATABASES entry of a libpq URI."""
    facts = conninfo_to_dict(url)
    names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    return {"ENGINE": "django.db.backends.postgresql", **{names[key]: value for key, value in facts.items()}}


BACKEND = "channels_pg_sa.core.PostgresChannelLayer"
URL = os.environ["PROJECT_URL"]
OTHER_URL = os.environ.get("PROJECT_OTHER_URL", URL)

SECRET_KEY = "tests"
USE_TZ = True
INSTALLED_APPS = ["channels", "channels_pg_sa"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": database(URL), "other": database(OTHER_URL)}
CHANNEL_LAYERS = {
    "default": {"BACKEND": BACKEND, **json.loads(os.environ.get("PROJECT_LAYER", "{}"))},
    "by-alias": {"BACKEND": BACKEND, "CONFIG": {"database": "other"}},
    "by-url": {"BACKEND": BACKEND, "CONFIG": {"url": URL}},
    # What a project that used channels_postgres has.
    "django-keys": {"BACKEND": BACKEND, "CONFIG": {**DATABASES["other"], "TIME_ZONE": None, "CONN_MAX_AGE": 0}},
}
ASGI_APPLICATION = "tests.integration.project.asgi.application"
