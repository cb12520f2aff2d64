"""The gate's vocabulary: limits that make sense, and what a caller without a slot is told."""

import math
from collections.abc import Callable

import pytest

from capi_core.errors import LocalError, Problem
from capi_core.gate_events import GateLimits, Refusal, Refused, problem_refused


@pytest.mark.parametrize("count", [0, -1])
def test_no_slot_and_no_refusal_are_no_limits(count: int) -> None:
    with pytest.raises(LocalError):
        GateLimits(cap=count)
    with pytest.raises(LocalError):
        GateLimits(abuse_refusals=count)


def test_a_gate_may_do_without_a_queue() -> None:
    assert GateLimits(max_queued=0).max_queued == 0
    with pytest.raises(LocalError):
        GateLimits(max_queued=-1)


@pytest.mark.parametrize(
    "limits",
    [
        lambda seconds: GateLimits(queue_timeout_s=seconds),
        lambda seconds: GateLimits(max_pause_s=seconds),
        lambda seconds: GateLimits(abuse_window_s=seconds),
        lambda seconds: GateLimits(cool_down_s=seconds),
        lambda seconds: GateLimits(cool_down_memory_s=seconds),
    ],
    ids=["queue_timeout_s", "max_pause_s", "abuse_window_s", "cool_down_s", "cool_down_memory_s"],
)
@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_times_are_finite_and_positive(limits: Callable[[float], GateLimits], seconds: float) -> None:
    """Not-a-number must not become "for ever" (spec.md 5, 29)."""
    with pytest.raises(LocalError):
        limits(seconds)


def test_one_volley_of_refusals_is_no_abuse() -> None:
    assert GateLimits().abuse_refusals > GateLimits().cap


@pytest.mark.parametrize(
    ("why", "retry_after_s", "status", "code"),
    [
        (Refusal.QUEUE_FULL, 3, 429, "queue_full"),
        (Refusal.QUEUE_TIMEOUT, 4, 429, "queue_timeout"),
        (Refusal.PAUSED, 500, 503, "identity_paused"),
        (Refusal.STOPPED, None, 503, "identity_stopped"),
    ],
)
def test_a_refusal_is_told_with_its_code_and_when_to_come_back(
    why: Refusal, retry_after_s: int | None, status: int, code: str
) -> None:
    problem = problem_refused(Refused(1, why, retry_after_s))
    assert (problem.status, problem.code, problem.retry_after_s) == (status, code, retry_after_s)
    assert (f"retry in {retry_after_s} s" in problem.message) == (retry_after_s is not None)


def test_a_shutdown_is_told_as_everywhere_else() -> None:
    problem = problem_refused(Refused(1, Refusal.SHUTTING_DOWN, None))
    assert problem == Problem(503, "shutting_down", problem.message, retry_after_s=5)
