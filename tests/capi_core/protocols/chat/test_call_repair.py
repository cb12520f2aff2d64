"""A tool call's first part has its id and its name, whatever chunks they came in."""

import json

import pytest

from capi_core.protocols.chat.call_repair import CallRepair

ID = {"index": 0, "id": "call_1", "type": "function"}
NAME = {"index": 0, "function": {"name": "f", "arguments": ""}}
BOTH = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}


def chunk(*parts: object, choice: int = 0, **delta: object) -> bytes:
    told = {"index": choice, "delta": {**delta, "tool_calls": list(parts)}, "finish_reason": None}
    return json.dumps({"id": "c", "choices": [told]}).encode()


def more(arguments: str, index: int = 0) -> dict[str, object]:
    return {"index": index, "function": {"arguments": arguments}}


def delta_of(text: bytes) -> dict[str, object]:
    (choice,) = json.loads(text)["choices"]
    assert isinstance(choice, dict)
    delta = choice["delta"]
    assert isinstance(delta, dict)
    return delta


@pytest.mark.parametrize("first", [ID, {"index": 0, "id": "call_1", "type": "function", "function": None}])
def test_an_id_waits_for_its_name(first: dict[str, object]) -> None:
    repair = CallRepair()
    assert delta_of(repair.repair(chunk(first, content="x"))) == {"content": "x"}
    assert list(repair.held) == [(0, 0)]
    assert delta_of(repair.repair(chunk(NAME))) == {"tool_calls": [BOTH]}
    assert repair.held == {}
    text = chunk(more("{}"))
    assert repair.repair(text) == text
    assert repair.has_calls(0)
    assert not repair.has_calls(1)


def test_a_name_waits_for_its_id_and_arguments_that_came_with_it_are_kept() -> None:
    repair = CallRepair()
    first = {"index": 0, "id": None, "function": {"name": "f", "arguments": '{"\\ud83d'}, "mine": [1]}
    assert delta_of(repair.repair(chunk(first))) == {}
    second = {"index": 0, "id": "call_1", "type": "", "function": {"name": "", "arguments": '":1}', "strict": True}}
    function = {"name": "f", "arguments": '{"\\ud83d":1}', "strict": True}
    assert delta_of(repair.repair(chunk(second))) == {
        "tool_calls": [{"index": 0, "id": "call_1", "function": function, "mine": [1]}]
    }


def test_a_custom_call_is_put_together_alike() -> None:
    repair = CallRepair()
    assert delta_of(repair.repair(chunk({**ID, "custom": {"input": "a"}}))) == {}
    assert delta_of(repair.repair(chunk({"index": 0, "custom": {"name": "f", "input": "b"}}))) == {
        "tool_calls": [{**ID, "custom": {"input": "ab", "name": "f"}}]
    }


def test_arguments_that_are_no_text_are_not_joined() -> None:
    repair = CallRepair()
    repair.repair(chunk({**ID, "function": {"arguments": 5}}))
    whole = {**ID, "function": {"arguments": "x", "name": "f"}}
    text = repair.repair(chunk({"index": 0, "function": {"name": "f", "arguments": "x"}}))
    assert delta_of(text) == {"tool_calls": [whole]}


def test_a_call_that_has_both_is_not_touched() -> None:
    repair = CallRepair()
    for text in (chunk(BOTH), chunk(more("{")), chunk({**NAME, "id": "call_2"}), chunk(ID)):
        assert repair.repair(text) == text
    assert repair.has_calls(0)


def test_calls_of_other_choices_and_other_indexes_do_not_mix() -> None:
    repair = CallRepair()
    repair.repair(chunk(ID))
    repair.repair(chunk({**ID, "id": "call_2"}, choice=1))
    repair.repair(chunk({**ID, "index": 1, "id": "call_3"}))
    assert list(repair.held) == [(0, 0), (1, 0), (0, 1)]
    text = repair.repair(chunk({**NAME, "index": 1}, {**BOTH, "index": 2}, NAME))
    assert [(call["index"], call["id"]) for call in delta_of(text)["tool_calls"]] == [  # type: ignore[attr-defined]  # a list
        (1, "call_3"), (2, "call_1"), (0, "call_1"),
    ]  # fmt: skip
    assert list(repair.held) == [(1, 0)]


def test_choices_without_calls_in_the_same_chunk_are_not_touched() -> None:
    repair = CallRepair()
    document = json.loads(chunk(ID))
    others = [
        {"index": 1},
        {"index": 2, "delta": {"content": "x"}},
        {"index": 3, "delta": {"tool_calls": [{"id": "c"}]}},
    ]
    document["choices"] += others
    assert json.loads(repair.repair(json.dumps(document).encode()))["choices"][1:] == others


def test_what_is_never_completed_goes_out_with_the_first_part_that_brings_neither() -> None:
    """As some servers give no id: they are not waited for."""
    repair = CallRepair()
    repair.repair(chunk({"index": 0, "function": {"name": "f", "arguments": "{"}}))
    assert delta_of(repair.repair(chunk(more("}")))) == {
        "tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]
    }
    assert repair.held == {}


def test_what_waits_at_the_end_of_a_choice_is_released_once() -> None:
    repair = CallRepair()
    repair.repair(chunk(ID))
    repair.repair(chunk(ID, choice=1))
    assert repair.has_calls(0)
    assert [json.loads(part) for part in repair.release(0)] == [ID]
    assert repair.release(0) == []
    assert repair.has_calls(0)
    assert list(repair.held) == [(1, 0)]


def test_what_is_held_fits_on_one_line() -> None:
    repair = CallRepair()
    repair.repair(chunk(ID).replace(b", ", b",\n"))
    assert b"\n" not in repair.held[0, 0]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"5",
        b'{"choices":5}',
        b'{"choices":[{"delta":{"tool_calls":[{"index":"0","id":"c"}]}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c"}]}}],"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c"}]}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","x":1,"x":2}]}},'
        b'{"delta":{"x":1,"x":1,"tool_calls":[{"index":0,"id":"c"}]}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"x"}}]}}]}',
        b'{"choices":null}',
        b'{"choices":[{"delta":null},{"delta":{"tool_calls":null}}]}',
    ],
)
def test_what_cannot_be_read_or_has_no_place_is_not_touched_and_not_noted(text: bytes) -> None:
    repair = CallRepair()
    assert repair.repair(text) == text
    assert repair.held == {}
    assert not repair.has_calls(0)


def test_a_call_without_an_index_is_not_touched() -> None:
    """There is no telling which parts are its own."""
    repair = CallRepair()
    for part in ({"id": "call_1"}, {"function": {"name": "f"}}, {"function": {"arguments": "{}"}}):
        assert repair.repair(chunk(part)) == chunk(part)
    assert repair.has_calls(0)
    assert repair.release(0) == []
    mixed = chunk({"id": "call_1"}, ID)
    assert delta_of(repair.repair(mixed)) == {"tool_calls": [{"id": "call_1"}]}


def named(name: str, arguments: str) -> dict[str, object]:
    return {"index": 0, "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (named("f", '{"a":1}'), named("g", '{"b":2}')),
        (named("f", "{}"), named("f", '{"b":2}')),
        ({"index": 0, "id": "call_1"}, {"index": 0, "id": "call_2", "function": {"arguments": "{}"}}),
    ],
    ids=["names", "whole-arguments", "ids"],
)
def test_two_calls_at_one_index_are_not_made_one(first: dict[str, object], second: dict[str, object]) -> None:
    repair = CallRepair()
    assert delta_of(repair.repair(chunk(first))) == {}
    assert delta_of(repair.repair(chunk(second))) == {"tool_calls": [first, second]}
    assert repair.held == {}
    assert repair.repair(chunk(named("h", "{}"))) == chunk(named("h", "{}"))


@pytest.mark.parametrize("arguments", ["", '{"a"'])
def test_a_name_that_each_part_repeats_is_of_one_call(arguments: str) -> None:
    repair = CallRepair()
    assert delta_of(repair.repair(chunk(named("f", arguments)))) == {}
    assert delta_of(repair.repair(chunk({**named("f", ":1}"), "id": "c"}))) == {
        "tool_calls": [{**named("f", f"{arguments}:1}}"), "id": "c"}]
    }


def test_what_is_held_is_bounded() -> None:
    repair = CallRepair()
    large = chunk({**ID, "id": "x" * 9000})
    assert repair.repair(large) == large
    for index in range(1, 129):
        assert delta_of(repair.repair(chunk({**ID, "index": index}))) == {}
    text = chunk({**ID, "index": 129})
    assert repair.repair(text) == text
    assert len(repair.held) == 128


def test_how_many_calls_are_remembered_is_bounded() -> None:
    repair = CallRepair()
    text = chunk(*({**BOTH, "index": index} for index in range(5000)))
    assert repair.repair(text) == text
    assert delta_of(repair.repair(chunk({**ID, "index": 4999}))) == {}
