"""The statements: when they are compiled, and to what."""

from __future__ import annotations

import re

from channels_pg_sa import Layer
from channels_pg_sa.statements.compiled import builders, compiled

SCHEMA = "a_schema_of_this_test_alone"


def test_who_opens_a_layer_waits_for_none() -> None:
    """All together take as long as a thousand messages, and it is mostly an event loop that would wait."""
    layer = Layer(url="postgresql:///nowhere", schema=SCHEMA)
    layer._open()
    try:
        assert not compiled(SCHEMA)
        assert compiled(SCHEMA)["enter"].sql
        assert compiled(SCHEMA).keys() == {"enter"}
    finally:
        layer.close_sync()


def test_each_value_of_a_statement_has_one_name() -> None:
    """That in its text; SQLAlchemy knows it by an internal one as well, which each execution would carry along."""
    for name in builders(None):
        found = compiled(None)[name]
        assert {*found.parameters, *found.literals} == set(re.findall(r"%\((\w+)\)s", found.sql))
