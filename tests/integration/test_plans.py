"""How the server runs the statements that run often: from an index, planned once, even while the tables were empty."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest

from channels_pg_sa.connections.connection import SETTINGS
from channels_pg_sa.statements.compiled import compiled
from tests.support.databases import TestServer
from tests.support.layers import LayerFactory, ask

HOT = [
    "send", "send_one", "send_within_capacity", "publish", "publish_one", "plain_members", "join", "leave", "claim",
    "fetch", "forget", "waiting", "members", "beat", "renew", "put_back",
]  # fmt: skip
OVER, PLACE = {"expires_at <= statement_timestamp()"}, {"ctid = ANY"}
KEYS = {
    "channels_pg_sa_message": [{"prefix = ", "recipient = "}, OVER, PLACE],
    "channels_pg_sa_membership": [{"prefix = ", "group_name = "}, {"prefix = ", "node = ($2)"}, OVER, PLACE],
}
"""What a look into an index must have: all of one of these."""


@pytest.fixture(scope="module")
def session(server: TestServer, template: str) -> Iterator[psycopg.Connection]:
    """A connection to empty tables of which the server has statistics, set as the layer sets its own."""
    url = server.create(template)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE channels_pg_sa_message, channels_pg_sa_membership, channels_pg_sa_node")
        connection.execute(SETTINGS)
        yield connection
    server.drop(url)


@pytest.fixture(scope="module")
def crowded(server: TestServer, template: str) -> Iterator[psycopg.Connection]:
    """A connection to a table of many memberships."""
    url = server.create(template)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("""INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel)
            SELECT 'asgi', 'g' || n, 'n' || n % 50, 'c' || n FROM generate_series(1, 20000) n""")
        connection.execute("VACUUM ANALYZE channels_pg_sa_membership")
        connection.execute(SETTINGS)
        yield connection
    server.drop(url)


def generic_plan(session: psycopg.Connection, name: str, explain: str = "EXPLAIN") -> str:
    """The plan of a statement for whatever parameters."""
    statement = compiled(None)[name]
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement.sql)))
    numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", statement.sql).replace("%%", "%")
    session.execute(f"PREPARE hot_{name} AS {numbered}".encode())
    nulls = f"({', '.join(['NULL'] * len(names))})" if names else ""
    return "\n".join(line for (line,) in session.execute(f"{explain} EXECUTE hot_{name}{nulls}".encode()))


@pytest.mark.parametrize("name", HOT)
def test_every_row_is_looked_up_by_the_key_that_finds_it_alone(session: psycopg.Connection, name: str) -> None:
    """A plan that was made for an empty table stays when there are a million rows in it."""
    plan = generic_plan(session, name)
    scans = re.findall(r"(\w+ Scan)\b.* on (channels_pg_sa_me\w+).*\n(?: *(?:Index|TID) Cond: (.*)\n?)?", plan)
    assert {table for _, table, _ in scans} <= KEYS.keys()
    for kind, table, condition in scans:
        assert kind != "Seq Scan", plan
        assert any(all(part in condition for part in key) for key in KEYS[table]), plan
    assert scans or name in {"send", "send_one", "join", "renew"}


@pytest.mark.parametrize("name", ["members", "unregister", "adopt_orphans", "sweep_memberships", "sweep_nodes"])
def test_a_node_s_memberships_have_an_index_of_their_own(crowded: psycopg.Connection, name: str) -> None:
    """It leaves out what any process may read: a plan for whatever parameters must know that none of that is meant."""
    # Of what a recursion does nothing is told before it is done.
    plan = generic_plan(crowded, name, "EXPLAIN ANALYZE" if name == "adopt_orphans" else "EXPLAIN")
    assert "ix_channels_pg_sa_membership_prefix_node" in plan


async def test_statements_are_planned_once(make_own_layer: LayerFactory) -> None:
    """By the settings of the layer's own sessions; nobody else's are touched."""
    layer = make_own_layer()
    for _ in range(10):
        await layer.send("jobs", {"type": "job"})
    rows = await ask(layer, "SELECT name, setting FROM pg_settings WHERE name IN ('plan_cache_mode', 'jit')")
    assert dict(rows) == {"plan_cache_mode": "force_generic_plan", "jit": "off"}


@pytest.mark.parametrize(
    ("call", "inlined"),
    [
        ("topic('secret', 'node', prefix, recipient)", "sha256"),
        ("queued(channel, recipient)", '"right"('),
        ("frame(id, expires_at, recipient, channel, group_name, payload)", "encode("),
    ],
)
def test_functions_of_the_triggers_are_inlined(session: psycopg.Connection, call: str, inlined: str) -> None:
    """Before PostgreSQL 18 a function in SQL that is not is parsed and planned anew by each statement that calls it."""
    plan = session.execute(
        f"EXPLAIN (VERBOSE) SELECT channels_pg_sa_{call} FROM channels_pg_sa_message".encode()
    ).fetchall()
    output = "\n".join(line for (line,) in plan)
    assert inlined in output
    assert not re.search(r"channels_pg_sa_\w+\(", output)
