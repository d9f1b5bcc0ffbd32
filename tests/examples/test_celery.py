"""A worker of Celery, and a page."""

from __future__ import annotations

import pytest

from tests.examples.programs import check
from tests.support.databases import query


@pytest.mark.processes
def test_celery(layer_url: str) -> None:
    """A page sees the start, the progress and the result of a task that another process runs."""
    assert check("celery", layer_url) == [
        "the worker's start came to the browser",
        "its progress came, step by step",
        "its result came, and could be read from the database",
    ]
    assert query(layer_url, "SELECT below, primes FROM example_report") == [(300_000, 25_997)]
