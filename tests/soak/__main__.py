"""python -m tests.soak: senders, receivers, workers and random faults for some minutes, and one table at the end."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from tempfile import TemporaryDirectory

from tests.support.databases import TestServer
from tests.support.schema import install
from tests.support.temp_postgres import TempPostgres

from . import volume
from .report import table
from .stage import Stage


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if anything was lost, doubled or out of order that may not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to send")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the faults and the senders")
    parser.add_argument("--url", help="a server to use, which is not restarted, in place of a private one")
    parser.add_argument("--messages", type=int, help="send so many as fast as can be, without faults, instead")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        url, private = _database(stack, options.url)
        if options.messages:
            print(asyncio.run(volume.measure(url, options.messages)))
            return 0
        print(f"{options.minutes:g} minutes, seed {options.seed}", file=sys.stderr)
        folder = stack.enter_context(TemporaryDirectory(prefix="soak-"))
        stage = Stage(url, folder, random.Random(options.seed), private)
        outcome = asyncio.run(stage.play(60 * options.minutes))
    print(table(outcome))
    return 0 if outcome.is_clean else 1


def _database(stack: ExitStack, server_url: str | None) -> tuple[str, TempPostgres | None]:
    """Return the URI of a fresh database with the schema, and the server that it is on if that is private."""
    private = None
    if server_url is None:
        private = stack.enter_context(TempPostgres(settings={"max_connections": 100}))
        url = private.url
    else:
        server = TestServer(server_url)
        stack.callback(server.close)
        url = server.create()
    install(url)
    return url, private


if __name__ == "__main__":
    sys.exit(main())
