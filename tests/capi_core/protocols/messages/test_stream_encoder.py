"""Deltas become a Messages stream that keeps the protocol's grammar and that Anthropic's own SDK reads."""

import json

import anthropic
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conformance.checker import StreamChecker
from capi_core.conformance.messages import MessagesGrammar
from capi_core.conversation import Opaque, Reasoning, Refusal, Signature, ToolCall, ToolRef
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
    ReplyBlock,
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
from capi_core.protocols.messages.answer_wire import UNSHOWN, UNSIGNED
from capi_core.protocols.messages.stream_decoder import MessagesDecoder
from capi_core.protocols.messages.stream_encoder import MessagesEncoder
from capi_core.usage import Usage

ENVELOPE = Envelope("q", "pub")
CITED = Annotation(Protocol.MESSAGES, b'{"type":"char_location",\n"n":1}')
STOP: list[AnswerDelta] = [Finish(FinishReason.STOP), End()]


def encoded(*deltas: AnswerDelta, ledger: Ledger | None = None) -> bytes:
    """The stream, made delta by delta; it must not matter."""
    encoder = MessagesEncoder(ENVELOPE, ledger or Ledger())
    stream = b"".join([encoder.encode([delta]) for delta in deltas])
    assert MessagesEncoder(ENVELOPE, Ledger()).encode(deltas) == stream
    return stream


def checked(stream: bytes) -> list[str]:
    checker = StreamChecker(MessagesGrammar(), max_event_bytes=1 << 20)
    return [violation.rule for violation in checker.receive_data(stream) + checker.finish()]


def events(stream: bytes) -> list[dict[str, object]]:
    return [json.loads(part.partition(b"\ndata: ")[2]) for part in stream.split(b"\n\n") if part]


def told(*deltas: AnswerDelta, ledger: Ledger | None = None) -> list[dict[str, object]]:
    """The events between `message_start` and `message_delta`."""
    stream = encoded(Start(), *deltas, *STOP, ledger=ledger)
    assert checked(stream) == []
    return events(stream)[1:-2]


def decoded(stream: bytes) -> Reply:
    decoder = MessagesDecoder(Ledger(), max_event_bytes=1 << 20)
    found = assemble(decoder.receive_data(stream) + decoder.finish())
    assert isinstance(found, Reply)
    return found


def sdk_message(stream: bytes) -> anthropic.types.Message:
    """What Anthropic's SDK makes of the stream."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=stream, headers={"content-type": "text/event-stream"})

    with (
        httpx2.Client(transport=httpx2.MockTransport(answer)) as client,
        anthropic.Anthropic(api_key="x", base_url="http://x", http_client=client) as sdk,
        sdk.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as found,
    ):
        return found.get_final_message()


BLOCKS: tuple[ReplyBlock, ...] = (
    Reasoning(("thought",), Signature(Protocol.MESSAGES, "SIG")),
    Reasoning((), Signature(Protocol.MESSAGES, "RED")),
    Reasoning((), Signature(Protocol.MESSAGES, UNSHOWN + "SIG")),
    ReplyText("hé\U0001f600llo\n"),
    ReplyText("cited", (CITED,)),
    Opaque(Protocol.MESSAGES, "server_tool_use", b'{"type":"server_tool_use","id":"s","name":"n","input":{}}'),
    ToolCall("t1", ToolRef("f"), '{"a":1}'),
    ToolCall("t2", ToolRef("g"), ""),
)


def test_a_whole_answer_is_the_same_after_its_stream() -> None:
    reply = Reply("msg_1", "pub", BLOCKS[:4] + BLOCKS[5:], Finish(FinishReason.TOOL_CALLS), Usage(1, 2, 3, 4, 5))
    stream = MessagesEncoder(ENVELOPE, Ledger()).encode(reply.deltas())
    assert checked(stream) == []
    assert decoded(stream) == reply


def test_the_sdk_reads_all_of_it() -> None:
    reply = Reply("", "up", BLOCKS, Finish(FinishReason.TOOL_CALLS), Usage(1, None, None, 4, None))
    found = sdk_message(MessagesEncoder(ENVELOPE, Ledger()).encode(reply.deltas()))
    assert (found.id, found.model, found.stop_reason) == ("msg_q", "pub", "tool_use")
    assert [block.type for block in found.content] == [
        "thinking",
        "redacted_thinking",
        "thinking",
        "text",
        "text",
        "server_tool_use",
        "tool_use",
        "tool_use",
    ]
    thinking, call = found.content[0], found.content[6]
    assert isinstance(thinking, anthropic.types.ThinkingBlock)
    assert isinstance(call, anthropic.types.ToolUseBlock)
    assert (thinking.thinking, thinking.signature, call.input) == ("thought", "SIG", {"a": 1})
    assert (found.usage.input_tokens, found.usage.output_tokens) == (1, 4)


def test_the_start_names_the_clients_model_and_the_types_figures() -> None:
    first = events(encoded(Start("chatcmpl-1", "up"), *STOP))[0]
    assert first == {
        "type": "message_start",
        "message": {
            "id": "msg_q",
            "type": "message",
            "role": "assistant",
            "model": "pub",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        },
    }


def test_the_figures_may_come_after_the_finish() -> None:
    stream = encoded(
        Start(), Finish(FinishReason.LENGTH), UsageReport(Usage(1)), UsageReport(Usage(2, output=3)), End()
    )
    assert events(stream)[-2] == {
        "type": "message_delta",
        "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
        "usage": {"input_tokens": 2, "output_tokens": 3},
    }
    assert events(encoded(Start(), *STOP))[-2]["usage"] == {"output_tokens": 0}


def starts(found: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(each["type"], each["index"]) for each in found]


def test_blocks_that_overlap_go_out_one_after_the_other() -> None:
    found = told(
        BlockStart(0, BlockKind.TEXT),
        Delta(0, "a"),
        BlockStart(1, BlockKind.FUNCTION_CALL, "t", ToolRef("f")),
        Delta(1, '{"a":'),
        Delta(0, "b"),
        BlockStart(2, BlockKind.CUSTOM_CALL, "u", ToolRef("g")),
        Delta(2, "x"),
        Delta(1, "1}"),
        BlockStop(2),
        BlockStart(3, BlockKind.TEXT),
        Delta(3, ""),
        Annotated(3, CITED),
        BlockStop(0),
        BlockStop(1),
        Delta(3, "end"),
        BlockStop(3),
    )
    assert [(each["type"], each["index"]) for each in found] == [
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("content_block_start", 3),
        ("content_block_delta", 3),
        ("content_block_delta", 3),
        ("content_block_stop", 3),
    ]
    assert found[5]["delta"] == {"type": "input_json_delta", "partial_json": '{"a":1}'}


def test_a_call_without_arguments_that_had_to_wait_is_not_lost() -> None:
    deltas: list[AnswerDelta] = [BlockStart(0, BlockKind.TEXT), Delta(0, "a")]
    for index, kind in enumerate((BlockKind.FUNCTION_CALL, BlockKind.CUSTOM_CALL), start=1):
        deltas += [BlockStart(index, kind, "t", ToolRef("f")), BlockStop(index)]
    stream = encoded(Start(), *deltas, BlockStop(0), *STOP)
    assert checked(stream) == []
    calls = (ToolCall("t", ToolRef("f"), ""), ToolCall("t", ToolRef("f"), '{"input":""}'))
    assert decoded(stream).blocks == (ReplyText("a"), *calls)


def test_the_live_blocks_deltas_go_out_at_once() -> None:
    encoder = MessagesEncoder(ENVELOPE, Ledger())
    encoder.encode([Start(), BlockStart(0, BlockKind.TEXT), BlockStart(1, BlockKind.FUNCTION_CALL, "t", ToolRef("f"))])
    assert b'"a"' in encoder.encode([Delta(0, "a")])
    assert encoder.encode([Delta(1, "{}")]) == b""
    assert b'"t"' in encoder.encode([BlockStop(0)])
    assert encoder.encode([Delta(1, "")]) == b""
    assert b"stop" in encoder.encode([BlockStop(1)])


def test_a_call_is_told_before_its_arguments() -> None:
    encoder = MessagesEncoder(ENVELOPE, Ledger())
    encoder.encode([Start()])
    assert b'"tool_use"' in encoder.encode([BlockStart(0, BlockKind.FUNCTION_CALL, "t", ToolRef("f"))])


@given(pieces=st.lists(st.text(), max_size=4))
def test_free_text_is_the_member_input(pieces: list[str]) -> None:
    deltas: list[AnswerDelta] = [Delta(0, piece) for piece in pieces]
    stream = encoded(Start(), BlockStart(0, BlockKind.CUSTOM_CALL, "t", ToolRef("f")), *deltas, BlockStop(0), *STOP)
    assert checked(stream) == []
    call = decoded(stream).blocks[0]
    assert isinstance(call, ToolCall)
    assert json.loads(call.arguments) == {"input": "".join(pieces)}


def test_a_signature_is_one_delta_before_the_stop() -> None:
    found = told(
        BlockStart(0, BlockKind.REASONING),
        Delta(0, "x"),
        Signed(0, Signature(Protocol.RESPONSES, "ENC")),
        BlockStop(0),
        BlockStart(1, BlockKind.REASONING),
        Delta(1, "y"),
        BlockStop(1),
        BlockStart(2, BlockKind.REASONING),
        Signed(2, Signature(Protocol.RESPONSES, "ENC")),
        BlockStop(2),
        BlockStart(3, BlockKind.REASONING),
        BlockStop(3),
    )
    assert found[2]["delta"] == {"type": "signature_delta", "signature": "capi1.responses.ENC"}
    assert found[6]["delta"] == {"type": "signature_delta", "signature": UNSIGNED}
    assert found[8]["content_block"] == {"type": "redacted_thinking", "data": "capi1.responses.ENC"}
    assert starts(found[8:]) == [("content_block_start", 2), ("content_block_stop", 2)]


def test_what_a_client_could_not_give_back_has_no_block() -> None:
    ledger = Ledger()
    found = told(
        BlockStart(0, BlockKind.TEXT),
        Annotated(0, Annotation(Protocol.CHAT, b"{}")),
        BlockStop(0),
        BlockStart(1, BlockKind.OPAQUE, opaque=Opaque(Protocol.CHAT, "x", b"{}")),
        BlockStop(1),
        BlockStart(2, BlockKind.TEXT),
        Delta(2, "x"),
        BlockStop(2),
        ledger=ledger,
    )
    assert [each["index"] for each in found] == [0, 0, 0]
    assert ledger.losses == 2


def test_words_of_refusal_are_text_and_the_reason_tells() -> None:
    reply = Reply("", "", (Refusal("no"),), Finish(FinishReason.STOP))
    found = decoded(MessagesEncoder(ENVELOPE, Ledger()).encode(reply.deltas()))
    assert (found.blocks, found.finish.reason) == ((ReplyText("no"),), FinishReason.CONTENT_FILTER)


def test_a_ping_is_an_event() -> None:
    assert encoded(Ping()) == b'event: ping\ndata: {"type":"ping"}\n\n'


@pytest.mark.parametrize("before", [0, 1, 2, 3, 5])
def test_a_failure_is_an_error_event_wherever_it_comes(before: int) -> None:
    deltas: list[AnswerDelta] = [
        Start(),
        BlockStart(0, BlockKind.TEXT),
        Delta(0, "a"),
        BlockStop(0),
        Finish(FinishReason.STOP),
    ]
    failed = Failed(Problem(429, "slow_down", "wait"), upstream=False)
    stream = encoded(*deltas[:before], failed, End())
    assert checked(stream) == []
    assert events(stream)[-1] == {"type": "error", "error": {"type": "rate_limit_error", "message": "wait"}}


@pytest.mark.parametrize(
    "deltas",
    [
        [Delta(0, "x")],
        [BlockStop(0)],
        [Signed(0, Signature(Protocol.CHAT, "x"))],
        [Annotated(0, CITED)],
        [End()],
        [BlockStart(0, BlockKind.TEXT), *STOP],
    ],
)
def test_deltas_that_break_the_rules_are_refused(deltas: list[AnswerDelta]) -> None:
    with pytest.raises(LocalError):
        MessagesEncoder(ENVELOPE, Ledger()).encode([Start(), *deltas])


texts = st.text(min_size=1, max_size=8)
blocks = st.one_of(
    st.builds(ReplyText, texts),
    st.builds(Reasoning, st.tuples(texts), st.builds(Signature, st.just(Protocol.MESSAGES), texts)),
    st.builds(Reasoning, st.just(()), st.builds(Signature, st.just(Protocol.MESSAGES), texts)),
    st.builds(ToolCall, texts, st.builds(ToolRef, texts), st.sampled_from(['{"x":[]}', ""])),
)


@given(answer=st.lists(blocks, max_size=5), order=st.randoms(use_true_random=False))
def test_any_answer_in_any_legal_order_of_deltas_decodes_to_itself(answer: list[ReplyBlock], order: object) -> None:
    called = any(isinstance(block, ToolCall) for block in answer)
    finish = Finish(FinishReason.TOOL_CALLS if called else FinishReason.STOP)
    reply = Reply("msg_1", "pub", tuple(answer), finish, Usage(1, None, None, 2, None))
    deltas = list(reply.deltas())
    shuffled = interleaved(deltas[1:-3], order)
    stream = MessagesEncoder(ENVELOPE, Ledger()).encode([deltas[0], *shuffled, *deltas[-3:]])
    assert checked(stream) == []
    assert decoded(stream) == reply


def interleaved(deltas: list[AnswerDelta], order: object) -> list[AnswerDelta]:
    """The deltas with those of different blocks mixed, but the starts in their order."""
    assert hasattr(order, "randrange")
    queues: dict[int, list[AnswerDelta]] = {}
    for delta in deltas:
        assert isinstance(delta, BlockStart | Delta | Signed | BlockStop)
        queues.setdefault(delta.index, []).append(delta)
    mixed: list[AnswerDelta] = []
    opened = 0
    while queues:
        ready = [index for index in queues if index <= opened]
        index = ready[order.randrange(len(ready))]
        opened = max(opened, index + 1)
        mixed.append(queues[index].pop(0))
        if not queues[index]:
            del queues[index]
    return mixed
