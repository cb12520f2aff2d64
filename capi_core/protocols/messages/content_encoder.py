"""Blocks as the content blocks of a Messages request.

Source: Anthropic API reference, "Create a Message", `messages[].content`; wire.md 1.3, 1.5. Blank texts are refused by
Anthropic and say nothing: they are left out.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import (
    Audio,
    Block,
    Conversation,
    Document,
    Image,
    Opaque,
    Reasoning,
    Refusal,
    Source,
    SourceKind,
    Text,
    ToolCall,
    ToolKind,
    ToolResult,
)
from capi_core.deltas import PART_BREAK
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.answer_wire import UNSHOWN
from capi_core.protocols.messages.request_wire import untranslatable
from capi_core.protocols.messages.tool_encoder import wire_name
from capi_core.protocols.reading import is_json

if TYPE_CHECKING:
    from capi_core.protocols.messages.cache_marks import CacheMarks
    from capi_core.target import Target
    from capi_core.tool_names import ToolNames

__all__ = ["ContentEncoder"]

_IMAGE_STARTS: Final = {"/9j/": "image/jpeg", "iVBOR": "image/png", "R0lG": "image/gif", "UklG": "image/webp"}
"""How the base64 text of an image starts, for one that came without its media type."""
_PDF: Final = "application/pdf"


class ContentEncoder:
    """Encodes the blocks of one conversation. A block of which nothing is left is an empty list."""

    def __init__(
        self, conversation: Conversation, target: Target, names: ToolNames, marks: CacheMarks, ledger: Ledger
    ) -> None:
        self._native = conversation.protocol is Protocol.MESSAGES
        self._target = target
        self._names = names
        self._marks = marks
        self._ledger = ledger

    def system(self, block: Block) -> list[object]:
        """A block of a system or developer turn: only its text counts."""
        match block:
            case Text():
                return self._text(block)
            case Refusal():
                return _plain(block.text)
            case _:
                self._ledger.dropped(block.at, "a system prompt is made of text")
                return []

    def user(self, block: Block) -> list[object]:
        """A block of a user turn, which is no tool's result."""
        match block:
            case Text():
                return self._text(block)
            case Refusal():
                return _plain(block.text)
            case Image():
                return self._image(block)
            case Document():
                return self._document(block)
            case _:
                return self._own(block)

    def assistant(self, block: Block, call_id: str) -> list[object]:
        """A block of an assistant turn. `call_id`: the id under which a tool call goes."""
        match block:
            case Text():
                return self._text(block)
            case Refusal():
                self._ledger.add(Change.ALTERED, block.at, "a refusal is sent as text")
                return _plain(block.text)
            case Reasoning():
                return self._reasoning(block)
            case ToolCall():
                return [self._call(block, call_id)]
            case _:
                return self._own(block)

    def result(self, result: ToolResult, call_id: str) -> object:
        """The `tool_result` for the call that goes as `call_id`."""
        part: dict[str, object] = {"type": "tool_result", "tool_use_id": call_id}
        match result.content:
            case (Text(text=text, cache=None),) if text.strip():
                part["content"] = text
            case blocks:
                content = [one for block in blocks for one in self.user(block)]
                if content:
                    part["content"] = content
        if result.is_error:
            if "content" not in part:  # Anthropic refuses an error without content
                self._ledger.add(Change.SYNTHESISED, result.at, "an error without content is given one")
                part["content"] = "The tool failed and gave no output."
            part["is_error"] = True
        return self._marks.put(part, result.cache, result.at)

    def _text(self, block: Text) -> list[object]:
        if not block.text.strip():
            return []
        return [self._marks.put({"type": "text", "text": block.text}, block.cache, block.at)]

    def _own(self, block: Block) -> list[object]:
        """Blocks of Messages' own pass as they are; all others have no place here."""
        if isinstance(block, Opaque) and block.protocol is Protocol.MESSAGES:
            return [msgspec.Raw(block.raw)]
        self._ledger.dropped(block.at, _why_not(block))
        return []

    def _reasoning(self, block: Reasoning) -> list[object]:
        signature = block.signature
        value = "" if signature is None or signature.origin is not Protocol.MESSAGES else signature.value
        signed = value.removeprefix(UNSHOWN)
        if not signed:
            self._ledger.dropped(block.at, "a provider takes only reasoning back that it signed itself")
            return []
        if not block.parts and signed == value:
            return [{"type": "redacted_thinking", "data": signed}]
        return [{"type": "thinking", "thinking": PART_BREAK.join(block.parts), "signature": signed}]

    def _call(self, call: ToolCall, call_id: str) -> object:
        name = wire_name(call.tool, self._names, self._ledger, call.at, call.kind)
        part = {"type": "tool_use", "id": call_id, "name": name, "input": self._input(call)}
        return self._marks.put(part, call.cache, call.at)

    def _input(self, call: ToolCall) -> object:
        if call.kind is ToolKind.CUSTOM:
            return {"input": call.arguments}
        raw = call.arguments.strip().encode("utf-8", "replace")
        if not raw:
            return {}
        if raw.startswith(b"{") and is_json(raw):
            return msgspec.Raw(raw)
        self._ledger.add(Change.ALTERED, call.at, "arguments that are no JSON object go as the member `arguments`")
        return {"arguments": call.arguments}

    def _image(self, image: Image) -> list[object]:
        if self._target.images is False:
            raise untranslatable(image.at, "the model takes no images: leave them out or choose another model")
        if image.detail not in (None, "auto"):
            self._ledger.dropped(f"{image.at}.detail", "Anthropic chooses the resolution itself")
        source = self._image_source(image.source, image.at)
        if source is None:
            return []
        return [self._marks.put({"type": "image", "source": source}, image.cache, image.at)]

    def _image_source(self, source: Source, at: str) -> dict[str, object] | None:
        match source.kind:
            case SourceKind.BASE64:
                media_type = source.media_type or _sniffed(source.value)
                media_type = "image/jpeg" if media_type == "image/jpg" else media_type
                return {"type": "base64", "media_type": media_type, "data": source.value}
            case SourceKind.URL:
                if not self._target.image_urls:
                    raise untranslatable(at, "the upstream fetches no images from URLs: send them as base64")
                return {"type": "url", "url": source.value}
            case _:
                return self._file(source, at)

    def _file(self, source: Source, at: str) -> dict[str, object] | None:
        if source.kind is SourceKind.FILE_ID and self._native:
            return {"type": "file", "file_id": source.value}
        self._ledger.dropped(at, "an id of another provider's file, or an empty text")
        return None

    def _document(self, document: Document) -> list[object]:
        source = self._document_source(document.source, document.at)
        if source is None:
            return []
        part: dict[str, object] = {"type": "document", "source": source}
        if document.title:
            part["title"] = document.title
        return [self._marks.put(part, document.cache, document.at)]

    def _document_source(self, source: Source, at: str) -> dict[str, object] | None:
        match source.kind:
            case SourceKind.BASE64:
                return self._embedded(source, at)
            case SourceKind.URL:
                return {"type": "url", "url": source.value}
            case SourceKind.TEXT if source.value.strip():
                return _text_source(source.value)
            case _:
                return self._file(source, at)

    def _embedded(self, source: Source, at: str) -> dict[str, object] | None:
        """Anthropic reads PDFs, and text that is not in base64."""
        media_type = source.media_type or _PDF
        if media_type == _PDF:
            return {"type": "base64", "media_type": _PDF, "data": source.value}
        text = _decoded(source.value) if media_type.startswith("text/") else None
        if text is None or not text.strip():
            self._ledger.dropped(at, "Anthropic reads PDFs and text only")
            return None
        return _text_source(text)


def _plain(text: str) -> list[object]:
    return [{"type": "text", "text": text}] if text.strip() else []


def _text_source(text: str) -> dict[str, object]:
    return {"type": "text", "media_type": "text/plain", "data": text}


def _sniffed(data: str) -> str:
    return next((media for start, media in _IMAGE_STARTS.items() if data.startswith(start)), "image/png")


def _decoded(data: str) -> str | None:
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def _why_not(block: Block) -> str:
    match block:
        case Opaque():
            return "only its own provider knows it"
        case Audio():
            return "Anthropic takes no audio"
        case _:
            return "it has no place in a turn of this role"
