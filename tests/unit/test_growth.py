"""The model of the server's work: its arithmetic, its tables, and that measuring measures what it says."""

from __future__ import annotations

import asyncio
import os

import pytest

from benchmarks.growth.counters import Cost, Meter, ServerHidden, middle
from benchmarks.growth.crowd import Commits
from benchmarks.growth.model import TERMS, Costs, Load, Model, fit, least_squares
from benchmarks.growth.report import PROCESSES, Findings, about, check, extrapolation, markdown, table
from benchmarks.growth.survey import Effort, fitted, held_out, measure

COSTS = (300.0, 100.0, 8.0, 30.0, 60.0, 0.25, 20.0)
MODEL = Model(COSTS)


def cost(cpu: float, *, times: int = 10) -> Cost:
    """Return a cost of so many microseconds."""
    return Cost(times=times, cpu=cpu, wal=40.0, per_second=100.0)


def findings() -> Findings:
    """Return findings of a server whose work is exactly that of MODEL."""
    found = Findings("18.0")
    found.sends = {load: cost(MODEL.predict(load)) for load in fitted(400)}
    found.held_out = {load: cost(2.0 * MODEL.predict(load)) for load in held_out(400)}
    found.deletions = {rows: cost(250.0 + 5.0 * rows) for rows in (1, 16, 256)}
    found.lives = {1: cost(600.0)}
    found.rows, found.room = 1_000, [250_000, 260_000]
    found.idle, found.interval, found.beat = 10, 2.0, cost(500.0)
    found.living = {Load(50, 4, group=True): cost(5_000.0)}
    found.writers = {"writes": Commits(0.5, 1_000.0), "sends": Commits(None, 2_000.0)}
    return found


def test_least_squares_finds_the_factors() -> None:
    """Costs that are a sum of their terms are taken apart again."""
    rows = [(1.0, 0.0, 2.0), (1.0, 3.0, 1.0), (1.0, 1.0, 7.0), (1.0, 5.0, 5.0)]
    found = least_squares(rows, [7.0 + 2.0 * second + 0.5 * third for _, second, third in rows])
    assert found == pytest.approx((7.0, 2.0, 0.5))


def test_least_squares_counts_errors_in_relation() -> None:
    """A load that costs a thousand times as much does not count a thousand times as much."""
    (found,) = least_squares([(1.0,), (1_000.0,)], [1.0, 2_000.0])
    assert found == pytest.approx(1.2)


def test_no_work_takes_less_than_no_time() -> None:
    """A term that noise would make negative is left out, and the others are fitted without it."""
    rows = [(1.0, float(count)) for count in range(1, 5)]
    assert least_squares(rows, [10.4, 10.1, 9.9, 9.6]) == pytest.approx((9.99, 0.0), rel=0.01)


def test_terms_that_always_come_together_cannot_be_told_apart() -> None:
    """Rather no model than one of many."""
    with pytest.raises(ValueError, match="do not tell"):
        least_squares([(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)], [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("load", "rows", "notifications"),
    [
        (Load(5, 1, group=False), 1, 1),
        (Load(5, 3, group=True), 3, 3),
        (Load(5, 3, group=True, messages=16), 48, 3),
        (Load(5, 4, group=False, messages=16), 16, 4),
        (Load(5, 1, group=False, messages=256), 256, 7),
        (Load(5, 1, group=False, messages=16, size=4_000), 16, 16),
        (Load(5, 1, group=False, messages=16, size=32_000), 16, 1),
    ],
)
def test_a_load_counts_rows_and_notifications(load: Load, rows: int, notifications: int) -> None:
    """A group's message is a row for each process; as many as fit share a notification; a doorbell has no payload."""
    assert (load.rows, load.notifications) == (rows, notifications)


def test_every_term_has_a_name_and_a_number() -> None:
    """A prediction is the sum over the terms."""
    load = Load(50, 4, group=True, messages=2, size=500)
    assert len(load.terms()) == len(TERMS) == len(COSTS)
    assert MODEL.predict(load) == 300 + 100 + 8 * 8 + 4 * 30 + 50 * 60 + 50 * 4 * 0.25 + 8 * 0.5 * 20


@pytest.mark.parametrize("listeners", [16, 50, 400])
def test_the_measured_loads_tell_all_terms_apart(listeners: int) -> None:
    """Wherever the measurement runs, and with however few connections, its model is the only one."""
    loads = fitted(listeners)
    assert fit(loads, [MODEL.predict(load) for load in loads]).costs == pytest.approx(COSTS)
    assert max(load.listeners for load in loads) <= listeners


def test_what_checks_the_model_is_not_what_it_was_fitted_to() -> None:
    """A check against the data of the fit would be none."""
    assert held_out(400)
    assert not set(held_out(400)) & set(fitted(400))


def test_a_message_costs_its_share_of_the_statement_and_its_deletions() -> None:
    """Each receiver deletes its own row, and a statement's costs are shared by what it deletes."""
    costs = Costs(MODEL, (250.0, 5.0), 500.0, 1.25)
    load = Load(20, 4, group=True, messages=2)
    assert costs.message(load) == pytest.approx(MODEL.predict(load) / 2 + 4 * 255.0)
    assert costs.message(load, 10.0) == pytest.approx(MODEL.predict(load) / 2 + 4 * 30.0)


def test_idle_processes_cost_as_much_as_there_are() -> None:
    """A heartbeat wakes nobody."""
    costs = Costs(MODEL, (250.0, 5.0), 500.0, 1.25)
    assert costs.idle_cores(100, 5.0) == pytest.approx(100 * 1.25 * 500.0 / 5.0 / 1e6)
    assert costs.idle_cores(1_000, 5.0) == pytest.approx(10 * costs.idle_cores(100, 5.0))


def test_heartbeats_and_deletions_are_taken_from_what_was_measured() -> None:
    """A heartbeat by itself, its number in each interval, and the two parts of a deletion."""
    costs = findings().costs()
    assert costs.beat == pytest.approx(500.0)
    assert costs.beats == pytest.approx(100.0 * 2.0 / 10)
    assert costs.deletion == pytest.approx((250.0, 5.0))


def test_the_middle_repetition_is_that_of_the_median_cpu() -> None:
    """One repetition that another program disturbed changes nothing."""
    assert middle([cost(900.0), cost(100.0), cost(110.0)]).cpu == 110.0


def test_the_check_says_how_far_the_model_is_off() -> None:
    """What costs twice as much as predicted is predicted half too low, and the fit itself is told too."""
    found = findings()
    text = check(found, found.costs())
    assert "the model is 0% off (median), 0% at worst" in text
    assert text.count("-50%") == len(held_out(400))
    assert "real layers" in text


def test_the_extrapolation_has_a_column_for_each_size() -> None:
    """And more processes carry fewer messages for a core."""
    lines = [line.strip("| ").split(" | ") for line in extrapolation(findings().costs()).splitlines()]
    rows = {row[0]: [float(cell.replace(",", "")) for cell in row[1:]] for row in lines[2:]}
    assert lines[0][-1] == "1,000 processes"
    assert rows["sockets"] == [10_000, 100_000, 1_000_000]
    assert all(len(cells) == len(PROCESSES) for cells in rows.values())
    carried = rows["a broadcast to all processes: a second, for each core"]
    assert carried == sorted(carried, reverse=True)


def test_a_table_is_one_of_markdown() -> None:
    """The first column is text, the others are numbers."""
    assert table(["a", "b"], [("x", "1")]) == "| a | b |\n|---|---:|\n| x | 1 |"


def test_the_report_has_everything_that_was_found() -> None:
    """Each section has its table, and the extrapolation is called one."""
    text = markdown(findings())
    sections = text.split("\n### ")
    assert sections[0].startswith("PostgreSQL 18.0 on ")
    assert all("|---" in section for section in sections[1:])
    assert sections[-1].startswith("Extrapolation, not measured\n")
    assert "| 150 |" in text or "150 listen" in text


@pytest.mark.parametrize(
    ("value", "text"), [(70_498.0, "70,000"), (14.2, "14"), (1.93, "1.9"), (0.00697, "0.0070"), (0.0, "0")]
)
def test_what_is_extrapolated_has_two_digits(value: float, text: str) -> None:
    """More of them would promise what nobody knows."""
    assert about(value) == text


def test_a_server_that_cannot_be_seen_is_not_measured() -> None:
    """The process id of a connection to another machine may well be that of a program of this one."""
    with pytest.raises(ServerHidden):
        Meter(os.getpid())


@pytest.mark.processes
def test_growth_is_measured_from_end_to_end(layer_url: str) -> None:
    """Every load has a cost, and what has to be counted was counted; how large they are is for the benchmark to say."""
    effort = Effort(times=2, repeat=1, listeners=16, rows=500, idle=2, seconds=2.5)
    try:
        found = asyncio.run(measure(layer_url, effort))
    except ServerHidden as reason:
        pytest.skip(str(reason))
    assert set(found.sends) == set(fitted(16))
    assert all(spent.times == 2 and spent.cpu > 0.0 for spent in found.sends.values())
    assert (
        set(found.together)
        == set(found.back_to_back)
        == {load for load in fitted(16) if load.messages == 1 and not load.group}
    )
    assert set(found.deletions) == set(found.lives) == {1, 16, 256}
    assert found.beat is not None
    assert found.beat.times >= 1
    assert 1.0 <= found.statements <= 2.0
    assert [load.receivers for load in found.living] == [2]
    assert len(found.room) == 2
    assert set(found.writers) == {"writes", "writes and sends", "sends"}
