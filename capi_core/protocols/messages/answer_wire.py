"""What several modules of Messages read and write of answers: blocks, ids and stop reasons.

Sources: Anthropic API reference, "Create a Message" and "Streaming Messages"; wire.md 1.3. All members are optional
here where a server is known to leave them out or to send null.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import Signature
from capi_core.deltas import Annotation, FinishReason
from capi_core.members import decode
from capi_core.protocols.carriage import wrap
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.writing import json_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capi_core.deltas import Finish

__all__ = [
    "BLOCK",
    "REASONS",
    "UNSHOWN",
    "UNSIGNED",
    "ContentBlock",
    "StopDetails",
    "annotation_of",
    "message_id",
    "stop_members",
]

UNSHOWN: Final = "unshown."
"""What the value of a signature starts with whose thinking was not shown (`display: omitted`): it is given back as a
`thinking` block with an empty text, where a value without a text is otherwise the `data` of `redacted_thinking`. No
signature of a provider starts like that: base64 has no full stop."""

UNSIGNED: Final = wrap(Signature(Protocol.CHAT, ""), Protocol.MESSAGES)
"""The signature of thinking that has none. An empty one would be refused by Anthropic when the client replays it; this
one is known as ours, and the block is left out for an upstream of Messages."""


class ContentBlock(msgspec.Struct):
    """A block of an answer, of any type. `input` is raw: it is an object for a tool, and unread here."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw()
    citations: list[msgspec.Raw] | None = None


class StopDetails(msgspec.Struct):
    """Why the provider declined."""

    explanation: str | None = None


class _Citation(msgspec.Struct):
    url: str | None = None
    title: str | None = None


BLOCK: Final = msgspec.json.Decoder(ContentBlock)
_CITATION: Final = msgspec.json.Decoder(_Citation)

REASONS: Final[Mapping[str, FinishReason]] = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP_SEQUENCE,
    "max_tokens": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
    "pause_turn": FinishReason.PAUSE,
    "model_context_window_exceeded": FinishReason.CONTEXT_FULL,
}
_WORDS: Final = {reason: word for word, reason in REASONS.items()}
_OWN_ID: Final = re.compile(r"msg_[A-Za-z0-9_-]{1,128}")


def annotation_of(raw: msgspec.Raw) -> Annotation:
    """A citation of Messages. Raises `msgspec.DecodeError` when it is no object, `UnicodeError` when not in UTF-8."""
    cited, readable = decode(_CITATION, bytes(raw))
    readable.decode()  # it is passed on as it is
    return Annotation(Protocol.MESSAGES, readable, cited.url, cited.title)


def message_id(upstream_id: str, request_id: str) -> str:
    """The id of a Message: the upstream's where that looks like one, else ours."""
    return upstream_id if _OWN_ID.fullmatch(upstream_id) else f"msg_{request_id}"


def stop_members(finish: Finish, *, called: bool, refused: bool) -> bytes:
    """`stop_reason` and what goes with it, as members of a JSON object.

    Clients act on tools when it is `tool_use`, and only then look for them: it is so exactly when the answer calls one
    and was not cut short. Words of refusal have no block of their own, so the reason has to tell.
    """
    reason = finish.reason
    if reason in (FinishReason.STOP, FinishReason.TOOL_CALLS):
        reason = FinishReason.TOOL_CALLS if called else FinishReason.STOP
    if reason is FinishReason.STOP and refused:
        reason = FinishReason.CONTENT_FILTER
    sequence = finish.stop_sequence if reason is FinishReason.STOP_SEQUENCE else None
    members = b'"stop_reason":"%b","stop_sequence":%b' % (_WORDS[reason].encode(), json_bytes(sequence))
    if reason is FinishReason.CONTENT_FILTER and finish.detail is not None:
        details = {"type": "refusal", "category": None, "explanation": finish.detail}
        members += b',"stop_details":%b' % json_bytes(details)
    return members
