"""What the modules for requests share."""

import pytest

from capi_core.conversation import Effort
from capi_core.protocols.messages.request_wire import BUDGETS, effort_of, invalid, is_one_of, untranslatable


@pytest.mark.parametrize("effort", [Effort.LOW, Effort.MEDIUM, Effort.HIGH])
def test_the_budget_of_an_effort_is_that_effort_again(effort: Effort) -> None:
    assert effort_of(BUDGETS[effort]) is effort
    assert effort_of(BUDGETS[effort] + 1) is effort


def test_budgets_at_the_ends_are_the_weakest_and_the_strongest_that_all_models_take() -> None:
    assert effort_of(1) is Effort.LOW
    assert effort_of(31_999) is Effort.HIGH
    assert sorted(BUDGETS.values()) == list(BUDGETS.values())


def test_errors_tell_the_path_as_anthropics_own_do() -> None:
    error = invalid("$.messages[0].role", "must be user")
    assert (error.code, error.status_hint, error.param) == ("invalid_request", 400, "messages[0].role")
    assert str(error) == "messages[0].role: must be user"
    error = untranslatable("$.x", "send it otherwise")
    assert (error.code, error.status_hint, error.param) == ("untranslatable", 400, "x")


def test_values_are_compared_without_their_white_space() -> None:
    assert is_one_of(b'{ "edits" :\n[]}', (b"null", b'{"edits":[]}'))
    assert not is_one_of(b"[1]", (b"[]",))
    assert not is_one_of(b"[" + b" " * 100 + b"]", (b"[]",))
