"""The messages of a Chat request as turns. Source: OpenAI API reference, "Create chat completion"; wire.md 1.1, 1.5.

Results of tools that follow each other are one turn, as in Messages; every other message is a turn of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import (
    Audio,
    Block,
    CacheMark,
    Document,
    Image,
    Opaque,
    Reasoning,
    Refusal,
    ResultBlock,
    Role,
    Source,
    SourceKind,
    Text,
    ToolCall,
    ToolKind,
    ToolRef,
    ToolResult,
    Turn,
)
from capi_core.protocols.carriage import unwrap
from capi_core.protocols.chat.request_wire import MESSAGE, PART, Message, Part, WireCall
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.reading import invalid, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.fidelity import Ledger

__all__ = ["read_messages"]

_ROLES: Final = {role.value: role for role in Role}
_NOTHING: Final = (b"", b"null", b"[]", b"{}")
_THOUGHTS: Final = ("reasoning_content", "reasoning_text", "reasoning")
_RESULTS: Final = ("tool", "function")
_DATA_URL: Final = re.compile(r"data:([^;,]*)(?:;[^,]*)?;base64,(.*)", re.DOTALL)
_MOST_TYPE: Final = 64
_LEGACY_ID: Final = "call_legacy_"
"""Functions of before tools had no call ids: they are made of the name."""


def read_messages(raws: Iterable[msgspec.Raw], ledger: Ledger) -> list[Turn]:
    """The turns of a request's `messages`. Raises `ProtocolError` (400)."""
    reader = _Reader(ledger)
    for place, raw in enumerate(raws):
        reader.read(bytes(raw), f"$.messages[{place}]")
    return reader.end()


class _Reader:
    """Reads messages in order."""

    def __init__(self, ledger: Ledger) -> None:
        self._turns: list[Turn] = []
        self._results: list[ToolResult] = []
        self._ledger = ledger
        self._called: set[str] = set()

    def read(self, raw: bytes, at: str) -> None:
        message = read_json(MESSAGE, raw, at)
        if message.role in _RESULTS:
            self._results.append(self._result(message, at))
            return
        role = _ROLES.get(message.role)
        if role is None:
            raise invalid(f"{at}.role", f"must be one of {', '.join([*_ROLES, *_RESULTS])}")
        if message.name is not None:
            self._ledger.dropped(f"{at}.name", "the upstream's protocol has no names of speakers")
        if role is Role.ASSISTANT:
            blocks = [*self._thoughts(message, at), *self._content(message, at), *self._calls(message, at)]
        else:
            blocks = self._content(message, at)
        self._note_unread(message, role, at)
        if message.content is None and not blocks and role is not Role.ASSISTANT:
            raise invalid(f"{at}.content", "must be a text or a list of parts")
        self.end()
        if blocks:
            self._turns.append(Turn(role, tuple(blocks), at=at))

    def _note_unread(self, message: Message, role: Role, at: str) -> None:
        """Notes what is lost of a message: what no other protocol has, and what its role does not have."""
        for name in ("audio", "reasoning_details"):
            if bytes(getattr(message, name)) not in _NOTHING:
                self._ledger.dropped(f"{at}.{name}", "has no place in the upstream's protocol")
        for name in () if role is Role.ASSISTANT else (*_THOUGHTS, "reasoning_opaque", "tool_calls", "function_call"):
            if getattr(message, name):
                self._ledger.dropped(f"{at}.{name}", "only the assistant reasons and calls tools")

    def end(self) -> list[Turn]:
        """The turns, with the results of tools that came last."""
        if self._results:
            self._turns.append(Turn(Role.USER, tuple(self._results), at=self._results[0].at))
            self._results = []
        return self._turns

    def _result(self, message: Message, at: str) -> ToolResult:
        if message.role == "function":
            if not message.name:
                raise invalid(f"{at}.name", "must be the function's name")
            call_id = _LEGACY_ID + message.name
        else:
            call_id = message.tool_call_id or ""
            if not call_id:
                raise invalid(f"{at}.tool_call_id", "must be the id of the call that this answers")
        if call_id not in self._called:
            raise invalid(at, "a tool's result must follow the assistant message that called the tool")
        content: list[ResultBlock] = []
        for block in self._content(message, at):
            if isinstance(block, ResultBlock):
                content.append(block)
            else:
                self._ledger.dropped(block.at, "a tool's result takes text, images and documents")
        return ToolResult(call_id, tuple(content), at=at)

    def _thoughts(self, message: Message, at: str) -> list[Block]:
        texts = {name: message_text for name in _THOUGHTS if (message_text := getattr(message, name))}
        name, text = next(iter(texts.items()), ("reasoning_opaque", ""))
        opaque = message.reasoning_opaque
        if not text and not opaque:
            return []
        signature = unwrap(opaque, Protocol.CHAT) if opaque else None
        return [Reasoning((text,) if text else (), signature, at=f"{at}.{name}")]

    def _content(self, message: Message, at: str) -> list[Block]:
        path = f"{at}.content"
        content = message.content
        blocks: list[Block] = []
        if isinstance(content, str):
            blocks = [Text(content, at=path)] if content else []
        elif content is not None:
            for place, raw in enumerate(content):
                part_path = f"{path}[{place}]"
                blocks += self._part(read_json(PART, bytes(raw), part_path), bytes(raw), part_path)
        if message.refusal:
            blocks.append(Refusal(message.refusal, at=f"{at}.refusal"))
        return blocks

    def _part(self, part: Part, raw: bytes, at: str) -> list[Block]:
        mark = part.prompt_cache_breakpoint
        cache = None if mark is None else CacheMark(mark.ttl)
        match part.type:
            case "text":
                if part.text is None:
                    raise invalid(f"{at}.text", "must be a text")
                return [Text(part.text, cache, at=at)] if part.text else []
            case "refusal":
                return [Refusal(part.refusal, at=at)] if part.refusal else []
            case "image_url":
                return [self._image(part, cache, at)]
            case "input_audio":
                if part.input_audio is None:
                    raise invalid(f"{at}.input_audio", "must be an object")
                return [Audio(part.input_audio.data, part.input_audio.format, at=at)]
            case "file":
                return [self._file(part, cache, at)]
            case "":
                raise invalid(f"{at}.type", "must be the name of a content type")
            case _:
                return [Opaque(Protocol.CHAT, part.type[:_MOST_TYPE], raw, at=at)]

    def _image(self, part: Part, cache: CacheMark | None, at: str) -> Image:
        image = part.image_url
        if image is None:
            raise invalid(f"{at}.image_url", "must be an object with a `url`")
        url, detail = (image, None) if isinstance(image, str) else (image.url, image.detail)
        if not url:
            raise invalid(f"{at}.image_url.url", "must not be empty")
        return Image(_source(url, SourceKind.URL, f"{at}.image_url.url"), detail, cache, at=at)

    def _file(self, part: Part, cache: CacheMark | None, at: str) -> Document:
        file = part.file
        if file is None or not (file.file_data or file.file_id):
            raise invalid(f"{at}.file", "must have `file_data` or `file_id`")
        source = (
            _source(file.file_data, SourceKind.BASE64, f"{at}.file.file_data")
            if file.file_data
            else Source(SourceKind.FILE_ID, file.file_id or "")
        )
        return Document(source, file.filename, cache, at=at)

    def _calls(self, message: Message, at: str) -> list[Block]:
        calls = [(call, f"{at}.tool_calls[{place}]") for place, call in enumerate(message.tool_calls or ())]
        called = message.function_call
        if called is not None:
            calls.append((WireCall(_LEGACY_ID + called.name, "function", called), f"{at}.function_call"))
        return [self._call(call, path) for call, path in calls]

    def _call(self, call: WireCall, at: str) -> Block:
        if not call.id:
            raise invalid(f"{at}.id", "must not be empty")
        self._called.add(call.id)
        named = call.function or call.custom
        if named is None or not named.name:
            raise invalid(at, "must have a `function` or a `custom` with a name")
        if call.function is not None:
            return ToolCall(call.id, ToolRef(call.function.name), call.function.arguments, at=at)
        free = "" if call.custom is None else call.custom.input
        return ToolCall(call.id, ToolRef(named.name), free, ToolKind.CUSTOM, at=at)


def _source(text: str, otherwise: SourceKind, at: str) -> Source:
    """The content that a data URL holds; any other text is an address, or bare base64, as the member says."""
    found = _DATA_URL.fullmatch(text)
    if found is not None:
        return Source(SourceKind.BASE64, found[2], found[1] or None)
    if text.startswith("data:"):
        raise invalid(at, "a data URL must hold base64")
    return Source(otherwise, text)
