"""Turns as the messages of a Chat request. Source: OpenAI API reference, "Create chat completion"; wire.md 1.1, 1.5,
1.8.

A result of a tool is a message of its own and has text only, so its images follow in a user message. Results come
before what else was said in their turn: nothing may stand between them and their calls.
"""

from __future__ import annotations

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
from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.chat.tool_encoder import wire_name
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.writing import json_bytes
from capi_core.target import ReasoningMember

if TYPE_CHECKING:
    from capi_core.target import Target
    from capi_core.tool_names import ToolNames

__all__ = ["MessageEncoder"]

_OPENAI: Final = (Protocol.CHAT, Protocol.RESPONSES)
_FAILED: Final = "The tool failed: "
"""Before the result of a tool that failed: Chat has no other way to say so."""

Part = dict[str, object]


class MessageEncoder:
    """Encodes one conversation's turns, in order."""

    def __init__(self, conversation: Conversation, target: Target, names: ToolNames, ledger: Ledger) -> None:
        self._target = target
        self._names = names
        self._ledger = ledger
        self._openai = conversation.protocol in _OPENAI

    def messages(self, turn: Turn) -> list[Part]:
        """The messages of one turn; none when nothing is left of it. Raises `ProtocolError` (400) for an image that the
        model does not take."""
        match turn.role:
            case Role.ASSISTANT:
                return self._assistant(turn)
            case Role.USER:
                return self._user(turn)
            case role:
                if role is Role.DEVELOPER and not self._target.developer_role:
                    role = Role.SYSTEM
                return self._message(role.value, [part for block in turn.blocks for part in self._part(block)])

    def _message(self, role: str, parts: list[Part]) -> list[Part]:
        """One text alone is a string, which every server takes."""
        if not parts:
            return []
        if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
            return [{"role": role, "content": parts[0]["text"]}]
        return [{"role": role, "content": parts}]

    def _user(self, turn: Turn) -> list[Part]:
        messages: list[Part] = []
        parts: list[Part] = []
        for block in turn.blocks:
            if isinstance(block, ToolResult):
                message, more = self._result(block)
                messages.append(message)
                parts += more
        for block in turn.blocks:
            parts += self._part(block)
        return messages + self._message("user", parts)

    def _result(self, result: ToolResult) -> tuple[Part, list[Part]]:
        """The tool's message, and the parts that a user has to send in its place."""
        self._note_cache(result.cache, result.at)
        texts, more = [], []
        for block in result.content:
            if isinstance(block, Text):
                self._note_cache(block.cache, block.at)
                texts.append(block.text)
            else:
                more += self._part(block)
        if more:
            self._ledger.add(Change.ALTERED, result.at, "a tool's result has text only: the rest follows as the user's")
            more.insert(0, {"type": "text", "text": f"This belongs to the result of the tool call {result.call_id}:"})
        text = "\n".join(texts)
        if result.is_error:
            self._ledger.add(Change.ALTERED, result.at, "that the tool failed is said in the text of its result")
            text = _FAILED + text
        return {"role": "tool", "tool_call_id": result.call_id, "content": text}, more

    def _assistant(self, turn: Turn) -> list[Part]:
        message: Part = {"role": "assistant", "content": None}
        texts: list[str] = []
        calls: list[Part] = []
        for block in turn.blocks:
            match block:
                case Text():
                    self._note_cache(block.cache, block.at)
                    texts.append(block.text)
                case Refusal():
                    message["refusal"] = str(message.get("refusal", "")) + block.text
                case Reasoning():
                    self._put_reasoning(block, message)
                case ToolCall():
                    calls.append(self._call(block))
                case _:
                    self._ledger.dropped(block.at, "an assistant's message has only text and calls here")
        if any(texts):
            message["content"] = "".join(texts)
        if calls:
            message["tool_calls"] = calls
        if len(message) == 2 and message["content"] is None:
            return []
        if message["content"] is None and not calls and "refusal" not in message:
            message["content"] = ""  # reasoning alone
        return [message]

    def _put_reasoning(self, block: Reasoning, message: Part) -> None:
        member = self._target.reasoning_member
        signature = block.signature
        if member is ReasoningMember.NONE:
            self._ledger.dropped(block.at, "this upstream takes no reasoning back")
            return
        text = "\n\n".join(filter(None, [str(message.get(member.value, "")), *block.parts]))
        if text:
            message[member.value] = text
        if signature is None:
            return
        if member is ReasoningMember.REASONING_TEXT and signature.origin is Protocol.CHAT:
            message["reasoning_opaque"] = signature.value
        else:
            self._ledger.dropped(block.at, "a provider takes only reasoning back that it signed itself")

    def _call(self, call: ToolCall) -> Part:
        self._note_cache(call.cache, call.at)
        name = wire_name(call.tool, call.kind, self._names, self._ledger, call.at)
        arguments = call.arguments or "{}"
        if call.kind is ToolKind.CUSTOM:
            arguments = json_bytes({"input": call.arguments}).decode()
        return {"id": call.id, "type": "function", "function": {"name": name, "arguments": arguments}}

    # -- parts --------------------------------------------------------------------------------------------------

    def _part(self, block: Block) -> list[Part]:
        """The part of a user's or a system's message, in a list that is empty when nothing is left of it."""
        match block:
            case Text():
                return self._marked({"type": "text", "text": block.text}, block.cache, block.at) if block.text else []
            case Refusal():
                return [{"type": "text", "text": block.text}] if block.text else []
            case Image():
                return self._marked(self._image(block), block.cache, block.at)
            case Document():
                return self._marked(self._document(block), block.cache, block.at)
            case Audio():
                return [{"type": "input_audio", "input_audio": {"data": block.data, "format": block.format}}]
            case ToolResult():
                return []  # a message of its own
            case Opaque(protocol=Protocol.CHAT):
                return []
            case _:
                self._ledger.dropped(block.at, "only its own provider knows it")
                return []

    def _marked(self, part: Part | None, cache: CacheMark | None, at: str) -> list[Part]:
        if part is None:
            return []
        if cache is not None and self._openai:
            mark: Part = {"mode": "explicit"}
            if cache.ttl is not None:
                mark["ttl"] = cache.ttl
            part["prompt_cache_breakpoint"] = mark
        else:
            self._note_cache(cache, at)
        return [part]

    def _note_cache(self, cache: CacheMark | None, at: str) -> None:
        if cache is not None:
            self._ledger.dropped(at, "the provider decides itself what it caches")

    def _image(self, image: Image) -> Part | None:
        source = image.source
        if self._target.images is False:
            raise _no_image(image.at, "this model takes no images: choose one that does")
        match source.kind:
            case SourceKind.BASE64:
                url = f"data:{source.media_type or 'image/png'};base64,{source.value}"
            case SourceKind.URL if self._target.image_urls:
                url = source.value
            case SourceKind.URL:
                raise _no_image(image.at, "this upstream does not fetch images: send it as base64")
            case _:
                self._ledger.dropped(image.at, "an id of another provider's file")
                return None
        detail = {} if image.detail is None else {"detail": image.detail}
        return {"type": "image_url", "image_url": {"url": url, **detail}}

    def _document(self, document: Document) -> Part | None:
        source = document.source
        match source.kind:
            case SourceKind.BASE64:
                data = f"data:{source.media_type or 'application/pdf'};base64,{source.value}"
                return {"type": "file", "file": {"filename": document.title or "document.pdf", "file_data": data}}
            case SourceKind.FILE_ID if self._openai:
                return {"type": "file", "file": {"file_id": source.value}}
            case SourceKind.TEXT if source.value:
                self._ledger.add(Change.ALTERED, document.at, "the text of a document is sent as plain text")
                text = f"{document.title}\n\n{source.value}" if document.title else source.value
                return {"type": "text", "text": text}
            case _:
                self._ledger.dropped(document.at, "Chat takes files as base64 only")
                return None


def _no_image(at: str, message: str) -> ProtocolError:
    return ProtocolError(message, code="image_not_supported", param=at.removeprefix("$."))
