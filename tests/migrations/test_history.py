"""The migrations leave what they should, and nothing else."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import io
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Integer, MetaData, Table, select, text
from sqlalchemy.exc import DBAPIError

from channels_pg_sa import migrate
from channels_pg_sa.errors import ConfigurationError, SchemaError
from channels_pg_sa.schema import REVISION, installation, metadata
from channels_pg_sa.status import status
from tests.migrations.catalog import objects, without_versions
from tests.support.databases import TestServer, database_name, query
from tests.support.layers import LayerFactory
from tests.support.urls import with_parameters
from tests.support.waiting import PATIENCE, eventually

SCHEMAS = pytest.mark.parametrize("schema", [None, "tenant", "Tenant_1"])


@SCHEMAS
def test_up_down_up_leaves_nothing(database_url: str, schema: str | None) -> None:
    """Down takes away all that up brought, and the second up brings the same again."""
    migrate.upgrade(database_url, schema=schema)
    up = objects(database_url, schema)
    migrate.downgrade(database_url, schema=schema, revision="base")
    down = objects(database_url, schema)
    migrate.upgrade(database_url, schema=schema)
    assert len(up) > len(metadata.tables)
    assert down == []
    assert objects(database_url, schema) == up


def test_a_schema_of_its_own_takes_everything(database_url: str) -> None:
    """With a schema nothing comes into public, where a host project's tables are."""
    migrate.upgrade(database_url, schema="tenant")
    assert objects(database_url) == []


@SCHEMAS
def test_autogenerate_finds_no_difference(database_url: str, schema: str | None) -> None:
    """The tables of the migrations are the tables of the code."""
    query(database_url, "CREATE TABLE somebody_else_s (id int)")
    migrate.upgrade(database_url, schema=schema)
    said = io.StringIO()
    command.check(migrate.alembic_config(database_url, schema=schema, output=said))
    assert "No new upgrade operations detected" in said.getvalue()


@SCHEMAS
def test_the_migrations_make_what_the_metadata_makes(database_url: str, schema: str | None) -> None:
    """Autogenerate sees neither functions, triggers, storage nor unlogged tables: the catalog does."""
    migrate.upgrade(database_url, schema=schema)
    migrated = without_versions(objects(database_url, schema))
    migrate.downgrade(database_url, schema=schema, revision="base")
    with migrate.engine_for(database_url).begin() as connection:
        if schema:
            connection.execute(text(f'SET LOCAL search_path TO "{schema}"'))
        metadata.create_all(connection, checkfirst=False)
    assert migrated == objects(database_url, schema)


@SCHEMAS
def test_offline_sql_makes_the_same(database_url: str, schema: str | None) -> None:
    """The SQL can be read, kept and run by one who lets no program change a database."""
    migrate.upgrade(database_url, schema=schema)
    migrated = objects(database_url, schema)
    migrate.downgrade(database_url, schema=schema, revision="base")
    script = io.StringIO()
    migrate.write_sql(script, schema=schema)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(script.getvalue().encode())
    assert objects(database_url, schema) == migrated
    migrate.check(database_url, schema=schema)


def test_a_migration_leaves_its_session_as_it_was(database_url: str) -> None:
    """Through a pooler, or from psql with `-f`, others, or other scripts, come after it in the same session."""
    changed = "SELECT name, setting FROM pg_settings WHERE source = 'session'"
    script = io.StringIO()
    migrate.write_sql(script, schema="tenant")
    with psycopg.connect(database_url, autocommit=True) as connection:
        before = connection.execute(changed).fetchall()
        connection.execute(script.getvalue().encode())
        assert connection.execute(changed).fetchall() == before


def test_offline_sql_goes_where_output_is_redirected_to() -> None:
    """Where no file is given it goes to the standard output of the moment, not of the import."""
    script = io.StringIO()
    with contextlib.redirect_stdout(script):
        migrate.write_sql()
    assert "CREATE UNLOGGED TABLE" in script.getvalue()


def test_the_head_is_the_revision_that_the_code_needs() -> None:
    """A new migration must not be forgotten in schema.py, nor the other way round."""
    assert migrate.history()[0][0] == REVISION


def test_migrations_are_frozen() -> None:
    """What a released migration does must not change with the code, so it imports none of it."""
    files = sorted((migrate.script_location() / "versions").glob("*.py"))
    assert files
    assert [file.name for file in files if "channels_pg_sa." in "".join(imports(file.read_text()))] == []


def imports(source: str) -> list[str]:
    """The modules that a Python source imports, each followed by a dot."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return [f"{name}." for name in [*plain, *(node.module or "" for node in nodes if isinstance(node, ast.ImportFrom))]]


def test_a_second_upgrade_changes_nothing(database_url: str) -> None:
    """Each deployment may run it."""
    migrate.upgrade(database_url)
    up = objects(database_url)
    migrate.upgrade(database_url)
    assert objects(database_url) == up


def test_two_upgrades_at_once_both_succeed(database_url: str, server: TestServer) -> None:
    """Pods that start together wait for each other: one installs, the other finds it done."""
    environ = {**os.environ, "CHANNELS_PG_SA_URL": database_url}
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = %s::oid"
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (migrate.LOCK,))
        ((database,),) = query(database_url, "SELECT oid::text FROM pg_database WHERE datname = current_database()")
        upgrades = [
            subprocess.Popen(
                [sys.executable, "-m", "channels_pg_sa", "upgrade"],
                env=environ,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for _ in range(2)
        ]
        eventually(lambda: server.run(waiting, (database,)) == [(2,)], within=30)
    said = [process.communicate(timeout=30)[0] for process in upgrades]
    assert [process.returncode for process in upgrades] == [0, 0], said
    assert said == [f"{REVISION}\n"] * 2
    migrate.check(database_url)


def test_a_failed_upgrade_leaves_nothing(database_url: str) -> None:
    """Everything is one transaction."""
    query(database_url, "CREATE TABLE channels_pg_sa_membership (mine int)")
    before = objects(database_url)
    with pytest.raises(DBAPIError, match="already exists"):
        migrate.upgrade(database_url)
    assert objects(database_url) == before


def test_tables_of_another_history_are_left_to_it(database_url: str) -> None:
    """Whoever has them in a history of their own is told so, instead of that a table exists."""
    engine = migrate.engine_for(database_url)
    metadata.create_all(engine)
    for act in (migrate.upgrade, functools.partial(migrate.downgrade, revision="base")):
        with pytest.raises(ConfigurationError, match="not from this history"):
            act(database_url)
    assert migrate.current(database_url) == REVISION


def test_the_search_path_is_set_for_a_migration_alone(database_url: str) -> None:
    """Behind a pooler the next transaction of the session is somebody else's."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        before = connection.execute("SHOW search_path").fetchone()
        with connection.transaction():
            for statement in migrate.opening_statements("tenant"):
                connection.execute(statement.encode())
            assert connection.execute("SHOW search_path").fetchone() != before
        assert connection.execute("SHOW search_path").fetchone() == before


def test_tables_that_are_created_again_stay_as_they_are(database_url: str) -> None:
    """A host may call create_all() whenever it starts, and for tables of its own: what is there keeps its secret."""
    with migrate.engine_for(database_url).begin() as connection:
        metadata.create_all(connection)
        kept = connection.execute(select(installation)).all()
        metadata.create_all(connection)
        assert connection.execute(select(installation)).all() == kept


@pytest.mark.parametrize(("theirs", "ours"), [(None, "tenant"), ("tenant", None)])
def test_tables_of_another_history_elsewhere_hinder_nobody(
    database_url: str, theirs: str | None, ours: str | None
) -> None:
    """What counts is the schema that is asked for."""
    query(database_url, "CREATE SCHEMA tenant")
    with migrate.engine_for(database_url).begin() as connection:
        connection.execute(text(f"SET LOCAL search_path TO {theirs or 'public'}"))
        metadata.create_all(connection, checkfirst=False)
    migrate.upgrade(database_url, schema=ours)
    migrate.check(database_url, schema=ours)
    migrate.downgrade(database_url, schema=ours, revision="base")


def test_threads_that_migrate_at_once(database_url: str) -> None:
    """Alembic has one context for the whole process."""
    schemas = ["one", "two", "three", "four"]
    with ThreadPoolExecutor(2 * len(schemas)) as pool:
        upgrades = [pool.submit(migrate.upgrade, database_url, schema=schema) for schema in schemas]
        scripts = [pool.submit(migrate.write_sql, io.StringIO(), schema=schema) for schema in schemas]
    assert [done.exception() for done in (*upgrades, *scripts)] == [None] * 8
    for schema in schemas:
        migrate.check(database_url, schema=schema)


def test_an_engine_keeps_no_connection_and_prepares_nothing(database_url: str, server: TestServer) -> None:
    """A pooler may stand between; the address says what the session is called, if it does."""
    names = []
    for url in (database_url, with_parameters(database_url, application_name="deployment")):
        with migrate.engine_for(url).connect() as connection:
            names.append(connection.scalar(text("SELECT current_setting('application_name')")))
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            assert driver.prepare_threshold is None
        assert driver.closed
    assert names == ["channels_pg_sa migrate", "deployment"]


def test_the_history_may_stand_in_any_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A % in its path is no reference to an option."""
    monkeypatch.setattr(migrate, "script_location", lambda: Path("/srv/100%/app%(here)s"))
    assert migrate.alembic_config(None).get_main_option("script_location") == "/srv/100%/app%(here)s"


def test_a_downgrade_leaves_the_tables_of_others(database_url: str) -> None:
    """A schema may be shared."""
    query(database_url, "CREATE TABLE somebody_else_s (id int)")
    before = objects(database_url)
    migrate.upgrade(database_url)
    migrate.downgrade(database_url, revision="base")
    assert objects(database_url) == before


@SCHEMAS
def test_reading_changes_nothing(database_url: str, schema: str | None) -> None:
    """`current` and `check`, ours and Alembic's, make neither a schema nor a table."""
    before = query(database_url, "SELECT nspname FROM pg_namespace ORDER BY 1")
    assert migrate.current(database_url, schema=schema) is None
    with pytest.raises(SchemaError, match="has no channels_pg_sa tables"):
        migrate.check(database_url, schema=schema)
    command.current(migrate.alembic_config(database_url, schema=schema))
    assert query(database_url, "SELECT nspname FROM pg_namespace ORDER BY 1") == before
    assert objects(database_url, schema) == []


def test_reading_takes_nothing_away(database_url: str) -> None:
    """Not even an empty table of versions, as `pg_dump --schema-only` leaves it: its row may be about to come back."""
    migrate.upgrade(database_url)
    query(database_url, "DELETE FROM channels_pg_sa_version")
    before = objects(database_url)
    command.current(migrate.alembic_config(database_url))
    assert objects(database_url) == before


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_the_encoding_of_the_environment_does_not_matter(
    database_url: str, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """The driver would return bytes for texts, or could not write them."""
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    schema = "sch\u00e9ma_\u0142"
    migrate.upgrade(database_url, schema=schema)
    migrate.check(database_url, schema=schema)
    assert migrate.current(database_url, schema=schema) == REVISION


def test_the_revision_is_that_of_the_schema_asked_for(database_url: str) -> None:
    """Two schemas of a database may be at different revisions."""
    migrate.upgrade(database_url, schema="tenant")
    assert migrate.current(database_url, schema="tenant") == REVISION
    assert migrate.current(database_url, schema="other") is None
    assert migrate.current(database_url) is None


@pytest.mark.parametrize(
    ("found", "remedy"), [("0000", "manage.py channels_pg_sa upgrade"), ("9999", "update the package")]
)
def test_another_revision_is_told_with_both(database_url: str, found: str, remedy: str) -> None:
    """During a rolling deploy the database may be ahead, or behind."""
    migrate.upgrade(database_url)
    query(database_url, "UPDATE channels_pg_sa_installation SET revision = %s", [found])
    with pytest.raises(SchemaError) as caught:
        migrate.check(database_url)
    assert (caught.value.found, caught.value.needed) == (found, REVISION)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("verb", ["upgrade", "downgrade"])
def test_an_older_package_leaves_newer_tables_alone(database_url: str, verb: str) -> None:
    """As where a release is taken back; it says that itself, and not that a file of Alembic's is missing."""
    migrate.upgrade(database_url)
    query(database_url, "UPDATE channels_pg_sa_installation SET revision = '9999'")
    query(database_url, "UPDATE channels_pg_sa_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match="A newer version has made the tables: update the package"):
        getattr(migrate, verb)(database_url, revision="base" if verb == "downgrade" else "head")
    assert migrate.current(database_url) == "9999"


async def test_a_layer_works_where_the_database_is_ahead(make_own_layer: LayerFactory, layer_url: str) -> None:
    """During a rolling deploy what runs still, or is started again, finds the next version's tables."""
    query(layer_url, "UPDATE channels_pg_sa_installation SET revision = '9999'")
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.send(channel, {"type": "test.message"})
    await layer.group_send("group", {"type": "test.group"})
    received = [await asyncio.wait_for(layer.receive(channel), PATIENCE) for _ in range(2)]
    assert received == [{"type": "test.message"}, {"type": "test.group"}]


def test_an_owner_of_a_schema_needs_no_right_to_create_others(database_url: str, server: TestServer) -> None:
    """An administrator makes the schema; the application's role installs the tables in it."""
    role = f"role_of_{database_name(database_url)}"
    server.run(f"CREATE ROLE {role}")  # type: ignore[arg-type]
    try:
        query(database_url, f"CREATE SCHEMA tenant AUTHORIZATION {role}")  # type: ignore[arg-type]
        url = with_parameters(database_url, options=f"-c role={role}")
        migrate.upgrade(url, schema="tenant")
        migrate.check(url, schema="tenant")
        with pytest.raises(DBAPIError, match="permission denied"):
            migrate.upgrade(url, schema="other")
    finally:
        query(database_url, f"DROP OWNED BY {role}")  # type: ignore[arg-type]
        server.run(f"DROP ROLE {role}")  # type: ignore[arg-type]


def test_a_host_project_is_not_told_to_drop_our_tables(database_url: str) -> None:
    """Only its own differences are left when it autogenerates with our filter."""
    migrate.upgrade(database_url)
    host = MetaData()
    Table("host_table", host, Column("id", Integer, primary_key=True))
    with migrate.engine_for(database_url).connect() as connection:
        plain = compare_metadata(MigrationContext.configure(connection), host)
        options = {"include_object": migrate.include_object}
        filtered = compare_metadata(MigrationContext.configure(connection, opts=options), host)
    assert "remove_table" in {change[0] for change in plain}
    assert [(change[0], change[1].name) for change in filtered] == [("add_table", "host_table")]


@pytest.mark.parametrize("verb", [migrate.upgrade, migrate.current, migrate.check, status])
@pytest.mark.parametrize("schema", ["", "a-b", "pg_mine", 'a"b'])
def test_a_wrong_schema_is_refused(database_url: str, schema: str, verb: Callable[..., object]) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigurationError, match='"schema" must be the name of a PostgreSQL schema'):
        verb(database_url, schema=schema)


@pytest.mark.parametrize(
    "lost",
    [
        *("TABLE channels_pg_sa_node", "TABLE channels_pg_sa_membership", "TABLE channels_pg_sa_message"),
        *("FUNCTION channels_pg_sa_topic", "FUNCTION channels_pg_sa_message_added CASCADE"),
    ],
)
def test_what_was_removed_by_hand_is_made_again(database_url: str, lost: str) -> None:
    """By the commands that the error of a layer names: all is removed, and installed anew."""
    migrate.upgrade(database_url)
    whole = objects(database_url, None)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"DROP {lost}".encode())
    migrate.downgrade(database_url, revision="base")
    assert migrate.current(database_url) is None
    migrate.upgrade(database_url)
    assert objects(database_url, None) == whole


def test_threads_that_take_their_tables_back_at_once(database_url: str) -> None:
    """Alembic has one context for the whole process."""
    schemas = [f"s{number}" for number in range(6)]
    for schema in schemas:
        migrate.upgrade(database_url, schema=schema)
    with ThreadPoolExecutor(len(schemas)) as pool:
        downgrades = [
            pool.submit(migrate.downgrade, database_url, schema=schema, revision="base") for schema in schemas
        ]
    assert [done.exception() for done in downgrades] == [None] * len(schemas)
    assert [migrate.current(database_url, schema=schema) for schema in schemas] == [None] * len(schemas)


@pytest.mark.parametrize(
    ("name", "reflected", "is_in_a_model", "stays"),
    [
        ("channels_pg_sa_things", True, True, True),
        ("channels_pg_sa_things", False, False, True),
        ("channels_pg_sa_things", True, False, False),
        ("channels_pg_sa_message", True, True, False),
        ("things", True, False, True),
    ],
)
def test_a_table_of_their_models_is_theirs_whatever_it_is_called(
    name: str, reflected: bool, is_in_a_model: bool, stays: bool
) -> None:
    """A change of it is found; only what is called as ours and in no model may be of another version of ours."""
    table = Table(name, MetaData())
    assert migrate.include_object(table, name, "table", reflected, table if is_in_a_model else None) is stays
