"""Blocks of an answer as Messages has them, in a stream and whole."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import Opaque, Reasoning, Refusal, Signature, ToolCall, ToolKind, ToolRef
from capi_core.deltas import Annotation, BlockKind, BlockStart, ReplyBlock, ReplyText
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.answer_wire import UNSHOWN, UNSIGNED
from capi_core.protocols.messages.block_encoder import (
    annotation_is_lost,
    block_start,
    delta_frame,
    encode_block,
    input_piece,
    opaque_is_lost,
    signature_text,
)

OWN = Signature(Protocol.MESSAGES, "SIG")
FOREIGN = Signature(Protocol.RESPONSES, "ENC")
HIDDEN = Signature(Protocol.MESSAGES, UNSHOWN + "SIG")


def encoded(block: ReplyBlock, ledger: Ledger | None = None) -> object:
    found = encode_block(block, ledger or Ledger())
    return None if found is None else json.loads(found)


@pytest.mark.parametrize(
    ("start", "signature", "expected"),
    [
        (BlockStart(0, BlockKind.TEXT), None, {"type": "text", "text": ""}),
        (BlockStart(0, BlockKind.REFUSAL), None, {"type": "text", "text": ""}),
        (BlockStart(0, BlockKind.REASONING), None, {"type": "thinking", "thinking": "", "signature": ""}),
        (BlockStart(0, BlockKind.REASONING), OWN, {"type": "redacted_thinking", "data": "SIG"}),
        (BlockStart(0, BlockKind.REASONING), FOREIGN, {"type": "redacted_thinking", "data": "capi1.responses.ENC"}),
        (BlockStart(0, BlockKind.REASONING), HIDDEN, {"type": "thinking", "thinking": "", "signature": "SIG"}),
        (
            BlockStart(0, BlockKind.FUNCTION_CALL, "t", ToolRef("f")),
            None,
            {"type": "tool_use", "id": "t", "name": "f", "input": {}},
        ),
        (BlockStart(0, BlockKind.CUSTOM_CALL, "t"), None, {"type": "tool_use", "id": "t", "name": "", "input": {}}),
    ],
)
def test_how_a_block_starts(start: BlockStart, signature: Signature | None, expected: object) -> None:
    assert json.loads(block_start(start, signature)) == expected


@pytest.mark.parametrize(
    ("kind", "delta"),
    [
        (BlockKind.TEXT, {"type": "text_delta", "text": "x"}),
        (BlockKind.REFUSAL, {"type": "text_delta", "text": "x"}),
        (BlockKind.REASONING, {"type": "thinking_delta", "thinking": "x"}),
        (BlockKind.FUNCTION_CALL, {"type": "input_json_delta", "partial_json": "x"}),
        (BlockKind.CUSTOM_CALL, {"type": "input_json_delta", "partial_json": "x"}),
    ],
)
def test_what_a_delta_is(kind: BlockKind, delta: object) -> None:
    head, tail = delta_frame(kind, 3)
    name, _, data = (head + b'"x"' + tail).partition(b"\ndata: ")
    assert (name, tail[-2:]) == (b"event: content_block_delta", b"\n\n")
    assert json.loads(data) == {"type": "content_block_delta", "index": 3, "delta": delta}


@given(st.lists(st.text(), min_size=1))
def test_free_text_in_any_pieces_is_the_member_input(pieces: list[str]) -> None:
    told = "".join(input_piece(piece, first=not at) for at, piece in enumerate(pieces)) + '"}'
    assert json.loads(told) == {"input": "".join(pieces)}


def test_thinking_without_a_signature_has_one_that_is_known_as_ours() -> None:
    assert signature_text(None) == signature_text(Signature(Protocol.CHAT, "")) == UNSIGNED
    assert (signature_text(OWN), signature_text(HIDDEN)) == ("SIG", "SIG")
    assert signature_text(FOREIGN) == "capi1.responses.ENC"


def test_what_is_another_protocols_own_is_noted() -> None:
    ledger = Ledger()
    assert annotation_is_lost(Annotation(Protocol.CHAT, b"{}"), ledger)
    assert opaque_is_lost(Opaque(Protocol.CHAT, "x", b"{}", at="$.x"), ledger)
    assert opaque_is_lost(Opaque(Protocol.RESPONSES, "x", b"{}"), ledger)
    assert [(entry.change, entry.path) for entry in ledger] == [
        (Change.DROPPED, "$.content"),
        (Change.DROPPED, "$.x"),
        (Change.DROPPED, "$.content"),
    ]
    assert not annotation_is_lost(Annotation(Protocol.MESSAGES, b"{}"), ledger)
    assert not opaque_is_lost(Opaque(Protocol.MESSAGES, "x", b"{}"), ledger)


CITED = Annotation(Protocol.MESSAGES, b'{"a":1}')


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (ReplyText("x"), {"type": "text", "text": "x"}),
        (ReplyText("", (CITED,)), {"type": "text", "text": "", "citations": [{"a": 1}]}),
        (ReplyText("", (Annotation(Protocol.CHAT, b"{}"),)), None),
        (Refusal("x"), {"type": "text", "text": "x"}),
        (Refusal(""), None),
        (Reasoning(("a", "b"), OWN), {"type": "thinking", "thinking": "a\n\nb", "signature": "SIG"}),
        (Reasoning(("a",)), {"type": "thinking", "thinking": "a", "signature": UNSIGNED}),
        (Reasoning((), FOREIGN), {"type": "redacted_thinking", "data": "capi1.responses.ENC"}),
        (Reasoning((), HIDDEN), {"type": "thinking", "thinking": "", "signature": "SIG"}),
        (Reasoning(()), None),
        (ToolCall("t", ToolRef("f"), '{"a": 1}'), {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}),
        (ToolCall("t", ToolRef("f"), " "), {"type": "tool_use", "id": "t", "name": "f", "input": {}}),
        (
            ToolCall("t", ToolRef("f"), '{"a":"\\ud800"}'),
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": "\ufffd"}},
        ),
        (
            ToolCall("t", ToolRef("f"), "{}", ToolKind.CUSTOM),
            {"type": "tool_use", "id": "t", "name": "f", "input": {"input": "{}"}},
        ),
        (Opaque(Protocol.MESSAGES, "x", b'{"type":"x"}'), {"type": "x"}),
        (Opaque(Protocol.CHAT, "x", b'{"type":"x"}'), None),
    ],
)
def test_a_whole_block(block: ReplyBlock, expected: object) -> None:
    assert encoded(block) == expected


@pytest.mark.parametrize("arguments", ["[1]", "{", "x", "[" * 3000])
def test_arguments_that_are_no_object_are_kept_as_text_and_noted(arguments: str) -> None:
    ledger = Ledger()
    found = encoded(ToolCall("t", ToolRef("f"), arguments), ledger)
    assert found == {"type": "tool_use", "id": "t", "name": "f", "input": {"input": arguments}}
    assert [entry.change for entry in ledger] == [Change.ALTERED]
