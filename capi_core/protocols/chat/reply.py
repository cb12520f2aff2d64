"""Whole answers of Chat Completions: passed through, read, and written.

Source: OpenAI API reference, "The chat completion object"; wire.md 1.1, 1.8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from capi_core.conversation import Reasoning, Refusal, ToolCall, ToolKind
from capi_core.deltas import PART_BREAK, Annotation, Failed, Reply, ReplyText, assemble
from capi_core.errors import ProtocolError
from capi_core.members import decode
from capi_core.protocols.carriage import wrap
from capi_core.protocols.chat.answer_parts import answer_created, answer_id, citation, finish_word
from capi_core.protocols.chat.answer_wire import CHUNK
from capi_core.protocols.chat.errors import UNREADABLE, decode_error
from capi_core.protocols.chat.stream_decoder import ChatDecoder
from capi_core.protocols.codec import PassedAnswer
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.openai import decode_answer, says_error
from capi_core.protocols.writing import json_bytes
from capi_core.usage import encode_openai_usage

if TYPE_CHECKING:
    from capi_core.fidelity import Ledger
    from capi_core.protocols.codec import Envelope

__all__ = ["decode_reply", "encode_reply", "pass_answer"]


def pass_answer(body: bytes, *, public_name: str | None) -> PassedAnswer:
    """An upstream's answer for a client of Chat: its top-level `model` becomes `public_name`, nothing else changes.

    Raises `ProtocolError` (502) when the body is not a JSON object.
    """
    return decode_answer(body, public_name=public_name)


def decode_reply(body: bytes, ledger: Ledger) -> Reply:
    """An upstream's answer, all its choices together.

    Raises `ProtocolError` (502): `foreign_answer` for an answer in Anthropic's own shape, which Copilot gives for some
    models (wire.md 1.8), `upstream_garbage` when it is none at all, and the upstream's own code when it is an error.
    """
    try:
        answer, _ = decode(CHUNK, body)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise _refused("upstream_garbage", "the upstream's answer is not a Chat Completions object") from None
    if says_error(answer.error):
        problem = decode_error(body, 200) or UNREADABLE
        raise _refused(problem.code, problem.message)
    if not answer.choices:
        if answer.type == "message":
            raise _refused("foreign_answer", "the upstream answered in the shape of Anthropic's Messages")
        raise _refused("upstream_garbage", "the upstream's answer has no choices")
    found = assemble(ChatDecoder(ledger, max_event_bytes=max(len(body), 3)).whole(answer))
    if isinstance(found, Failed):
        raise _refused(found.problem.code, found.problem.message)
    return found


def encode_reply(reply: Reply, envelope: Envelope, ledger: Ledger) -> bytes:
    """The answer for a client of Chat."""
    choice = {
        "index": 0,
        "message": _Message(reply, ledger).members(),
        "logprobs": None,
        "finish_reason": finish_word(reply.finish, ledger),
    }
    answer: dict[str, object] = {
        "id": answer_id(reply.id, envelope),
        "object": "chat.completion",
        "created": answer_created(reply.created_s, envelope),
        "model": envelope.model,
        "choices": [choice],
    }
    if reply.usage is not None:
        answer["usage"] = msgspec.Raw(encode_openai_usage(reply.usage))
    return json_bytes(answer)


class _Message:
    """The one message that all blocks of an answer become."""

    def __init__(self, reply: Reply, ledger: Ledger) -> None:
        self._ledger = ledger
        self._texts: list[str] = []
        self._refusals: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[dict[str, object]] = []
        self._citations: list[msgspec.Raw] = []
        self._opaque: str | None = None
        for block in reply.blocks:
            match block:
                case ReplyText():
                    self._text(block)
                case Reasoning():
                    self._reasoning(block)
                case Refusal():
                    self._refusals.append(block.text)
                case ToolCall():
                    self._calls.append(_call(block))
                case _:
                    ledger.dropped("$.choices[0].message", "a part of the answer that only its own protocol knows")

    def members(self) -> dict[str, object]:
        """`content` is null where there are only calls, as OpenAI has it."""
        members: dict[str, object] = {
            "role": "assistant",
            "content": "".join(self._texts) if self._texts or not self._calls else None,
            "refusal": "".join(self._refusals) or None,
        }
        if self._thoughts:
            members["reasoning_content"] = PART_BREAK.join(self._thoughts)
        if self._opaque is not None:
            members["reasoning_opaque"] = self._opaque
        if self._calls:
            members["tool_calls"] = self._calls
        if self._citations:
            members["annotations"] = self._citations
        return members

    def _text(self, block: ReplyText) -> None:
        self._texts.append(block.text)
        length = sum(map(len, self._texts))
        self._citations += [raw for raw in (self._cited(one, length) for one in block.annotations) if raw is not None]

    def _cited(self, annotation: Annotation, length: int) -> msgspec.Raw | None:
        raw = citation(annotation, length, self._ledger)
        return None if raw is None else msgspec.Raw(raw)

    def _reasoning(self, block: Reasoning) -> None:
        self._thoughts += [part for part in block.parts if part]
        if block.signature is None:
            return
        if self._opaque is not None:
            self._ledger.dropped("$.choices[0].message", "Chat has one signature for all the reasoning of an answer")
            return
        self._opaque = wrap(block.signature, Protocol.CHAT)


def _call(call: ToolCall) -> dict[str, object]:
    if call.kind is ToolKind.CUSTOM:
        return {"id": call.id, "type": "custom", "custom": {"name": call.tool.name, "input": call.arguments}}
    function = {"name": call.tool.name, "arguments": call.arguments or "{}"}
    return {"id": call.id, "type": "function", "function": function}


def _refused(code: str, message: str) -> ProtocolError:
    return ProtocolError(message, code=code, status_hint=502)
