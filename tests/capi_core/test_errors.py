"""Errors: what a caller is told, and that the two families stay apart."""

import pytest

from capi_core.errors import CoreError, LocalError, Problem, ProtocolError


def test_the_two_families_are_core_errors_and_none_is_the_other() -> None:
    """An embedder catches `ProtocolError` for its peer and lets `LocalError` fail loudly."""
    assert issubclass(LocalError, CoreError)
    assert issubclass(ProtocolError, CoreError)
    assert not issubclass(LocalError, ProtocolError)
    assert not issubclass(ProtocolError, LocalError)


def test_a_protocol_error_carries_how_to_answer() -> None:
    error = ProtocolError("what is wrong", code="a_code", status_hint=413, param="n")
    assert (str(error), error.code, error.status_hint, error.param) == ("what is wrong", "a_code", 413, "n")


def test_a_protocol_error_is_the_requests_fault_unless_said_otherwise() -> None:
    error = ProtocolError("what is wrong", code="a_code")
    assert (error.status_hint, error.param) == (400, None)


def test_a_protocol_error_needs_a_code() -> None:
    with pytest.raises(TypeError):
        ProtocolError("no code")  # type: ignore[call-arg]  # what the test is about


def test_the_problem_of_an_error_says_all_that_the_error_says() -> None:
    error = ProtocolError("what is wrong", code="a_code", status_hint=422, param="n")
    assert Problem.of(error) == Problem(422, "a_code", "what is wrong", "n", retry_after_s=None)
