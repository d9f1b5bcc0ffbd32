"""What went wrong in layers before this one is what this suite is about: each defect has its test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def defects() -> set[int]:
    """The numbers of what is listed in DEFECTS.md."""
    return {int(number) for number in re.findall(r"^(\d+)\. ", (TESTS / "DEFECTS.md").read_text("utf-8"), re.MULTILINE)}


def docstrings() -> Iterator[str]:
    """Yield the docstring of every test function."""
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield ast.get_docstring(node) or ""


def test_each_defect_is_named_by_a_test() -> None:
    """A test that is about one says so: `Peer defect 14: ...`, `Peer defects 1 and 12: ...`."""
    named = {
        int(number)
        for text in docstrings()
        for heading in re.findall(r"Peer defects? ([\d and,]+):", text)
        for number in re.findall(r"\d+", heading)
    }
    assert named == defects()
