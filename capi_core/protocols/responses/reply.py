"""Whole answers: passed through, read, and written.

Source: OpenAI API reference, "The response object". A whole answer is what the last event of its stream repeats,
so both ways use the stream's machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.deltas import Failed, Reply, assemble
from capi_core.errors import ProtocolError
from capi_core.members import MemberRewriter, decode
from capi_core.protocols.codec import PassedAnswer
from capi_core.protocols.openai import json_string, says_error
from capi_core.protocols.responses.stream_decoder import ResponsesDecoder
from capi_core.protocols.responses.stream_encoder import ResponsesEncoder
from capi_core.usage import responses_usage

if TYPE_CHECKING:
    from capi_core.fidelity import Ledger
    from capi_core.protocols.codec import Envelope

__all__ = ["decode_reply", "encode_reply", "pass_answer"]


class _Answer(msgspec.Struct):
    """The members of a whole answer that the gateway reads; all the rest passes unread."""

    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Head(msgspec.Struct):
    object: str | None = None
    status: str | None = None
    output: msgspec.Raw = msgspec.Raw()


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_HEAD: Final = msgspec.json.Decoder(_Head)
_UNFINISHED: Final = ("in_progress", "queued")


def pass_answer(body: bytes, *, public_name: str | None) -> PassedAnswer:
    """An upstream's answer for a client of Responses: its top-level `model` is replaced, and nothing else.

    Raises `ProtocolError` (502) when the body is not a JSON object.
    """
    try:
        answer, _ = decode(_ANSWER, body)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise _garbage("the upstream's answer is not a JSON object; check the upstream's base_url") from None
    if public_name is not None:
        body = MemberRewriter("model", json_string(public_name)).rewrite(body)
    usage = responses_usage(answer.usage) if answer.usage else None
    return PassedAnswer(body, usage, says_error(answer.error))


def decode_reply(body: bytes) -> Reply:
    """An upstream's answer. Raises `ProtocolError` (502) when it is no response, or one that failed."""
    try:
        head, readable = decode(_HEAD, body)
        if not head.output or head.status in _UNFINISHED:
            raise _garbage("the upstream's answer is no complete response")
        found = assemble(ResponsesDecoder(max_event_bytes=max(len(body), 3)).whole(readable))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise _garbage("the upstream's answer is not a Responses object") from None
    if isinstance(found, Failed):
        problem = found.problem
        raise ProtocolError(problem.message, code=problem.code, status_hint=502, param=problem.param)
    return found


def encode_reply(reply: Reply, envelope: Envelope, ledger: Ledger) -> bytes:
    """The answer for a client of Responses."""
    encoder = ResponsesEncoder(envelope, ledger)
    encoder.encode(reply.deltas())
    if encoder.response is None:
        raise AssertionError("a reply's deltas end")
    return encoder.response


def _garbage(message: str) -> ProtocolError:
    return ProtocolError(message, code="upstream_garbage", status_hint=502)
