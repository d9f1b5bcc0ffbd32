"""The wheel holds the history, and works where the repository is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from channels_pg_sa import migrate
from channels_pg_sa.schema import REVISION
from tests.support.processes import ROOT
from tests.support.wheel import unpack_wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the unpacked wheel, built from this repository."""
    site = tmp_path_factory.mktemp("site")
    unpack_wheel(tmp_path_factory.mktemp("wheel"), site)
    return site


def python(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the unpacked wheel before everything else, far from the repository."""
    env = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}  # it is looked into afterwards
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=installed.parent,
        env=env,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_the_command_migrates_from_an_installed_wheel(installed: Path, database_url: str) -> None:
    """`channels-pg-sa upgrade` with the history inside the package."""
    place = python(installed, "-c", "from channels_pg_sa import migrate; print(migrate.script_location())")
    assert place.stdout.strip() == str(installed / "channels_pg_sa" / "_alembic"), place.stderr
    done = python(installed, "-m", "channels_pg_sa", "upgrade", "--url", database_url)
    assert (done.returncode, done.stdout) == (0, f"{REVISION}\n"), done.stderr
    migrate.check(database_url)


def test_the_console_script_is_declared(installed: Path) -> None:
    """And it is the same command."""
    done = python(
        installed,
        "-c",
        "from importlib.metadata import distribution as d;"
        "[s] = d('channels-pg-sa').entry_points.select(group='console_scripts');"
        "print(s.name); s.load()(['history'])",
    )
    assert done.stdout.splitlines()[0] == "channels-pg-sa", done.stderr
    assert done.stdout.splitlines()[1].startswith(f"{REVISION}  ")


def test_the_wheel_holds_what_it_needs_and_nothing_else(installed: Path) -> None:
    """Types for type checkers, the SQL, Django's modules; no caches, no tests, no directory named alembic."""
    package = installed / "channels_pg_sa"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {"py.typed", "core.py", "management/commands/channels_pg_sa.py", "_alembic/env.py"} <= files
    assert {path.name for path in (package / "_alembic" / "versions").glob("*.py")}
    assert {
        path.relative_to(ROOT / "channels_pg_sa").as_posix() for path in (ROOT / "channels_pg_sa").rglob("*.sql")
    } <= files
    assert not [name for name in files if "__pycache__" in name]
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"channels_pg_sa"}
