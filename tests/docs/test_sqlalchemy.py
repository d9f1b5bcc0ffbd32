"""docs/sqlalchemy.md: its code runs as it stands; what it has on Alembic is run by tests/migrations."""

from __future__ import annotations

import ast
import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import select
from sqlalchemy.exc import ProgrammingError, UnboundExecutionError
from sqlalchemy.orm import DeclarativeBase, Session
from websockets.sync.client import ClientConnection, connect

from channels_pg_sa import LiveNode, Publisher, schema
from tests.conformance.backends import Conversation, text
from tests.support.databases import query
from tests.support.engines import engine_on, sqlalchemy_url
from tests.support.layers import LayerFactory
from tests.support.markdown import blocks, run, run_async
from tests.support.processes import TURNOVER, environment
from tests.support.waiting import PATIENCE, eventually

PAGE = "sqlalchemy.md"
TALK = Conversation(patience=10)


async def test_the_code_runs(make_own_layer: LayerFactory, layer_url: str) -> None:
    """From the first block to the last, and what it sends arrives."""
    query(layer_url, "CREATE TABLE orders (id serial PRIMARY KEY, state text NOT NULL)")
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("orders", channel)
    await layer.group_add("orders", "jobs")
    names: dict[str, Any] = {
        "psycopg": psycopg,
        "DATABASE_URL": layer_url,
        "ENGINE_URL": sqlalchemy_url(layer_url),
    }
    for heading in ("Services without Django", "With an engine of yours", "In your transaction"):
        for code in blocks(PAGE, heading):
            await run_async(code, names)
    orders = [{"type": "order.changed", "id": number} for number in (7, 9, 1)]
    assert await TALK.take(layer, channel, 3) == orders
    jobs = [{"type": "job.run", "id": number} for number in (7, 8, 10)]
    assert [message for message in await TALK.take(layer, "jobs", 6) if message["type"] == "job.run"] == jobs
    reading, own = blocks(PAGE, "Who is there")
    count, channels, groups, nodes = [await value(line.partition("#")[0], names) for line in reading.splitlines()]
    assert count == ast.literal_eval(reading.splitlines()[0].partition("# ")[2])
    assert channels == sorted([channel, "jobs"])
    assert groups == ast.literal_eval(reading.splitlines()[2].partition("# ")[2])
    assert [type(node) for node in nodes] == [LiveNode]
    await run_async(own, names)
    assert names["rows"].all() == [(1, 2)]
    await names["engine"].dispose()


@pytest.mark.processes
def test_the_service_with_websockets(tmp_path: Path, layer_url: str) -> None:
    """Its clients hear of what is sent, and leave; and it stops although some are there."""
    (code,) = blocks(PAGE, "WebSockets without Django")
    (tmp_path / "service.py").write_text(f"DATABASE_URL = {layer_url!r}\n{code}", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "--log-level", "error", "service:app"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as service:
        try:
            with ExitStack() as clients, Publisher(url=layer_url) as publisher:
                going, staying = (
                    clients.enter_context(eventually(lambda: opened(port), within=TURNOVER)) for _ in range(2)
                )
                eventually(lambda: publisher.group_count_sync("orders") == 2)
                publisher.group_send_sync("orders", {"type": "order.changed", "id": 7})
                for client in (going, staying):
                    assert json.loads(client.recv(timeout=PATIENCE)) == {"type": "order.changed", "id": 7}
                going.close()
                eventually(lambda: publisher.group_count_sync("orders") == 1)
                service.terminate()
                _, errors = service.communicate(timeout=TURNOVER)
            assert errors == ""
        finally:
            service.kill()
    assert query(layer_url, "SELECT count(*) FROM channels_pg_sa_node") == [(0,)]


def opened(port: int) -> ClientConnection | None:
    """Return a WebSocket to the service, None while it does not answer."""
    try:
        return connect(f"ws://127.0.0.1:{port}/orders")
    except OSError:
        return None


def test_the_tables_of_a_schema(layer_url: str) -> None:
    """They show what is there and nothing of the tables outside."""
    names: dict[str, Any] = {"select": select}
    (code,) = blocks(PAGE, "The tables")
    run(code, names)
    publishers = Publisher(url=layer_url), Publisher(url=layer_url, schema="tenant")
    for channel, publisher in zip(("outside", "inside"), publishers, strict=True):
        publisher.send_sync(channel, text(1))
        publisher.close_sync()
    with engine_on(layer_url) as engine, engine.connect() as connection:
        assert connection.execute(names["unread"]).all() == [("inside", 1)]
        outside = select(schema.tables(None).message.c.channel)
        assert connection.scalars(outside).all() == ["outside"]
        for name in ("message", "membership", "node", "installation"):
            table, original = getattr(schema.tables("tenant"), name), getattr(schema, name)
            assert (table.schema, table.name, table.columns.keys()) == (
                "tenant",
                original.name,
                original.columns.keys(),
            )
        assert connection.scalar(select(schema.tables("tenant").installation.c.revision)) == schema.REVISION


async def value(expression: str, names: dict[str, Any]) -> Any:
    """Return what an expression with an await gives."""
    await run_async(f"_ = {expression.strip()}", names)
    return names["_"]


def test_a_session_that_chooses_its_engine_by_model(layer_url: str) -> None:
    """It does not know our tables, and is told."""

    class Base(DeclarativeBase):
        pass

    statement = Publisher(url=layer_url).send_statement("jobs", text(1))
    with engine_on(layer_url) as engine, Session(binds={Base: engine}) as session:
        with pytest.raises(UnboundExecutionError):
            session.execute(statement)
        session.execute(statement, bind_arguments={"bind": engine})
        session.commit()
    assert query(layer_url, "SELECT channel FROM channels_pg_sa_message") == [("jobs",)]


def test_an_engine_that_translates_schemas(layer_url: str) -> None:
    """It translates our tables too, unless the publisher has a schema."""
    options = {"schema_translate_map": {None: "somewhere"}}
    with engine_on(layer_url, execution_options=options) as engine:
        with pytest.raises(ProgrammingError, match=r"somewhere\.channels_pg_sa_message"):
            Publisher(engine=engine).send_sync("jobs", text(1))
        Publisher(engine=engine, schema="public").send_sync("jobs", text(1))
    assert query(layer_url, "SELECT channel FROM channels_pg_sa_message") == [("jobs",)]
