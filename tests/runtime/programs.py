"""Programs that use the layer, run as processes of their own, and what they cost the server."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import TracebackType

import psycopg

from tests.support.databases import OURS, TestServer, database_name
from tests.support.processes import ROOT, environment
from tests.support.waiting import PATIENCE, eventually

STRICT = ("-X", "dev", "-W", "error")
PER_PROCESS = 3
"""The most connections of a process."""

COUNT = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name LIKE %s"


class Watch:
    """Note the most connections that layers have to a database at once, from a thread, as long as it is open.

    Args:
        server: which the database is on.
        url: libpq URI of the database.
    """

    def __init__(self, server: TestServer, url: str) -> None:
        self._values = (database_name(url), OURS)
        self._connection = psycopg.connect(server.url, autocommit=True, application_name="tests")
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch")
        self.most = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._connection.close()

    def _look(self) -> None:
        while not self._ending.wait(0.01):
            ((count,),) = self._connection.execute(COUNT, self._values).fetchall()
            self.most = max(self.most, count)


@contextlib.contextmanager
def at_most(server: TestServer, url: str, processes: int, *, least: int = 1) -> Iterator[None]:
    """Assert that processes in the block, so many, keep to their connections, and leave none when it ends."""
    with Watch(server, url) as watch:
        yield
        # The server notices a moment later than the client that a connection has ended.
        eventually(lambda: not server.connections(url))
    assert least <= watch.most <= PER_PROCESS * processes


def run(*arguments: str, status: int = 0, strict: bool = True, patience: float = 10 * PATIENCE, **environ: str) -> str:
    """Run a Python program, and return what it wrote to stderr.

    Args:
        arguments: of the interpreter.
        status: that it must end with.
        strict: whether every warning is an error, and Python's and asyncio's checks are on, which cost time.
        patience: seconds that it may take.
        environ: more variables.

    Raises:
        AssertionError: it ended with another status, or wrote to stdout.
    """
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", *(STRICT if strict else ()), *arguments],
        cwd=ROOT,
        env=environment(**environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # and Python writes where each thread stands
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (status, ""), stdout + stderr
    return stderr
