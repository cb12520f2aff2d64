"""What a streamed and a whole answer of Chat Completions are both written with.

Source: OpenAI API reference, "The chat completion object"; wire.md 1.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.deltas import Annotation, Finish, FinishReason
from capi_core.members import decode
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.writing import json_bytes

if TYPE_CHECKING:
    from capi_core.fidelity import Ledger
    from capi_core.protocols.codec import Envelope

__all__ = ["answer_created", "answer_id", "citation", "finish_word"]

_WORDS: Final = {
    FinishReason.STOP: "stop",
    FinishReason.STOP_SEQUENCE: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TOOL_CALLS: "tool_calls",
    FinishReason.CONTENT_FILTER: "content_filter",
    FinishReason.PAUSE: "stop",
    FinishReason.CONTEXT_FULL: "length",
}
_LOSSY: Final = {
    FinishReason.STOP_SEQUENCE: "Chat does not say that a stop sequence ended the answer",
    FinishReason.PAUSE: "Chat has no pause: the answer looks complete",
    FinishReason.CONTEXT_FULL: "Chat says length for a full context too",
}


class _Place(msgspec.Struct):
    """Where the citing text stands, as a citation of Responses says it."""

    start_index: int | None = None
    end_index: int | None = None


_PLACE: Final = msgspec.json.Decoder(_Place)


def answer_id(given: str, envelope: Envelope) -> str:
    """The upstream's id for the answer, else one of ours."""
    return given or f"chatcmpl-{envelope.request_id}"


def answer_created(given: int | None, envelope: Envelope) -> int:
    """When the answer was made, in seconds since epoch: as the upstream says, else as we know."""
    return envelope.now_s if given is None else given


def finish_word(finish: Finish, ledger: Ledger) -> str:
    """The `finish_reason`; an end that Chat has a weaker word for is noted."""
    note = _LOSSY.get(finish.reason)
    if note is not None:
        ledger.dropped("$.finish_reason", note)
    if finish.detail:
        ledger.dropped("$.finish_reason", "Chat has no place for the words with which an answer was declined")
    return _WORDS[finish.reason]


def citation(annotation: Annotation, length: int, ledger: Ledger) -> bytes | None:
    """The citation on one line of JSON; `None`, and noted, when it is another protocol's and cites no page.

    `length`: characters of the text so far; where the citing text stands, unless it says so itself.
    """
    if annotation.protocol is Protocol.CHAT:
        return msgspec.json.format(annotation.raw, indent=-1)
    if annotation.url is None:
        ledger.dropped("$.choices[0].message.annotations", "a citation that Chat has no form for")
        return None
    try:
        place = decode(_PLACE, annotation.raw)[0]
    except msgspec.DecodeError:
        place = _Place()
    cited = {
        "start_index": length if place.start_index is None else place.start_index,
        "end_index": length if place.end_index is None else place.end_index,
        "title": annotation.title or annotation.url,
        "url": annotation.url,
    }
    return json_bytes({"type": "url_citation", "url_citation": cited})
