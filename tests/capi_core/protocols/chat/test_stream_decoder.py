"""A Chat Completions stream becomes deltas that keep the rules, however it is cut and whatever it leaves out."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import Reasoning, Refusal, Signature, ToolCall, ToolRef
from capi_core.deltas import (
    Annotation,
    AnswerDelta,
    BlockKind,
    BlockStart,
    BlockStop,
    Delta,
    End,
    Failed,
    Finish,
    FinishReason,
    Reply,
    ReplyBlock,
    ReplyText,
    Start,
    assemble,
)
from capi_core.errors import Problem
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.chat.answer_wire import Chunk
from capi_core.protocols.chat.stream_decoder import ChatDecoder
from capi_core.protocols.kinds import Protocol
from capi_core.usage import Usage
from tests.support.chat_events import DONE, chunk, say, sse

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
CITED = {"type": "url_citation", "url_citation": {"url": "u", "title": "t"}}


def call(index: int | None = 0, id: str | None = None, name: str | None = None, arguments: str | None = None) -> object:
    part = {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}
    return {key: value for key, value in part.items() if value is not None}


def decoded(stream: bytes, size: int | None = None, ledger: Ledger | None = None) -> list[AnswerDelta]:
    decoder = ChatDecoder(ledger or Ledger(), max_event_bytes=1 << 18)
    found: list[AnswerDelta] = []
    for at in range(0, len(stream), size or len(stream) or 1):
        found += decoder.receive_data(stream[at : at + (size or len(stream))])
    found += decoder.finish()
    assert decoder.receive_data(b"data: {}\n\n") == decoder.finish() == []
    return found


def reply(*chunks: dict[str, object], done: bool = True) -> Reply:
    found = assemble(decoded(sse(*chunks, done=done)))
    assert isinstance(found, Reply)
    return found


def blocks(*chunks: dict[str, object]) -> tuple[ReplyBlock, ...]:
    return reply(*chunks).blocks


def failure(stream: bytes) -> Failed:
    found = decoded(stream)[-1]
    assert isinstance(found, Failed)
    return found


def everything() -> bytes:
    """All that Copilot puts into one stream."""
    return sse(
        {"id": "", "choices": [], "prompt_filter_results": [{}]},
        say(role="assistant", content=""),
        say(reasoning_text="think"),
        say(content="", reasoning_opaque="SIG"),
        say(content="he"),
        {"choices": None, "copilot_references": []},
        say(content="llo", copilot_annotations={}),
        say(annotations=[CITED]),
        say(tool_calls=[call(0, "a", "f", "")]),
        say(tool_calls=[call(1, "b")]),
        say(tool_calls=[call(0, None, None, "{"), call(1, None, None, "[")]),
        say(tool_calls=[call(1, None, "g", "]")]),
        say(tool_calls=[call(0, None, None, "}")]),
        say(refusal="no"),
        say("tool_calls"),
        say("tool_calls"),
        chunk(usage=USAGE),
    )


def test_every_member_becomes_its_block() -> None:
    found = assemble(decoded(everything()))
    cited = Annotation(Protocol.CHAT, json.dumps(CITED).encode(), "u", "t")
    assert found == Reply(
        "c1",
        "up",
        (
            Reasoning(("think",), Signature(Protocol.CHAT, "SIG")),
            ReplyText("hello", (cited,)),
            ToolCall("a", ToolRef("f"), "{}"),
            ToolCall("b", ToolRef("g"), "[]"),
            Refusal("no"),
        ),
        Finish(FinishReason.TOOL_CALLS),
        Usage(5, None, None, 2, None),
        7,
    )


@given(size=st.integers(1, 60))
def test_the_deltas_do_not_depend_on_the_chunks(size: int) -> None:
    assert decoded(everything(), size) == decoded(everything())


def test_prose_closes_before_a_call_and_calls_at_the_finish() -> None:
    """Text that comes between parts of a call is a block of its own: only so may it stay in order."""
    found = decoded(
        sse(say(content="a"), say(tool_calls=[call(0, "i", "f")]), say(content="b"), say("stop"), done=False)
    )
    assert found == [
        Start("c1", "up", 7),
        BlockStart(0, BlockKind.TEXT),
        Delta(0, "a"),
        BlockStop(0),
        BlockStart(1, BlockKind.FUNCTION_CALL, "i", ToolRef("f")),
        BlockStart(2, BlockKind.TEXT),
        Delta(2, "b"),
        BlockStop(2),
        BlockStop(1),
        Finish(FinishReason.TOOL_CALLS),
        End(),
    ]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "reasoning_text"])
def test_reasoning_is_read_under_every_name(name: str) -> None:
    assert blocks(say(**{name: "x"}), say("stop")) == (Reasoning(("x",)),)


def test_reasoning_details_count_where_there_is_nothing_else() -> None:
    details = [{"type": "reasoning.text", "text": "a"}, {"summary": "b"}, {"type": "reasoning.encrypted", "data": "x"}]
    assert blocks(say(reasoning_details=details), say("stop")) == (Reasoning(("ab",)),)
    assert blocks(say(reasoning="z", reasoning_details=details), say("stop")) == (Reasoning(("z",)),)


def test_a_signature_may_come_with_a_call_with_the_finish_or_late() -> None:
    signed = Signature(Protocol.CHAT, "S")
    with_call = say(tool_calls=[call(0, "i", "f")], reasoning_opaque="S")
    assert blocks(say(reasoning_text="r"), with_call, say("tool_calls"))[0] == Reasoning(("r",), signed)
    assert blocks(say(reasoning_text="r"), say("stop", reasoning_opaque="S")) == (Reasoning(("r",), signed),)
    late = blocks(say(reasoning_text="r"), say(content="t"), say("stop", reasoning_opaque="S"))
    assert late == (Reasoning(("r",)), ReplyText("t"), Reasoning((), signed))


def test_content_may_be_a_list_of_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "thinking", "text": "no"}, {"type": "text"}]
    assert blocks(say(content=parts), say("stop")) == (ReplyText("a"),)


def test_choices_of_one_chunk_are_one_answer_and_others_are_dropped() -> None:
    ledger = Ledger()
    split = chunk(
        {"delta": {"content": "a"}, "finish_reason": "stop"},
        {"delta": {"tool_calls": [call(0, "i", "f")]}, "finish_reason": "tool_calls"},
        {"index": 1, "delta": {"content": "other"}},
    )
    found = assemble(decoded(sse(split), ledger=ledger))
    assert isinstance(found, Reply)
    assert found.blocks == (ReplyText("a"), ToolCall("i", ToolRef("f"), ""))
    assert (found.finish.reason, ledger.losses) == (FinishReason.TOOL_CALLS, 1)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("function_call", FinishReason.TOOL_CALLS),
        ("eos", FinishReason.STOP),
    ],
)
def test_finish_reasons(word: str, reason: FinishReason) -> None:
    assert reply(say(content="x"), say(""), say(word), say("stop"), say(content="late")).finish == Finish(reason)


def test_usage_may_come_with_the_finish_after_it_or_never() -> None:
    spent = Usage(5, None, None, 2, None)
    assert reply({**say("stop", content="x"), "usage": USAGE}).usage == spent
    assert reply(say("stop"), chunk(usage=USAGE), done=False).usage == spent
    assert reply({**say("stop"), "usage": None}).usage is None


def test_an_end_mark_without_a_finish_reason_is_an_end() -> None:
    ledger = Ledger()
    found = assemble(decoded(sse(say(content="x")), ledger=ledger))
    assert isinstance(found, Reply)
    assert found.finish.reason is FinishReason.STOP
    assert [entry.change for entry in ledger] == [Change.SYNTHESISED]
    assert reply(say(tool_calls=[call(0, "i", "f")])).finish.reason is FinishReason.TOOL_CALLS


def test_a_last_event_without_its_blank_line_counts_if_it_is_whole() -> None:
    assert isinstance(decoded(sse(say("stop", content="x")).rstrip(b"\n"))[-1], End)
    assert isinstance(decoded(sse(say("stop", content="x"), done=False).rstrip(b"\n"))[-1], End)


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (b"", "upstream_truncated"),
        (DONE, "upstream_truncated"),
        (sse(say(content="x"), done=False), "upstream_truncated"),
        (b"data: <html>\n\n", "upstream_garbage"),
        (b"<html>\n\n", "upstream_garbage"),
        (sse(say(content=1)), "upstream_garbage"),
        (b'data: {"x":%b\n\n' % (b"[" * 5000), "upstream_garbage"),
        (sse(say(content="x" * (1 << 18))), "upstream_event_too_large"),
        (sse(say(tool_calls=[call(0, "i")]), say("tool_calls")), "upstream_garbage"),
        (sse(say(tool_calls=[call(0, "i")], content="x")), "upstream_garbage"),
        (sse(say("stop", tool_calls=[call(at, "i", "f") for at in range(200)])), "upstream_too_many_calls"),
    ],
)
def test_a_stream_that_cannot_be_read_fails(stream: bytes, code: str) -> None:
    found = failure(stream)
    assert (found.problem.code, found.problem.status, found.upstream) == (code, 502, False)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        ({"message": "m", "code": 429, "type": "t"}, Problem(429, "429", "m")),
        ("text", Problem(502, "upstream_error", "text")),
    ],
)
def test_an_error_of_the_upstream_ends_the_stream(error: object, problem: Problem) -> None:
    assert failure(sse(say(content="x"), {"error": error}, say("stop"))) == Failed(problem, upstream=True)


def test_an_error_that_cannot_be_read_is_one_all_the_same() -> None:
    found = failure(sse({"error": [1]}))
    assert (found.problem.code, found.upstream) == ("upstream_error", True)


def test_nothing_comes_after_the_end_and_empty_data_is_passed_over() -> None:
    assert isinstance(decoded(b"data: \n\ndata:   \n\n" + sse(say("stop")) + b"data: junk\n\n")[-1], End)


def test_what_follows_the_end_may_be_too_large() -> None:
    assert isinstance(decoded(sse(say("stop")) + b"data: " + b"x" * (1 << 19))[-1], End)


def test_a_whole_answer_is_read_as_one_chunk_with_all_its_choices() -> None:
    whole = chunk(
        {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"},
        {"index": 1, "message": {"content": "b"}, "finish_reason": "stop"},
    )
    answer = msgspec.convert(whole, Chunk)
    found = assemble(ChatDecoder(Ledger(), max_event_bytes=3).whole(answer))
    assert isinstance(found, Reply)
    assert found.blocks == (ReplyText("ab"),)


def test_times_that_are_none_are_left_out() -> None:
    assert reply({**say("stop"), "created": -1}).created_s is None
    assert reply({**say("stop"), "created": None}).created_s is None


@given(st.binary(max_size=60), st.integers(1, 7))
def test_no_bytes_make_it_raise(data: bytes, size: int) -> None:
    found = decoded(sse(say(content="x"), done=False) + b"data: " + data, size)
    assert isinstance(found[-1], End | Failed)
