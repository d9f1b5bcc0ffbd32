"""python -m benchmarks.growth: what sending costs the PostgreSQL server, how that grows, and what it would come to.

What is measured is CPU of the whole server, not time. A new database is made on the server that
CHANNELS_PG_SA_BENCH_POSTGRES names (else CHANNELS_PG_SA_TEST_URL), which must run on this machine; where none is named,
on a private one. What such a server does for others meanwhile would count as ours.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.coordinator import CaseFailed
from benchmarks.growth.counters import ServerHidden
from benchmarks.growth.report import markdown
from benchmarks.growth.survey import FULL, QUICK, measure, say
from benchmarks.peers import OURS, PEERS
from benchmarks.servers import Servers

PRIVATE_CONNECTIONS = 450


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="once, and with few connections: to see whether it works")
    effort = QUICK if parser.parse_args(arguments).quick else FULL
    with ExitStack() as stack:
        try:
            url = Servers(stack, connections=PRIVATE_CONNECTIONS).url(PEERS[OURS])
            found = asyncio.run(measure(url, effort))
        except (CaseFailed, ServerHidden) as failure:
            say(f"Nothing was measured: {failure}.")
            return 1
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
