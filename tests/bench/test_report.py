"""What the figures of a run look like, and how ratios are made."""

import msgspec
import pytest

from bench.load import Load, Tally, summary
from bench.measure import Run, Sample, Scenario, Schedule
from bench.report import Ratio, ratio, render, table

STREAMS = Scenario("streams, K=1", 1, True, 1.0)
PLAIN = Scenario("plain requests, K=1", 1, False, 1.0)


def load(cpu_s: float, *, bad: int = 0) -> Load:
    tally = Tally(requests=10, bad=bad, events=1000, lags=[1_000_000], ttfb=[2_000_000])
    return summary(tally, k=1, seconds=2.0, cpu_s=cpu_s, rss_bytes=0, own_cpu_s=0.0)


@pytest.fixture
def run() -> Run:
    """Two rounds in which the machine was twice as slow in the second."""
    costs = {"direct": [0.0], "relay": [0.1, 0.2], "capi": [0.11, 0.24]}
    samples = [
        Sample(number, scenario.name, peer, load(cost), 0.0)
        for scenario in (STREAMS, PLAIN)
        for peer, rounds in costs.items()
        for number, cost in enumerate(rounds)
    ]
    return Run(
        Schedule((STREAMS, PLAIN), 2, 1, 1),
        peers=list(costs),
        compared=["relay", "capi"],
        samples=samples,
        starts={"relay": [0.3], "capi": [0.5, 0.4, 0.6]},
        rss_mb={"relay": 40.0, "capi": 50.0},
        large_body_mb={"relay": 30.0, "capi": 20.0},
    )


def cells(report: str, row: str) -> list[str]:
    """The cells of the first row with that title, without it."""
    line = next(line for line in report.splitlines() if line.startswith(f"| {row}"))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    assert ratio([(2, 1), (3, 1), (10, 10)]) == Ratio(2, 1, 3)


def test_ratios_pair_figures_of_the_same_round(run: Run) -> None:
    assert cells(render(run), "CPU us / event") == ["-", "150", "175", "1.15 (1.10 to 1.20)"]


def test_a_round_that_only_one_of_them_ran_makes_no_ratio(run: Run) -> None:
    run.samples = [sample for sample in run.samples if (sample.peer, sample.round) != ("relay", 1)]
    assert cells(render(run), "CPU us / event")[-1] == "1.10 (1.10 to 1.10)"


def test_plain_requests_are_counted_by_request(run: Run) -> None:
    assert cells(render(run), "CPU ms / request") == ["-", "15.00", "17.50", "1.15 (1.10 to 1.20)"]
    assert cells(render(run), "requests / s")[:3] == ["5", "5", "5"]


def test_starts_and_memory_are_told_by_peer(run: Run) -> None:
    report = render(run)
    assert cells(report, "start to first answered request, s") == ["-", "0.30", "0.50"]
    assert cells(report, "resident after the load, MB") == ["-", "40", "50"]
    assert cells(report, "extra memory for a 10 MB body, MB") == ["-", "30", "20"]


def test_failed_requests_are_told(run: Run) -> None:
    assert "failed" not in render(run)
    run.samples.append(Sample(1, STREAMS.name, "capi", load(0.1, bad=3), 0.0))
    assert "capi: 3 requests failed" in render(run)


def test_a_machine_that_was_busy_with_something_else_is_told(run: Run) -> None:
    assert "other processes" not in render(run)
    run.samples = [msgspec.structs.replace(sample, other_cores=0.5) for sample in run.samples]
    assert "other processes kept 0.5 processors busy" in render(run)


def test_a_table_is_markdown_with_aligned_columns() -> None:
    assert table(["", "a"], [["x", "1"], ["yy", "100"]]).splitlines() == [
        "|    |   a |",
        "|----|----:|",
        "| x  |   1 |",
        "| yy | 100 |",
    ]
