"""Orders: a FastAPI service tells browsers at a Django server of each order, in the transaction that saves it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from examples.common.client import browser
from examples.common.run import CheckFailed, Example, Stage, main

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


JSON = {"Content-Type": "application/json"}


def invitation(stage: Stage) -> str:
    """Return what to open, and how to order."""
    order = f"curl http://{stage.servers['shop']}/orders -H 'Content-Type: application/json' -d"
    return (
        f"Open  http://{stage.servers['live']}/  (Django), and order (FastAPI):\n\n"
        f"  {order} '{_order(3)}'\n  {order} '{_order(1000)}'\n\n"
        "The second is more than there is: it is rolled back, and the page hears nothing.\n"
    )


async def check(stage: Stage) -> AsyncIterator[str]:
    """Place orders while a browser looks on."""
    async with browser(stage.servers["live"]) as page, httpx.AsyncClient() as customer:

        async def place(quantity: int, status: int) -> dict[str, Any]:
            answer = await customer.post(
                f"http://{stage.servers['shop']}/orders", content=_order(quantity), headers=JSON
            )
            if answer.status_code != status:
                raise CheckFailed(f"the shop answered {answer.status_code} {answer.text}")
            return dict(answer.json())

        placed = await place(3, status=201)
        await page.expect(id=placed["id"], text="3 × pencil")
        yield "an order placed over HTTP came to the browser"
        await place(1000, status=409)
        yield "an order for more than there is was rolled back, after its message had been sent"
        placed = await place(2, status=201)
        await page.expect(id=placed["id"], text="2 × pencil")
        yield "the next order is the next thing that came: the browser heard nothing of the one before"


def _order(quantity: int) -> str:
    return json.dumps({"item": "pencil", "quantity": quantity})


if __name__ == "__main__":
    servers = {"live": "examples.orders.live:application", "shop": "examples.orders.service:app"}
    tables = Path(__file__).with_name("tables.sql").read_text(encoding="utf-8")
    sys.exit(main(Example(tables, servers, invitation, check), __doc__))
