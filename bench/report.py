"""The figures of a run as tables, in Markdown that also reads well in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Final

from attrs import frozen

from bench.load import Load
from bench.measure import Run, Sample, Scenario

__all__ = ["Ratio", "ratio", "render", "table"]

_NONE: Final = "-"
_NOISY_CORES: Final = 0.1


@frozen
class _Row:
    title: str
    value: Callable[[Load], float]
    digits: int
    compared: bool = False
    """Whether the ratios to the first compared peer are given."""
    costs: bool = False
    """Whether it is a cost of the process under test, which the upstream itself has not."""


_STREAM_ROWS: Final = (
    _Row("CPU us / event", lambda load: load.cpu_us_per_event, 0, compared=True, costs=True),
    _Row("lag p50 ms", lambda load: load.lag_ms_p50, 2),
    _Row("lag p99 ms", lambda load: load.lag_ms_p99, 2),
    _Row("TTFB p50 ms", lambda load: load.ttfb_ms_p50, 2),
    _Row("events / s", lambda load: load.events_s, 0),
)
_PLAIN_ROWS: Final = (
    _Row("CPU ms / request", lambda load: load.cpu_ms_per_request, 2, compared=True, costs=True),
    _Row("TTFB p50 ms", lambda load: load.ttfb_ms_p50, 2),
    _Row("TTFB p99 ms", lambda load: load.ttfb_ms_p99, 2),
    _Row("requests / s", lambda load: load.rps, 0),
)


@frozen
class Ratio:
    """The median of the ratios of all rounds, and the least and the greatest of them."""

    median: float
    least: float
    greatest: float


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Of pairs (ours, theirs), each of one round."""
    ratios = [ours / theirs for ours, theirs in pairs]
    return Ratio(median(ratios), min(ratios), max(ratios))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: the first to the left, figures to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return f"| {first[0].ljust(first[1])} | " + " | ".join(cell.rjust(width) for cell, width in rest) + " |"

    rule = "|" + "-" * (widths[0] + 2) + "|" + "".join("-" * (width + 1) + ":|" for width in widths[1:])
    return "\n".join([line(head), rule, *(line(row) for row in rows)])


def render(run: Run) -> str:
    """The whole report."""
    parts = [f"**{scenario.name}**\n\n{_scenario_table(run, scenario)}" for scenario in run.schedule.scenarios]
    parts.append(f"**process**\n\n{_process_table(run)}")
    return "\n\n".join([*parts, *_remarks(run)])


def _scenario_table(run: Run, scenario: Scenario) -> str:
    samples = [sample for sample in run.samples if sample.scenario == scenario.name]
    base, *others = run.compared or [""]
    head = [f"{run.schedule.rounds} rounds", *run.peers, *(f"{name} / {base}" for name in others)]
    rows = []
    for row in _STREAM_ROWS if scenario.stream else _PLAIN_ROWS:
        cells = [_cell(row, name, samples) for name in run.peers]
        ratios = [_ratio_cell(row, name, base, samples) if row.compared else "" for name in others]
        rows.append([row.title, *cells, *ratios])
    return table(head, rows)


def _cell(row: _Row, peer: str, samples: Sequence[Sample]) -> str:
    values = [row.value(sample.load) for sample in samples if sample.peer == peer]
    if not values or (row.costs and not any(values)):
        return _NONE
    return f"{median(values):.{row.digits}f}"


def _ratio_cell(row: _Row, peer: str, base: str, samples: Sequence[Sample]) -> str:
    ours = {sample.round: row.value(sample.load) for sample in samples if sample.peer == peer}
    theirs = {sample.round: row.value(sample.load) for sample in samples if sample.peer == base}
    found = ratio([(ours[number], theirs[number]) for number in sorted(ours.keys() & theirs.keys())])
    return f"{found.median:.2f} ({found.least:.2f} to {found.greatest:.2f})"


def _process_table(run: Run) -> str:
    def cells(values: dict[str, float], digits: int) -> list[str]:
        return [f"{values[name]:.{digits}f}" if name in values else _NONE for name in run.peers]

    starts = {name: median(seconds) for name, seconds in run.starts.items()}
    return table(
        ["", *run.peers],
        [
            ["start to first answered request, s", *cells(starts, 2)],
            ["resident after the load, MB", *cells(run.rss_mb, 0)],
            ["extra memory for a 10 MB body, MB", *cells(run.large_body_mb, 0)],
        ],
    )


def _remarks(run: Run) -> list[str]:
    remarks = list(run.remarks)
    bad = {name: sum(sample.load.bad for sample in run.samples if sample.peer == name) for name in run.peers}
    for name, count in bad.items():
        if count:
            remarks.append(f"{name}: {count} requests failed or were cut; do not trust its figures")
    others = [sample.other_cores for sample in run.samples]
    if others and median(others) > _NOISY_CORES:
        remarks.append(
            f"other processes kept {median(others):.1f} processors busy (at most {max(others):.1f}): "
            "trust the ratios, not lag, TTFB and throughput"
        )
    return remarks
