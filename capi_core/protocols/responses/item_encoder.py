"""Turns as the items of a Responses request.

Source: OpenAI API reference, "Create a model response", `input`; wire.md 1.2, 1.5, 1.8. No item has an id: providers
bind what they encrypted to the id that they gave, and take it without one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from capi_core.conversation import (
    Audio,
    Block,
    CacheMark,
    Conversation,
    Document,
    Image,
    Opaque,
    Reasoning,
    Refusal,
    Role,
    SourceKind,
    Text,
    ToolCall,
    ToolKind,
    ToolResult,
    Turn,
)
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.tool_encoder import wire_name

if TYPE_CHECKING:
    from capi_core.target import Target
    from capi_core.tool_names import ToolNames

__all__ = ["ItemEncoder"]

_MOST_CALL_ID: Final = 64
_OPENAI: Final = (Protocol.CHAT, Protocol.RESPONSES)
_SPECIAL: Final = (Reasoning, ToolCall, ToolResult, Opaque)
"""Blocks that are items of their own; all others are parts of messages."""


class ItemEncoder:
    """Encodes one conversation's turns, in order: a result's item depends on the call that it answers."""

    def __init__(self, conversation: Conversation, target: Target, names: ToolNames, ledger: Ledger) -> None:
        self._target = target
        self._names = names
        self._ledger = ledger
        self._openai = conversation.protocol in _OPENAI
        self._kinds = {
            block.id: block.kind for turn in conversation.turns for block in turn.blocks if isinstance(block, ToolCall)
        }

    def items(self, turn: Turn) -> list[object]:
        """The items of one turn. Results of tools come first, so that nothing stands between them and their calls."""
        blocks = sorted(turn.blocks, key=lambda block: not isinstance(block, ToolResult))
        items: list[object] = []
        parts: list[object] = []
        for block in blocks:
            if not isinstance(block, _SPECIAL):
                parts += self._part(turn.role, block)
                continue
            items += self._message(turn.role, parts)
            parts = []
            items += self._special(block)
        return items + self._message(turn.role, parts)

    def note_cache(self, cache: CacheMark | None, at: str) -> None:
        """Notes a cache point that has no place where its block goes."""
        if cache is not None:
            self._ledger.dropped(at, "the provider decides itself what it caches")

    def _message(self, role: Role, parts: list[object]) -> list[object]:
        if not parts:
            return []
        if role is Role.DEVELOPER and not self._target.developer_role:
            role = Role.SYSTEM
        return [{"type": "message", "role": role.value, "content": parts}]

    def _special(self, block: Reasoning | ToolCall | ToolResult | Opaque) -> list[object]:
        match block:
            case Reasoning():
                return self._reasoning(block)
            case ToolCall():
                return [self._call(block)]
            case ToolResult():
                return [self._result(block)]
            case _:
                self._ledger.dropped(block.at, "only its own provider knows it")
                return []

    def _reasoning(self, block: Reasoning) -> list[object]:
        signature = block.signature
        if signature is None or signature.origin is not Protocol.RESPONSES or not signature.value:
            self._ledger.dropped(block.at, "a provider takes only reasoning back that it signed itself")
            return []
        summary = [{"type": "summary_text", "text": part} for part in block.parts if part]
        return [{"type": "reasoning", "summary": summary, "encrypted_content": signature.value}]

    def _call(self, call: ToolCall) -> object:
        self.note_cache(call.cache, call.at)
        called = {"call_id": self._call_id(call.id, call.at), "name": self._name(call)}
        if call.kind is ToolKind.CUSTOM:
            return {"type": "custom_tool_call", **called, "input": call.arguments}
        return {"type": "function_call", **called, "arguments": call.arguments or "{}"}

    def _name(self, call: ToolCall) -> str:
        return wire_name(call.tool, self._names, self._ledger, call.at)

    def _call_id(self, call_id: str, at: str) -> str:
        """The id, or in place of one that OpenAI refuses a digest of it: the same for the call and its result."""
        if 0 < len(call_id) <= _MOST_CALL_ID:
            return call_id
        self._ledger.add(Change.SYNTHESISED, at, f"the upstream takes call ids of 1 to {_MOST_CALL_ID} characters")
        return "call_" + hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:32]

    def _result(self, result: ToolResult) -> object:
        self.note_cache(result.cache, result.at)
        kind = self._kinds.get(result.call_id, result.kind)
        item: dict[str, object] = {
            "type": "custom_tool_call_output" if kind is ToolKind.CUSTOM else "function_call_output",
            "call_id": self._call_id(result.call_id, result.at),
            "output": self._output(result),
        }
        if result.is_error:
            self._ledger.add(Change.ALTERED, result.at, "that the tool failed is told by the status `incomplete` only")
            item["status"] = "incomplete"
        return item

    def _output(self, result: ToolResult) -> object:
        match result.content:
            case ():
                return ""
            case (Text(text=text, cache=cache, at=at),):
                self.note_cache(cache, at)
                return text
            case blocks:
                return [part for block in blocks for part in self._part(Role.USER, block)] or ""

    def _part(self, role: Role, block: Block) -> list[object]:
        """The part of a message that a block becomes, in a list that is empty when nothing is left of it."""
        speaks = role is Role.ASSISTANT
        match block:
            case Text():
                return self._text(block, speaks=speaks)
            case Refusal():
                return [{"type": "refusal", "refusal": block.text} if speaks else _input_text(block.text)]
            case Image() if not speaks:
                return self._marked(self._image(block), block.cache, block.at)
            case Document() if not speaks:
                return self._marked(self._document(block), block.cache, block.at)
            case _:
                what = "Responses takes no audio" if isinstance(block, Audio) else "the assistant has only text here"
                self._ledger.dropped(block.at, what)
                return []

    def _text(self, block: Text, *, speaks: bool) -> list[object]:
        if not block.text:
            return []
        if speaks:
            self.note_cache(block.cache, block.at)
            return [{"type": "output_text", "text": block.text}]
        return self._marked(_input_text(block.text), block.cache, block.at)

    def _marked(self, part: dict[str, object] | None, cache: CacheMark | None, at: str) -> list[object]:
        if part is None:
            return []
        if cache is not None and self._openai:
            mark: dict[str, object] = {"mode": "explicit"}
            if cache.ttl is not None:
                mark["ttl"] = cache.ttl
            part["prompt_cache_breakpoint"] = mark
        else:
            self.note_cache(cache, at)
        return [part]

    def _image(self, image: Image) -> dict[str, object] | None:
        source = image.source
        part: dict[str, object] = {"type": "input_image", "detail": image.detail or "auto"}
        if self._target.images is False:
            self._ledger.dropped(image.at, "the model takes no images")
            return None
        match source.kind:
            case SourceKind.BASE64:
                return {**part, "image_url": f"data:{source.media_type or 'image/png'};base64,{source.value}"}
            case SourceKind.URL if self._target.image_urls:
                return {**part, "image_url": source.value}
            case SourceKind.FILE_ID if self._openai:
                return {**part, "file_id": source.value}
            case _:
                self._ledger.dropped(image.at, "the upstream cannot fetch it: send it as base64")
                return None

    def _document(self, document: Document) -> dict[str, object] | None:
        source = document.source
        name = {} if document.title is None else {"filename": document.title}
        match source.kind:
            case SourceKind.BASE64:
                data = f"data:{source.media_type or 'application/pdf'};base64,{source.value}"
                return {"type": "input_file", "filename": document.title or "document.pdf", "file_data": data}
            case SourceKind.URL:
                return {"type": "input_file", **name, "file_url": source.value}
            case SourceKind.FILE_ID if self._openai:
                return {"type": "input_file", **name, "file_id": source.value}
            case SourceKind.TEXT if source.value:
                self._ledger.add(Change.ALTERED, document.at, "the text of a document is sent as plain text")
                return _input_text(f"{document.title}\n\n{source.value}" if document.title else source.value)
            case _:
                self._ledger.dropped(document.at, "an id of another provider's file, or an empty text")
                return None


def _input_text(text: str) -> dict[str, object]:
    return {"type": "input_text", "text": text}
