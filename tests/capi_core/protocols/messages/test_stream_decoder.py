"""A Messages stream becomes deltas that keep the rules, however it is cut and whatever it leaves out."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import Opaque, Reasoning, Signature, ToolCall, ToolRef
from capi_core.deltas import (
    AnswerDelta,
    BlockStart,
    BlockStop,
    Delta,
    End,
    Failed,
    Finish,
    FinishReason,
    Ping,
    Reply,
    ReplyText,
    Start,
    UsageReport,
    assemble,
)
from capi_core.errors import Problem
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.stream_decoder import Message, MessagesDecoder
from capi_core.usage import Usage
from tests.support.messages_events import STOP, block, delta, event, everything, finish, start, written

TEXT = {"type": "text", "text": ""}
HELLO = block(0, TEXT, {"type": "text_delta", "text": "hi"})
DONE = b"data: [DONE]\n\n"


def decoded(stream: bytes, size: int | None = None, ledger: Ledger | None = None) -> list[AnswerDelta]:
    decoder = MessagesDecoder(ledger or Ledger(), max_event_bytes=1 << 12)
    found: list[AnswerDelta] = []
    for at in range(0, len(stream), size or len(stream) or 1):
        found += decoder.receive_data(stream[at : at + (size or len(stream))])
    found += decoder.finish()
    assert decoder.receive_data(b"data: {}") == decoder.finish() == []
    return found


def reply(stream: bytes) -> Reply:
    found = assemble(decoded(stream))
    assert isinstance(found, Reply)
    return found


def failure(stream: bytes) -> Failed:
    found = decoded(stream)[-1]
    assert isinstance(found, Failed)
    return found


def test_every_kind_of_block_becomes_its_own() -> None:
    found = reply(written(*everything()))
    text, search, result = found.blocks[2], found.blocks[3], found.blocks[4]
    assert isinstance(text, ReplyText)
    assert isinstance(search, Opaque)
    assert isinstance(result, Opaque)
    assert (text.text, [annotation.url for annotation in text.annotations]) == ("héllo", ["u"])
    assert (json.loads(search.raw)["input"], result.type) == ({"q": 1}, "web_search_tool_result")
    assert found.blocks[:2] + found.blocks[5:] == (
        Reasoning(("hmm",), Signature(Protocol.MESSAGES, "SIG")),
        Reasoning((), Signature(Protocol.MESSAGES, "RED")),
        ToolCall("toolu_1", ToolRef("f"), '{"a":2}'),
        ToolCall("toolu_2", ToolRef("g"), ""),
    )
    assert (found.id, found.model, found.finish) == ("msg_1", "up", Finish(FinishReason.TOOL_CALLS))
    assert found.usage == Usage(5, None, None, 7, None)


@given(size=st.integers(1, 50))
def test_how_the_bytes_are_cut_does_not_matter(size: int) -> None:
    stream = written(*everything())
    assert decoded(stream, size) == decoded(stream)


def test_the_rules_of_a_delta_stream_are_kept() -> None:
    open_blocks: set[int] = set()
    found = decoded(written(*everything()))
    for told in found:
        if isinstance(told, BlockStart):
            open_blocks.add(told.index)
        elif isinstance(told, Delta):
            assert told.index in open_blocks
        elif isinstance(told, BlockStop):
            open_blocks.remove(told.index)
        elif isinstance(told, Finish):
            assert not open_blocks
    assert isinstance(found[0], Start)
    assert sum(isinstance(told, Finish) for told in found) == 1
    assert Ping() in found


def test_a_whole_message_is_the_same_as_its_stream() -> None:
    message = Message(
        "msg_1",
        "up",
        [msgspec.Raw(b'{"type":"text","text":"hi"}')],
        "end_turn",
        usage=msgspec.Raw(b'{"output_tokens":7}'),
    )
    decoder = MessagesDecoder(Ledger(), max_event_bytes=1 << 12)
    whole = assemble(decoder.whole(message))
    assert isinstance(whole, Reply)
    found = reply(written(start(), *HELLO, finish(), STOP))
    assert (whole.id, whole.blocks, whole.finish) == (found.id, found.blocks, found.finish)
    assert whole.usage == Usage(output=7)
    assert isinstance(MessagesDecoder(Ledger(), max_event_bytes=9).whole(Message())[-1], End)


def test_figures_of_the_start_and_of_the_end_are_one_report() -> None:
    begun = start(input_tokens=5, cache_read_input_tokens=3, output_tokens=1)
    details = {"output_tokens": 9, "output_tokens_details": {"thinking_tokens": 4}}
    found = decoded(written(begun, *HELLO, finish(None), finish("end_turn", details), STOP))
    reports = [told.usage for told in found if isinstance(told, UsageReport)]
    assert reports == [Usage(5, 3, None, 1), Usage(5, 3, None, 7), Usage(5, 3, None, 5, 4)]


@pytest.mark.parametrize("usage", ["x", 3, {"output_tokens": "x"}])
def test_figures_that_cannot_be_read_are_not_known(usage: object) -> None:
    assert reply(written(start(), finish("end_turn", usage), STOP)).usage == Usage(5, output=1)


def test_a_stream_may_have_no_figures_at_all() -> None:
    told = event("message_delta", delta={"stop_reason": "end_turn"})
    assert reply(written(event("message_start", message={}), told, STOP)).usage is None


@pytest.mark.parametrize(
    "tail",
    [
        written(STOP),
        written(STOP) + DONE,
        DONE,
        DONE[:-1],
        DONE[:-2],
        b"",
        written(STOP)[:-2],
        written(STOP)[:-9],
        written(event("content_block_stop", index=0), STOP),
        b"garbage\n\n",
        b"data: garbage\n\n",
        b"data: " + b"x" * (1 << 12) + b"\n\n",
    ],
)
def test_after_its_stop_reason_an_answer_is_whole_however_the_stream_ends(tail: bytes) -> None:
    found = reply(written(start(), *HELLO, finish()) + tail)
    assert (found.blocks, found.finish.reason) == ((ReplyText("hi"),), FinishReason.STOP)


def test_the_last_event_may_lack_its_blank_line() -> None:
    assert reply(written(start(), *HELLO, finish())[:-2]).blocks == (ReplyText("hi"),)


def test_frames_may_have_only_data_or_only_a_name() -> None:
    stream = written(start(), *HELLO, finish(), STOP)
    lines = [line for line in stream.split(b"\n") if not line.startswith(b"event:")]
    assert reply(b"\n".join(lines)).blocks == (ReplyText("hi"),)
    nameless = json.dumps({"index": 0, "delta": {"type": "text_delta", "text": "!"}}).encode()
    named = b"event: content_block_delta\ndata: " + nameless + b"\n\n"
    stream = written(start(), *HELLO[:2]) + named + written(HELLO[2], finish(), STOP)
    assert reply(stream).blocks == (ReplyText("hi!"),)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("end_turn", FinishReason.STOP),
        ("max_tokens", FinishReason.LENGTH),
        ("stop_sequence", FinishReason.STOP_SEQUENCE),
        ("pause_turn", FinishReason.PAUSE),
        ("refusal", FinishReason.CONTENT_FILTER),
        ("model_context_window_exceeded", FinishReason.CONTEXT_FULL),
    ],
)
def test_stop_reasons(word: str, reason: FinishReason) -> None:
    details = {"type": "refusal", "category": None, "explanation": "why"}
    found = reply(written(start(), *HELLO, finish(word, stop_sequence="S", stop_details=details), finish(word), STOP))
    assert found.finish == Finish(reason, "S", "why")


def test_a_reason_that_is_not_known_is_noted() -> None:
    ledger = Ledger()
    found = assemble(decoded(written(start(), finish("brand_new"), STOP), ledger=ledger))
    assert isinstance(found, Reply)
    assert found.finish.reason is FinishReason.STOP
    assert [(entry.change, entry.path) for entry in ledger] == [(Change.ALTERED, "$.stop_reason")]


def test_a_stop_without_a_reason_is_told_by_what_came_before() -> None:
    call = block(0, {"type": "tool_use", "id": "t", "name": "f"})
    assert reply(written(start(), *call, STOP)).finish.reason is FinishReason.TOOL_CALLS
    assert reply(written(start(), *HELLO, STOP)).finish.reason is FinishReason.STOP


def test_stops_of_blocks_may_be_left_out() -> None:
    assert reply(written(start(), *HELLO[:2], finish(), STOP)).blocks == (ReplyText("hi"),)


def test_blocks_after_the_stop_reason_are_dropped() -> None:
    late = [*block(1, TEXT, {"type": "text_delta", "text": "no"}), delta(0, "text_delta", text="no")]
    assert reply(written(start(), *HELLO, finish(), *late, STOP)).blocks == (ReplyText("hi"),)


def test_a_stream_may_lack_its_start_or_have_it_twice() -> None:
    assert reply(written(*HELLO, finish())).blocks == (ReplyText("hi"),)
    assert reply(written(start(), event("message_start"), *HELLO, finish())).id == "msg_1"


def test_unknown_events_and_events_without_content_are_passed_over() -> None:
    odd = [
        event("copilot_annotations", copilot_annotations=[]),
        event("later", delta="text", index="x"),
        event("content_block_start", index=9),
        event("content_block_delta", index=9),
        event("message_delta"),
    ]
    found = reply(written(start(), *odd, *HELLO, finish()) + b": comment\n\nevent: ping\n\ndata:\n\n")
    assert found.blocks == (ReplyText("hi"),)


@pytest.mark.parametrize(
    ("stream", "problem"),
    [
        (
            written(event("error", error={"type": "overloaded_error", "message": "busy"})),
            Problem(529, "overloaded_error", "busy"),
        ),
        (written({"error": {"message": "m", "code": "c"}, "type": ""}), Problem(502, "c", "m")),
        (
            b'data: {"type":"error","error":{"message":"\\ud800"}}\n\n',
            Problem(502, "upstream_error", "\ufffd"),
        ),
        (
            written(event("error")),
            Problem(502, "upstream_error", "the upstream reported an error without a message"),
        ),
    ],
)
def test_the_upstreams_error_ends_the_answer(stream: bytes, problem: Problem) -> None:
    found = failure(written(start(), *HELLO[:2]) + stream + written(finish(), STOP))
    assert found == Failed(problem, upstream=True)


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (b"", "upstream_truncated"),
        (DONE, "upstream_truncated"),
        (written(*HELLO), "upstream_truncated"),
        (b"<html>\n\n", "upstream_garbage"),
        (b"data: {\n\n", "upstream_garbage"),
        (
            b'data: {"type":"ping","x":"\xff"}\n\ndata: {"type":"content_block_stop","index":"\xff"}\n\n',
            "upstream_garbage",
        ),
        (written(event("content_block_delta", index=0, delta="x")), "upstream_garbage"),
        (written(event("content_block_start", index=0, content_block=3)), "upstream_garbage"),
        (written(event("error", error="x")), "upstream_garbage"),
        (written(event("message_start", message=3)), "upstream_garbage"),
        (b'data: {"type":3,"index":[]}\n\n', "upstream_garbage"),
        (b"data: " + b"[" * 3000 + b"\n\n", "upstream_garbage"),
        (b"data: " + b"x" * (1 << 12) + b"\n\n", "upstream_event_too_large"),
    ],
)
def test_what_is_cut_or_cannot_be_read_fails(stream: bytes, code: str) -> None:
    found = failure(written(start()) + stream)
    assert (found.problem.code, found.problem.status, found.upstream) == (code, 502, False)
