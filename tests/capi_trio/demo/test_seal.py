"""Reasoning that comes back."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_trio.demo.seal import seal, unseal


@given(st.text())
def test_a_seal_holds_its_text_and_is_always_the_same(text: str) -> None:
    assert unseal(seal(text)) == text
    assert seal(text) == seal(text)


@given(st.text())
def test_nothing_else_is_taken_for_a_seal(text: str) -> None:
    assert unseal(text) is None


@pytest.mark.parametrize("at", [0, 20, -1])
def test_a_seal_that_was_changed_is_broken(at: int) -> None:
    blob = bytearray(base64.b64decode(seal("I think so")))
    blob[at] ^= 1
    assert unseal(base64.b64encode(blob).decode()) is None
