"""Changing one part of a libpq URI."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit


def with_database(url: str, name: str) -> str:
    """Return the URI of another database on the same server."""
    return urlunsplit(urlsplit(url)._replace(path="/" + quote(name, safe="")))


def with_address(url: str, host: str, port: int) -> str:
    """Return the URI of the same database behind another TCP address."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    query = [(key, value) for key, value in parse_qsl(parts.query) if key not in ("host", "port", "hostaddr")]
    return urlunsplit(parts._replace(netloc=f"{user}{at}{host}:{port}", query=urlencode(query)))


def with_parameters(url: str, **parameters: str | int) -> str:
    """Return the URI with more libpq parameters, which replace those of the same name."""
    parts = urlsplit(url)
    query = {**dict(parse_qsl(parts.query)), **parameters}
    return urlunsplit(parts._replace(query=urlencode(query, quote_via=quote)))
