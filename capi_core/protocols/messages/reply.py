"""Whole answers: passed through, read, and written.

Source: Anthropic API reference, "Create a Message"; wire.md 1.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import Refusal, ToolCall
from capi_core.deltas import Failed, Reply, assemble
from capi_core.errors import ProtocolError
from capi_core.members import MemberRewriter, decode
from capi_core.protocols.codec import PassedAnswer
from capi_core.protocols.messages.answer_wire import message_id, stop_members
from capi_core.protocols.messages.block_encoder import encode_block
from capi_core.protocols.messages.errors import decode_error
from capi_core.protocols.messages.stream_decoder import Message, MessagesDecoder
from capi_core.protocols.openai import json_string, says_error
from capi_core.protocols.writing import json_text
from capi_core.usage import anthropic_usage, encode_anthropic_usage

if TYPE_CHECKING:
    from capi_core.fidelity import Ledger
    from capi_core.protocols.codec import Envelope

__all__ = ["decode_reply", "encode_reply", "pass_answer"]


class _Answer(msgspec.Struct):
    """The members of a whole answer that the gateway reads; all the rest passes unread."""

    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_MESSAGE: Final = msgspec.json.Decoder(Message)


def pass_answer(body: bytes, *, public_name: str | None) -> PassedAnswer:
    """An upstream's answer for a client of Messages: its top-level `model` is replaced, and nothing else.

    Raises `ProtocolError` (502) when the body is not a JSON object.
    """
    try:
        answer, _ = decode(_ANSWER, body)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise _garbage("the upstream's answer is not a JSON object; check the upstream's base_url") from None
    if public_name is not None:
        body = MemberRewriter("model", json_string(public_name)).rewrite(body)
    usage = anthropic_usage(answer.usage) if answer.usage else None
    return PassedAnswer(body, usage, says_error(answer.error))


def decode_reply(body: bytes, ledger: Ledger) -> Reply:
    """An upstream's answer. Raises `ProtocolError` (502) when it is no Message, or tells of an error."""
    problem = decode_error(body, 200)
    if problem is not None:
        raise ProtocolError(problem.message, code=problem.code, status_hint=502, param=problem.param)
    try:
        message, _ = decode(_MESSAGE, body)
        if message.content is None:
            raise _garbage("the upstream's answer is no Message")
        found = assemble(MessagesDecoder(ledger, max_event_bytes=max(len(body), 3)).whole(message))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise _garbage("the upstream's answer is not a Message") from None
    if isinstance(found, Failed):
        raise ProtocolError(found.problem.message, code=found.problem.code, status_hint=502)
    return found


def encode_reply(reply: Reply, envelope: Envelope, ledger: Ledger) -> bytes:
    """The answer for a client of Messages."""
    encoded = [encode_block(block, ledger) for block in reply.blocks]
    called = any(isinstance(block, ToolCall) for block in reply.blocks)
    refused = any(isinstance(block, Refusal) for block in reply.blocks)
    return b'{"id":%b,"type":"message","role":"assistant","model":%b,"content":[%b],%b,"usage":%b}' % (
        json_text(message_id(reply.id, envelope.request_id)),
        json_text(envelope.model),
        b",".join(block for block in encoded if block is not None),
        stop_members(reply.finish, called=called, refused=refused),
        encode_anthropic_usage(reply.usage, whole=True),
    )


def _garbage(message: str) -> ProtocolError:
    return ProtocolError(message, code="upstream_garbage", status_hint=502)
