"""Feed: a trigger on a table tells the browsers of each row, whoever writes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from examples.common.client import browser
from examples.common.run import Example, Stage, main

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def invitation(stage: Stage) -> str:
    """Return what to open, and how to write rows."""
    return (
        f"Open  http://{stage.servers['live']}/  and write headlines here: plain SQL inserts each line into a table.\n"
        f"Or write to the table, example_news, with whatever you like:\n\n  psql '{stage.url}'\n"
    )


def insert_lines(stage: Stage) -> None:
    """Insert what is typed, line by line."""
    with psycopg.connect(stage.url, autocommit=True) as connection:
        for line in sys.stdin:
            if headline := line.strip():
                connection.execute("INSERT INTO example_news (headline) VALUES (%s)", (headline,))


async def check(stage: Stage) -> AsyncIterator[str]:
    """Write rows by SQL while a browser looks on."""
    connecting = psycopg.AsyncConnection.connect(stage.url, autocommit=True)
    async with browser(stage.servers["live"]) as page, await connecting as sql:
        cursor = await sql.execute("INSERT INTO example_news (headline) VALUES ('one'), ('two') RETURNING id")
        (one,), (two,) = await cursor.fetchall()
        await page.expect(what="insert", row={"id": one, "headline": "one"})
        await page.expect(what="insert", row={"id": two, "headline": "two"})
        yield "two rows of one INSERT came to the browser, in order"
        await sql.execute("BEGIN; INSERT INTO example_news (headline) VALUES ('a rumour'); ROLLBACK")
        await sql.execute("UPDATE example_news SET headline = 'two!' WHERE id = %s", (two,))
        await page.expect(what="update", row={"id": two, "headline": "two!"})
        yield "an INSERT that was rolled back did not come, and the UPDATE after it did"
        await sql.execute("DELETE FROM example_news WHERE id = %s", (one,))
        await page.expect(what="delete", row={"id": one, "headline": "one"})
        yield "a DELETE came"


if __name__ == "__main__":
    table = Path(__file__).with_name("feed.sql").read_text(encoding="utf-8")
    example = Example(table, {"live": "examples.feed.live:application"}, invitation, check, by_hand=insert_lines)
    sys.exit(main(example, __doc__))
