"""`channels-pg-sa status`: who receives, what groups there are, and which queues fill."""

from __future__ import annotations

import os
import re
import secrets
import socket
from typing import Any

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from channels_pg_sa import __version__, cli
from channels_pg_sa.errors import SchemaError
from channels_pg_sa.migrate import upgrade
from channels_pg_sa.status import MOST, status
from tests.support.databases import run_script
from tests.support.layers import LayerFactory

WAITING = "INSERT INTO channels_pg_sa_message (prefix, recipient, channel, payload, expires_at) VALUES "
NODE = """INSERT INTO channels_pg_sa_node (id, prefix, host, pid, version, started_at, seen_at, lease_until)
    VALUES ('aaaaaaaaaaaa', 'asgi', 'web-1', 42, '0.1', now() - interval '2 h', now() - interval '5 min', now()),"""

JOIN = "INSERT INTO channels_pg_sa_membership (prefix, group_name, node, channel) VALUES ('asgi', 'group', '', 'jobs')"
PLACEHOLDER = "('bbbbbbbbbbbb', 'asgi', NULL, NULL, NULL, now(), now(), now() + interval '1 min')"


def test_of_empty_tables(layer_url: str) -> None:
    """It says so, rather than nothing."""
    assert status(layer_url) == "Nobody receives, and no queue holds messages.\n"


async def test_of_processes_and_groups(make_own_layer: LayerFactory, layer_url: str) -> None:
    """Of each its place, its age, and what is its own; a member that any process may read counts for nobody."""
    layer, other = make_own_layer(), make_own_layer(prefix="other")
    channels = [await layer.new_channel() for _ in range(2)]
    for group, channel in (("news", channels[0]), ("news", channels[1]), ("sport", channels[0]), ("sport", "plain")):
        await layer.group_add(group, channel)
    await other.group_add("news", await other.new_channel())
    lines = status(layer_url).splitlines()
    process = (
        rf"    {{}}  {re.escape(socket.gethostname())}  pid {os.getpid()}  version {re.escape(__version__)}  "
        r"up 0:00:\d\d  seen 0:00:\d\d ago  memberships: {}  mailbox: 0"
    )
    expected = [
        "prefix asgi",
        "  processes: 1",
        process.format(layer.node, 3),
        "  groups: 2  memberships: 4",
        "prefix other",
        "  processes: 1",
        process.format(other.node, 1),
        "  groups: 1  memberships: 1",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_of_what_waits(layer_url: str) -> None:
    """In queues, in the mailbox of a process that is gone; what has expired, and is not swept yet, waits no more."""
    run_script(layer_url, NODE + PLACEHOLDER)
    run_script(
        layer_url,
        WAITING
        + """('asgi', 'jobs', 'jobs', '', now() + interval '50 s'), ('asgi', 'jobs', 'jobs', '', 'infinity'),
        ('asgi', 'jobs', 'jobs', '', now()), ('asgi', 'over', 'over', '', now()),
        ('asgi', 'hub!', 'hub!one', '', 'infinity'),
        ('asgi', 'aaaaaaaaaaaa', 'specific.aaaaaaaaaaaa!x', '', 'infinity'),
        ('asgi', 'aaaaaaaaaaaa', 'specific.aaaaaaaaaaaa!x', '', now())""",
    )
    lines = status(layer_url).splitlines()
    process = "web-1  pid 42  version 0.1  up 2:00:00  gone, last seen 0:05:00 ago  memberships: 0  mailbox: 1"
    assert lines[:3] == ["prefix asgi", "  processes: 0", f"    aaaaaaaaaaaa  {process}"]
    assert lines[3] == "  queues that hold messages: 2"
    assert re.fullmatch(r"    jobs  waiting: 2  the first expires in 0:00:[45]\d", lines[4])
    assert lines[5:] == ["    hub!  waiting: 1  the first expires never"]


def test_after_a_clock_was_set_back(layer_url: str) -> None:
    """What is still to come was a moment ago."""
    run_script(layer_url, NODE.replace(" - interval", " + interval") + PLACEHOLDER)
    assert "up 0:00:00  gone, last seen 0:00:00 ago" in status(layer_url)


def test_a_membership_that_has_ended_is_none(layer_url: str) -> None:
    """Though it is not swept yet."""
    run_script(layer_url, JOIN.replace("channel)", "channel, expires_at)").replace("'jobs')", "'jobs', now())"))
    assert status(layer_url) == "Nobody receives, and no queue holds messages.\n"


def test_all_is_of_one_moment(layer_url: str) -> None:
    """What comes while it is read is not in it, so that no member is shown without its process."""

    def join(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "lease_until" in statement:
            run_script(layer_url, JOIN)

    event.listen(Engine, "after_cursor_execute", join)
    try:
        assert status(layer_url) == "Nobody receives, and no queue holds messages.\n"
    finally:
        event.remove(Engine, "after_cursor_execute", join)
    assert "groups: 1  memberships: 1" in status(layer_url)


def test_the_fullest_of_many_queues(layer_url: str) -> None:
    """A site that names queues by its users must not fill the terminal."""
    rows = [f"('asgi', 'queue{place}', 'queue{place}', '', 'infinity')" for place in range(MOST + 5)]
    run_script(layer_url, WAITING + ", ".join([*rows, rows[-1]]))
    lines = status(layer_url).splitlines()
    assert lines[2] == f"  queues that hold messages: {MOST + 5}"
    assert lines[3].startswith(f"    queue{MOST + 4}  waiting: 2")
    assert lines[-1] == "    and 5 more"
    assert len(lines) == 3 + MOST + 1


def test_a_prefix_has_places_of_its_own(layer_url: str) -> None:
    """However many queues another fills, and however full."""
    rows = [f"('crowd', 'queue{place}', 'queue{place}', '', 'infinity')" for place in range(MOST + 5)]
    run_script(layer_url, WAITING + ", ".join([*rows, *rows, "('quiet', 'jobs', 'jobs', '', 'infinity')"]))
    lines = status(layer_url).splitlines()
    assert lines[:3] == ["prefix crowd", "  processes: 0", f"  queues that hold messages: {MOST + 5}"]
    assert lines[-4:] == [
        "prefix quiet",
        "  processes: 0",
        "  queues that hold messages: 1",
        "    jobs  waiting: 1  the first expires never",
    ]


def test_the_oldest_process_comes_first(layer_url: str) -> None:
    """Wherever its row lies, and whatever its id."""
    younger = NODE.replace("2 h", "1 h").replace("aaaaaaaaaaaa", "999999999999")
    run_script(layer_url, f"{younger} {PLACEHOLDER}; {NODE.removesuffix(',')}")
    lines = [line for line in status(layer_url).splitlines() if "  up " in line]
    assert [line.split()[0] for line in lines] == ["aaaaaaaaaaaa", "999999999999"]


def test_nobody_s_name_reaches_the_terminal_as_a_command(layer_url: str) -> None:
    """Whoever may insert a row could write one."""
    run_script(layer_url, WAITING + r"(E'\x1b[2J', E'a\x1b[31m', E'a\x1b[31m', '', 'infinity')")
    strange = NODE.replace("aaaaaaaaaaaa", "\x1b[3m").replace("web-1", "\x1b[1m").replace("0.1", "\u00e9")
    run_script(layer_url, strange + PLACEHOLDER)
    shown = status(layer_url)
    assert "\x1b" not in shown
    assert shown.isascii(), "no terminal is without these"
    assert r"'\x1b[3m'  '\x1b[1m'  pid 42  version '\xe9'" in shown
    assert r"'\x1b[2J'" in shown
    assert r"'a\x1b[31m'" in shown


def test_a_name_that_is_empty_can_be_seen(layer_url: str) -> None:
    """As one, and not as another space."""
    run_script(layer_url, NODE.replace("web-1", "").removesuffix(","))
    assert "    aaaaaaaaaaaa  ''  pid 42  " in status(layer_url)


def test_for_a_role_that_may_only_read(layer_url: str) -> None:
    """Who looks after a site need not be able to change it."""
    role = f"reader_{secrets.token_hex(4)}"
    run_script(layer_url, f"CREATE ROLE {role}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        shown = status(lambda: {**psycopg.conninfo.conninfo_to_dict(layer_url), "options": f"-c role={role}"})
    finally:
        run_script(layer_url, f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert shown == "Nobody receives, and no queue holds messages.\n"


def test_tables_that_are_missing_or_elsewhere(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is that of `check`; --schema says where they are."""
    with pytest.raises(SchemaError, match=r"no channels_pg_sa tables.*upgrade"):
        status(database_url)
    upgrade(database_url, schema="tenant")
    assert cli.main(["status", "--url", database_url]) == 1
    assert cli.main(["status", "head", "--url", database_url]) == 2
    assert "takes no revision" in capsys.readouterr().err
    assert cli.main(["status", "--url", database_url, "--schema", "tenant"]) == 0
    assert capsys.readouterr().out == "Nobody receives, and no queue holds messages.\n"
