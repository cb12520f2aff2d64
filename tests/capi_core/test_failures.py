"""Failures: each has its answer, and what is about our own standing with an upstream is not the client's 401."""

import pytest

from capi_core.commands import Failure, Outcome
from capi_core.failures import failure_of, own_problem


@pytest.mark.parametrize("failure", Failure)
def test_every_failure_is_the_servers_fault_and_says_whose(failure: Failure) -> None:
    problem, outcome = failure_of(failure, "lab")
    assert problem.status >= 500
    assert outcome not in (Outcome.OK, Outcome.CLIENT_GONE)
    assert (problem.retry_after_s is not None) == (failure is Failure.SHUTDOWN)
    assert failure_of(failure, None)[1] is outcome


def test_the_upstream_is_named_where_it_is_to_blame() -> None:
    assert "'lab'" in failure_of(Failure.TIMEOUT, "lab")[0].message
    assert "'?'" in failure_of(Failure.TIMEOUT, None)[0].message


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "upstream_unauthorized"),
        (407, "upstream_unauthorized"),
        (301, "upstream_redirect"),
        (399, "upstream_redirect"),
    ],
)
def test_a_status_about_our_own_standing_becomes_a_502(status: int, code: str) -> None:
    problem = own_problem(status)
    assert problem is not None
    assert (problem.status, problem.code) == (502, code)


@pytest.mark.parametrize("status", [200, 299, 400, 403, 404, 429, 500])
def test_every_other_status_is_the_clients_business(status: int) -> None:
    assert own_problem(status) is None
