"""Model names: the table of spellings that mean one model, and of those that do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.model_names import ModelName, find_same

SAME = [
    ("claude-sonnet-4-5", "claude-sonnet-4.5"),
    ("claude-sonnet-4-5-20250929", "claude-sonnet-4.5"),
    ("claude-opus-4-6", "claude-opus-4.6"),
    ("claude-opus-4-1-20250805", "claude-opus-4.1"),
    ("claude-3-5-sonnet-20241022", "claude-3.5-sonnet"),
    ("claude-3-7-sonnet-latest", "claude-3.7-sonnet"),
    ("claude-3-opus-20240229", "claude-3-opus"),
    ("claude-sonnet-4-20250514", "claude-sonnet-4"),
    ("claude-sonnet-4-5[1m]", "claude-sonnet-4.5"),
    ("claude-sonnet-4@20250514", "claude-sonnet-4"),
    ("claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5-20250929"),
    ("anthropic/claude-haiku-4.5", "claude-haiku-4-5-20251001"),
    ("gpt-4o-2024-11-20", "gpt-4o"),
    ("openai/gpt-5.4", "gpt-5.4"),
    ("GPT-4o", "gpt-4o"),
    ("claude-3-7-sonnet-thought", "claude-3.7-sonnet-thought"),
]
DIFFERENT = [
    ("claude-sonnet-4", "claude-sonnet-4.5"),
    ("claude-sonnet-4-20250514", "claude-sonnet-4.5"),
    ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5-20251101"),
    ("claude-opus-4-5", "claude-sonnet-4-5"),
    ("claude-3-5-sonnet", "claude-3-7-sonnet"),
    ("gpt-5", "gpt-5.4"),
    ("gpt-5-mini", "gpt-5"),
    ("gpt-4o-2024-11-20", "gpt-4o-2024-08-06"),
    ("lab/qwen", "qwen"),
    ("gpt-4-0613", "gpt-4"),
    ("model-v1:0", "model"),
    ("gpt-5-1", "gpt-5.1"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_model(one: str, other: str) -> None:
    assert find_same(one, [other]) == other
    assert find_same(other, [one]) == one


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_names_of_two_models(one: str, other: str) -> None:
    assert find_same(one, [other]) is None
    assert find_same(other, [one]) is None


def test_of_several_the_same_date_wins_then_none_then_the_latest() -> None:
    dated = ["m-2024-01-01", "m-2025-01-01", "m", "m-2023-05-05"]
    assert find_same("m-2024-01-01", dated) == "m-2024-01-01"
    assert find_same("m", dated) == "m"
    assert find_same("m-20240101", [dated[1], dated[2]]) == "m"
    assert find_same("m-latest", [dated[0], dated[1], dated[3]]) == "m-2025-01-01"
    assert find_same("m", []) is None


@given(st.text(max_size=40))
def test_every_text_has_parts_and_is_the_same_as_itself(name: str) -> None:
    parts = ModelName.of(name)
    assert parts.same(parts)
    assert find_same(name, [name]) == name
