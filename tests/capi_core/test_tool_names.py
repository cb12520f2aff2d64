"""Tool names reach an upstream in a form that it takes, and come back as they were."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import ToolKind, ToolRef
from capi_core.tool_names import CUSTOM_INPUT_SCHEMA, MAX_TOOL_NAME, ToolNames

REFS = st.builds(ToolRef, st.text(max_size=80), st.none() | st.text(max_size=9))
NEAR = st.builds(ToolRef, st.sampled_from(["a__b", "a b", "a.b", "b", "a_b", ""]), st.sampled_from([None, "a", ""]))


@given(st.lists(REFS | NEAR, unique=True, max_size=8))
def test_all_names_are_legal_different_and_come_back(refs: list[ToolRef]) -> None:
    names = ToolNames()
    sent = [names.wire(ref) for ref in refs]
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,64}", name) for name in sent)
    assert len(set(sent)) == len(refs)
    assert [names.client(name) for name in sent] == [(ref, ToolKind.FUNCTION) for ref in refs]
    assert [names.wire(ref) for ref in refs] == sent


def test_a_legal_name_is_kept() -> None:
    names = ToolNames()
    assert (names.wire(ToolRef("get_weather")), names.plain) == ("get_weather", True)


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        (ToolRef("f", "ns"), "ns__f"),
        (ToolRef("a.b"), "a_b_5de00e88"),
        (ToolRef("x" * 70), "x" * 55 + "_b551284b"),
    ],
)
def test_a_changed_name_is_the_same_in_every_process(ref: ToolRef, expected: str) -> None:
    names = ToolNames()
    assert (names.wire(ref), len(expected) <= MAX_TOOL_NAME, names.plain) == (expected, True, False)


def test_a_custom_tool_is_known_as_one_when_it_comes_back() -> None:
    names = ToolNames()
    assert names.wire(ToolRef("patch"), ToolKind.CUSTOM) == "patch"
    assert (names.client("patch"), names.plain) == ((ToolRef("patch"), ToolKind.CUSTOM), False)
    assert json.loads(CUSTOM_INPUT_SCHEMA)["required"] == ["input"]


def test_a_name_that_was_never_sent_is_taken_as_it_is() -> None:
    assert ToolNames().client("made_up") == (ToolRef("made_up"), ToolKind.FUNCTION)
