"""A program whose threads gevent has patched, or all but these: `python -m tests.runtime.green URL [--threads]`."""

from __future__ import annotations

import sys

import gevent.monkey

gevent.monkey.patch_all(thread="--threads" not in sys.argv)

import asyncio  # noqa: E402 - patched first, as gunicorn -k gevent and celery -P gevent do
import contextlib  # noqa: E402

import psycopg  # noqa: E402
from sqlalchemy import create_engine, pool  # noqa: E402

from channels_pg_sa import ConfigurationError, Layer, Publisher  # noqa: E402


def main() -> None:
    """Send by all that needs no thread; the rest is refused, and leaves no running loop to the caller."""
    url = sys.argv[1]
    layer = Layer(url=url)
    with contextlib.suppress(ConfigurationError):
        layer.send_sync("jobs", {"type": "job", "number": 0})
        raise AssertionError
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise AssertionError
    with psycopg.connect(url) as connection:
        connection.execute(*layer.send_sql("jobs", {"type": "job", "number": 1}))
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:", 1), poolclass=pool.NullPool)
    Publisher(engine=engine).send_sync("jobs", {"type": "job", "number": 2})
    layer.close_sync()


if __name__ == "__main__":
    main()
