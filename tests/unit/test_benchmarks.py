"""The arithmetic of the benchmarks: a benchmark that counts wrongly is worse than none."""

from __future__ import annotations

import array
import resource
from xml.etree import ElementTree as ET

import pytest

from benchmarks.__main__ import budget, command_line
from benchmarks.actors import Report
from benchmarks.coordinator import Case
from benchmarks.goals import GOALS, Goal, table
from benchmarks.measures import Tally, lost, median, merge_tallies, milliseconds, paired_ratio, per_thousand, percentile
from benchmarks.peers import OURS, PEERS
from benchmarks.plots import chart
from benchmarks.results import Result, conclude, summarise
from benchmarks.runner import Outcome
from benchmarks.scenarios import SCENARIOS, Metric, Scenario, behind_uvicorn
from benchmarks.system import allow_open_files
from benchmarks.worker import Account


def scenario(name: str) -> Scenario:
    """Return the scenario called `name`."""
    return next(each for each in SCENARIOS if each.name == name)


def received(numbers: range, *, fan_out: int = 1, at: float = 12.0) -> Report:
    """Return the report of a receiver that got `numbers` in each of `fan_out` channels."""
    return Report(
        received=len(numbers) * fan_out,
        finished=at,
        latencies=array.array("d", [0.001] * len(numbers)),
        last_seen=dict.fromkeys(numbers, at),
    )


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1.0), (0.5, 50.0), (0.501, 51.0), (0.99, 99.0), (0.999, 100.0), (1.0, 100.0)]
)
def test_percentile_is_the_nearest_rank(fraction: float, expected: float) -> None:
    """No interpolation: the answer is always a value that was measured."""
    assert percentile([float(value) for value in range(1, 101)], fraction) == expected


def test_percentile_of_one_value_is_that_value() -> None:
    """A case with a single message has a p50 and a p99."""
    assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7.0


def test_percentile_refuses_no_values_and_wrong_fractions() -> None:
    """A percentile in per cent, or of nothing, is a mistake and not a number."""
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        percentile([1.0], 99)


def test_milliseconds_sorts_and_converts() -> None:
    """Latencies arrive in the order of receivers, not of size."""
    assert milliseconds([0.003, 0.001, 0.002], 0.5) == pytest.approx(2.0)
    assert milliseconds([], 0.5) is None


def test_tally_counts_each_number_once() -> None:
    """A number that comes again is doubled, in whatever order numbers come."""
    tally = Tally(4)
    assert [tally.add(number) for number in (2, 0, 2, 3, 2)] == [True, True, False, True, False]
    assert (tally.unique, tally.doubled, tally.numbers()) == (3, 2, b"\x01\x00\x01\x01")


def test_tally_refuses_numbers_outside_its_limit() -> None:
    """A number nobody sent must not be counted quietly."""
    with pytest.raises(IndexError):
        Tally(4).add(4)


def test_competing_readers_are_counted_together() -> None:
    """A message that two workers got is one delivery and one double, although each worker saw it once."""
    assert merge_tallies([b"\x01\x01\x00", b"\x00\x01", b"\x00\x01\x00"]) == (2, 2)
    assert merge_tallies([]) == (0, 0)


def test_lost_is_what_was_accepted_and_never_came() -> None:
    """Each accepted group send owes one delivery to each member; more than owed is no negative loss."""
    assert lost(10, 1_000, 9_990) == 10
    assert lost(10, 1, 11) == 0


def test_median_ignores_what_is_missing() -> None:
    """A failed repetition does not count as zero."""
    assert median([3.0, None, 1.0]) == 2.0
    assert median([None, None]) is None


def test_ratio_is_paired_by_repetition() -> None:
    """Each repetition of ours is divided by the same repetition of theirs, so shared noise cancels."""
    assert paired_ratio([10.0, 40.0, 90.0], [5.0, 10.0, 30.0]) == 3.0
    assert paired_ratio([10.0, None], [5.0, 1.0]) == 2.0
    assert paired_ratio([10.0], [0.0]) is None


def test_per_thousand_of_nothing_is_unknown() -> None:
    """CPU for no messages is not zero CPU for a message."""
    assert per_thousand(0.5, 250) == 2.0
    assert per_thousand(0.5, 0) is None


def test_conclude_counts_rate_loss_and_cpu() -> None:
    """The rate runs from the start of the senders to the last receive, and CPU of all processes counts."""
    accounts = [
        Account([Report(sent=1_000, finished=11.0)], cpu_seconds=0.5, connections=2),
        Account([received(range(990))], cpu_seconds=1.5, connections=1),
    ]
    result = conclude(scenario("send_64"), "peer", accounts, started=10.0, server_cpu=0.99, cut=False)
    assert (result.rate, result.lost, result.unread, result.connections) == (495.0, 10, 0, 3)
    assert result.client_cpu == pytest.approx(2.0 * 1_000 / 990)
    assert result.server_cpu == pytest.approx(1.0)
    assert result.p50_ms == pytest.approx(1.0)


def test_messages_still_arriving_are_unread_and_not_lost() -> None:
    """A slow peer that is cut off has lost nothing."""
    accounts = [Account([Report(sent=100), received(range(40))])]
    result = conclude(scenario("send_64"), "peer", accounts, started=10.0, server_cpu=None, cut=True)
    assert (result.lost, result.unread, result.server_cpu) == (0, 60, None)


def test_a_group_send_lasts_until_its_last_member_has_it() -> None:
    """The last member is the latest over all processes, message by message."""
    sender = Report(sent=2, started={0: 10.0, 1: 11.0})
    early, late = received(range(2), fan_out=500, at=11.5), received(range(2), fan_out=500, at=12.0)
    accounts = [Account([report]) for report in (sender, early, late)]
    result = conclude(scenario("group_4x250"), "peer", accounts, started=10.0, server_cpu=None, cut=False)
    assert (result.delivered, result.lost) == (2_000, 0)
    assert (result.last_p50_ms, result.last_p99_ms) == (pytest.approx(1_000.0), pytest.approx(2_000.0))


def test_a_case_without_deliveries_has_no_rate() -> None:
    """Nothing received is a loss of everything, not a division by zero."""
    result = conclude(scenario("send_1"), "peer", [Account([Report(sent=5)])], started=0.0, server_cpu=None, cut=False)
    assert (result.rate, result.p50_ms, result.lost) == (None, None, 5)


def test_summary_takes_medians_and_adds_losses() -> None:
    """A message lost in one repetition of three must not vanish in the median."""
    runs = [Result("s", "p", rate=float(rate), lost=missing) for rate, missing in ((10, 0), (30, 4), (20, 0))]
    summary = summarise([*runs, Result("s", "p", error="timed out")])
    assert (summary.rate, summary.lost, summary.error) == (20.0, 4, None)
    assert summary.notes == ("1 of 4 repetitions failed", "timed out")


def test_summary_of_failures_only_is_a_failure() -> None:
    """When every repetition failed, the reason is what there is to report."""
    assert summarise([Result("s", "p", error="no"), Result("s", "p", error="no")]).error == "no"


@pytest.mark.parametrize(("metric", "ratio", "met"), [("rate", 3.0, True), ("rate", 2.9, False), ("p50_ms", 2.9, True)])
def test_a_goal_knows_which_way_is_better(metric: Metric, ratio: float, met: bool) -> None:
    """Rates have a floor, times a ceiling."""
    assert Goal("send_64", 3.0, metric=metric).holds(ratio) is met


def test_a_goal_is_beside_the_best_that_lost_nothing() -> None:
    """Whoever is faster because it loses messages, or fails, is no measure; what was not measured is not told of."""
    rates = {
        OURS: (30.0, 0),
        "channels_redis pub/sub": (50.0, 1),
        "channels-nats": (20.0, 0),
        "channels_redis": (9.0, 0),
    }
    results = {("joins", peer): [Result("joins", peer, rate=rate, lost=lost)] for peer, (rate, lost) in rates.items()}
    results["joins", "channels_postgres"] = [Result("joins", "channels_postgres", error="timed out")]
    *_, line = table(Outcome(results)).splitlines()
    assert line == "| `joins` | rate | channels_pg_sa | channels-nats | at least 5 | 1.50 | missed |"
    assert table(Outcome()) == ""


@pytest.mark.parametrize(
    ("ours", "reached"),
    [
        (Result("joins", OURS, rate=90.0, lost=3), "9.00 | missed: lost 3"),
        (Result("joins", OURS, error="timed out"), " | missed: timed out"),
    ],
)
def test_a_goal_is_missed_by_losses_and_failures(ours: Result, reached: str) -> None:
    """However fast it was; and a scenario in which we fail is not left out."""
    results = {
        ("joins", OURS): [ours],
        ("joins", "channels-nats"): [Result("joins", "channels-nats", rate=10.0, lost=0)],
    }
    assert table(Outcome(results)).endswith(f"| channels-nats | at least 5 | {reached} |")


def test_a_peer_that_was_served_nothing_is_no_measure() -> None:
    """If the time is over before anything arrives, nothing is lost, and there is no rate."""
    rates = {OURS: 30.0, "channels-nats": 20.0, "channels_redis": None}
    results = {("joins", peer): [Result("joins", peer, rate=rate, lost=0)] for peer, rate in rates.items()}
    assert table(Outcome(results)).endswith("| channels-nats | at least 5 | 1.50 | missed |")
    del results["joins", "channels-nats"]
    assert table(Outcome(results)) == ""


def test_a_goal_may_be_beside_another_scenario() -> None:
    """Sends without an event loop are compared with what others need for that: async_to_sync."""
    results = {
        ("plain_sync", OURS): [Result("plain_sync", OURS, rate=8.0, lost=0)],
        ("async_to_sync", "channels-nats"): [Result("async_to_sync", "channels-nats", rate=2.0, lost=0)],
    }
    assert table(Outcome(results)).endswith("channels-nats, `async_to_sync` | at least 4 | 4.00 | met |")


def test_goals_name_scenarios_and_peers_that_exist() -> None:
    """A misspelt goal would silently never be checked."""
    scenarios = {goal.scenario for goal in GOALS} | {goal.beside for goal in GOALS if goal.beside}
    assert scenarios <= {each.name for each in SCENARIOS}
    assert {peer for goal in GOALS for peer in (goal.ours, *goal.peers)} <= set(PEERS)


@pytest.mark.parametrize(
    ("options", "minutes"), [([], 90.0), (["--repeat", "1"], 30.0), (["--quick", "--repeat", "3"], 45.0)]
)
def test_a_run_that_repeats_more_has_more_time(options: list[str], minutes: float) -> None:
    """Otherwise it would stop before it has measured what it was asked for."""
    assert budget(command_line().parse_args(options)).minutes == minutes


def test_scenarios_have_names_of_their_own_and_somebody_to_run_them() -> None:
    """Results are kept by name; a scenario our own layer refuses would compare nothing."""
    assert len({each.name for each in SCENARIOS}) == len(SCENARIOS)
    assert [each.name for each in SCENARIOS if PEERS[OURS].refusal(each)] == []


def test_peers_say_why_they_take_no_part() -> None:
    """A refusal is a reason, whether for lack of a feature or of room."""
    assert PEERS["channels_rabbitmq"].refusal(scenario("queue_4")) == "has no normal channels"
    assert "advisory lock" in (PEERS["channels_postgres"].refusal(scenario("group_8x1250")) or "")
    assert PEERS["channels_redis"].refusal(scenario("send_64")) is None


@pytest.mark.processes
@pytest.mark.parametrize("name", ["ping_pong", "send_64", "group_1x100", "joins"])
def test_a_case_runs_from_end_to_end(name: str) -> None:
    """A layer that loses nothing is seen to lose nothing, in a process that was started, warmed, stopped and closed."""
    result = Case(scenario(name), PEERS["InMemory (one process)"], "", seconds=0.05).run()
    assert result.error is None
    assert result.notes == ()
    assert result.sent
    assert (result.lost, result.unread, result.doubled, result.refused) == (0, 0, 0, 0)
    assert result.delivered == result.sent * scenario(name).fan_out


@pytest.mark.processes
def test_a_layer_of_one_process_is_served_in_it() -> None:
    """Uvicorn, its clients and the sender share the loop of a layer that reaches no other process."""
    result = Case(behind_uvicorn(20, every=0.2), PEERS["InMemory (one process)"], "", seconds=0.2).run()
    assert (result.error, result.notes) == (None, ())
    assert (result.sent, result.delivered, result.lost, result.doubled) == (5, 100, 0, 0)


def test_a_websocket_is_a_channel_to_warm() -> None:
    """A case must not start before every client has heard something, nor with a peer that has no room for them."""
    assert behind_uvicorn(500).channels == behind_uvicorn(500).fan_out == 500


def test_a_limit_on_open_files_is_raised_as_far_as_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that would run out of files says so before it starts, with the number to ask for."""
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1_024, 4_096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: raised.append(limits))
    allow_open_files(1_000)
    allow_open_files(1_256)
    assert raised == [(1_256, 4_096)]
    with pytest.raises(RuntimeError, match="needs 5000 open files in a process and may have 4096"):
        allow_open_files(5_000)


def test_outcome_compares_ours_with_theirs() -> None:
    """The ratio of a goal is ours / theirs, from the single repetitions."""
    outcome = Outcome()
    for peer, rates in ((OURS, (30.0, 60.0)), ("channels_redis", (10.0, 20.0))):
        outcome.results["send_64", peer] = [Result("send_64", peer, rate=rate) for rate in rates]
    assert outcome.ratio("send_64", "rate", "channels_redis") == 3.0
    assert outcome.ratio("send_64", "rate", "absent") is None


def test_chart_is_well_formed_and_names_losses() -> None:
    """A fast bar that lost messages says so, and titles are escaped."""
    drawing = chart("a < b", "rate", [Result("s", OURS, rate=10.0), Result("s", "p", rate=20.0, lost=5)])
    texts = [text for element in ET.fromstring(drawing).iter() if (text := element.text)]
    assert "a < b" in texts
    assert "(5 lost)" in texts
