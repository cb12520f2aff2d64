"""`capi usage`: what requests have used and cost, by key, model, upstream or time."""

from __future__ import annotations

import codecs
import csv
import io
import shutil
import sys
from typing import TYPE_CHECKING, Final

import click
import msgspec

from capi_trio.cli.operate import operate
from capi_trio.cli.options import data_dir_option, database_option, json_option, refuse
from capi_trio.cli.tables import columns, instant
from capi_trio.usage_reports import DEFAULT_SINCE, SPANS, ShowUsage, UsageAnswer, UsageBy, UsageFigures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import TextIO

    from capi_trio.usage_reports import UsageLine, UsageReport

__all__ = ["usage_report_command"]

_HEADS: Final = (
    "REQUESTS", "ERRORS", "ABORTED", "REFUSED", "IN", "CACHE READ", "CACHE WRITE", "OUT", "REASONING", "UNKNOWN",
    "COST USD", "UNPRICED", "P50 MS", "P95 MS", "TTFT MS",
)  # fmt: skip
_CSV_FIGURES: Final = (
    "requests", "errors", "aborted", "refused", "uncached_input", "cache_read", "cache_write", "output", "reasoning",
    "unknown_usage", "cost_usd", "unknown_cost", "latency_p50_ms", "latency_p95_ms", "ttft_p50_ms",
)  # fmt: skip
_MICROS: Final = 1_000_000
_EXACT_BELOW_MS: Final = 10
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"


@click.command("usage")
@click.option("--since", default=DEFAULT_SINCE, show_default=True, help="Such as 30m, 24h, 7d, or a day: 2026-11-01.")
@click.option("--by", type=click.Choice([by.value for by in UsageBy]), default="key", show_default=True)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for spreadsheets.")
@json_option
@data_dir_option
@database_option
def usage_report_command(
    since: str, by: str, as_csv: bool, as_json: bool, data_dir: Path, database: str | None
) -> None:
    """Tell what was asked, what it used and what it cost."""
    if as_csv and as_json:
        refuse("--csv and --json contradict each other")
    answer = operate(data_dir, ShowUsage(since, UsageBy(by)), database=database)
    if not isinstance(answer, UsageAnswer):
        raise AssertionError("only usage is answered here")
    report = answer.report
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
    elif as_csv:
        click.echo(_csv(report), nl=False)
    else:
        click.echo(_text(report))
        if report.by in SPANS and report.lines and _draws(sys.stdout):
            click.echo(_chart(report, shutil.get_terminal_size().columns))


# -- for people -----------------------------------------------------------------------------------------------------


def _text(report: UsageReport) -> str:
    since = f"since {instant(report.from_ms)}"
    if not report.lines:
        return f"There were no requests {since}."
    rows = [(*_name_heads(report.by), *_HEADS)]
    rows += [(*_names(report.by, line), *_cells(line)) for line in report.lines]
    total = ("total", *[""] * (len(_name_heads(report.by)) - 1))
    rows.append((*total, *_cells(report.total)))
    return "\n".join([f"Usage {since}", "", columns(_right_aligned(rows, len(total))), *_remarks(report.total)])


def _name_heads(by: UsageBy) -> tuple[str, ...]:
    return ("KEY", "LABEL") if by is UsageBy.KEY else (by.name,)


def _names(by: UsageBy, line: UsageLine) -> tuple[str, ...]:
    if line.starts_at is not None:
        return (instant(line.starts_at)[: 10 if by is UsageBy.DAY else 16],)
    name = line.name or "-"
    return (name, line.label or "-") if by is UsageBy.KEY else (name,)


def _cells(figures: UsageFigures) -> tuple[str, ...]:
    counts = (
        figures.requests, figures.errors, figures.aborted, figures.refused, figures.uncached_input, figures.cache_read,
        figures.cache_write, figures.output, figures.reasoning, figures.unknown_usage,
    )  # fmt: skip
    cost = "-" if figures.cost_micros is None else f"{figures.cost_micros / _MICROS:,.4f}"
    durations = (figures.latency_p50_ms, figures.latency_p95_ms, figures.ttft_p50_ms)
    return (*map(_count, counts), cost, _count(figures.unknown_cost), *map(_duration, durations))


def _count(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _duration(ms: float | None) -> str:
    if ms is None:
        return "-"
    return f"{ms:.1f}" if ms < _EXACT_BELOW_MS else f"{ms:,.0f}"


def _right_aligned(rows: Sequence[tuple[str, ...]], names: int) -> list[tuple[str, ...]]:
    """The rows with their figures at the right of each column; the first `names` cells are none."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        (*row[:names], *(f"{cell:>{width}}" for cell, width in zip(row[names:], widths[names:], strict=True)))
        for row in rows
    ]


def _remarks(total: UsageFigures) -> list[str]:
    """What the sums leave out."""
    remarks = []
    if total.unknown_usage:
        remarks.append(
            f"UNKNOWN: of {total.unknown_usage:,} the upstream did not tell all tokens; the sums may be higher"
        )
    if total.unknown_cost:
        remarks.append(f"UNPRICED: of {total.unknown_cost:,} the cost is not known; it is not in the sum")
    return ["", *remarks] if remarks else []


# -- the chart ------------------------------------------------------------------------------------------------------


def _draws(stream: TextIO) -> bool:
    """Whether somebody looks at the stream who sees more than ASCII."""
    try:
        return stream.isatty() and codecs.lookup(stream.encoding or "ascii").name == "utf-8"
    except LookupError:
        return False


def _chart(report: UsageReport, width: int) -> str:
    """The requests of each hour or day as a row of bars; of several together, when the terminal is too narrow."""
    span = SPANS[report.by]
    requests = {line.starts_at: line.requests for line in report.lines}
    counts = [requests.get(start, 0) for start in range(report.from_ms, report.to_ms, span)]
    unit = report.by.value
    together = -(-len(counts) // max(width, 1))
    sums = [sum(counts[at : at + together]) for at in range(0, len(counts), together)]
    each = f"each {unit}" if together == 1 else f"each {together} {unit}s"
    return f"\nrequests in {each}, at most {max(sums):,}\n{_bars(sums)}"


def _bars(counts: Sequence[int]) -> str:
    """A block for each; only none at all is a gap."""
    most, heights = max(counts), len(_BLOCKS) - 1
    return "".join(_BLOCKS[-(-count * heights // most)] for count in counts)


# -- CSV (RFC 4180) -------------------------------------------------------------------------------------------------


def _csv(report: UsageReport) -> str:
    """A record for each line; none for the total, which whoever adds up the column would count twice."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    by_key = report.by is UsageBy.KEY
    writer.writerow([report.by.value, *(["label"] if by_key else []), *_CSV_FIGURES])
    for line in report.lines:
        name = line.name if line.starts_at is None else instant(line.starts_at).replace(" ", "T")
        names = [name, line.label] if by_key else [name]
        writer.writerow([*map(_guarded, names), *_csv_figures(line)])
    return text.getvalue()


def _csv_figures(line: UsageLine) -> list[int | float | str | None]:
    cost = line.cost_micros
    told = {**msgspec.structs.asdict(line), "cost_usd": None if cost is None else _exact(cost)}
    return [told[name] for name in _CSV_FIGURES]


def _exact(micros: int) -> str:
    return f"{micros // _MICROS}.{micros % _MICROS:06d}"


def _guarded(text: str | None) -> str | None:
    """Text that a spreadsheet does not run: a model may be called `=HYPERLINK(...)`."""
    return f"'{text}" if text is not None and text.startswith(_FORMULA) else text
