"""python -m benchmarks.growth: what sending costs the PostgreSQL server, how that grows, and what it would come to.

What is measured is CPU of the whole server, not time. A new database is made on the server that
CHANNELS_PG_SA_BENCH_POSTGRES names (else CHANNELS_PG_SA_TEST_URL), which must run on this machine; where none is named,
on a private one. What such a server does for others meanwhile would count as ours.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.coordinator import CaseFailed
from benchmarks.growth.counters import ServerHidden
from benchmarks.growth.report import markdown
from benchmarks.growth.survey import FULL, QUICK, measure, say
from benchmarks.peers import OURS, PEERS
from benchmarks.servers import Servers

PRIVATE_CONNECTIONS = 450


class _Servers(Servers):
    """As for the other benchmarks, but a private server with room for many, whose commits wait for a disk."""

    def _start_postgres(self) -> str:
        from tests.support.temp_postgres import TempPostgres

        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        Path(folder).chmod(0o711)  # the account that runs the server must get through
        settings = {"max_connections": PRIVATE_CONNECTIONS, "shared_buffers": "128MB", "max_wal_size": "1GB"}
        server = TempPostgres(settings=settings, tcp=True, data_dir=os.path.join(folder, "data"))
        return self._stack.enter_context(server).tcp_url


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="once, and with few connections: to see whether it works")
    effort = QUICK if parser.parse_args(arguments).quick else FULL
    with ExitStack() as stack:
        try:
            url = _Servers(stack).url(PEERS[OURS])
            found = asyncio.run(measure(url, effort))
        except (CaseFailed, ServerHidden) as failure:
            say(f"Nothing was measured: {failure}.")
            return 1
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
