"""The package as its wheel has it, and environments that hold no more than it needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Collection, Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .processes import ROOT


def unpack_wheel(work: Path, site: Path) -> None:
    """Build the wheel from this repository, in the directory `work`, and unpack it into `site`."""
    _run("hatchling", "build", "-t", "wheel", "-d", str(work))
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


def make_environment(place: Path, *, without: Collection[str]) -> Path:
    """Make a virtual environment with the wheel and its dependencies, linked from where they are installed here.

    Args:
        place: a directory that is not there yet.
        without: canonical names of dependencies that are left out, as is what only they need.

    Returns:
        Its Python.
    """
    _run("venv", "--without-pip", str(place))
    (site,) = place.glob("lib/python*/site-packages")
    unpack_wheel(place / "wheel", site)
    (metadata,) = site.glob("channels_pg_sa-*.dist-info")
    for needed in _dependencies(Distribution.at(metadata), without):
        for name in _top_level(needed):
            (site / name).symlink_to(Path(str(needed.locate_file(name))))
    return place / "bin" / "python"


def _run(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=50)


def _dependencies(root: Distribution, without: Collection[str]) -> Iterable[Distribution]:
    """Return what a distribution needs, and what that needs in turn, with the extras that are asked for."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    left = [(root, frozenset[str]())]
    while left:
        dependent, extras = left.pop()
        for requirement in map(Requirement, dependent.requires or ()):
            name, wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
            if name in without or (name, wanted) in seen or not _applies(requirement, extras):
                continue
            seen.add((name, wanted))
            found[name] = distribution(name)
            left.append((found[name], wanted))
    return found.values()


def _applies(requirement: Requirement, extras: Collection[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _top_level(of: Distribution) -> set[str]:
    """Return the names in site-packages that are a distribution's own, its metadata's among them."""
    if of.files is None:
        raise RuntimeError(f"{of.metadata['Name']} does not say which files are its own.")
    return {path.parts[0] for path in of.files} - {"..", "__pycache__"}
