"""Blocks of an answer as deltas: what waits for their stop, and what cannot be."""

import json

import msgspec
import pytest

from capi_core.conversation import Opaque, Reasoning, Signature, ToolCall, ToolRef
from capi_core.deltas import (
    Annotated,
    AnswerDelta,
    BlockStart,
    Delta,
    End,
    Finish,
    FinishReason,
    Reply,
    Start,
    assemble,
)
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.answer_wire import UNSHOWN
from capi_core.protocols.messages.block_reader import BlockDelta, BlockReader


class Read:
    """A reader and what it put out."""

    def __init__(self, max_held: int = 1000) -> None:
        self.deltas: list[AnswerDelta] = []
        self.faults: list[str] = []
        self.reader = BlockReader(self.deltas.append, self.faults.append, max_held=max_held)

    def start(self, place: int, **content: object) -> None:
        self.reader.start(place, json.dumps(content).encode())

    def blocks(self) -> tuple[object, ...]:
        assert not self.faults
        found = assemble([Start(), *self.deltas, Finish(FinishReason.STOP), End()])
        assert isinstance(found, Reply)
        return found.blocks


def test_a_signature_in_pieces_is_told_once_and_whole() -> None:
    read = Read()
    read.start(0, type="thinking", thinking="a", signature="S")
    read.reader.delta(0, BlockDelta("thinking_delta", thinking="b"))
    for piece in ("I", "", "G"):
        read.reader.delta(0, BlockDelta("signature_delta", signature=piece))
    read.reader.stop(0)
    assert read.blocks() == (Reasoning(("ab",), Signature(Protocol.MESSAGES, "SIG")),)


def test_thinking_that_was_not_shown_is_told_from_redacted_thinking() -> None:
    read = Read()
    read.start(0, type="thinking", thinking="", signature="S")
    read.start(1, type="redacted_thinking", data="R")
    read.start(2, type="thinking", thinking="x")
    read.reader.stop_all()
    assert read.blocks() == (
        Reasoning((), Signature(Protocol.MESSAGES, UNSHOWN + "S")),
        Reasoning((), Signature(Protocol.MESSAGES, "R")),
        Reasoning(("x",)),
    )


def test_input_in_the_start_counts_when_no_pieces_follow() -> None:
    read = Read()
    read.start(0, type="tool_use", id="a", name="f", input={"x": 1})
    read.start(1, type="tool_use", id="b", name="f", input={"x": 1})
    read.reader.delta(1, BlockDelta("input_json_delta", partial_json="{}"))
    read.start(2, type="tool_use", id="c", name="f", input=None)
    read.reader.stop_all()
    calls = [
        ToolCall("a", ToolRef("f"), '{"x": 1}'),
        ToolCall("b", ToolRef("f"), "{}"),
        ToolCall("c", ToolRef("f"), ""),
    ]
    assert read.blocks() == tuple(calls)
    assert read.reader.called


def test_text_and_citations_may_stand_in_the_start() -> None:
    read = Read()
    read.start(0, type="text", text="a", citations=[{"url": "u"}])
    read.reader.delta(0, BlockDelta("citations_delta", citation=msgspec.Raw(b'{"url":"v"}')))
    read.reader.delta(0, BlockDelta("citations_delta"))
    read.reader.delta(0, BlockDelta("text_delta", text="b"))
    read.reader.delta(0, BlockDelta("new_delta", text="c"))
    read.reader.stop(0)
    read.reader.stop(0)
    assert [told.text for told in read.deltas if isinstance(told, Delta)] == ["a", "b"]
    assert [told.annotation.url for told in read.deltas if isinstance(told, Annotated)] == ["u", "v"]
    assert not read.reader.called


def test_blocks_that_only_messages_knows_are_told_whole_and_in_the_order_in_which_they_stop() -> None:
    read = Read()
    read.start(0, type="server_tool_use", id="s", name="web_search", input={})
    read.start(1, type="tool_use", id="t", name="f")
    read.reader.delta(0, BlockDelta("input_json_delta", partial_json='{"q":'))
    read.reader.delta(0, BlockDelta("input_json_delta", partial_json="2}"))
    read.reader.delta(0, BlockDelta("compaction_delta"))
    read.start(2, type="web_search_tool_result", content=[])
    read.reader.stop_all()
    read.reader.stop(1)
    assert [told.index for told in read.deltas if isinstance(told, BlockStart)] == [0, 1, 2]
    opaque, result = read.blocks()[1:]
    assert isinstance(opaque, Opaque)
    assert isinstance(result, Opaque)
    assert json.loads(result.raw) == {"type": "web_search_tool_result", "content": []}
    assert json.loads(opaque.raw)["input"] == {"q": 2}


def fault(*steps: object) -> str:
    read = Read(max_held=40)
    for place, step in enumerate(steps):
        if isinstance(step, BlockDelta):
            read.reader.delta(0, step)
        else:
            read.reader.start(place, json.dumps(step).encode())
    read.reader.stop_all()
    return read.faults[0]


TOOL = {"type": "tool_use", "id": "t", "name": "f"}


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"type": "tool_use", "id": "", "name": "f"}], "without an id"),
        ([{"type": "tool_use", "id": "t"}], "without a name"),
        ([BlockDelta("text_delta", text="x")], "not open"),
        ([TOOL, BlockDelta("text_delta", text="x")], "another kind"),
        ([{"type": "thinking"}, BlockDelta("signature_delta", signature="x" * 41)], "too large"),
        ([{"type": "x"}, BlockDelta("input_json_delta", partial_json="{")], "not JSON"),
        ([{"type": "text"}] * 129, "too many"),
    ],
)
def test_what_cannot_be_is_a_fault(steps: list[object], words: str) -> None:
    assert words in fault(*steps)


def test_a_place_is_open_once() -> None:
    read = Read()
    read.start(0, type="text")
    read.start(0, type="text")
    assert read.faults


def test_an_answer_has_a_bounded_number_of_blocks() -> None:
    read = Read()
    for _ in range(4097):
        read.start(0, type="text")
        read.reader.stop(0)
    assert len(read.faults) == 1


def test_text_that_is_not_utf8_is_not_passed_on() -> None:
    with pytest.raises(UnicodeError):
        Read().reader.start(0, b'{"type":"x","y":"\xff"}')
