"""The page on operating it says what can be typed."""

from __future__ import annotations

from tests.support.databases import query, run_script
from tests.support.layers import LayerFactory
from tests.support.markdown import blocks

MAY_SEND = """SELECT count(*) FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) granted
    WHERE proname LIKE 'channels\\_pg\\_sa\\_%' AND granted.grantee = 0 AND prosecdef"""


async def test_a_copy_is_made_safe(layer_url: str, make_own_layer: LayerFactory) -> None:
    """By a secret of its own, and by the rights that a restore without them forgot."""
    secret = query(layer_url, "SELECT secret FROM channels_pg_sa_installation")
    assert query(layer_url, MAY_SEND) == [(0,)]
    run_script(layer_url, "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO PUBLIC")
    assert query(layer_url, MAY_SEND) == [(4,)]
    for block in blocks("operations.md", "Copies and restores", "sql"):
        run_script(layer_url, block)
    assert query(layer_url, MAY_SEND) == [(0,)]
    assert query(layer_url, "SELECT secret FROM channels_pg_sa_installation") != secret
    layer = make_own_layer()
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "text"})
    assert await layer.receive(channel) == {"type": "text"}
