"""The statements: when they are compiled."""

from __future__ import annotations

from channels_pg_sa import Layer
from channels_pg_sa.statements.compiled import compiled

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
