"""What developers and CI run: `nox` for everything, `nox -s tests`, `nox -s demo`."""

from __future__ import annotations

import os

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "contracts", "tests"]

PROJECT = nox.project.load_toml("pyproject.toml")
VERSIONS = {
    # The oldest of everything that pyproject.toml allows; their wheels end at Python 3.11.
    # Daphne's service-identity and pyOpenSSL, installed before it, would want a newer cryptography.
    "oldest": [requirement.replace(">=", "==") for requirement in PROJECT["project"]["dependencies"]]
    + ["service-identity<25", "pyopenssl<24"],
    "sqlalchemy20": ["sqlalchemy>=2.0,<2.1"],
    "django42": ["django>=4.2,<5"],
    "newest": ["--upgrade", "--pre", "django", "channels", "sqlalchemy", "psycopg", "psycopg-pool", "alembic"],
}


def install(session: nox.Session, *groups: str, package: bool = True) -> None:
    """Install the package, and the tools of these dependency groups."""
    tools = nox.project.dependency_groups(PROJECT, *groups)
    session.install(*(["-e", "."] if package else []), *tools)


def pytest(session: nox.Session, *options: str, paths: tuple[str, ...] = ()) -> None:
    """Run all tests, those of paths, or as the arguments say, on servers of their own or CHANNELS_PG_SA_TEST_URL's."""
    workers = min(4, (os.cpu_count() or 1) + 2)  # more than can work: tests wait a lot
    chosen = session.posargs or ["-n", str(workers), "--dist", "worksteal", *paths]
    session.run("python", "-m", "pytest", *options, *chosen)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; arguments go to pytest."""
    install(session, "tests")
    pytest(session)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests and show which lines and branches none of them took."""
    install(session, "tests")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
@nox.parametrize("versions", list(VERSIONS), ids=list(VERSIONS))
def matrix(session: nox.Session, versions: str) -> None:
    """Run the tests with the oldest, or with other, versions of what the package stands on."""
    install(session, "tests")
    session.install(*VERSIONS[versions])
    pytest(session)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting; with `-- --fix` mend what can be mended."""
    install(session, "lint", package=False)
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []))
    session.run("ruff", "format", *([] if fix else ["--check"]))


@nox.session
def types(session: nox.Session) -> None:
    """Check the types."""
    install(session, "types")
    session.run("mypy")


@nox.session
def contracts(session: nox.Session) -> None:
    """Check which module may import which."""
    install(session, "contracts")
    session.run("lint-imports")


@nox.session
def demo(session: nox.Session) -> None:
    """Run the chat; with `-- --check` drive it and report instead."""
    install(session, "demo")
    session.run("python", "examples/chat/run.py", *session.posargs)


def example(session: nox.Session) -> None:
    """Run the example that is called as its session is."""
    install(session, "examples")
    session.run("python", "-m", f"examples.{session.name}", *session.posargs)


@nox.session
def orders(session: nox.Session) -> None:
    """Run FastAPI and Django side by side, with sends in the transactions of both; `-- --check` drives it."""
    example(session)


@nox.session
def feed(session: nox.Session) -> None:
    """Run a page that a trigger of a plain table feeds; `-- --check` drives it."""
    example(session)


@nox.session
def celery(session: nox.Session) -> None:
    """Run a Celery task whose progress a page shows; `-- --check` drives it."""
    example(session)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure this layer against others, as far as their servers are there."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def races(session: nox.Session) -> None:
    """Run the tests of faults, or others, while each wait for the server lasts a moment longer at random."""
    install(session, "tests")
    pytest(session, "-p", "tests.support.delays", paths=("tests/faults",))


@nox.session
def soak(session: nox.Session) -> None:
    """Run processes and faults for a while and count what came, `-- --minutes 5`; or `-- --messages 1000000`."""
    install(session, "soak")
    session.run("python", "-m", "tests.soak", *session.posargs)
