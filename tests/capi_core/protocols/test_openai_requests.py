"""Efforts and identifiers are fitted to what OpenAI's models take, and told when they change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import Effort, ReasoningRequest, ThinkingMode
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.openai_requests import short_identity, taken_effort, wanted_effort
from capi_core.target import Target


@pytest.mark.parametrize(
    ("asked", "effort", "changes"),
    [
        (ReasoningRequest(), None, []),
        (ReasoningRequest(ThinkingMode.ENABLED), None, []),
        (ReasoningRequest(ThinkingMode.ADAPTIVE), None, []),
        (ReasoningRequest(ThinkingMode.OFF), Effort.NONE, []),
        (ReasoningRequest(ThinkingMode.OFF, Effort.HIGH, 5000), Effort.NONE, []),
        (ReasoningRequest(effort=Effort.XHIGH), Effort.XHIGH, []),
        (ReasoningRequest(effort=Effort.LOW, budget_tokens=9999), Effort.LOW, []),
        (ReasoningRequest(ThinkingMode.ENABLED, budget_tokens=10**9), Effort.HIGH, [Change.ALTERED]),
        (ReasoningRequest(ThinkingMode.ENABLED, budget_tokens=4096), Effort.HIGH, [Change.ALTERED]),
        (ReasoningRequest(ThinkingMode.ENABLED, budget_tokens=4095), Effort.MEDIUM, [Change.ALTERED]),
        (ReasoningRequest(ThinkingMode.ENABLED, budget_tokens=2047), Effort.LOW, [Change.ALTERED]),
        (ReasoningRequest(ThinkingMode.ENABLED, budget_tokens=1023), Effort.MINIMAL, [Change.ALTERED]),
        (ReasoningRequest(ThinkingMode.ENABLED, budget_tokens=0), Effort.MINIMAL, [Change.ALTERED]),
        (ReasoningRequest(ThinkingMode.ENABLED, budget_tokens=-7), Effort.MINIMAL, [Change.ALTERED]),
    ],
)
def test_the_effort_that_is_asked_for_or_that_a_budget_comes_nearest_to(
    asked: ReasoningRequest, effort: Effort | None, changes: list[Change]
) -> None:
    ledger = Ledger()
    assert wanted_effort(asked, ledger) is effort
    assert [entry.change for entry in ledger] == changes


@pytest.mark.parametrize(
    ("effort", "efforts", "taken", "lost"),
    [
        (None, ("low",), None, False),
        (Effort.HIGH, None, Effort.HIGH, False),
        (Effort.HIGH, ("high", "low"), Effort.HIGH, False),
        (Effort.MAX, ("high", "low"), Effort.HIGH, True),
        (Effort.NONE, ("high", "low"), Effort.LOW, True),
        (Effort.MEDIUM, ("low", "high"), Effort.LOW, True),  # as near as the other: the weaker
        (Effort.MEDIUM, ("high", "low"), Effort.LOW, True),
        (Effort.HIGH, ("odd",), None, True),
        (Effort.HIGH, (), None, True),
    ],
)
def test_the_nearest_effort_that_the_model_takes(
    effort: Effort | None, efforts: tuple[str, ...] | None, taken: Effort | None, lost: bool
) -> None:
    ledger = Ledger()
    assert taken_effort(effort, Target("up", efforts=efforts), ledger) is taken
    assert ledger.losses == lost


def test_an_identifier_of_64_characters_is_sent_as_it_is() -> None:
    ledger = Ledger()
    assert short_identity("ü" * 64, "$.user", ledger) == "ü" * 64
    assert ledger.entries == ()


def test_one_that_is_longer_is_the_same_digest_each_time_and_noted_without_its_value() -> None:
    ledger = Ledger()
    found = short_identity("secret" * 20, "$.user", ledger)
    assert found == short_identity("secret" * 20, "$.user", Ledger())
    assert [(entry.change, entry.path, "secret" in entry.note) for entry in ledger] == [
        (Change.ALTERED, "$.user", False)
    ]


@given(st.text(max_size=200), st.text(max_size=200))
def test_identifiers_fit_and_stay_apart(one: str, other: str) -> None:
    first, second = (short_identity(text, "$.user", Ledger()) for text in (one, other))
    assert max(len(first), len(second)) <= 64
    assert (first == second) == (one == other)


def test_half_a_pair_of_surrogates_is_no_error() -> None:
    assert len(short_identity("\ud83d" * 65, "$.user", Ledger())) == 64
