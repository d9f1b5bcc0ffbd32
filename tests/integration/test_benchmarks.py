"""The benchmark on a real server, small, with our layer: what it reports as lost must be what was lost."""

from __future__ import annotations

import multiprocessing

import pytest

from benchmarks.coordinator import Case
from benchmarks.peers import OURS, PEERS
from benchmarks.scenarios import behind_uvicorn
from benchmarks.servers import POSTGRES_VARIABLES, servers
from tests.support.databases import query

CLIENTS, BROADCASTS = 20, 5
PACE = 0.2


@pytest.mark.processes
def test_every_client_of_uvicorn_gets_every_broadcast(layer_url: str) -> None:
    """Server, clients and sender are processes of their own, which meet in the layer, and none of them is left."""
    scenario = behind_uvicorn(CLIENTS, every=PACE)
    result = Case(scenario, PEERS[OURS], layer_url, seconds=BROADCASTS * PACE / scenario.stretch).run()
    assert (result.error, result.notes) == (None, ())
    assert (result.sent, result.delivered) == (BROADCASTS, BROADCASTS * CLIENTS)
    assert (result.lost, result.unread, result.doubled, result.refused) == (0, 0, 0, 0)
    assert result.p50_ms is not None
    assert result.last_p50_ms is not None
    assert result.last_p99_ms is not None
    assert 0.0 < result.p50_ms <= result.last_p50_ms <= result.last_p99_ms
    assert multiprocessing.active_children() == []


@pytest.mark.processes
@pytest.mark.any_server
def test_where_no_server_is_named_a_private_one_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that which happens to be at the usual port; and it waits for its disk, as a real server does."""
    for variable in POSTGRES_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    absent: dict[str, str] = {}
    with servers([PEERS[OURS]], absent) as (urls, _):
        assert absent == {}
        ((fsync, data),) = query(urls[OURS], "SELECT current_setting('fsync'), current_setting('data_directory')")
        assert fsync == "on"
        assert "/pg-" in data
        assert not data.startswith("/dev/shm/")
