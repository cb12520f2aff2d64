"""The grammar of Responses streams: each rule has a stream that breaks it and nothing else; our own are legal."""

from collections.abc import Mapping, Sequence
from typing import Final

import pytest

from capi_core.conformance.checker import StreamChecker
from capi_core.conformance.responses import RULES, ResponsesGrammar
from capi_core.conversation import Reasoning, Refusal, Signature, ToolCall, ToolKind, ToolRef
from capi_core.deltas import Failed, Finish, FinishReason, Reply, ReplyText
from capi_core.errors import Problem
from capi_core.fidelity import Ledger
from capi_core.protocols.codec import Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.stream_encoder import ResponsesEncoder
from capi_core.usage import Usage
from tests.support.streams import responses

Event = Mapping[str, object]

USAGE: Final[Event] = {"input_tokens_details": {}, "output_tokens_details": {}}
CREATED: Final[Event] = {"type": "response.created", "response": {"id": "r"}}
MESSAGE: Final[Event] = {"type": "message", "id": "m"}
CALL: Final[Event] = {"type": "function_call", "id": "f"}


def completed(*output: Event, **more: object) -> Event:
    response = {"id": "r", "status": "completed", "output": list(output), "usage": USAGE, **more}
    return {"type": "response.completed", "response": response}


def item(verb: str, about: Event, index: int = 0) -> Event:
    return {"type": f"response.output_item.{verb}", "output_index": index, "item": about}


def part(kind: str, about: str = "m", index: int = 0, **more: object) -> Event:
    return {"type": f"response.{kind}", "item_id": about, "output_index": index, "content_index": 0, **more}


ADDED, PART = item("added", MESSAGE), part("content_part.added")
HI, SAID = part("output_text.delta", delta="hi"), part("output_text.done", text="hi")
PART_DONE, DONE = part("content_part.done"), item("done", MESSAGE)
TEXT: Final[list[Event]] = [ADDED, PART, HI, SAID, PART_DONE, DONE]
FAILED: Final[Event] = {"type": "response.failed", "response": {"id": "r", "status": "failed"}}


def judged(stream: bytes) -> list[tuple[str, str]]:
    checker = StreamChecker(ResponsesGrammar(), max_event_bytes=65536)
    checker.receive_data(stream)
    checker.finish()
    return [(violation.rule, violation.path) for violation in checker.violations]


def broken(*events: Event) -> list[tuple[str, str]]:
    return judged(responses(events))


SUMMARY: Final[list[Event]] = [
    item("added", {"type": "reasoning", "id": "m"}),
    {**part("reasoning_summary_part.added"), "summary_index": 0},
    {**part("reasoning_summary_text.delta", delta="a"), "summary_index": 0},
    {**part("reasoning_summary_text.done", text="a"), "summary_index": 0},
    {**part("reasoning_summary_part.done"), "summary_index": 0},
    item("done", {"type": "reasoning", "id": "m"}),
]
LEGAL: Final[dict[str, list[Event]]] = {
    "text": [CREATED, {"type": "response.in_progress", "response": {"id": "r"}}, *TEXT, completed(MESSAGE)],
    "a call": [
        CREATED,
        item("added", CALL),
        part("function_call_arguments.delta", "f", delta="{"),
        part("function_call_arguments.delta", "f", delta="}"),
        part("function_call_arguments.done", "f", arguments="{}"),
        item("done", CALL),
        completed(CALL),
    ],
    "a summary": [CREATED, *SUMMARY, completed({"type": "reasoning", "id": "m"})],
    "a search": [CREATED, part("web_search_call.in_progress"), completed()],
    "incomplete": [
        CREATED,
        {"type": "response.incomplete", "response": {"id": "r", "status": "incomplete", "output": []}},
    ],
    "failed in the middle": [CREATED, ADDED, PART, FAILED],
    "an error at once": [{"type": "error", "message": "x"}],
    "an error in the middle": [CREATED, ADDED, {"type": "error", "message": "x"}],
}


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_stream_breaks_nothing(name: str) -> None:
    assert broken(*LEGAL[name]) == []


BREAKS: Final[dict[str, tuple[list[Event], str]]] = {
    "responses-created": ([CREATED, CREATED, completed()], "type"),
    "responses-identity": ([CREATED, completed(id="other")], "response.id"),
    "responses-output-index": (
        [CREATED, item("added", MESSAGE, 3), item("done", MESSAGE, 0), completed(MESSAGE)],
        "output_index",
    ),
    "responses-item-id": ([CREATED, ADDED, {**PART, "item_id": "n"}, *TEXT[2:], completed(MESSAGE)], "item_id"),
    "responses-item-open": ([CREATED, *TEXT, HI, completed(MESSAGE)], "output_index"),
    "responses-part-open": ([CREATED, ADDED, HI, DONE, completed(MESSAGE)], "content_index"),
    "responses-text": (
        [CREATED, ADDED, PART, HI, {**SAID, "text": "ho"}, PART_DONE, DONE, completed(MESSAGE)],
        "text",
    ),
    "responses-output": ([CREATED, *TEXT, completed()], "response.output"),
    "responses-status": ([CREATED, completed(status="failed")], "response.status"),
    "responses-usage": ([CREATED, completed(usage={"input_tokens_details": {}})], "response.usage"),
    "responses-unfinished": ([CREATED, *TEXT], ""),
    "responses-after-end": ([CREATED, completed(), completed()], "type"),
    "responses-unknown-event": ([CREATED, {"type": "response.surprise"}, completed()], "type"),
}


def test_every_rule_is_broken_by_a_stream_of_its_own() -> None:
    assert {*BREAKS, "responses-event-name", "responses-sequence", "responses-done-mark"} == set(RULES)


@pytest.mark.parametrize("rule", BREAKS)
def test_a_stream_breaks_its_rule_and_no_other(rule: str) -> None:
    events, path = BREAKS[rule]
    assert broken(*events) == [(rule, path)]


def test_items_may_end_in_another_order_than_they_began() -> None:
    second = item("added", CALL, 1)
    mixed = [ADDED, second, item("done", CALL, 1), DONE]
    assert broken(CREATED, *mixed, completed(MESSAGE, CALL)) == []
    assert broken(CREATED, *mixed, completed(CALL, MESSAGE)) == [("responses-output", "response.output")]
    assert broken(CREATED, completed(usage=None)) == []


def test_names_numbers_and_marks() -> None:
    whole = responses([CREATED, completed()])
    assert judged(whole.replace(b"event: response.completed\n", b"")) == [("responses-event-name", "type")]
    assert judged(whole.replace(b'"sequence_number": 1', b'"sequence_number": 7')) == [
        ("responses-sequence", "sequence_number")
    ]
    assert judged(whole + b"data: [DONE]\n\n") == [("responses-done-mark", "")]
    assert (
        judged(
            whole.replace(
                b"event: response.completed",
                b'event: keepalive\ndata: {"type":"keepalive"}\n\nevent: response.completed',
            )
        )
        == []
    )


def test_other_ways_to_break_them() -> None:
    assert broken(completed()) == [("responses-created", "type")]
    assert broken(CREATED, ADDED, PART, PART, PART_DONE, DONE, completed(MESSAGE)) == [
        ("responses-part-open", "content_index")
    ]
    assert broken(CREATED, ADDED, PART, DONE, completed(MESSAGE)) == [("responses-part-open", "item")]
    assert broken(CREATED, ADDED, PART_DONE, DONE, completed(MESSAGE)) == [("responses-part-open", "content_index")]
    assert broken(CREATED, DONE, completed()) == [("responses-item-open", "output_index")]
    assert broken(CREATED, ADDED, completed()) == [("responses-item-open", "response.output")]
    assert broken(CREATED, *TEXT[:-1], item("done", {**MESSAGE, "id": "n"}), completed(MESSAGE)) == [
        ("responses-item-id", "item.id"),
        ("responses-output", "response.output"),
    ]


REPLIES: Final[Sequence[Reply]] = [
    Reply("r", "m", blocks, Finish(FinishReason.STOP), Usage(uncached_input=1, output=2))
    for blocks in (
        (),
        (ReplyText("hello"),),
        (Reasoning(("a", "b"), Signature(Protocol.MESSAGES, "S")), ReplyText("x"), Refusal("no")),
        (
            ToolCall("c1", ToolRef("f"), '{"a":1}'),
            ToolCall("c2", ToolRef("p"), "text", ToolKind.CUSTOM),
            ReplyText(""),
        ),
    )
]


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: str(len(reply.blocks)))
def test_our_own_streams_are_legal(reply: Reply) -> None:
    encoder = ResponsesEncoder(Envelope(request_id="req_1", model="m"), Ledger())
    assert judged(encoder.encode(reply.deltas())) == []


def test_our_own_failures_are_legal() -> None:
    for steps in range(6):
        deltas = [*REPLIES[2].deltas()][:steps]
        encoder = ResponsesEncoder(Envelope(request_id="req_1", model="m"), Ledger())
        stream = encoder.encode(deltas) + encoder.encode([Failed(Problem(502, "c", "m"), upstream=False)])
        assert judged(stream) == []
