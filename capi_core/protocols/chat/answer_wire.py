"""What of a Chat Completions answer is read: chunks and whole answers have the same members, in `delta` or `message`.

Sources: OpenAI API reference, "The chat completion object", "The chat completion chunk object"; wire.md 1.1, 1.8. All
members are optional here: servers leave out, or send null for, any of them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from capi_core.deltas import Annotation, FinishReason
from capi_core.members import decode
from capi_core.protocols.kinds import Protocol

__all__ = [
    "CHUNK",
    "FINISH_REASONS",
    "CallPart",
    "Choice",
    "Chunk",
    "Message",
    "read_annotation",
]

FINISH_REASONS: Final = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}
"""By `finish_reason`; a word that is not here ends the answer as well."""


class ContentPart(msgspec.Struct, gc=False):
    """A part of `content` where a server gives a list of them."""

    type: str = ""
    text: str | None = None


class Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class Custom(msgspec.Struct, gc=False):
    name: str | None = None
    input: str | None = None


class CallPart(msgspec.Struct):
    """A tool call, or what a chunk has of it."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None
    custom: Custom | None = None

    @property
    def name(self) -> str:
        """The tool's name, if it is in this part."""
        named = self.function or self.custom
        return (named.name if named is not None else None) or ""

    @property
    def text(self) -> str:
        """Arguments or free input, as far as they are in this part."""
        if self.function is not None:
            return self.function.arguments or ""
        return (self.custom.input if self.custom is not None else None) or ""


class ReasoningDetail(msgspec.Struct, gc=False):
    """OpenRouter's form of reasoning."""

    text: str | None = None
    summary: str | None = None


class Message(msgspec.Struct):
    """A choice's `delta` or `message`."""

    content: str | list[ContentPart] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_text: str | None = None
    reasoning_opaque: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None
    tool_calls: list[CallPart] | None = None
    annotations: list[msgspec.Raw] | None = None

    @property
    def words(self) -> str:
        """The text of `content`."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content if part.type == "text")
        return self.content or ""

    @property
    def thoughts(self) -> str:
        """The reasoning, under whichever name; servers that use two names say the same under both."""
        named = self.reasoning_content or self.reasoning or self.reasoning_text
        if named or not self.reasoning_details:
            return named or ""
        return "".join(detail.text or detail.summary or "" for detail in self.reasoning_details)


class Choice(msgspec.Struct):
    """A choice of a chunk (`delta`) or of a whole answer (`message`)."""

    index: int = 0
    delta: Message | None = None
    message: Message | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    """A chunk, or a whole answer."""

    id: str | None = None
    type: str | None = None
    model: str | None = None
    created: int | float | None = None
    choices: list[Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Cited(msgspec.Struct):
    url: str | None = None
    title: str | None = None


class _Annotation(msgspec.Struct):
    url_citation: _Cited | None = None


CHUNK: Final = msgspec.json.Decoder(Chunk)
_ANNOTATION: Final = msgspec.json.Decoder(_Annotation)


def read_annotation(raw: msgspec.Raw) -> Annotation:
    """A citation, with the page that it cites if it is of a shape that we know."""
    text = bytes(raw).decode("utf-8", "replace").encode()  # what is passed over unread may be no UTF-8
    try:
        cited = decode(_ANNOTATION, text)[0].url_citation
    except (msgspec.DecodeError, RecursionError):
        cited = None
    cited = cited or _Cited()
    return Annotation(Protocol.CHAT, text, cited.url, cited.title)
