"""Django's settings for each of the examples: one database, which is the channel layer too."""

from __future__ import annotations

import os
import secrets

from psycopg.conninfo import conninfo_to_dict

_address = conninfo_to_dict(os.environ["DATABASE_URL"])
_entry = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        **{name: str(_address.pop(key)) for key, name in _entry.items() if key in _address},
        "OPTIONS": _address,
    }
}
CHANNEL_LAYERS = {"default": {"BACKEND": "channels_pg_sa.core.PostgresChannelLayer"}}

INSTALLED_APPS = ["channels_pg_sa"]
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
SECRET_KEY = secrets.token_urlsafe(40)  # nothing is signed
ROOT_URLCONF = "examples.common.site"
USE_TZ = True
