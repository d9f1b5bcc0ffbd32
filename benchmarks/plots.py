"""Bar charts as SVG, written by hand: no dependency, and legible on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.peers import OURS
from benchmarks.results import Result
from benchmarks.scenarios import Metric

_WIDTH, _LABEL, _ROW, _TOP, _MARGIN = 800, 225, 30, 46, 125
_UNITS: dict[Metric, str] = {
    "rate": "delivered per second, more is better",
    "p50_ms": "p50 in ms, less is better",
    "last_p50_ms": "ms until the last member has it (p50), less is better",
    "call_p50_ms": "ms for the call (p50), less is better",
    "bytes_each": "bytes for each channel, less is better",
}
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#57606a}.title{font-weight:600;font-size:15px}"
    ".bar{fill:#8c959f}.ours{fill:#1f6feb}.bad{fill:#cf222e}"
    "@media(prefers-color-scheme:dark){text{fill:#9da7b3}.ours{fill:#58a6ff}.bad{fill:#ff7b72}}"
)


def chart(title: str, metric: Metric, results: Sequence[Result]) -> str:
    """Return an SVG with one bar for each result that has the metric; losses are named beside the bar."""
    rows = [(result, value) for result in results if (value := getattr(result, metric)) is not None]
    best = max((value for _, value in rows), default=1.0) or 1.0
    height = _TOP + _ROW * len(rows) + 10
    bars = [_bar(row, result, value, value / best) for row, (result, value) in enumerate(rows)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style>",
            f'<text class="title" x="10" y="20">{escape(title)}</text>',
            f'<text x="10" y="38">{_UNITS[metric]}</text>',
            *bars,
            "</svg>",
            "",
        ]
    )


def _bar(row: int, result: Result, value: float, share: float) -> str:
    top = _TOP + row * _ROW
    width = max(1.0, share * (_WIDTH - _LABEL - _MARGIN))
    kind = "ours" if result.peer.startswith(OURS) else "bar"
    number = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return (
        f'<text x="{_LABEL - 8}" y="{top + 17}" text-anchor="end">{escape(result.peer)}</text>'
        f'<rect class="{kind}" x="{_LABEL}" y="{top + 4}" width="{width:.1f}" height="18" rx="3"/>'
        f'<text x="{_LABEL + width + 6:.1f}" y="{top + 17}">{number}{_blemish(result)}</text>'
    )


def _blemish(result: Result) -> str:
    blemishes = [(result.lost, "lost"), (result.doubled, "doubled")]
    named = ", ".join(f"{count:,.0f} {name}" for count, name in blemishes if count)
    return f' <tspan class="bad">({named})</tspan>' if named else ""
