"""Deltas become a Chat Completions stream that keeps the protocol's grammar."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conformance import checker_for
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
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.chat.stream_decoder import ChatDecoder
from capi_core.protocols.chat.stream_encoder import ChatEncoder
from capi_core.protocols.codec import Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.usage import Usage

ENVELOPE = Envelope("rid", "pub", now_s=9)
SIGNED = Signature(Protocol.CHAT, "S")
STOP = Finish(FinishReason.STOP)


def encoded(*deltas: AnswerDelta, envelope: Envelope = ENVELOPE, ledger: Ledger | None = None) -> bytes:
    """Written one by one, which gives what writing them at once does; legal by the grammar."""
    single = ChatEncoder(envelope, Ledger())
    out = b"".join(single.encode([delta]) for delta in deltas)
    assert ChatEncoder(envelope, ledger or Ledger()).encode(deltas) == out
    check = checker_for(Protocol.CHAT)
    assert [*check.receive_data(out), *check.finish()] == []
    return out


def chunks(stream: bytes) -> list[dict[str, object]]:
    texts = [text.removeprefix(b"data: ") for text in stream.split(b"\n\n") if text]
    return [json.loads(text) for text in texts if text.startswith(b"{")]


def sent(*deltas: AnswerDelta, ledger: Ledger | None = None) -> list[dict[str, object]]:
    """The `delta` members between the role and the finish."""
    stream = encoded(Start("x"), *deltas, STOP, End(), ledger=ledger)
    found = [chunk["choices"][0]["delta"] for chunk in chunks(stream)]  # type: ignore[index]  # JSON
    return found[1:-1]


def test_a_stream_of_text_byte_by_byte() -> None:
    head = b'data: {"id":"chatcmpl-rid","object":"chat.completion.chunk","created":9,"model":"pub","choices":['
    deltas: list[AnswerDelta] = [
        Start(),
        BlockStart(0, BlockKind.TEXT),
        Delta(0, "hi"),
        Delta(0, ""),
        BlockStop(0),
        STOP,
    ]
    out = encoded(*deltas, UsageReport(Usage(1, output=2)), End(), Start())
    assert out == (
        head + b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}\n\n'
        + head + b'{"index":0,"delta":{"content":"hi"},"finish_reason":null}],"usage":null}\n\n'
        + head + b'{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'
        + head + b'],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\ndata: [DONE]\n\n'
    )  # fmt: skip


def test_usage_is_only_told_to_who_asked_and_where_it_is_known() -> None:
    quiet = Envelope("rid", "pub", include_usage=False)
    assert b"usage" not in encoded(Start(), UsageReport(Usage(1)), STOP, End(), envelope=quiet)
    assert all(chunk["usage"] is None for chunk in chunks(encoded(Start(), STOP, End())))


def test_the_upstreams_id_and_time_are_kept() -> None:
    first = chunks(encoded(Start("up", "m", 5), STOP, End()))[0]
    assert (first["id"], first["created"], first["model"]) == ("up", 5, "pub")


def test_reasoning_has_its_signature_and_a_break_before_more_of_it() -> None:
    ledger = Ledger()
    found = sent(
        *(
            BlockStart(0, BlockKind.REASONING),
            Delta(0, "a"),
            Signed(0, Signature(Protocol.MESSAGES, "S")),
            BlockStop(0),
        ),
        *(BlockStart(1, BlockKind.REASONING), Delta(1, "b"), Delta(1, "c"), Signed(1, SIGNED), BlockStop(1)),
        ledger=ledger,
    )
    texts = [{"reasoning_content": text} for text in ("a", "\n\n", "b", "c")]
    assert found == [texts[0], {"reasoning_opaque": "capi1.messages.S"}, *texts[1:]]
    assert ledger.losses == 1


def test_calls_count_up_and_one_without_arguments_has_an_empty_object() -> None:
    ledger = Ledger()
    found = sent(
        *(BlockStart(3, BlockKind.FUNCTION_CALL, "a", ToolRef("f")), BlockStop(3)),
        *(BlockStart(4, BlockKind.CUSTOM_CALL, "b", ToolRef("c")), Delta(4, "raw"), BlockStop(4)),
        ledger=ledger,
    )

    def begun(index: int, id: str, name: str) -> dict[str, object]:
        function = {"name": name, "arguments": ""}
        return {"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]}

    def more(index: int, text: str) -> dict[str, object]:
        return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}

    assert found == [begun(0, "a", "f"), more(0, "{}"), begun(1, "b", "c"), more(1, "raw")]
    assert [entry.change for entry in ledger] == [Change.ALTERED]


def test_citations_and_parts_without_a_form() -> None:
    ledger = Ledger()
    opaque = Opaque(Protocol.MESSAGES, "server_tool_use", b"{}")
    found = sent(
        *(BlockStart(0, BlockKind.TEXT), Delta(0, "abc")),
        Annotated(0, Annotation(Protocol.MESSAGES, b"{}", "u", "t")),
        Annotated(0, Annotation(Protocol.MESSAGES, b"{}")),
        BlockStop(0),
        *(BlockStart(1, BlockKind.OPAQUE, opaque=opaque), BlockStop(1)),
        ledger=ledger,
    )
    cited = {"start_index": 3, "end_index": 3, "title": "t", "url": "u"}
    assert found == [{"content": "abc"}, {"annotations": [{"type": "url_citation", "url_citation": cited}]}]
    assert ledger.losses == 2


def test_a_failure_is_an_error_event_and_nothing_after_it() -> None:
    failed = Failed(Problem(429, "slow", "m"), upstream=True)
    event = b'data: {"error":{"message":"m","type":"rate_limit_error","param":null,"code":"slow"}}\n\n'
    assert encoded(failed, End()) == event
    assert encoded(Start(), failed).endswith(event)


def test_a_ping_is_a_comment() -> None:
    assert encoded(Ping(), Start(), STOP, End()).startswith(b": keep-alive\n\n")


@pytest.mark.parametrize("deltas", [[Delta(0, "x")], [End()], [BlockStart(0, BlockKind.FUNCTION_CALL, "i")]])
def test_deltas_that_break_the_rules_are_our_own_fault(deltas: list[AnswerDelta]) -> None:
    with pytest.raises(LocalError):
        ChatEncoder(ENVELOPE, Ledger()).encode([Start(), *deltas])


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
PROSE: st.SearchStrategy[ReplyBlock] = st.one_of(st.builds(ReplyText, TEXT), st.builds(Refusal, TEXT))
CALLS = st.builds(ToolCall, TEXT, st.builds(ToolRef, TEXT), TEXT.filter(str.strip))
THOUGHT = st.builds(Reasoning, TEXT.map(lambda text: (text,)), st.sampled_from([None, SIGNED]))


@given(
    st.tuples(st.lists(THOUGHT, max_size=1), st.lists(PROSE, max_size=1), st.lists(CALLS, max_size=3)),
    st.sampled_from([None, Usage(1, 2, 3, 4, 5), Usage(1, output=0)]),
    st.integers(1, 200),
)
def test_what_chat_can_say_reads_back_as_it_was(
    parts: tuple[list[ReplyBlock], list[ReplyBlock], list[ReplyBlock]], usage: Usage | None, size: int
) -> None:
    reason = FinishReason.TOOL_CALLS if parts[2] else FinishReason.STOP
    reply = Reply("id", "pub", (*parts[0], *parts[1], *parts[2]), Finish(reason), usage, 3)
    stream = encoded(*reply.deltas())
    decoder = ChatDecoder(Ledger(), max_event_bytes=1 << 16)
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    found = [delta for piece in pieces for delta in decoder.receive_data(piece)]
    assert assemble(found) == reply
