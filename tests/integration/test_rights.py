"""What a role with few rights, or none, can do in a database that has the tables, and what it cannot."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from sqlalchemy.exc import DBAPIError

from channels_pg_sa import ConfigurationError, migrate, node
from channels_pg_sa.connections.connection import CleanConnection
from channels_pg_sa.schema import metadata, routines
from channels_pg_sa.statements.queries import Queries
from tests.conformance.backends import Conversation, text
from tests.support import roles
from tests.support.databases import TestServer, database_name, query, run_script
from tests.support.layers import LayerFactory
from tests.support.markdown import blocks
from tests.support.urls import with_parameters
from tests.support.waiting import eventually

TALK = Conversation(patience=10)
SEND = "SELECT channels_pg_sa_send(%s, %s)"
GROUP_SEND = "SELECT channels_pg_sa_group_send(%s, %s)"
DEFINERS = "SELECT proname, proconfig FROM pg_proc WHERE proname LIKE 'channels_pg_sa_%' AND prosecdef"
INSERT = "INSERT INTO channels_pg_sa_message (recipient, channel, group_name, payload) VALUES (%s, %s, %s, 'x')"
JOIN = "INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel) VALUES ('asgi', %s, %s, %s)"
EVIL = "LANGUAGE plpgsql AS 'BEGIN RAISE ''caught''; END'"
TOPIC = re.compile("channels_pg_sa_[0-9a-f]{32}")


@pytest.fixture
def role(server: TestServer, layer_url: str) -> Iterator[str]:
    """A role without any right of its own."""
    with roles.role(server, layer_url, f"sender_of_{database_name(layer_url)}") as name:
        yield name


@pytest.fixture
def stranger(server: TestServer, database_url: str) -> Iterator[str]:
    """A role that may come to an empty database before our tables do."""
    with roles.role(server, database_url, f"stranger_of_{database_name(database_url)}") as name:
        yield name


def grants() -> str:
    """The SQL that the documentation has for a role that only sends, named reporter."""
    return "\n".join(blocks("sql.md", "Who may send", "sql"))


async def test_a_role_may_send_and_do_nothing_else(make_own_layer: LayerFactory, layer_url: str, role: str) -> None:
    """With the documented grants it reaches everybody; the tables and their secret stay shut."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    as_role = with_parameters(layer_url, options=f"-c role={role}")
    for statement in (SEND, GROUP_SEND):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for function"):
            query(as_role, statement, (channel, Jsonb(text(0))))
    run_script(layer_url, grants().replace("reporter", role))
    query(as_role, SEND, (channel, Jsonb(text(1))))
    query(as_role, GROUP_SEND, ("group", Jsonb(text(2))))
    assert await TALK.take(layer, channel, 2) == [text(1), text(2)]
    for table in ("message", "membership", "node", "installation"):
        for action in ("SELECT FROM", "DELETE FROM", "INSERT INTO"):
            statement = f"{action} channels_pg_sa_{table}" + " DEFAULT VALUES" * (action == "INSERT INTO")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for table"):
                run_script(as_role, statement)


async def test_a_service_that_may_not_sweep_says_nothing(
    make_own_layer: LayerFactory,
    layer_url: str,
    role: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It needs no more rights than for its sends, and does not try again, since the server's log would tell."""
    (granted,) = (block for block in blocks("sqlalchemy.md", "Roles", "sql") if " TO service;" in block)
    run_script(layer_url, granted.replace("service", role))
    monkeypatch.setattr(node, "TICK", 0.01)
    sweep, refused = Queries.sweep, list[psycopg.Error]()

    async def noted(self: Queries, *arguments: Any) -> Any:
        try:
            return await sweep(self, *arguments)
        except psycopg.Error as error:
            refused.append(error)
            raise

    monkeypatch.setattr(Queries, "sweep", noted)
    layer = make_own_layer(url=with_parameters(layer_url, options=f"-c role={role}"), heartbeat=0.1, lease=0.4)
    await layer.send("jobs", text(1))
    eventually(lambda: refused)
    await layer.send("jobs", text(2))
    await asyncio.sleep(1)
    assert [type(error) for error in refused] == [psycopg.errors.InsufficientPrivilege]
    assert "sweep" not in caplog.text


async def test_a_role_s_own_objects_are_not_taken_for_ours(layer_url: str, role: str) -> None:
    """What a sender puts into its search path never runs with the owner's rights."""
    run_script(layer_url, grants().replace("reporter", role))
    query(layer_url, f"CREATE SCHEMA trap AUTHORIZATION {role}")
    as_role = with_parameters(layer_url, options=f"-c role={role}")
    run_script(
        as_role,
        f"""
        SET search_path = trap, public, pg_catalog;
        CREATE TABLE trap.channels_pg_sa_message (LIKE pg_class);
        CREATE FUNCTION trap.strpos(text, text) RETURNS int {EVIL};
        CREATE FUNCTION trap.jsonb_typeof(jsonb) RETURNS text {EVIL};
        CREATE TEMP TABLE channels_pg_sa_membership (node text);
        SELECT channels_pg_sa_send('jobs', '{{}}'), channels_pg_sa_group_send('group', '{{}}');
        """,
    )
    assert query(layer_url, "SELECT recipient, channel FROM channels_pg_sa_message") == [("jobs", "jobs")]


def test_what_runs_with_the_owner_s_rights_has_a_search_path_of_its_own(layer_url: str) -> None:
    """Whatever it calls: one with a caller's temporary objects in front would run those.

    https://www.postgresql.org/docs/current/sql-createfunction.html#SQL-CREATEFUNCTION-SECURITY
    """
    found = query(layer_url, DEFINERS)
    assert {name for name, _ in found} >= {
        "channels_pg_sa_group_send",
        "channels_pg_sa_membership_changed",
        "channels_pg_sa_message_added",
        "channels_pg_sa_send",
    }
    assert [name for name, settings in found if "search_path=pg_catalog, pg_temp" not in settings] == []


CAST = f"""
    CREATE TYPE pg_temp.evil AS (number int);
    CREATE FUNCTION pg_temp.run(pg_temp.evil) RETURNS text {EVIL};
    CREATE CAST (pg_temp.evil AS text) WITH FUNCTION pg_temp.run(pg_temp.evil) AS IMPLICIT;
    CREATE TEMP TABLE trap (id bigint, prefix pg_temp.evil, recipient text, node text, channel text, group_name text,
        payload bytea, expires_at timestamptz);
"""


@pytest.mark.parametrize("function", ["message_added", "membership_changed"])
def test_a_trigger_s_function_works_on_no_other_table(layer_url: str, role: str, function: str) -> None:
    """Though a role may execute it, by a grant of all functions of the schema."""
    run_script(layer_url, f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}")
    as_role = with_parameters(layer_url, options=f"-c role={role}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="not a trigger for trap"):
        run_script(
            as_role,
            f"""{CAST} CREATE TRIGGER trap AFTER INSERT ON trap REFERENCING NEW TABLE AS fresh
                FOR EACH STATEMENT EXECUTE FUNCTION channels_pg_sa_{function}();
                INSERT INTO trap VALUES (1, row(1), 'r', 'n', 'c', NULL, 'x', now())""",
        )


async def test_a_caller_cannot_silence_a_function_that_sends(
    make_own_layer: LayerFactory, layer_url: str, role: str
) -> None:
    """The setting by which the layer's own statements say that they have notified is for them."""
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    run_script(layer_url, grants().replace("reporter", role))
    for statement, number in ((SEND, 1), (GROUP_SEND, 2)):
        with psycopg.connect(with_parameters(layer_url, options=f"-c role={role}")) as connection:
            connection.execute("SET channels_pg_sa.notified = 'on'")
            connection.execute(statement, (channel if statement == SEND else "group", Jsonb(text(number))))
        assert await TALK.next(layer, channel) == text(number)


def test_what_runs_with_the_owner_s_rights_is_not_for_others(layer_url: str, role: str) -> None:
    """Not before the owner grants it, and a trigger's function never: on a table of one's own it would read that."""
    allowed = f"{DEFINERS} AND has_function_privilege('{role}', oid, 'EXECUTE')"
    assert query(layer_url, allowed) == []
    run_script(layer_url, grants().replace("reporter", role))
    assert {name for name, _ in query(layer_url, allowed)} == {"channels_pg_sa_send", "channels_pg_sa_group_send"}
    as_role = with_parameters(layer_url, options=f"-c role={role}")
    for function in ("message_added", "membership_changed"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for function"):
            run_script(
                as_role,
                f"""CREATE TEMP TABLE trap (LIKE pg_class);
                    CREATE TRIGGER trap AFTER INSERT ON trap REFERENCING NEW TABLE AS fresh
                    FOR EACH STATEMENT EXECUTE FUNCTION channels_pg_sa_{function}()""",
            )


STRANGE = {
    "channels_pg_sa_queued": """CREATE FUNCTION channels_pg_sa_queued(channel text, recipient text) RETURNS boolean
        LANGUAGE sql AS 'SELECT true'""",
    "channels_pg_sa_version": "CREATE TABLE channels_pg_sa_version (version_num varchar(32) PRIMARY KEY)",
    "channels_pg_sa_installation": f"""CREATE FUNCTION trap() RETURNS text {EVIL};
        CREATE VIEW channels_pg_sa_installation AS SELECT trap() AS revision, '' AS secret, true AS single""",
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_a_stranger_made_is_not_taken_over(database_url: str, stranger: str, name: str) -> None:
    """It would stay theirs, to be changed later: nothing is installed, and the error tells whose to look at."""
    run_script(database_url, f"GRANT CREATE ON SCHEMA public TO {stranger}; SET ROLE {stranger}; {STRANGE[name]}")
    with pytest.raises((DBAPIError, ConfigurationError), match=f"{name}.* belongs to somebody else"):
        migrate.upgrade(database_url)
    assert query(database_url, "SELECT to_regclass('channels_pg_sa_message')") == [(None,)]


@pytest.mark.parametrize("name", ["channels_pg_sa_queued", "channels_pg_sa_version"])
@pytest.mark.parametrize("way", ["upgrade", "create_all"])
def test_what_a_stranger_made_elsewhere_hinders_nobody(database_url: str, stranger: str, name: str, way: str) -> None:
    """Another may have the tables in a schema of their own."""
    run_script(
        database_url,
        f"""CREATE SCHEMA theirs AUTHORIZATION {stranger};
            SET ROLE {stranger}; SET search_path = theirs; {STRANGE[name]}""",
    )
    if way == "upgrade":
        migrate.upgrade(database_url)
    else:
        metadata.create_all(migrate.engine_for(database_url))
    migrate.check(database_url)


def test_who_finds_the_tables_of_an_administrator_has_nothing_to_do(database_url: str, server: TestServer) -> None:
    """A deployment may run `upgrade` as the role of the application, which owns nothing."""
    migrate.upgrade(database_url)
    with roles.role(server, database_url, f"reader_of_{database_name(database_url)}") as reader:
        run_script(database_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}")
        migrate.upgrade(with_parameters(database_url, options=f"-c role={reader}"))


@pytest.mark.parametrize("function", ["quote_ident(name)", "unnest(text[])", "set_config(text, text, bool)"])
@pytest.mark.parametrize("way", ["upgrade", "create_all"])
def test_a_stranger_s_function_does_not_run_at_the_installation(
    database_url: str, stranger: str, function: str, way: str
) -> None:
    """However well it fits the types of a call: it would run with the rights of who installs."""
    run_script(
        database_url,
        f"""GRANT CREATE ON SCHEMA public TO {stranger}; SET ROLE {stranger};
            CREATE FUNCTION public.{function} RETURNS text {EVIL}""",
    )
    before = query(database_url, "SHOW search_path")
    with migrate.engine_for(database_url).begin() as connection:
        if way == "create_all":
            metadata.create_all(connection)
            assert connection.exec_driver_sql("SHOW search_path").all() == before
    if way == "upgrade":
        migrate.upgrade(database_url)
    migrate.check(database_url)


def test_a_stranger_s_operator_does_not_run_at_the_installation(database_url: str, stranger: str) -> None:
    """Nor does that."""
    run_script(
        database_url,
        f"""GRANT CREATE ON SCHEMA public TO {stranger}; SET ROLE {stranger};
            CREATE FUNCTION public.same(oid, regnamespace) RETURNS boolean {EVIL};
            CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = regnamespace, FUNCTION = public.same)""",
    )
    migrate.upgrade(database_url)
    migrate.check(database_url)


def test_an_administrator_may_do_what_another_has_begun(database_url: str, server: TestServer) -> None:
    """Functions and triggers are replaced; the tables stay the other's, whom one must trust anyway."""
    migrate.upgrade(database_url)
    with roles.role(server, database_url, f"admin_of_{database_name(database_url)}") as admin:
        run_script(database_url, f"ALTER ROLE {admin} SUPERUSER")
        run_script(with_parameters(database_url, options=f"-c role={admin}"), routines())
    migrate.check(database_url)


def test_a_stranger_s_table_is_not_taken_over_by_create_all(database_url: str, stranger: str) -> None:
    """Which makes the others, and would leave this one as it is."""
    run_script(database_url, f"GRANT CREATE ON SCHEMA public TO {stranger}; SET ROLE {stranger}")
    with migrate.engine_for(database_url).begin() as connection:
        connection.exec_driver_sql(f"SET ROLE {stranger}")
        metadata.tables["channels_pg_sa_message"].create(connection)
    with (
        pytest.raises(DBAPIError, match="channels_pg_sa_message belongs to somebody else"),
        migrate.engine_for(database_url).begin() as connection,
    ):
        metadata.create_all(connection)
    assert migrate.current(database_url) is None


async def test_a_name_cannot_bring_frames(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Who may insert a row cannot make a node believe that a channel joined or left, or that all was flushed."""
    layer: Any = make_own_layer()
    member, guest = await layer.new_channel(), await layer.new_channel()
    await layer.group_add("admins", member)
    await layer.send(guest, text(1))
    now = "1790000000000000"
    for frames in (f"J{now} admins {guest} infinity", f"L{now} admins {member}", "F1 channels_pg_sa_other"):
        evil = f"x ,{frames},P1 0 x"
        for channel, group in ((evil, None), (None, evil), (evil + "x" * 6000, None)):
            query(layer_url, INSERT, (layer.node, channel, group))
        query(layer_url, INSERT, (evil, evil, None))
        query(layer_url, JOIN, (evil, layer.node, evil))
        query(layer_url, "DELETE FROM channels_pg_sa_membership WHERE group_name LIKE 'x %%'")
    await layer.group_send("admins", text(2))
    assert await TALK.next(layer, member) == text(2)
    assert await TALK.take(layer, guest, 1) == [text(1)]
    assert await TALK.is_empty(layer, guest)
    assert {name[:2] for name in layer._node._reception.inbox._dispatcher.members} == {("admins", member)}


async def test_no_statement_s_text_has_a_topic(make_own_layer: LayerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who knows one hears what is sent to a node, and can forge it; pg_stat_statements keeps a LISTEN as it is."""
    execute, texts = CleanConnection.execute, list[str]()

    async def spy(connection: Any, statement: Any, *arguments: Any, **options: Any) -> Any:
        texts.append(statement if isinstance(statement, str) else statement.as_string(connection))
        return await execute(connection, statement, *arguments, **options)

    monkeypatch.setattr(CleanConnection, "execute", spy)
    layer, sender = make_own_layer(), make_own_layer()
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    for number in range(3):
        await sender.send("jobs", text(number))
        await sender.group_send("group", text(number))
    assert await TALK.take(layer, "jobs", 3) == await TALK.take(layer, channel, 3) == [text(0), text(1), text(2)]
    await layer.flush()
    assert any("channels_pg_sa_listen" in statement for statement in texts)
    assert [statement for statement in texts if TOPIC.search(statement)] == []
