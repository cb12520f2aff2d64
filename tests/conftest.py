"""Settings of the whole suite: how much hypothesis tries, and whether a skipped test is a failure.

- `CAPI_HYPOTHESIS=deep` looks for new counter-examples for a long time; the default is a fixed, quick set.
- `CAPI_REQUIRE_ALL=1` (CI) turns every skip into a failure: what a machine lacks must not look like a pass.
- Tests under tests/e2e start real processes, so they are all `slow`.
"""

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from coverage import Coverage
from hypothesis import settings

E2E = Path(__file__).parent / "e2e"

# No deadlines: a busy machine is not a bug. Derandomized, so that a red run is the change's own fault.
settings.register_profile("dev", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("deep", deadline=None, max_examples=20_000, print_blob=True)
settings.load_profile(os.environ.get("CAPI_HYPOTHESIS", "dev"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(E2E):
            item.add_marker(pytest.mark.slow)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Under `make cov`, marks what runs from here on with the test file that runs it (tests/own_coverage.py)."""
    if (measured := Coverage.current()) is not None:
        measured.switch_context(nodeid.partition("::")[0])


# tryfirst makes this the outermost wrapper: it sees what pytest made of skip and xfail marks.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and os.environ.get("CAPI_REQUIRE_ALL") == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"CAPI_REQUIRE_ALL=1 allows no skipped test; this one says: {reason}"
