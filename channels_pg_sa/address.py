"""Turns every way to write a database's address into libpq's keyword parameters."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from psycopg import ProgrammingError, pq
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from .errors import ConfigurationError

Url: TypeAlias = "str | URL"
Connector: TypeAlias = Callable[[], dict[str, Any]]

LIBPQ_KEYWORDS = frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults())
# asyncpg's name for it, which people keep in URLs they share between drivers.
_OTHER_DRIVERS = {"ssl": "sslmode"}
_WHERE = frozenset({"host", "hostaddr", "port"})


def parameters_from_url(url: object, key: str) -> dict[str, Any]:
    """Read an address.

    Args:
        url: a SQLAlchemy URL (`postgresql+anydriver://…`), a libpq URI (`postgresql://…`) or a libpq
            string (`host=/run/postgresql dbname=app`). The last two may name several hosts.
        key: what to call it in an error.

    Raises:
        ConfigurationError: it is none of these. The address itself is never shown: it may hold a password.
    """
    if isinstance(url, URL):
        parameters = _from_sqlalchemy(url, key)
    elif isinstance(url, str) and url.strip():
        parameters = _from_text(url, key)
    else:
        wrong = "an empty text" if isinstance(url, str) else f"of type {type(url).__name__}"
        raise ConfigurationError(
            f'"{key}" must be an address of a PostgreSQL server, such as postgresql://user:password@host/name, '
            f"or a callable that returns one, not {wrong}."
        )
    _check_place(parameters, key)
    return parameters


def connector(url: Url | Callable[[], Url], key: str = "url") -> Connector:
    """Make the function that gives the parameters of each new connection.

    Args:
        url: the address, checked now, or a callable that gives it, called for each new connection.
        key: what to call it in an error.

    Raises:
        ConfigurationError: the address cannot be read.
    """
    if callable(url):
        return lambda: parameters_from_url(asked(url, key), key)
    parameters = parameters_from_url(url, key)
    return lambda: dict(parameters)


def asked(function: Callable[[], Any], key: str) -> Any:
    """Call a function that stands in the settings; in a layer's own thread, which must not end by it."""
    try:
        answer = function()
    except SystemExit as error:
        raise RuntimeError(f'The function of "{key}" wants to end the process: {error!r}') from error
    if asyncio.iscoroutine(answer):
        answer.close()  # which nobody awaits: Python need not warn of that beside the error
    return answer


def overlaid(base: Connector, over: Connector) -> Connector:
    """Complete one address by another: what `over` leaves out comes from `base`.

    A host of its own brings its own port, and a user of its own its own password. A service brings all: what stood
    beside it would count for more. https://www.postgresql.org/docs/current/libpq-pgservice.html
    """

    def connect() -> dict[str, Any]:
        ours, theirs = over(), base()
        if "service" in ours:
            return ours
        dropped = _WHERE if ours.keys() & _WHERE else frozenset()
        if ours.get("user", theirs.get("user")) != theirs.get("user"):
            dropped |= {"password", "passfile"}
        return {key: value for key, value in theirs.items() if key not in dropped} | ours

    return connect


def check_keywords(parameters: Mapping[str, Any], key: str) -> None:
    """Refuse a parameter that libpq does not know.

    Raises:
        ConfigurationError: names the first such parameter and the nearest right one.
    """
    for name in parameters:
        if name not in LIBPQ_KEYWORDS:
            near = difflib.get_close_matches(name.lower(), LIBPQ_KEYWORDS, n=1)
            hint = f' Did you mean "{near[0]}"?' if near else ""
            raise ConfigurationError(f'"{key}" has the parameter "{name}", which libpq does not know.{hint}')


def _from_text(url: str, key: str) -> dict[str, Any]:
    scheme = _scheme(url, key)
    if scheme.startswith("postgresql+") or _repeats_host(url):
        parameters = _from_sqlalchemy(_parsed(url.replace("postgres://", "postgresql://", 1), key), key)
    else:
        parameters = _from_libpq(url, key)
    path = url.partition("://")[2].partition("?")[0].partition("/")[2]
    if scheme and "@" in path and "@" in str(parameters.get("dbname")):
        raise _unreadable(key)  # what stands before it is rather a piece of a password than a database's name
    return parameters


def _scheme(url: str, key: str) -> str:
    scheme, found, _ = url.partition("://")
    if not found or "=" in scheme:
        return ""
    if re.fullmatch(r"postgres(ql(\+\w+)?)?", scheme) is None:
        raise ConfigurationError(f'"{key}" must be an address of a PostgreSQL server, not of "{scheme}".')
    return scheme


def _repeats_host(url: str) -> bool:
    """SQLAlchemy writes several hosts as `?host=a&host=b`, of which libpq takes the last."""
    return len(re.findall(r"[?&]host=", url)) > 1


def _parsed(url: str, key: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        # Not chained: SQLAlchemy's message quotes the address with its password.
        raise ConfigurationError(f'"{key}" is not a URL that SQLAlchemy can read.') from None


def _from_sqlalchemy(url: URL, key: str) -> dict[str, Any]:
    if url.get_backend_name() != "postgresql":
        raise ConfigurationError(f'"{key}" must be an address of a PostgreSQL server, not of "{url.drivername}".')
    url = url.set(
        drivername="postgresql+psycopg", query={_OTHER_DRIVERS.get(name, name): v for name, v in url.query.items()}
    )
    try:
        _, parameters = url.get_dialect()().create_connect_args(url)
    except (ArgumentError, ValueError):  # of several hosts' ports, which it quotes
        raise _unreadable(key) from None
    check_keywords(parameters, key)
    return dict(parameters)


def _from_libpq(conninfo: str, key: str) -> dict[str, Any]:
    try:
        return dict(conninfo_to_dict(conninfo))
    except ProgrammingError as error:
        # libpq's other messages quote parts of the address, and so perhaps its password.
        said = str(error).strip().partition("\n")[0]
        option = re.fullmatch(r'invalid (?:connection option|URI query parameter):? "(\w+)"', said)
    if option is not None:
        check_keywords({option[1]: None}, key)
    raise _unreadable(key)


def _unreadable(key: str) -> ConfigurationError:
    return ConfigurationError(
        f'"{key}" is not an address that libpq can read. Write postgresql://user:password@host:port/name, '
        'with special characters percent-encoded, or "host=… dbname=…".'
    )


def _check_place(parameters: Mapping[str, Any], key: str) -> None:
    """Refuse what ends up in host or port, and then in logs, of a password with an @ or / that is not encoded."""
    hosts, ports = (str(parameters.get(name) or "").split(",") for name in ("host", "port"))
    is_host = all("@" not in host[1:] or host.startswith("/") for host in hosts)
    if not is_host or any(port.strip() and not port.strip().isdecimal() for port in ports):
        raise _unreadable(key)
