"""All pages: their links lead somewhere, and what they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.test import override_settings

from channels_pg_sa import Layer, Publisher
from tests.support.processes import ROOT

PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "examples/*/*.md", "tests/*.md")
    for page in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")
PATH = re.compile(r"`((?:alembic|benchmarks|channels_pg_sa|docs|examples|tests)/[\w./]*)`")
SESSION = re.compile(r"""nox -s "?(\w+)""")


def read(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Return what a page's headings are called in links, as GitHub does it."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """To a file of this repository, and to a heading in it if they name one."""
    for path, heading in LINK.findall(read(page)):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        assert not heading or heading in anchors(target), f"{path}#{heading}"


@pytest.mark.parametrize("page", PAGES)
def test_files_are_there(page: str) -> None:
    """What a page says is in a file or directory of the repository."""
    assert [path for path in PATH.findall(read(page)) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_sessions_are_there(page: str) -> None:
    """What is to be run by nox is a session of the noxfile."""
    sessions = set(re.findall(r"^@nox\.session\n(?:@.*\n)*def (\w+)", read("noxfile.py"), re.MULTILINE))
    assert set(SESSION.findall(read(page))) <= sessions


def test_the_tables_of_modules_are_complete() -> None:
    """Each module of each package has its place in docs/architecture.md, and nothing that is gone has one."""
    package = ROOT / "channels_pg_sa"
    tables = re.findall(
        r"(?:^`(\w+)`, .*:\n\n)?(\| Module \|.*\n(?:\|.*\n)+)", read("docs/architecture.md"), re.MULTILINE
    )
    named = {folder: set(re.findall(r"`([\w.]+)`", table)) for folder, table in tables}
    assert set(named) == {"", *(path.parent.name for path in package.glob("*/__init__.py"))} - {"management"}
    for folder, modules in named.items():
        there = {path.stem for path in (package / folder).glob("*.py")} - {"__init__", "__main__", "version"}
        assert modules == there | (set() if folder else {"schema.sql", "management"})


def test_the_reference_is_complete() -> None:
    """Each method of a layer has its place, and of each it is said whether a Publisher has it; so have attributes."""
    page = read("docs/reference.md")
    rows = [row.strip("| ").split(" | ") for row in page.splitlines() if row.startswith("| `")]
    methods: set[str] = set()
    for row in rows:
        named = set(re.findall(r"`(\w+)(?:\(.*?\))?`", " ".join(row[:2]))) & set(dir(Layer))
        assert {hasattr(Publisher, name) for name in named} == {row[-1] == "yes"}, row
        methods |= named
    attributes = set(re.findall(r"`(\w+)`", page.partition("A layer also has")[2].partition("\n\n")[0]))
    assert methods | attributes == {name for name in dir(Layer) if not name.startswith("_")}


def test_the_code_of_the_reference_runs() -> None:
    """Type checkers are told what is so."""
    (code,) = re.findall(r"```python\n(.*?)```", read("docs/reference.md"), re.DOTALL)
    entry = {"BACKEND": "channels_pg_sa.core.PostgresChannelLayer", "CONFIG": {"url": "postgresql://nowhere"}}
    with override_settings(CHANNEL_LAYERS={"default": entry}):
        exec(compile(code, "docs/reference.md", "exec"), {})
