"""From the accounts of the processes of a case to one result, and from repetitions to medians."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from benchmarks.actors import Report
from benchmarks.measures import lost, median, merge_tallies, milliseconds, per_thousand
from benchmarks.scenarios import Scenario
from benchmarks.worker import Account


@dataclass(frozen=True, slots=True)
class Result:
    """One peer in one scenario, once or as the median of its repetitions.

    `last_p50_ms` and `last_p99_ms` are from a group send to its last member's receive; `call_p50_ms` is how long the
    sending call took.
    `of_empty_calls` is the rate divided by that of async_to_sync calls that do nothing. CPU is in seconds for each
    1,000 messages delivered. `other_cores` is how many cores other programs kept busy. `error` says why there are no
    numbers.
    """

    scenario: str
    peer: str
    rate: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    last_p50_ms: float | None = None
    last_p99_ms: float | None = None
    call_p50_ms: float | None = None
    bytes_each: float | None = None
    of_empty_calls: float | None = None
    sent: float | None = None
    delivered: float | None = None
    lost: float | None = None
    unread: float | None = None
    doubled: float | None = None
    refused: float | None = None
    client_cpu: float | None = None
    server_cpu: float | None = None
    connections: float | None = None
    other_cores: float | None = None
    error: str | None = None
    notes: tuple[str, ...] = field(default=())


def conclude(
    scenario: Scenario, peer: str, accounts: Sequence[Account], started: float, server_cpu: float | None, *, cut: bool
) -> Result:
    """Return the result of one case.

    Args:
        scenario: what was run.
        peer: the name of the layer.
        accounts: one from each process.
        started: when the senders were let go, on the monotonic clock.
        server_cpu: CPU seconds of the server during the case, or None where it cannot be seen.
        cut: messages were still arriving when the time for them was over; the missing ones are unread, not lost.
    """
    reports = [report for account in accounts for report in account.reports]
    unique, doubled = _received(reports)
    sent = sum(report.sent for report in reports)
    missing = 0 if scenario.metric == "bytes_each" else lost(sent, scenario.fan_out, unique)
    seconds = max(report.finished for report in reports if report.received) - started if unique else 0.0
    rate = unique / seconds if seconds else None
    lasts = _last_after_first(reports)
    latencies = [latency for report in reports for latency in report.latencies]
    calls = [call for report in reports for call in report.calls]
    cpu = sum(account.cpu_seconds for account in accounts)
    return Result(
        scenario.name,
        peer,
        rate=rate,
        p50_ms=milliseconds(latencies, 0.50),
        p99_ms=milliseconds(latencies, 0.99),
        last_p50_ms=milliseconds(lasts, 0.50),
        last_p99_ms=milliseconds(lasts, 0.99),
        call_p50_ms=milliseconds(calls, 0.50),
        bytes_each=next((report.bytes_each for report in reports if report.bytes_each is not None), None),
        of_empty_calls=next((rate / report.empty_calls for report in reports if report.empty_calls and rate), None),
        sent=sent,
        delivered=unique,
        lost=0 if cut else missing,
        unread=missing if cut else 0,
        doubled=doubled,
        refused=sum(report.refused for report in reports),
        client_cpu=per_thousand(cpu, unique),
        server_cpu=None if server_cpu is None else per_thousand(server_cpu, unique),
        connections=sum(account.connections for account in accounts),
        notes=tuple(dict.fromkeys(_complaints(accounts))),
    )


def summarise(results: Sequence[Result]) -> Result:
    """Return the medians over the repetitions of one peer in one scenario; losses and doubles are added up."""
    good = [result for result in results if result.error is None]
    if not good:
        return results[0]
    values: dict[str, Any] = {}
    for name in _NUMBERS:
        column = [getattr(result, name) for result in good]
        values[name] = sum(column) if name in _ADDED and None not in column else median(column)
    failed = [f"{len(results) - len(good)} of {len(results)} repetitions failed"] if len(good) < len(results) else []
    notes = dict.fromkeys(
        [*failed, *(note for result in results for note in (*result.notes, result.error or "") if note)]
    )
    return Result(good[0].scenario, good[0].peer, **values, notes=tuple(notes))


_NUMBERS = [each.name for each in fields(Result) if each.name not in ("scenario", "peer", "error", "notes")]
_ADDED = frozenset({"sent", "delivered", "lost", "unread", "doubled", "refused"})


def _received(reports: Iterable[Report]) -> tuple[int, int]:
    reports = list(reports)
    competing = [report.seen for report in reports if report.seen is not None]
    if competing:
        return merge_tallies(competing)
    return sum(report.received for report in reports), sum(report.doubled for report in reports)


def _complaints(accounts: Iterable[Account]) -> Iterator[str]:
    for account in accounts:
        for report in account.reports:
            yield from report.errors
        yield from account.logged


def _last_after_first(reports: Sequence[Report]) -> list[float]:
    begun = {number: moment for report in reports for number, moment in report.started.items()}
    last: dict[int, float] = {}
    for report in reports:
        for number, moment in report.last_seen.items():
            last[number] = max(moment, last.get(number, moment))
    return [moment - begun[number] for number, moment in last.items() if number in begun]
