"""Celery: a worker tells the browser how far its task is, and gives the result in the transaction that saves it."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from examples.common.client import browser
from examples.common.run import Example, Stage, main

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WORKER = ["celery", "--app", "examples.celery.jobs", "worker", "--concurrency", "2", "--loglevel", "warning"]


def invitation(stage: Stage) -> str:
    """Return what to open."""
    page = f"http://{stage.servers['live']}/"
    return f"Open  {page}  to order a report, and see how far it is. Load the page anew for another.\n"


async def check(stage: Stage) -> AsyncIterator[str]:
    """Open a page, and see its report from the start to the end."""
    async with browser(stage.servers["live"]) as page:
        await page.expect(what="started")
        yield "the worker's start came to the browser"
        for percent in (20, 40, 60, 80, 100):
            await page.expect(what="progress", percent=percent)
        yield "its progress came, step by step"
        await page.expect(what="finished", primes=25_997)
        yield "its result came, and could be read from the database"


if __name__ == "__main__":
    tables = Path(__file__).with_name("tables.sql").read_text(encoding="utf-8")
    with TemporaryDirectory(prefix="celery-") as folder:
        servers, workers = {"live": "examples.celery.live:application"}, {"worker": WORKER}
        example = Example(tables, servers, invitation, check, workers, environment={"CELERY_FOLDER": folder})
        status = main(example, __doc__)
    sys.exit(status)
