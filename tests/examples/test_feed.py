"""A trigger, and a page."""

from __future__ import annotations

import pytest

from tests.examples.programs import Running, check
from tests.support.databases import query
from tests.support.waiting import eventually


@pytest.mark.processes
def test_feed(layer_url: str) -> None:
    """Rows that plain SQL writes come to a browser, those that are rolled back do not."""
    assert check("feed", layer_url) == [
        "two rows of one INSERT came to the browser, in order",
        "an INSERT that was rolled back did not come, and the UPDATE after it did",
        "a DELETE came",
    ]


@pytest.mark.processes
def test_lines_that_are_typed_are_inserted(layer_url: str) -> None:
    """What a person types becomes a row at once."""
    running = Running("feed", layer_url)
    running.type("  Layer found in database ")
    rows = eventually(lambda: query(layer_url, "SELECT headline FROM example_news"))
    assert rows == [("Layer found in database",)]
    assert running.interrupt() == 0
