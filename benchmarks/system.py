"""What Linux tells about processes: CPU time of a server, connections to it, resident memory."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_ESTABLISHED = "01"
_LISTEN = "0A"


def listening_process(port: int) -> int | None:
    """Return the lowest process id that listens on TCP `port`, or None where that cannot be seen.

    A forking server shares the socket with its children; the parent has the lowest id.
    """
    inodes = {inode for state, local, _, inode in _tcp_sockets(_PROC / "self") if state == _LISTEN and local == port}
    pids = (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())
    return next((pid for pid in sorted(pids) if inodes & _socket_inodes(_PROC / str(pid))), None) if inodes else None


def connections_to(port: int) -> int:
    """Return how many TCP connections this process holds to `port`."""
    own = _socket_inodes(_PROC / "self")
    sockets = _tcp_sockets(_PROC / "self")
    return sum(state == _ESTABLISHED and remote == port and inode in own for state, _, remote, inode in sockets)


def family_cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of `pid`, of its living descendants, and of the children they have buried."""
    ticks = sum(_cpu_ticks(member) for member in _family(pid))
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int((_PROC / "self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def allow_open_files(wanted: int) -> None:
    """Let this process have `wanted` open files; raise RuntimeError where the system's limit forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < wanted:
        raise RuntimeError(f"it needs {wanted} open files in a process and may have {hard}; raise that: ulimit -Hn")
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def machine_cpu_seconds() -> float:
    """Return the CPU seconds that all programs of the machine have used since it started."""
    user, nice, system, _, _, irq, softirq, *_ = (
        int(value) for value in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def processor() -> str:
    """Return the name of the processor and how many of its cores this process may use."""
    try:
        lines = (_PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def sleep_until(moment: float) -> None:
    """Sleep until the monotonic clock, which all processes of one machine share, shows `moment`."""
    time.sleep(max(0.0, moment - time.monotonic()))


def _tcp_sockets(process: Path) -> Iterator[tuple[str, int, int, str]]:
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (process / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            yield fields[3], int(fields[1].rsplit(":", 1)[1], 16), int(fields[2].rsplit(":", 1)[1], 16), fields[9]


def _socket_inodes(process: Path) -> set[str]:
    inodes = set()
    try:
        for descriptor in (process / "fd").iterdir():
            target = os.readlink(descriptor) if descriptor.is_symlink() else ""
            if target.startswith("socket:["):
                inodes.add(target[len("socket:[") : -1])
    except OSError:  # another user's process, or one that has just ended
        pass
    return inodes


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on, none if the process is not to be seen."""
    try:
        # The name in parentheses may hold blanks; the numbers start after it.
        return (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def _cpu_ticks(pid: int) -> int:
    fields = stat_fields(pid)
    return sum(int(value) for value in fields[11:15])


def _family(pid: int) -> set[int]:
    parents = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    family = {pid}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return family
