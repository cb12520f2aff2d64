"""The histogram: percentiles within 5 % of the exact ones, whatever was added up in whatever order, in a few bytes."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import LocalError
from capi_core.histogram import MAX_MS, MIN_MS, RELATIVE_ERROR, Histogram

DURATIONS = st.one_of(
    st.floats(MIN_MS, MAX_MS),
    st.floats(math.log(MIN_MS), math.log(MAX_MS)).map(lambda power: min(max(math.exp(power), MIN_MS), MAX_MS)),
    st.integers(1, int(MAX_MS)).map(float),
)
"""What a request takes, evenly and by orders of magnitude, in ms."""
HISTOGRAMS = st.lists(DURATIONS, max_size=20).map(Histogram.of)
SLACK = 1e-12
"""Of the floats in which the bound itself is worked out."""


def exact(durations: list[float], percent: int) -> float:
    """The nearest-rank percentile: the smallest that at least `percent` of all do not exceed."""
    ranked = sorted(durations)
    return ranked[max(1, math.ceil(len(ranked) * percent / 100)) - 1]


def test_the_relative_error_is_below_five_percent() -> None:
    assert RELATIVE_ERROR < 0.05


@given(st.lists(DURATIONS, min_size=1, max_size=300), st.sampled_from((0, 1, 25, 50, 75, 90, 95, 99, 100)))
def test_a_percentile_is_within_the_relative_error_of_the_exact_one(durations: list[float], percent: int) -> None:
    told = Histogram.of(durations).percentile(percent)
    truth = exact(durations, percent)
    assert told is not None
    assert abs(told - truth) <= truth * (RELATIVE_ERROR + SLACK)


@pytest.mark.parametrize("percent", [50, 95, 99])
def test_percentiles_of_many_requests_are_within_the_relative_error(percent: int) -> None:
    """Ten thousand of the kind that models take: a lognormal from 0.1 s to some minutes."""
    dice = random.Random(20)
    durations = [dice.lognormvariate(8, 1.2) for _ in range(10_000)]
    told = Histogram.of(durations).percentile(percent)
    assert told == pytest.approx(exact(durations, percent), rel=RELATIVE_ERROR)


def test_every_edge_of_a_bucket_is_within_the_relative_error() -> None:
    """Just below and just above the edges is where a bucket's middle is furthest away."""
    for step in range(238):
        edge = MIN_MS * 2 ** (step / 8)
        for duration in (math.nextafter(edge, math.inf), edge, max(MIN_MS, math.nextafter(edge, 0))):
            told = Histogram.of([duration]).percentile(50)
            assert told == pytest.approx(duration, rel=RELATIVE_ERROR + SLACK)


def test_nothing_has_no_percentile() -> None:
    assert Histogram().percentile(95) is None
    assert Histogram().total == 0


@pytest.mark.parametrize("duration", [-math.inf, -5.0, -0.0, 0.0, 0.001, 0.0999])
def test_what_is_shorter_than_the_shortest_counts_as_that(duration: float) -> None:
    assert Histogram.of([duration]).percentile(50) == MIN_MS


@pytest.mark.parametrize("duration", [MAX_MS, MAX_MS * 2, 1e300, math.inf])
def test_what_is_longer_than_a_day_counts_as_a_day(duration: float) -> None:
    assert Histogram.of([duration]).percentile(50) == pytest.approx(MAX_MS, rel=RELATIVE_ERROR)


def test_no_number_is_refused() -> None:
    with pytest.raises(LocalError, match="number of milliseconds"):
        Histogram.of([1.0, math.nan])


@pytest.mark.parametrize("percent", [-1, 101])
def test_no_percentile_is_refused(percent: int) -> None:
    with pytest.raises(LocalError, match="0 to 100"):
        Histogram.of([1.0]).percentile(percent)


def test_the_rank_of_a_percentile_is_exact() -> None:
    """Nineteen of twenty are 95 %, so the twentieth does not matter; of twenty-one it does."""
    short = Histogram.of([10.0]).percentile(50)
    assert Histogram.of([10.0] * 19 + [1000.0]).percentile(95) == short
    assert Histogram.of([10.0] * 19 + [1000.0] * 2).percentile(95) != short


@given(st.lists(st.lists(DURATIONS, max_size=20), max_size=6))
def test_merged_is_the_histogram_of_all(parts: list[list[float]]) -> None:
    whole = Histogram.of([duration for part in parts for duration in part])
    merged = Histogram.merged(Histogram.of(part) for part in parts)
    assert merged == whole
    assert merged.total == sum(len(part) for part in parts)


@given(HISTOGRAMS, HISTOGRAMS, HISTOGRAMS)
def test_merging_is_associative_and_commutative(a: Histogram, b: Histogram, c: Histogram) -> None:
    left = Histogram.merged([Histogram.merged([a, b]), c])
    assert left == Histogram.merged([a, Histogram.merged([b, c])])
    assert left == Histogram.merged([c, b, a])
    assert Histogram.merged([a, Histogram()]) == a


@given(HISTOGRAMS)
def test_what_is_written_reads_back_as_it_was(histogram: Histogram) -> None:
    assert Histogram.decode(histogram.encode()) == histogram
    assert Histogram.decode(histogram.encode().encode()) == histogram


@given(st.lists(DURATIONS, max_size=20), st.randoms(use_true_random=False))
def test_equal_histograms_are_written_alike(durations: list[float], dice: random.Random) -> None:
    other = dice.sample(durations, len(durations))
    assert Histogram.of(other).encode() == Histogram.of(durations).encode()


def test_what_is_written_is_an_object_of_counts() -> None:
    """So that a database which reads JSON can add them up."""
    assert json.loads(Histogram.of([5.0, 5.0, 800.0]).encode()) == {"46": 2, "104": 1}
    assert Histogram().encode() == "{}"


def test_it_stays_small() -> None:
    """A thousand requests of all lengths take some hundred bytes; a million in every bucket 3 KB, whatever comes 6."""
    dice = random.Random(7)
    assert len(Histogram.of(dice.lognormvariate(8, 1.2) for _ in range(1000)).encode()) < 700
    everything = Histogram.of(MIN_MS * 2 ** (step / 16) for step in range(-1, 480))
    assert len(everything.counts) == 239
    assert len(Histogram(dict.fromkeys(everything.counts, 1_000_000)).encode()) < 3400
    assert len(Histogram(dict.fromkeys(everything.counts, 2**63 - 1)).encode()) < 6200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '{"57":0}',
        '{"57":-1}',
        '{"57":1.5}',
        '{"57":"1"}',
        '{"57":9223372036854775808}',
        '{"239":1}',
        '{"-1":1}',
        '{"a":1}',
        "\ud800",
        b'{"57":1}\xff',
        b"\xff",
    ],
)
def test_what_is_no_histogram_is_refused(text: str | bytes) -> None:
    with pytest.raises(LocalError, match="no histogram"):
        Histogram.decode(text)
