"""A Responses stream becomes deltas that keep the rules, however it is cut and whatever it leaves out."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import Reasoning, Refusal, Signature, ToolCall, ToolKind, ToolRef
from capi_core.deltas import (
    AnswerDelta,
    BlockStart,
    BlockStop,
    Delta,
    End,
    Failed,
    Finish,
    FinishReason,
    Reply,
    ReplyText,
    Start,
    assemble,
)
from capi_core.errors import Problem
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.stream_decoder import ResponsesDecoder
from capi_core.usage import Usage
from tests.support.responses_events import CREATED, completed, event, numbered, response, text_item

USAGE = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}


def decoded(stream: bytes, size: int | None = None) -> list[AnswerDelta]:
    decoder = ResponsesDecoder(max_event_bytes=1 << 16)
    found: list[AnswerDelta] = []
    for at in range(0, len(stream), size or len(stream) or 1):
        found += decoder.receive_data(stream[at : at + (size or len(stream))])
    found += decoder.finish()
    assert decoder.receive_data(b"data: {}") == decoder.finish() == []
    return found


def reply(*events: dict[str, object]) -> Reply:
    found = assemble(decoded(numbered(events)))
    assert isinstance(found, Reply)
    return found


def failure(stream: bytes) -> Failed:
    found = decoded(stream)[-1]
    assert isinstance(found, Failed)
    return found


def everything() -> list[dict[str, object]]:
    """One of each kind of item, by all events that there are."""
    reasoning = {"type": "reasoning", "id": "rs", "summary": []}
    call = {"type": "function_call", "id": "fc", "call_id": "c1", "name": "f", "arguments": ""}
    custom = {"type": "custom_tool_call", "id": "ctc", "call_id": "c2", "name": "g", "input": ""}
    return [
        CREATED,
        event("response.in_progress", response=response()),
        event("response.output_item.added", output_index=0, item=reasoning),
        event("response.reasoning_summary_text.delta", output_index=0, summary_index=0, delta="a"),
        event("response.reasoning_summary_text.done", output_index=0, summary_index=0, text="a"),
        event("response.reasoning_summary_text.delta", output_index=0, summary_index=1, delta="b"),
        event("response.reasoning_text.delta", output_index=0, content_index=0, delta="c"),
        event("response.reasoning_text.done", output_index=0, content_index=0, text="c"),
        event("response.output_item.done", output_index=0, item={**reasoning, "encrypted_content": "E"}),
        *text_item(1, "he", "llo")[:-1],
        event("response.output_text.annotation.added", output_index=1, content_index=0, annotation={"url": "u"}),
        event("response.output_text.annotation.added", output_index=1, content_index=0),
        event("response.refusal.delta", output_index=1, content_index=1, delta="n"),
        event("response.refusal.done", output_index=1, content_index=1, refusal="n"),
        text_item(1, "he", "llo")[-1],
        event("response.output_item.added", output_index=2, item=call),
        event("response.output_item.added", output_index=3, item=custom),
        event("response.function_call_arguments.delta", output_index=2, delta="{", obfuscation="xx"),
        event("response.custom_tool_call_input.delta", output_index=3, delta="i"),
        event("response.function_call_arguments.delta", output_index=2, delta="}"),
        event("response.function_call_arguments.done", output_index=2, arguments="{}"),
        event("response.custom_tool_call_input.done", output_index=3, input="i"),
        event("response.output_item.done", output_index=2, item={**call, "arguments": "{}"}),
        event("response.output_item.done", output_index=3, item={**custom, "input": "i"}),
        event("response.output_item.added"),
        event("response.output_item.done"),
        event("response.web_search_call.searching", output_index=4, item_id="ws"),
        event("response.shell_call_output_content.delta", output_index=4, delta={"stdout": "x"}),
        event("keepalive"),
        completed(usage=USAGE),
    ]


def test_every_kind_of_item_becomes_its_block() -> None:
    found = reply(*everything())
    text = found.blocks[1]
    assert isinstance(text, ReplyText)
    assert (text.text, [annotation.url for annotation in text.annotations]) == ("hello", ["u"])
    assert found.blocks == (
        Reasoning(("a\n\nb\n\nc",), Signature(Protocol.RESPONSES, "E")),
        text,
        Refusal("n"),
        ToolCall("c1", ToolRef("f"), "{}"),
        ToolCall("c2", ToolRef("g"), "i", ToolKind.CUSTOM),
    )
    assert (found.id, found.model, found.created_s) == ("resp_1", "up", 7)
    assert (found.finish.reason, found.usage) == (FinishReason.TOOL_CALLS, Usage(5, None, None, 2, None))


@given(size=st.integers(1, 50))
def test_how_the_bytes_are_cut_does_not_matter(size: int) -> None:
    stream = numbered(everything())
    assert decoded(stream, size) == decoded(stream)


def test_the_rules_of_a_delta_stream_are_kept() -> None:
    open_blocks: set[int] = set()
    found = decoded(numbered(everything()))
    for delta in found:
        if isinstance(delta, BlockStart):
            open_blocks.add(delta.index)
        elif isinstance(delta, BlockStop):
            open_blocks.remove(delta.index)
        elif isinstance(delta, Delta):
            assert delta.index in open_blocks
    assert (open_blocks, type(found[0]), type(found[-1]), type(found[-2])) == (set(), Start, End, Finish)


def test_text_that_only_done_events_tell_is_told() -> None:
    found = reply(
        CREATED,
        event("response.output_text.done", output_index=0, content_index=0, text="t"),
        event("response.refusal.done", output_index=0, content_index=1, refusal="r"),
        event("response.reasoning_summary_text.done", output_index=1, summary_index=0, text="s"),
        completed(),
    )
    assert found.blocks == (ReplyText("t"), Refusal("r"), Reasoning(("s",)))


def test_an_answer_without_a_beginning_still_starts() -> None:
    assert decoded(numbered(text_item(0, "x")))[0] == Start()
    whole = decoded(numbered([completed(text_item(0, "x")[-1]["item"])]))
    assert assemble(whole) == Reply("resp_1", "up", (ReplyText("x"),), Finish(FinishReason.STOP), None, 7)
    assert [type(delta) for delta in decoded(numbered([event("response.completed")]))] == [Start, Finish, End]


def test_a_whole_answer_is_a_stream_too() -> None:
    body = json.dumps(completed(text_item(0, "x")[-1]["item"])["response"]).encode()
    found = assemble(ResponsesDecoder(max_event_bytes=1 << 16).whole(body))
    assert isinstance(found, Reply)
    assert found.blocks == (ReplyText("x"),)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("max_output_tokens", FinishReason.LENGTH),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("steered", FinishReason.PAUSE),
        (None, FinishReason.LENGTH),
    ],
)
def test_an_incomplete_answer_is_a_normal_end(reason: str | None, finish: FinishReason) -> None:
    details = None if reason is None else {"reason": reason}
    last = event("response.incomplete", response=response("incomplete", incomplete_details=details))
    assert reply(CREATED, last).finish == Finish(finish)
    assert reply({**last, "type": "response.completed"}).finish == Finish(finish)


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        (
            event("response.failed", response=response("failed", error={"code": "invalid_prompt", "message": "m"})),
            Problem(400, "invalid_prompt", "m"),
        ),
        (event("response.failed"), Problem(502, "upstream_error", "the upstream's answer is failed")),
        (
            event("response.completed", response=response("cancelled")),
            Problem(502, "upstream_error", "the upstream's answer is cancelled"),
        ),
        (event("response.cancelled", response=response("cancelled", error={"message": "m"})), None),
        (event("response.completed", response={"error": {"message": "m"}}), None),
        (
            event("error", code="rate_limit_exceeded", message="m", param="p"),
            Problem(429, "rate_limit_exceeded", "m", "p"),
        ),
        (event("error", error={"type": "server_error", "message": "m"}), Problem(502, "server_error", "m")),
    ],
)
def test_a_failed_answer_has_the_upstreams_own_error(last: dict[str, object], problem: Problem | None) -> None:
    found = failure(numbered([CREATED, last]))
    assert found.upstream
    assert found.problem == (problem or Problem(502, "upstream_error", "m"))


def test_chats_error_object_is_an_error_here_too() -> None:
    found = failure(b'data: {"error":{"message":"m","code":"slow_down"}}\n\n')
    assert found == Failed(Problem(503, "slow_down", "m"), upstream=True)


@pytest.mark.parametrize(
    ("tail", "code"),
    [
        (b"", "upstream_truncated"),
        (b"data: [DONE]\n\n", "upstream_truncated"),
        (b'data: {"foo":1}\n\n', "upstream_truncated"),
        (b"data: nope\n\n", "upstream_garbage"),
        (b"<html>\n\n", "upstream_garbage"),
        (b"data: 5\n\n", "upstream_garbage"),
        (b'data: {"type":"response.output_text.delta","delta":5}\n\n', "upstream_garbage"),
        (b'data: {"delta":5,"type":"response.x"}\n\n', "upstream_truncated"),
        (b'data: {"type":"response.output_item.done","output_index":1,"item":5}\n\n', "upstream_garbage"),
        (
            b'data: {"type":"response.output_item.done","output_index":1,"item":{"type":"message","content":5}}\n\n',
            "upstream_garbage",
        ),
        (b'data: {"delta":5,"type":\n\n', "upstream_garbage"),
        (b'data: {"x":' + b"[" * 3000 + b"\n\n", "upstream_garbage"),
        (b"data: " + b"x" * (1 << 17), "upstream_event_too_large"),
    ],
)
def test_a_stream_that_is_cut_or_is_none_fails(tail: bytes, code: str) -> None:
    found = failure(numbered([CREATED, *text_item(0, "x")]) + tail)
    assert (found.problem.code, found.problem.status, found.upstream) == (code, 502, False)


def test_the_end_may_lack_its_blank_line_and_nothing_counts_after_it() -> None:
    stream = numbered([CREATED, *text_item(0, "x"), completed()])
    assert decoded(stream[:-2]) == decoded(stream) == decoded(stream + b"data: nope\n\ndata: [DONE]\n\n")


def test_missing_event_lines_do_not_matter() -> None:
    stream = numbered(everything())
    bare = b"".join(line + b"\n\n" for line in stream.split(b"\n") if line.startswith(b"data"))
    assert decoded(bare) == decoded(stream)


def test_half_a_surrogate_pair_is_read_as_the_replacement_character() -> None:
    stream = b'data: {"type":"response.output_text.delta","delta":"\\ud83d"}\n\n'
    assert Delta(0, "�") in decoded(stream)


@pytest.mark.parametrize("created", [1.9, -1, 2**60])
def test_a_time_is_whole_seconds_or_unknown(created: float) -> None:
    (start, *_) = decoded(numbered([event("response.created", response={"created_at": created})]))
    assert start == Start(created_s=1 if created == 1.9 else None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**40) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "id", "text"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.data())
def test_no_event_makes_it_raise_and_there_is_one_end(data: st.DataObject) -> None:
    events = [dict(members) for members in everything()]
    for members in data.draw(st.lists(st.sampled_from(events), max_size=6)):
        name = data.draw(st.sampled_from([*sorted(members), "item", "delta", "output_index"]))
        members[name] = data.draw(json_values)
    lines = [json.dumps(members).encode() for members in data.draw(st.permutations(events))]
    found = decoded(b"".join(b"data: %b\n\n" % line for line in lines))
    assert sum(isinstance(delta, End | Failed) for delta in found) == 1
    assert isinstance(found[-1], End | Failed)
    if isinstance(found[-1], End):
        assemble(found)
