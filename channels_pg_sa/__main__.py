"""Lets `python -m channels_pg_sa` be the command `channels-pg-sa`."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
