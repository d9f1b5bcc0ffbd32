"""The same migrations by every command: ours, Alembic's, and Django's."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core import checks
from django.core.management import CommandError, call_command
from django.test import override_settings

from channels_pg_sa import __version__, cli, migrate
from channels_pg_sa.checks import check_config, check_entries, check_tables
from channels_pg_sa.config import Settings
from channels_pg_sa.core import PostgresChannelLayer
from channels_pg_sa.django_settings import BACKEND
from channels_pg_sa.management.commands.channels_pg_sa import Command
from channels_pg_sa.schema import REVISION
from tests.support.databases import database_name, query, run_script
from tests.support.urls import with_database

ROOT = Path(__file__).parent.parent.parent
PACKAGE = "channels_pg_sa"
NOTHING = "no tables of channels_pg_sa\n"


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the addresses of the machine out of the tests."""
    for name in migrate.URL_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process; give exit code, output and errors."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run_command


@pytest.fixture
def layers() -> Iterator[Callable[..., None]]:
    """Set CHANNEL_LAYERS for the rest of a test, every entry with our BACKEND unless it has another."""
    active: list[Any] = []

    def set_layers(**configs: dict[str, Any]) -> None:
        entries = {name: {"BACKEND": BACKEND, "CONFIG": config} for name, config in configs.items()}
        change = override_settings(CHANNEL_LAYERS=entries)
        change.enable()
        active.append(change)

    yield set_layers
    for change in reversed(active):
        change.disable()


def django_entry(url: str) -> dict[str, Any]:
    """A DATABASES entry of a libpq URI."""
    parameters = psycopg.conninfo.conninfo_to_dict(url)
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    entry = {key: parameters[name] for key, name in names.items() if name in parameters}
    return {"ENGINE": "django.db.backends.postgresql", **entry}


def manage(*arguments: str, **options: Any) -> str:
    """Run `manage.py channels_pg_sa …` in this process and return what it wrote."""
    output = io.StringIO()
    call_command(Command(), *arguments, stdout=output, **options)
    return output.getvalue()


def execute(*arguments: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m …` in a process of its own."""
    command = [sys.executable, "-m", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=50, check=False)


def test_the_command_s_life(database_url: str, run: Callable[..., tuple[int, str, str]]) -> None:
    """From nothing to the tables and back."""
    url = ("--url", database_url)
    assert run("current", *url) == (0, NOTHING, "")
    assert run("upgrade", *url) == (0, f"{REVISION}\n", "")
    assert run("check", *url) == (0, f"{REVISION}\n", "")
    assert run("current", *url) == (0, f"{REVISION}\n", "")
    assert run("downgrade", "base", *url) == (0, NOTHING, "")
    assert run("current", *url) == (0, NOTHING, "")


@pytest.mark.parametrize(
    "arguments", [("downgrade", "--url", "{url}", "base"), ("--url", "{url}", "downgrade", "base")]
)
def test_options_stand_where_they_like(
    database_url: str, run: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...]
) -> None:
    """Between the command and its revision too."""
    run("upgrade", "--url", database_url)
    assert run(*(argument.format(url=database_url) for argument in arguments)) == (0, NOTHING, "")


def test_a_full_disk_is_told() -> None:
    """And not shown as a traceback, whose last line a script would have to know."""
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "channels_pg_sa", "sql"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 1
    assert re.fullmatch(r"channels-pg-sa: .*No space left on device\n", ended.stderr)


def test_a_full_disk_is_told_by_whoever_calls_it(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose output need not be a file."""
    monkeypatch.setattr("sys.stdout", Full())
    code, _, errors = run("history")
    assert (code, errors) == (1, "channels-pg-sa: no space\n")


class Full(io.StringIO):
    """An output that takes nothing."""

    def flush(self) -> None:
        """Refuse."""
        raise OSError("no space")


def test_a_downgrade_goes_no_further_than_it_is_told(
    database_url: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    """Only `base` removes what the tables hold."""
    assert run("upgrade", "--url", database_url)[0] == 0
    assert run("downgrade", REVISION, "--url", database_url) == (0, f"{REVISION}\n", "")


def test_without_a_search_path_it_says_how_to_name_the_schema(
    database_url: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    """PostgreSQL's manual recommends to have none."""
    query(database_url, f"ALTER DATABASE {database_name(database_url)} SET search_path = ''")
    code, _, errors = run("upgrade", "--url", database_url)
    assert (code, "--schema" in errors) == (1, True)
    assert run("upgrade", "--url", database_url, "--schema", "tenant")[0] == 0


def test_check_ends_with_1_and_names_the_remedy(database_url: str, run: Callable[..., tuple[int, str, str]]) -> None:
    """A deployment script can rely on it."""
    code, output, errors = run("check", "--url", database_url)
    assert (code, output) == (1, "")
    assert "`channels-pg-sa upgrade`" in errors
    code, output, errors = run("check", "--url", database_url, "--schema", "tenant")
    assert (code, output) == (1, "")
    assert "`channels-pg-sa upgrade --schema tenant`" in errors


DAMAGES = {
    "DROP TABLE {schema}.channels_pg_sa_node": "no table channels_pg_sa_node",
    "ALTER TABLE {schema}.channels_pg_sa_message RENAME TO elsewhere": "no table channels_pg_sa_message",
    "ALTER TABLE {schema}.channels_pg_sa_node SET LOGGED": "channels_pg_sa_node SET UNLOGGED makes it so",
    "ALTER TABLE {schema}.channels_pg_sa_node DROP COLUMN host": "no column channels_pg_sa_node.host",
    "ALTER TABLE {schema}.channels_pg_sa_node DROP CONSTRAINT pk_channels_pg_sa_node": "not the primary key",
    "DROP FUNCTION {schema}.channels_pg_sa_listen": "no function channels_pg_sa_listen",
    "DROP TRIGGER joined ON {schema}.channels_pg_sa_membership": "no trigger joined on channels_pg_sa_membership",
    "ALTER TABLE {schema}.channels_pg_sa_message DISABLE TRIGGER added": "no trigger added on channels_pg_sa_message",
}


@pytest.mark.parametrize("schema", ["public", "tenant"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_check_finds_what_is_missing(
    database_url: str, run: Callable[..., tuple[int, str, str]], damage: str, schema: str
) -> None:
    """Where sends succeed, nothing would arrive, and no log would say why; W001 tells the same."""
    arguments = ["--url", database_url, *([] if schema == "public" else ["--schema", schema])]
    run("upgrade", *arguments)
    run_script(database_url, damage.format(schema=schema))
    code, output, errors = run("check", *arguments)
    assert (code, output) == (1, "")
    assert "not all of it is as it should be" in errors
    assert DAMAGES[damage] in errors
    assert ("UNLOGGED" in errors) == ("LOGGED" in damage), "of a table that is not there nothing else is told"


def test_a_logged_table_in_a_schema_is_mended_as_check_says(
    database_url: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    """The statement stands there, ready to be run."""
    arguments = ["--url", database_url, "--schema", "tenant"]
    run("upgrade", *arguments)
    query(database_url, "ALTER TABLE tenant.channels_pg_sa_node SET LOGGED")
    (statement,) = re.findall(r"ALTER TABLE \S+ SET UNLOGGED", run("check", *arguments)[2])
    run_script(database_url, statement)
    assert run("check", *arguments)[0] == 0


@pytest.mark.parametrize(
    "lost", ["FUNCTION tenant.channels_pg_sa_listen", "TRIGGER joined ON tenant.channels_pg_sa_membership"]
)
def test_check_does_not_take_another_schema_s_for_ours(
    database_url: str, run: Callable[..., tuple[int, str, str]], lost: str
) -> None:
    """A project for each customer may have its tables in a schema of its own."""
    arguments = ("--url", database_url, "--schema", "tenant")
    run("upgrade", "--url", database_url)
    run("upgrade", *arguments)
    run_script(database_url, f"DROP {lost}")
    code, _, errors = run("check", *arguments)
    assert (code, f"no {lost.split(maxsplit=1)[0].lower()} " in errors) == (1, True)


def test_a_trigger_that_always_fires_is_not_missing(
    database_url: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    """Where rows come by replication as well, an administrator may have set it so."""
    run("upgrade", "--url", database_url)
    query(database_url, "ALTER TABLE channels_pg_sa_membership ENABLE ALWAYS TRIGGER joined")
    assert run("check", "--url", database_url) == (0, f"{REVISION}\n", "")


def test_a_schema_of_its_own(database_url: str, run: Callable[..., tuple[int, str, str]]) -> None:
    """The tables go where --schema says, and are looked for there."""
    assert run("upgrade", "--url", database_url, "--schema", "tenant") == (0, f"{REVISION}\n", "")
    assert run("check", "--url", database_url, "--schema", "tenant")[0] == 0
    assert run("check", "--url", database_url)[0] == 1


def test_the_environment_names_the_database(
    database_url: str, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CHANNELS_PG_SA_URL goes before DATABASE_URL, and --url before both."""
    wrong = with_database(database_url, "nowhere")
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert run("current")[0] == 0
    monkeypatch.setenv("CHANNELS_PG_SA_URL", "")
    assert run("current")[0] == 0
    monkeypatch.setenv("CHANNELS_PG_SA_URL", wrong)
    assert run("current")[0] == 1
    assert run("current", "--url", database_url)[0] == 0
    monkeypatch.setenv("DATABASE_URL", wrong)
    monkeypatch.setenv("CHANNELS_PG_SA_URL", database_url)
    assert run("current")[0] == 0


def test_history_and_sql_need_no_database(run: Callable[..., tuple[int, str, str]]) -> None:
    """They are about the package, not about a server."""
    code, output, _ = run("history")
    assert code == 0
    assert output.startswith(f"{REVISION}  ")
    code, output, _ = run("sql", "--schema", "tenant")
    assert code == 0
    assert "CREATE UNLOGGED TABLE channels_pg_sa_message" in output
    assert 'SET LOCAL search_path TO "tenant"' in output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["upgrade"], 2, "give a URL, or set CHANNELS_PG_SA_URL or DATABASE_URL"),
        (["upgrade", "--url", "mysql://u:tiger@h/db"], 2, 'not of "mysql"'),
        (["upgrade", "nowhere", "--url", "{url}"], 2, "Can't locate revision identified by 'nowhere'"),
        (["upgrade", "postgresql://u:tiger@h/db"], 2, "write --url before it"),
        (["sql", "nowhere"], 2, "Can't locate revision identified by 'nowhere'"),
        (["upgrade", "--url", "{url}", "--schema", "a-b"], 2, '"schema" must be the name of a PostgreSQL schema'),
        (["downgrade", "--url", "{url}"], 2, "`downgrade base` removes all tables"),
        (["current", "0001", "--url", "{url}"], 2, "current takes no revision"),
        (["check", "0001", "--url", "{url}"], 2, "check takes no revision"),
        (["history", "0001"], 2, "history takes no revision"),
        (["check", "postgresql://u:tiger@h/db"], 2, "write --url before it"),
        (["current", "--url", "{nowhere}"], 1, 'database "nowhere" does not exist'),
    ],
)
def test_a_wrong_command_is_told_in_one_line(
    arguments: list[str], code: int, said: str, database_url: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    """No traceback, and no password."""
    urls = {"{url}": database_url, "{nowhere}": with_database(database_url, "nowhere")}
    found, output, errors = run(*(urls.get(argument, argument) for argument in arguments))
    assert (found, output) == (code, "")
    assert errors.startswith("channels-pg-sa: ")
    assert said in errors
    assert "tiger" not in errors


def test_sql_leads_to_the_revision_that_is_asked_for(run: Callable[..., tuple[int, str, str]]) -> None:
    """Or from one to another; to one that there is not it leads nowhere."""
    code, output, _ = run("sql", f"base:{REVISION}")
    assert (code, "CREATE UNLOGGED TABLE channels_pg_sa_message" in output) == (0, True)
    code, output, _ = run("sql", f"{REVISION}:{REVISION}")
    assert (code, "CREATE" in output) == (0, False)
    code, output, errors = run("sql", "nowhere")
    assert (code, output) == (2, "")
    assert "Can't locate revision identified by 'nowhere'" in errors


def test_an_unknown_command_ends_with_2(run: Callable[..., tuple[int, str, str]]) -> None:
    """As argparse has it."""
    with pytest.raises(SystemExit) as ended:
        run("upgrad")
    assert ended.value.code == 2


@pytest.mark.parametrize("command", ["check", "current", "upgrade", "downgrade base"])
def test_tables_without_data_are_told_with_what_mends_them(
    database_url: str, command: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    """After `pg_dump --schema-only`, no command takes them for missing, nor for removed."""
    migrate.upgrade(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM channels_pg_sa_installation")
        connection.execute("DELETE FROM channels_pg_sa_version")
        code, _, said = run(*command.split(), "--url", database_url)
        assert (code, "but in channels_pg_sa_installation no row" in said) == (1, True)
        for statement in re.findall(r"INSERT INTO [a-z_]+(?: \(revision\))? VALUES \('[0-9]+'\)", said):
            connection.execute(statement.encode())
    migrate.check(database_url)
    migrate.upgrade(database_url)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg"])
def test_alembic_s_own_command_takes_any_url(database_url: str, scheme: str) -> None:
    """`alembic -x url=… upgrade head` in the repository."""
    url = database_url.replace("postgresql", scheme, 1)
    done = execute("alembic", "-x", f"url={url}", "upgrade", "head")
    assert done.returncode == 0, done.stderr
    migrate.check(database_url)


def test_alembic_s_own_command_takes_the_schema_and_the_environment(database_url: str) -> None:
    """-x url goes before CHANNELS_PG_SA_URL, and that before DATABASE_URL."""
    wrong = with_database(database_url, "nowhere")
    done = execute(
        "alembic", "-x", "schema=tenant", "upgrade", "head", CHANNELS_PG_SA_URL=database_url, DATABASE_URL=wrong
    )
    assert done.returncode == 0, done.stderr
    migrate.check(database_url, schema="tenant")
    done = execute("alembic", "-x", f"url={database_url}", "-x", "schema=tenant", "current", CHANNELS_PG_SA_URL=wrong)
    assert done.stdout.startswith(REVISION), done.stderr
    done = execute("alembic", "-x", "schema=tenant", "downgrade", "base", DATABASE_URL=database_url)
    assert done.returncode == 0, done.stderr
    assert migrate.current(database_url, schema="tenant") is None


def test_alembic_s_own_command_falls_back_to_its_file(database_url: str, tmp_path: Path) -> None:
    """And says what is missing where that has no address either."""
    none = execute("alembic", "upgrade", "head")
    assert none.returncode == 1
    assert "give a URL, or set CHANNELS_PG_SA_URL or DATABASE_URL" in none.stderr
    file = tmp_path / "alembic.ini"
    file.write_text(
        f"[alembic]\nscript_location = {ROOT}/alembic\nsqlalchemy.url = {database_url.replace('%', '%%')}\n"
    )
    done = execute("alembic", "-c", str(file), "upgrade", "head")
    assert done.returncode == 0, done.stderr
    migrate.check(database_url)


def test_alembic_s_own_command_writes_sql_without_a_database(database_url: str) -> None:
    """`alembic upgrade head --sql` gives what `channels-pg-sa sql` gives."""
    done = execute("alembic", "upgrade", "head", "--sql")
    assert done.returncode == 0, done.stderr
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(done.stdout.encode())
    migrate.check(database_url)


def test_the_django_command_uses_the_layer_s_database_and_schema(
    database_url: str, layers: Callable[..., None]
) -> None:
    """A CONFIG says both where the layer is and where its tables go."""
    layers(default={"url": database_url, "schema": "tenant"}, other={"url": database_url})
    assert manage("current") == NOTHING
    assert manage("upgrade") == f"{REVISION}\n"
    assert manage("check") == f"{REVISION}\n"
    assert manage("status") == "Nobody receives, and no queue holds messages.\n"
    assert "CREATE UNLOGGED TABLE" in manage("sql")
    assert manage("current", layer="other") == NOTHING
    migrate.check(database_url, schema="tenant")
    assert manage("downgrade", "base") == NOTHING


def test_the_django_command_takes_the_keys_of_a_databases_entry(database_url: str, layers: Callable[..., None]) -> None:
    """So a CONFIG of channels_postgres can be migrated."""
    layers(default={**django_entry(database_url), "PSYCOPG_OPTIONS": {"min_size": 1}})
    assert manage("upgrade") == f"{REVISION}\n"
    migrate.check(database_url)


def test_the_django_command_takes_another_database_and_the_layer_s_schema(
    database_url: str, layers: Callable[..., None], databases: Callable[..., None]
) -> None:
    """Where a test or a copy of the project's database is, its tables are in the same place."""
    databases(default={}, copy=django_entry(database_url))
    layers(default={"url": with_database(database_url, "nowhere"), "schema": "tenant"})
    assert manage("upgrade", database="copy") == f"{REVISION}\n"
    migrate.check(database_url, schema="tenant")
    assert migrate.current(database_url) is None
    with pytest.raises(CommandError, match=r"--database must be an alias of DATABASES \(copy, default\)") as caught:
        manage("upgrade", database="nowhere")
    assert caught.value.returncode == 2


def test_the_django_command_goes_to_another_database_whatever_config_is(
    database_url: str, layers: Callable[..., None], databases: Callable[..., None]
) -> None:
    """What is wrong with that, the system checks tell."""
    databases(default={}, copy=django_entry(database_url))
    layers(default="postgresql://localhost/site")
    assert manage("upgrade", database="copy") == f"{REVISION}\n"


def test_the_django_command_works_where_the_checks_find_errors(database_url: str, layers: Callable[..., None]) -> None:
    """Those of another layer's CONFIG, say; and it is what mends some of them."""
    layers(default={"url": database_url}, other={"no": "such key"})
    output = io.StringIO()
    Command(stdout=output).run_from_argv(["manage.py", "channels_pg_sa", "upgrade"])
    assert output.getvalue() == f"{REVISION}\n"


def test_the_django_command_fails_as_a_command_does(database_url: str, layers: Callable[..., None]) -> None:
    """With 1 for the database's state and 2 for a wrong argument or CONFIG."""
    layers(default={"url": database_url}, wrong={"url": database_url, "expirey": 5}, redis={"url": "host=h"})
    with pytest.raises(CommandError, match="needs revision") as caught:
        manage("check")
    assert caught.value.returncode == 1
    with pytest.raises(CommandError, match='Did you mean "expiry"') as caught:
        manage("check", layer="wrong")
    assert caught.value.returncode == 2
    with pytest.raises(CommandError, match="downgrade needs a revision") as caught:
        manage("downgrade")
    assert caught.value.returncode == 2
    with pytest.raises(CommandError, match=r'CHANNEL_LAYERS\["nowhere"\] does not have the BACKEND'):
        manage("check", layer="nowhere")


def test_the_django_command_says_what_the_database_says(database_url: str, layers: Callable[..., None]) -> None:
    """And not what SQLAlchemy adds for programmers, nor with a traceback."""
    layers(default={"url": with_database(database_url, "nowhere")})
    with pytest.raises(CommandError, match='database "nowhere" does not exist') as caught:
        manage("check")
    assert caught.value.returncode == 1
    assert "sqlalche.me" not in str(caught.value)


def test_a_layer_of_another_kind_is_not_ours_to_migrate() -> None:
    """A project may have several."""
    entry = {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    with (
        override_settings(CHANNEL_LAYERS={"default": entry}),
        pytest.raises(CommandError, match="does not have the BACKEND"),
    ):
        manage("check")


def test_manage_py_in_a_project(database_url: str, tmp_path: Path) -> None:
    """With the app installed, in a process of its own, by an alias of DATABASES."""
    databases = {"default": django_entry(database_url)}
    (tmp_path / "project_settings.py").write_text(
        "USE_TZ = True\nINSTALLED_APPS = ['channels', 'channels_pg_sa']\n"
        f"DATABASES = {databases!r}\nCHANNEL_LAYERS = {{'default': {{'BACKEND': {BACKEND!r}}}}}\n"
    )
    environ = {"DJANGO_SETTINGS_MODULE": "project_settings", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    missing = execute("django", "check", "--database", "default", cwd=tmp_path, **environ)
    assert "channels_pg_sa.W001" in missing.stderr
    done = execute("django", "channels_pg_sa", "upgrade", "--database", "default", cwd=tmp_path, **environ)
    assert (done.returncode, done.stdout) == (0, f"{REVISION}\n"), done.stderr
    found = execute("django", "check", "--database", "default", cwd=tmp_path, **environ)
    assert (found.returncode, "channels_pg_sa" in found.stderr) == (0, False), found.stderr
    assert execute("django", "channels_pg_sa", "check", cwd=tmp_path, **environ).returncode == 0


def test_a_wrong_config_is_an_error_of_the_system_checks(layers: Callable[..., None]) -> None:
    """Each layer with one of its own; other back ends' are their affair."""
    layers(default={"url": "host=h"}, wrong={"url": "host=h", "expirey": 5})
    (message,) = check_config()
    assert isinstance(message, checks.Error)
    assert (message.id, message.obj) == ("channels_pg_sa.E001", 'CHANNEL_LAYERS["wrong"]')
    assert message.msg.startswith('Unknown key "expirey". Did you mean "expiry"'), "what is around it names the place"
    for others in ({"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}, {"default": None}, [], None):
        with override_settings(CHANNEL_LAYERS=others):
            assert check_config() == []


@pytest.mark.parametrize("config", [None, "postgresql://h/d", []])
def test_a_config_that_is_no_mapping_is_an_error_too(config: object) -> None:
    """Not a traceback of whichever command runs the checks."""
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": BACKEND, "CONFIG": config}}):
        (message,) = check_config()
    assert message.msg.startswith('"CONFIG" must be a mapping of keys to values, not ')
    assert check_tables(databases=["default"]) == []


@pytest.mark.parametrize("said", ["sql", "history"])
def test_a_reader_that_has_enough_is_no_error(said: str) -> None:
    """`channels-pg-sa sql | head`, which closes its end of the pipe: no traceback, however little there is to say."""
    theirs, ours = os.pipe()
    os.close(theirs)
    command = [sys.executable, "-m", "channels_pg_sa", said]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=ours, stderr=subprocess.PIPE, text=True, check=False)
    os.close(ours)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_version(run: Callable[..., tuple[int, str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    """As other commands tell theirs."""
    with pytest.raises(SystemExit) as caught:
        run("--version")
    assert (caught.value.code, capsys.readouterr().out) == (0, f"channels-pg-sa {__version__}\n")


def test_missing_tables_are_a_warning_where_databases_are_checked(
    database_url: str, layers: Callable[..., None]
) -> None:
    """Django asks about databases only with `check --database`, in `migrate` and in tests."""
    layers(default={"url": database_url})
    assert check_tables() == []
    (message,) = check_tables(databases=["default"])
    assert isinstance(message, checks.Warning)
    assert (message.id, message.obj) == ("channels_pg_sa.W001", 'CHANNEL_LAYERS["default"]')
    assert "manage.py channels_pg_sa upgrade" in message.msg
    migrate.upgrade(database_url)
    assert check_tables(databases=["default"]) == []


def test_checks_that_ask_about_no_database_do_not_load_alembic() -> None:
    """They come before each command, and when the development server starts: it takes ten times as long as they do."""
    code = f"""
import sys, django
from django.conf import settings
from django.core.checks import run_checks
layers = {{"default": {{"BACKEND": {BACKEND!r}, "CONFIG": {{"url": "postgresql://h/d"}}}}}}
settings.configure(INSTALLED_APPS=["channels_pg_sa"], CHANNEL_LAYERS=layers)
django.setup()
print(run_checks(), "channels_pg_sa.checks" in sys.modules, "alembic" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[] True False\n"


def test_only_databases_that_are_asked_about_are_looked_into(
    database_url: str, layers: Callable[..., None], databases: Callable[..., None]
) -> None:
    """`check --database default` opens no connection to another; an address of the layer's own is always looked at."""
    databases(default={}, other=django_entry(database_url))
    layers(default={"database": "other"}, own={"url": database_url})
    for asked, found in ((["default"], ["own"]), (["default", "other"], ["default", "own"])):
        places = [message.obj for message in check_tables(databases=asked)]
        assert places == [f'CHANNEL_LAYERS["{name}"]' for name in found]


def test_each_layer_s_tables_are_looked_for_where_they_are(database_url: str, layers: Callable[..., None]) -> None:
    """In the schema of each, and each that has none is told."""
    layers(**{name: {"url": database_url, "schema": name} for name in ("one", "two", "three")})
    migrate.upgrade(database_url, schema="two")
    messages = check_tables(databases=["default"])
    assert [message.obj for message in messages] == ['CHANNEL_LAYERS["one"]', 'CHANNEL_LAYERS["three"]']
    assert [message.hint for message in messages] == [
        f"For this layer: manage.py channels_pg_sa upgrade --layer {name}" for name in ("one", "three")
    ]


class OwnLayer(PostgresChannelLayer):
    """A project's own, made of ours."""


def test_a_layer_that_is_made_of_ours_is_ours(database_url: str) -> None:
    """For the command as for the checks."""
    backend = f"{__name__}.{OwnLayer.__name__}"
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": backend, "CONFIG": {"expirey": 5}}}):
        assert [message.id for message in check_config()] == ["channels_pg_sa.E001"]
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": backend, "CONFIG": {"url": database_url}}}):
        assert (check_config(), check_entries()) == ([], [])
        call_command(Command(), "upgrade", stdout=io.StringIO())
    migrate.check(database_url)


class OtherLayer(PostgresChannelLayer):
    """A project's own, with keys of its own."""

    def __init__(self, *, tenant: str) -> None:
        super().__init__(prefix=tenant)


def test_a_layer_with_a_config_of_its_own_is_not_ours() -> None:
    """Nobody but its class knows what its CONFIG means."""
    entry = {"BACKEND": f"{__name__}.{OtherLayer.__name__}", "CONFIG": {"tenant": "a"}}
    with override_settings(CHANNEL_LAYERS={"default": entry}):
        assert (check_config(), check_entries(), check_tables(databases=["default"])) == ([], [], [])


@pytest.mark.parametrize(
    "backend",
    [f"{PACKAGE}.PostgresChannelLayer", f"{PACKAGE}.layers.PostgresChannelLayer", f"{BACKEND}s", f"{PACKAGE}.Layer"],
)
def test_a_backend_that_is_nearly_ours_is_an_error_of_the_system_checks(backend: str) -> None:
    """The last would even work, with exceptions that are not those of Channels."""
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": backend}}):
        (message,) = check_entries()
    assert (message.id, message.obj) == ("channels_pg_sa.E002", 'CHANNEL_LAYERS["default"]')
    assert (backend in message.msg, BACKEND in (message.hint or "")) == (True, True)


def test_what_stands_beside_config_is_a_warning() -> None:
    """Channels reads nothing else: the layer would run with its defaults."""
    entry = {"BACKEND": BACKEND, "CONFIG": {}, "TEST_CONFIG": {}}
    others = {"BACKEND": "channels.layers.InMemoryChannelLayer", "config": {}}
    with override_settings(
        CHANNEL_LAYERS={"right": entry, "wrong": {**entry, "prefix": "a", "config": {}}, "no": others}
    ):
        (message,) = check_entries()
    assert (message.id, message.obj) == ("channels_pg_sa.W002", 'CHANNEL_LAYERS["wrong"]')
    assert message.msg == "Channels does not read config, prefix."


def test_what_an_upgrade_does_not_mend_has_no_hint_to_it(database_url: str, layers: Callable[..., None]) -> None:
    """Such as a function that somebody dropped; the message says what does."""
    layers(default={"url": database_url})
    migrate.upgrade(database_url)
    assert check_tables(databases=["default"]) == []
    query(database_url, "DROP FUNCTION channels_pg_sa_listen")
    (message,) = check_tables(databases=["default"])
    assert ("downgrade base" in message.msg, message.hint) == (True, None)


def test_django_runs_the_checks_when_it_should(
    database_url: str, layers: Callable[..., None], databases: Callable[..., None]
) -> None:
    """The CONFIG of each layer always, of which there may be none; tables only where databases are checked."""
    databases(default=django_entry(database_url))
    layers(one={"url": "host=h", "expirey": 5}, two={"url": "host=h", "prefx": "a"}, three={"url": database_url})
    found = [message.id for message in checks.run_checks() if "channels_pg_sa" in (message.id or "")]
    assert found == ["channels_pg_sa.E001"] * 2
    asked = checks.run_checks(tags=[checks.Tags.database], databases=["default"])
    assert "channels_pg_sa.W001" in {message.id for message in asked}
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": BACKEND}}):
        assert check_config() == []


def test_an_unreachable_database_is_a_warning_too(database_url: str, layers: Callable[..., None]) -> None:
    """The checks of a build machine without a server still end."""
    layers(default={"url": with_database(database_url, "nowhere")})
    (message,) = check_tables(databases=["default"])
    assert ('database "nowhere" does not exist' in message.msg, message.hint) == (True, None)


def test_a_password_that_cannot_be_had_is_a_warning_too(database_url: str, layers: Callable[..., None]) -> None:
    """It is asked for when a connection is made, and so after the settings were found right."""
    layers(default={**django_entry(database_url), "PASSWORD": lambda: 5})
    (message,) = check_tables(databases=["default"])
    assert ('"PASSWORD" must be a text' in message.msg, message.hint) == (True, None)


def test_a_wrong_config_is_told_once(layers: Callable[..., None]) -> None:
    """Not again where its tables would be looked for."""
    layers(default={"url": "host=h", "expirey": 5})
    assert check_tables(databases=["default"]) == []


def test_an_assumed_role_holds_in_a_real_connection(database_url: str) -> None:
    """The server takes what we write for Django's assume_role."""
    from channels_pg_sa.django_settings import settings_from_config

    made: Settings = settings_from_config({**django_entry(database_url), "OPTIONS": {"assume_role": "pg_monitor"}})
    with psycopg.connect(**made.connect()) as connection:
        row = connection.execute("SELECT current_user").fetchone()
    assert row == ("pg_monitor",)
