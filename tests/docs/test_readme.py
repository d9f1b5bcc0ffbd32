"""The README's code runs as it stands, in a project made for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from channels_pg_sa.schema import REVISION
from tests.support.databases import query
from tests.support.processes import ROOT, environment

pytestmark = pytest.mark.processes

README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS, DJANGO, ATOMIC, PLAIN = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(directory: Path, *arguments: str, **environ: str) -> str:
    """Run Python in a directory, where any warning is an error, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=directory,
        env=environment(**environ),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def project(tmp_path: Path, database_url: str) -> Path:
    """A Django project with the README's settings, on an empty database."""
    facts = conninfo_to_dict(database_url)
    entry = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": facts["dbname"],
        "USER": facts.get("user", ""),
        "PASSWORD": facts.get("password", ""),
        "HOST": facts.get("host", ""),
        "PORT": facts.get("port", ""),
    }
    more = f'DATABASES = {{"default": {entry!r}}}\nSECRET_KEY = "readme"\nUSE_TZ = True\n'
    (tmp_path / "settings.py").write_text(SETTINGS + more, encoding="utf-8")
    return tmp_path


def test_a_django_project_as_the_readme_makes_it(project: Path, database_url: str) -> None:
    """Settings, `upgrade`, and a send from code without an event loop."""
    settings = {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": f"{project}:{ROOT}"}
    assert run(project, "-m", "django", "channels_pg_sa", "upgrade", **settings) == f"{REVISION}\n"
    assert "no issues" in run(project, "-m", "django", "check", "--database", "default", **settings)
    columns = "prefix, group_name, node, channel"
    query(database_url, f"INSERT INTO channels_pg_sa_membership ({columns}) VALUES ('asgi', 'news', '', 'in')")
    run(project, "-c", f"import django; django.setup()\n{DJANGO}", **settings)
    run(project, "-c", f"import django; django.setup()\n{ATOMIC}", **settings)
    assert query(database_url, "SELECT channel FROM channels_pg_sa_message") == [("in",), ("in",)]


def test_a_program_without_django_as_the_readme_writes_it(tmp_path: Path, layer_url: str) -> None:
    """One object does the rest."""
    assert run(tmp_path, "-c", PLAIN, DATABASE_URL=layer_url) == "{'type': 'news.published', 'id': 7}\n"
