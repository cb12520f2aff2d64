"""Deltas become a Responses stream that the strictest SDK reads, and that decodes to the same deltas."""

import json

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from capi_core.conversation import Opaque, Reasoning, Refusal, Signature, ToolCall, ToolKind, ToolRef
from capi_core.deltas import (
    Annotated,
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
    Ping,
    Reply,
    ReplyText,
    Signed,
    Start,
    UsageReport,
    assemble,
)
from capi_core.errors import LocalError, Problem
from capi_core.fidelity import Ledger
from capi_core.protocols.codec import Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.stream_decoder import ResponsesDecoder
from capi_core.protocols.responses.stream_encoder import ResponsesEncoder
from capi_core.sse import KEEP_ALIVE, SSEDecoder
from capi_core.usage import Usage

EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
REPLY = Reply(
    "up",
    "m",
    (
        Reasoning(("think",), Signature(Protocol.RESPONSES, "S")),
        ReplyText("hello é"),
        Refusal("no"),
        ToolCall("c1", ToolRef("f"), '{"a":1}'),
        ToolCall("c2", ToolRef("g", "n"), "free", ToolKind.CUSTOM),
    ),
    Finish(FinishReason.TOOL_CALLS),
    Usage(10, 2, 3, 4, 5),
    123,
)


def make(ledger: Ledger | None = None) -> ResponsesEncoder:
    return ResponsesEncoder(Envelope("q", "pub", 9), ledger or Ledger())


def told(stream: bytes) -> list[dict[str, object]]:
    decoder = SSEDecoder()
    events = decoder.feed(stream)
    assert decoder.finish() == []
    found = [(event.type.decode(), json.loads(event.data)) for event in events if event.data]
    assert [kind for kind, _ in found] == [data["type"] for _, data in found]
    return [data for _, data in found]


def sdk_response(stream: bytes) -> object:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream)

    with (
        httpx2.Client(transport=httpx2.MockTransport(answer)) as http,
        OpenAI(api_key="k", base_url="http://t/v1", http_client=http) as client,
        client.responses.stream(model="m", input="x") as events,
    ):
        return events.get_final_response().to_dict()["output"]


def test_openai_python_reads_the_stream_and_ends_with_the_done_items() -> None:
    stream = make().encode(REPLY.deltas())
    events = told(stream)
    for event in events:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    last = events[-1]["response"]
    assert isinstance(last, dict)
    assert last["output"] == done
    output = sdk_response(stream)
    assert isinstance(output, list)
    assert [item["type"] for item in output] == ["reasoning", "message", "message", "function_call", "custom_tool_call"]


texts = st.text(min_size=1, max_size=8)
names = st.text("abcXYZ_09", min_size=1, max_size=8)
blocks = st.one_of(
    st.builds(lambda text: ReplyText(text), texts),
    st.builds(lambda text: Refusal(text), texts),
    st.builds(
        lambda text, blob: Reasoning((text,), Signature(Protocol.RESPONSES, blob) if blob else None),
        texts,
        names | st.none(),
    ),
    st.builds(
        lambda id, name, space, text, kind: ToolCall(id, ToolRef(name, space), text, kind),
        names,
        names,
        names | st.none(),
        st.text(max_size=8),
        st.sampled_from(ToolKind),
    ),
    st.builds(
        lambda name: Opaque(Protocol.RESPONSES, name, b'{"type":"%b","x":1}' % name.encode()), names.map("x_".__add__)
    ),
)
usages = st.builds(Usage, *[st.integers(0, 99)] * 5)
reasons = st.sampled_from([FinishReason.LENGTH, FinishReason.CONTENT_FILTER])


@given(st.lists(blocks, max_size=5).map(tuple), usages | st.none(), st.none() | reasons, st.integers(1, 99))
def test_what_is_encoded_decodes_to_the_same(
    parts: tuple[ReplyText | Refusal | Reasoning | ToolCall | Opaque, ...],
    usage: Usage | None,
    reason: FinishReason | None,
    size: int,
) -> None:
    calls = any(isinstance(block, ToolCall) for block in parts)
    finish = Finish(reason or (FinishReason.TOOL_CALLS if calls else FinishReason.STOP))
    sent = Reply("resp_q", "pub", parts, finish, usage, 7)
    encoder, decoder = make(), ResponsesDecoder(max_event_bytes=1 << 16)
    stream = b"".join(encoder.encode((delta,)) for delta in sent.deltas())
    found = []
    for at in range(0, len(stream), size):
        found += decoder.receive_data(stream[at : at + size])
    assert assemble(found + decoder.finish()) == sent


def test_blocks_that_overlap_are_items_of_their_own() -> None:
    encoder = make()
    first, second = BlockStart(0, BlockKind.TEXT), BlockStart(1, BlockKind.FUNCTION_CALL, "c", ToolRef("f"))
    stream = encoder.encode(
        [
            Start(),
            first,
            second,
            Delta(0, "a"),
            Delta(1, "{"),
            Delta(0, ""),
            Delta(0, "b"),
            BlockStop(1),
            Delta(0, "c"),
            BlockStop(0),
            Finish(FinishReason.TOOL_CALLS),
            End(),
        ]
    )
    output = told(stream)[-1]["response"]
    assert isinstance(output, dict)
    assert [item.get("arguments", item.get("content")) for item in output["output"]] == [
        [{"type": "output_text", "text": "abc", "annotations": [], "logprobs": []}],
        "{",
    ]
    sdk_response(stream)


@pytest.mark.parametrize(
    ("reason", "status", "details", "losses"),
    [
        (FinishReason.STOP, "completed", None, 0),
        (FinishReason.STOP_SEQUENCE, "completed", None, 1),
        (FinishReason.PAUSE, "completed", None, 1),
        (FinishReason.LENGTH, "incomplete", {"reason": "max_output_tokens"}, 0),
        (FinishReason.CONTEXT_FULL, "incomplete", {"reason": "max_output_tokens"}, 1),
        (FinishReason.CONTENT_FILTER, "incomplete", {"reason": "content_filter"}, 0),
    ],
)
def test_how_an_answer_ended_is_its_last_event(reason: FinishReason, status: str, details: object, losses: int) -> None:
    ledger = Ledger()
    last = told(make(ledger).encode([Start(), Finish(reason), End()]))[-1]
    found = last["response"]
    assert isinstance(found, dict)
    assert (last["type"], found["status"], found["incomplete_details"]) == (f"response.{status}", status, details)
    assert ledger.losses == losses


@pytest.mark.parametrize("begun", [True, False])
def test_a_failure_is_a_failed_response_after_created_and_nothing_follows(begun: bool) -> None:
    encoder = make()
    out = encoder.encode([Start(), BlockStart(0, BlockKind.TEXT), Delta(0, "x"), BlockStop(0)] if begun else [])
    out += encoder.encode([Failed(Problem(502, "cut", "why"), upstream=False), End(), Ping()])
    events = told(out)
    found = events[-1]["response"]
    assert isinstance(found, dict)
    assert (events[0]["type"], events[-1]["type"], found["status"]) == ("response.created", "response.failed", "failed")
    assert (found["error"], len(found["output"])) == ({"code": "server_error", "message": "why"}, int(begun))
    assert encoder.encode([Ping()]) == b""


def test_a_ping_is_a_comment() -> None:
    assert make().encode([Ping()]) == KEEP_ALIVE


def test_a_part_of_another_protocol_is_left_out_and_noted() -> None:
    ledger = Ledger()
    opaque = Opaque(Protocol.MESSAGES, "server_tool_use", b"{}")
    start = BlockStart(0, BlockKind.OPAQUE, opaque=opaque)
    text = BlockStart(1, BlockKind.TEXT)
    stream = make(ledger).encode([Start(), start, BlockStop(0), text, BlockStop(1), Finish(FinishReason.STOP), End()])
    assert {event["output_index"] for event in told(stream) if "output_index" in event} == {0}
    assert [entry.path for entry in ledger] == ["$.output"]


def page(url: str, title: str, start: int, end: int) -> dict[str, object]:
    return {"type": "url_citation", "url": url, "title": title, "start_index": start, "end_index": end}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Annotation(Protocol.RESPONSES, b'{"type":"file_path",\n"index":1}'), {"type": "file_path", "index": 1}),
        (Annotation(Protocol.MESSAGES, b"{}", "u", "T"), page("u", "T", 2, 2)),
        (Annotation(Protocol.CHAT, b'{"url_citation":{"start_index":0,"end_index":1}}', "u"), page("u", "u", 0, 1)),
        (Annotation(Protocol.CHAT, b'{"url_citation":5}', "u"), page("u", "u", 2, 2)),
        (Annotation(Protocol.MESSAGES, b"{}"), None),
    ],
)
def test_citations_take_the_shape_of_responses(annotation: Annotation, expected: object) -> None:
    ledger = Ledger()
    stream = make(ledger).encode([Start(), BlockStart(0, BlockKind.TEXT), Delta(0, "ab"), Annotated(0, annotation)])
    found = [event["annotation"] for event in told(stream) if "annotation" in event]
    assert found == ([] if expected is None else [expected])
    assert ledger.losses == int(expected is None)


def test_deltas_that_break_the_rules_are_the_callers_fault() -> None:
    broken: list[AnswerDelta] = [Delta(0, "x"), Annotated(0, Annotation(Protocol.CHAT, b"{}")), End()]
    for delta in broken:
        with pytest.raises(LocalError):
            make().encode([delta])
    with pytest.raises(LocalError):
        make().encode([Start(), BlockStart(0, BlockKind.TEXT), Finish(FinishReason.STOP), End()])


def test_the_upstreams_time_and_last_usage_are_told() -> None:
    deltas: list[AnswerDelta] = [
        Start(created_s=5),
        UsageReport(Usage(1)),
        UsageReport(Usage(2)),
        Finish(FinishReason.STOP),
        End(),
    ]
    found = told(make().encode(deltas))[-1]["response"]
    assert isinstance(found, dict)
    assert (found["created_at"], found["usage"]["input_tokens"]) == (5, 2)
    without = told(make().encode([Start(), Signed(0, Signature(Protocol.CHAT, "x"))]))[0]["response"]
    assert isinstance(without, dict)
    assert without["created_at"] == 9


def test_a_call_without_arguments_carries_an_empty_object() -> None:
    """Clients parse what they get; a custom tool's input is text, and may be empty."""
    calls = (ToolCall("c1", ToolRef("f"), ""), ToolCall("c2", ToolRef("g"), "", ToolKind.CUSTOM))
    encoder = make()
    events = told(encoder.encode(Reply("up", "m", calls, Finish(FinishReason.TOOL_CALLS)).deltas()))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item.get("arguments", item.get("input")) for item in done if isinstance(item, dict)] == ["{}", ""]
    deltas = [event["delta"] for event in events if str(event["type"]).endswith("arguments.delta")]
    assert deltas == ["{}"]
