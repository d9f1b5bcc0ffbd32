"""The code in the documentation, to be run by the tests."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, heading: str, language: str = "python") -> list[str]:
    """Return the code blocks of a language under a heading of a page of the documentation.

    Raises:
        LookupError: there are none.
    """
    found = _code(_sections(_text(page)).get(heading, ""), language)
    if not found:
        raise LookupError(f"{page} has no {language} under {heading!r}")
    return found


def all_blocks(page: str, language: str = "python") -> list[str]:
    """Return every code block of a language on a page."""
    return _code(_text(page), language)


def run(code: str, names: dict[str, Any]) -> None:
    """Run a block that has no await."""
    exec(compile(code, "documentation", "exec", dont_inherit=True), names)


async def run_async(code: str, names: dict[str, Any]) -> None:
    """Run a block that may have await outside of functions."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    result = eval(compile(code, "documentation", "exec", flags=flags, dont_inherit=True), names)
    if inspect.iscoroutine(result):
        await result


def _text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def _code(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def _sections(text: str) -> dict[str, str]:
    """Return what stands under each heading; a # within code is none."""
    sections: dict[str, list[str]] = {}
    heading, in_code = "", False
    for line in text.splitlines(keepends=True):
        in_code ^= line.startswith("```")
        if line.startswith("#") and not in_code:
            heading = line.lstrip("#").strip()
        else:
            sections.setdefault(heading, []).append(line)
    return {heading: "".join(lines) for heading, lines in sections.items()}
