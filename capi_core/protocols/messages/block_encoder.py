"""What a block of an answer is in Messages, for streams and for whole answers.

Source: Anthropic API reference, "Create a Message" and "Streaming Messages"; wire.md 1.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import Opaque, Reasoning, Refusal, ToolCall, ToolKind
from capi_core.deltas import PART_BREAK, BlockKind, BlockStart, ReplyText
from capi_core.fidelity import Change
from capi_core.members import decode
from capi_core.protocols.carriage import wrap
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.answer_wire import UNSHOWN, UNSIGNED
from capi_core.protocols.writing import json_bytes, json_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capi_core.conversation import Signature
    from capi_core.deltas import Annotation, ReplyBlock
    from capi_core.fidelity import Ledger

__all__ = [
    "annotation_is_lost",
    "block_start",
    "delta_frame",
    "encode_block",
    "input_piece",
    "opaque_is_lost",
    "signature_text",
]

_DELTAS: Final[Mapping[BlockKind, bytes]] = {
    BlockKind.TEXT: b'"text_delta","text":',
    BlockKind.REFUSAL: b'"text_delta","text":',
    BlockKind.REASONING: b'"thinking_delta","thinking":',
    BlockKind.FUNCTION_CALL: b'"input_json_delta","partial_json":',
    BlockKind.CUSTOM_CALL: b'"input_json_delta","partial_json":',
}
_TAIL: Final = b"}}\n\n"
_ARGUMENTS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def delta_frame(kind: BlockKind, index: int) -> tuple[bytes, bytes]:
    """What stands around the JSON string of a delta's text."""
    head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":'
    return head % index + _DELTAS[kind], _TAIL


def block_start(start: BlockStart, signature: Signature | None = None) -> bytes:
    """The block as its `content_block_start` has it. With a `signature`: of thinking that has no text."""
    match start.kind:
        case BlockKind.REASONING if signature is not None:
            return _unworded(signature)
        case BlockKind.REASONING:
            return b'{"type":"thinking","thinking":"","signature":""}'
        case BlockKind.FUNCTION_CALL | BlockKind.CUSTOM_CALL:
            return _call(start.id, "" if start.tool is None else start.tool.name, b"{}")
        case _:
            return b'{"type":"text","text":""}'


def input_piece(text: str, *, first: bool) -> str:
    """A piece of the free text of a custom tool, which Messages has no kind of: JSON text of `{"input": text}`, whose
    closing `"}` is left to the block's stop."""
    return ('{"input":"' if first else "") + json_text(text)[1:-1].decode()


def signature_text(signature: Signature | None) -> str:
    """What stands in the field `signature` of a thinking block; see `carriage` and `UNSIGNED`."""
    if signature is None or not signature.value:
        return UNSIGNED
    return wrap(signature, Protocol.MESSAGES).removeprefix(UNSHOWN)


def annotation_is_lost(annotation: Annotation, ledger: Ledger) -> bool:
    """Whether Messages has no form for a citation: its own citations quote what they cite, others do not."""
    if annotation.protocol is Protocol.MESSAGES:
        return False
    ledger.dropped("$.content", "a citation that Messages has no form for")
    return True


def opaque_is_lost(opaque: Opaque, ledger: Ledger) -> bool:
    """Whether a part is another protocol's own."""
    if opaque.protocol is Protocol.MESSAGES:
        return False
    ledger.dropped(opaque.at or "$.content", "a part of the answer that only its own protocol knows")
    return True


def encode_block(block: ReplyBlock, ledger: Ledger) -> bytes | None:
    """A block of a whole answer; `None` when nothing is left of it."""
    match block:
        case ReplyText():
            return _text(block, ledger)
        case Refusal():
            return _text(ReplyText(block.text), ledger)
        case Reasoning():
            return _reasoning(block)
        case ToolCall():
            return _call(block.id, block.tool.name, _input(block, ledger))
        case _:  # Opaque, the only one left
            return None if opaque_is_lost(block, ledger) else block.raw


def _text(block: ReplyText, ledger: Ledger) -> bytes | None:
    """An empty one is left out: the client could not give it back, as Anthropic refuses it in a request."""
    kept = [cited.raw for cited in block.annotations if not annotation_is_lost(cited, ledger)]
    if not (block.text or kept):
        return None
    citations = b',"citations":[%b]' % b",".join(kept) if kept else b""
    return b'{"type":"text","text":%b%b}' % (json_text(block.text), citations)


def _reasoning(block: Reasoning) -> bytes | None:
    text = PART_BREAK.join(block.parts)
    if text:
        signature = json_text(signature_text(block.signature))
        return b'{"type":"thinking","thinking":%b,"signature":%b}' % (json_text(text), signature)
    return None if block.signature is None else _unworded(block.signature)


def _unworded(signature: Signature) -> bytes:
    """Thinking without a text: not shown, which Messages tells apart from redacted."""
    text = json_text(signature_text(signature))
    if signature.origin is Protocol.MESSAGES and signature.value.startswith(UNSHOWN):
        return b'{"type":"thinking","thinking":"","signature":%b}' % text
    return b'{"type":"redacted_thinking","data":%b}' % text


def _call(call_id: str, name: str, arguments: bytes) -> bytes:
    form = b'{"type":"tool_use","id":%b,"name":%b,"input":%b}'
    return form % (json_text(call_id), json_text(name), arguments)


def _input(call: ToolCall, ledger: Ledger) -> bytes:
    """The input, which is a JSON object. Arguments that are none were the model's mistake: they are kept as a text."""
    if call.kind is ToolKind.FUNCTION:
        text = call.arguments.encode("utf-8", "replace")
        if not text.strip():
            return b"{}"
        try:
            return decode(_ARGUMENTS, text)[1]
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            ledger.add(Change.ALTERED, "$.content", "arguments that are no JSON object: they are the member `input`")
    return json_bytes({"input": call.arguments})
