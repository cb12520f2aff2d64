"""What a client is told when the gateway has no (more) answer from an upstream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core.commands import Failure, Outcome
from capi_core.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["failure_of", "own_problem"]

_SHUTDOWN_RETRY_S: Final = 5

_FAILURES: Final[Mapping[Failure, tuple[int, str, str, Outcome]]] = {
    Failure.UNREACHABLE: (
        502,
        "upstream_unreachable",
        "the upstream {upstream!r} cannot be reached; check that it runs and that its base_url is right",
        Outcome.UPSTREAM_UNREACHABLE,
    ),
    Failure.TIMEOUT: (
        504,
        "upstream_timeout",
        "the upstream {upstream!r} did not answer in time; try again, or raise its time limits",
        Outcome.TIMEOUT,
    ),
    Failure.BROKEN: (
        502,
        "upstream_broke",
        "the upstream {upstream!r} broke off its answer; try again",
        Outcome.UPSTREAM_BROKE,
    ),
    Failure.SHUTDOWN: (
        503,
        "shutting_down",
        "this gateway is shutting down; try again in a moment",
        Outcome.SHUTDOWN,
    ),
    Failure.INTERNAL: (
        500,
        "internal_error",
        "this gateway failed; its log has the reason under this request's id",
        Outcome.INTERNAL_ERROR,
    ),
}

_UNAUTHORIZED: Final = Problem(
    502,
    "upstream_unauthorized",
    "the upstream does not accept this gateway's credential for it; ask the operator to check the upstream's api key",
)
_REDIRECT: Final = Problem(
    502,
    "upstream_redirect",
    "the upstream answered with a redirect, which is never followed; check its base_url",
)


def failure_of(failure: Failure, upstream: str | None) -> tuple[Problem, Outcome]:
    """The answer and the outcome when the embedder reports `failure`. `upstream`: whom it asked, if anybody."""
    status, code, message, outcome = _FAILURES[failure]
    retry_after_s = _SHUTDOWN_RETRY_S if failure is Failure.SHUTDOWN else None
    return Problem(status, code, message.format(upstream=upstream or "?"), retry_after_s=retry_after_s), outcome


def own_problem(status: int) -> Problem | None:
    """The answer when an upstream's status is about the gateway's own standing with it, and not about the request.

    A client that got the bare 401 would distrust its own key.
    """
    if status in (401, 407):
        return _UNAUTHORIZED
    return _REDIRECT if 300 <= status < 400 else None
