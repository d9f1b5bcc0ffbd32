"""FastAPI and Django on one database."""

from __future__ import annotations

import pytest

from tests.examples.programs import check
from tests.support.databases import query


@pytest.mark.processes
def test_orders(layer_url: str) -> None:
    """An order placed over HTTP comes to a browser of the other server; one that is rolled back comes to nobody."""
    assert check("orders", layer_url) == [
        "an order placed over HTTP came to the browser",
        "an order for more than there is was rolled back, after its message had been sent",
        "the next order is the next thing that came: the browser heard nothing of the one before",
    ]
    assert query(layer_url, "SELECT quantity FROM example_order ORDER BY id") == [(3,), (2,)]
    assert query(layer_url, "SELECT stock FROM example_item") == [(95,)]
