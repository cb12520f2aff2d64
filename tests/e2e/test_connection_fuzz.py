"""A short run of the connection fuzzer (`make fuzz-connections` is the long one), and that it would notice."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from fuzz.connections import End, fuzz, plan
from tests.support.process import Capi


def test_three_thousand_hostile_connections_do_no_harm(
    start_demo: Callable[[], AbstractContextManager[Capi]], capsys: pytest.CaptureFixture[str]
) -> None:
    with start_demo() as capi:
        # Patient: this machine may be busy with something else.
        report = fuzz(capi.url, seed=1, count=3000, patience_s=10, capi=capi)
        assert capi.alive
    with capsys.disabled():
        print(f" [{report}]", end="")  # noqa: T201 - the figures are what a run is for
    assert report.violations == []
    assert report.connections == 3000
    assert report.probes > 200


def test_a_plan_can_be_repeated() -> None:
    plans = [plan(7, index) for index in range(500)]
    assert plans == [plan(7, index) for index in range(500)]
    assert {each.end for each in plans} == set(End)
    assert len({each.pieces for each in plans}) > 300
    assert plans != [plan(8, index) for index in range(500)]


def test_a_gateway_that_dies_is_noticed(start_demo: Callable[[], AbstractContextManager[Capi]]) -> None:
    with start_demo() as capi:
        capi.terminate()
        capi.wait()
        report = fuzz(capi.url, seed=1, count=100)
    assert "cannot connect any more" in report.violations[0]
