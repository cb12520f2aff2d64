"""Each call has its one result and an id that Anthropic takes."""

import re

from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import Role, Text, ToolCall, ToolRef, ToolResult, Turn
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.call_pairing import PairedCall, pair_calls


def call(call_id: str) -> Turn:
    return Turn(Role.ASSISTANT, (ToolCall(call_id, ToolRef("f"), "{}", at="$.call"),))


def result(call_id: str, text: str = "r") -> Turn:
    return Turn(Role.USER, (ToolResult(call_id, (Text(text),), at=f"$.{text}"),))


def told(paired: PairedCall) -> tuple[str, str | None]:
    block = paired.result.content[0] if paired.result is not None else None
    return paired.wire_id, block.text if isinstance(block, Text) else None


def pairs(*turns: Turn, ledger: Ledger | None = None) -> list[tuple[str, str | None]]:
    return [told(paired) for calls in pair_calls(turns, ledger or Ledger()) for paired in calls]


def test_results_are_found_behind_their_calls() -> None:
    both = Turn(Role.ASSISTANT, (*call("a").blocks, *call("b").blocks))
    assert pairs(both, result("b", "y"), Turn(Role.USER, (Text("x"),)), result("a", "x")) == [("a", "x"), ("b", "y")]


def test_what_answers_nothing_is_dropped_and_what_nothing_answers_is_left_open() -> None:
    ledger = Ledger()
    found = pairs(result("a", "early"), call("a"), result("a", "one"), result("a", "two"), call("b"), ledger=ledger)
    assert found == [("a", "one"), ("b", None)]
    assert [(entry.change, entry.path) for entry in ledger] == [(Change.DROPPED, "$.early"), (Change.DROPPED, "$.two")]


def test_an_id_that_is_used_again_is_another_call() -> None:
    first, second = pairs(call("a"), result("a", "one"), call("a"), result("a", "two"))
    assert first == ("a", "one")
    assert second[1] == "two"
    assert second[0].startswith("toolu_")
    assert [one[1] for one in pairs(call("a"), call("a"), result("a", "two"))] == [None, "two"]
    twice = Turn(Role.ASSISTANT, call("a").blocks * 2)
    assert [one[1] for one in pairs(twice, result("a", "one"), result("a", "two"))] == ["one", "two"]


def test_an_id_that_anthropic_refuses_is_another_one_each_time_the_same() -> None:
    ledger = Ledger()
    (found,) = pairs(call("call|x"), result("call|x"), ledger=ledger)
    assert re.fullmatch(r"toolu_[0-9a-f]{24}", found[0])
    assert pairs(call("call|x")) == [(found[0], None)]
    assert [(entry.change, entry.path) for entry in ledger] == [(Change.RENAMED, "$.call")]


def test_calls_that_the_user_makes_are_none() -> None:
    assert pairs(Turn(Role.USER, call("a").blocks), result("a")) == []


ids = st.sampled_from(["a", "b", "", "x y", "\ud800"])


@given(st.lists(st.one_of(ids.map(call), ids.map(result)), max_size=12))
def test_ids_are_legal_and_different(turns: list[Turn]) -> None:
    found = [one[0] for one in pairs(*turns)]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", one) for one in found)
