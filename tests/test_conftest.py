"""The suite's own switches, tried on small suites that use this project's conftest."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).with_name("conftest.py")

SUITE = """
import pytest

def test_skips_itself():
    pytest.skip("no nginx here")

@pytest.mark.skip(reason="no browser here")
def test_marked(): ...

@pytest.mark.xfail(reason="known", strict=True)
def test_expected_failure():
    assert False

def test_passes(): ...
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """A directory with this project's conftest and `SUITE`."""
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(test_suite=SUITE)
    return pytester


def test_a_skip_is_a_skip_by_default(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPI_REQUIRE_ALL", raising=False)
    suite.runpytest_inprocess().assert_outcomes(passed=1, skipped=2, xfailed=1)


def test_with_require_all_a_skip_fails_and_names_its_reason(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPI_REQUIRE_ALL", "1")
    result = suite.runpytest_inprocess()
    # A skip by mark is decided in the setup phase, so pytest counts it among the errors.
    result.assert_outcomes(passed=1, failed=1, errors=1, xfailed=1)
    result.stdout.fnmatch_lines_random(["*this one says: *no nginx here*", "*this one says: *no browser here*"])


def test_with_require_all_a_module_that_skips_itself_fails(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPI_REQUIRE_ALL", "1")
    suite.makepyfile(test_module="import pytest\npytest.importorskip('no_such_module_xyz')\n")
    result = suite.runpytest_inprocess("test_module.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*this one says: *no_such_module_xyz*"])


def test_everything_under_e2e_is_slow(suite: pytest.Pytester) -> None:
    e2e = suite.mkdir("e2e")
    (e2e / "test_process.py").write_text("def test_process(): ...\n")
    suite.runpytest_inprocess("-m", "slow").assert_outcomes(passed=1, deselected=4)
