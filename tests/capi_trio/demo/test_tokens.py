"""Text in pieces: breaking, measuring, cutting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_trio.demo.tokens import estimate_tokens, keep, pieces_of, regroup, within

TEXTS = st.text()


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("ééé", 2), ("😀😀", 2)])
def test_a_token_is_four_bytes_rounded_up(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


def test_pieces_are_words_with_the_space_before_them() -> None:
    assert pieces_of("Say hello, world. ") == ("Say", " hello,", " world.", " ")


def test_long_runs_are_broken() -> None:
    assert pieces_of("x" * 30) == ("x" * 12, "x" * 12, "x" * 6)


@given(TEXTS)
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(pieces_of(text)) == text


@given(TEXTS, st.integers(1, 50))
def test_regrouping_keeps_the_text_and_gives_the_count_asked_for(text: str, count: int) -> None:
    pieces = pieces_of(text)
    grouped = regroup(pieces, count)
    assert "".join(grouped) == text
    assert len(grouped) == min(count, len(pieces))
    assert all(grouped)


def test_regrouping_to_nothing_keeps_nothing() -> None:
    assert regroup(("a", "b"), 0) == ()


@given(TEXTS, st.integers(0, 200))
def test_keeping_cuts_after_that_many_characters(text: str, length: int) -> None:
    kept = keep(pieces_of(text), length)
    assert "".join(kept) == text[:length]
    assert all(kept)


@given(TEXTS, st.integers(0, 50))
def test_what_is_within_a_budget_costs_no_more_and_one_character_more_would(text: str, tokens: int) -> None:
    length = within(text, tokens)
    assert estimate_tokens(text[:length]) <= tokens
    if length < len(text):
        assert estimate_tokens(text[: length + 1]) > tokens
