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
    return reader.turns


class _Reader:
    """Reads messages in order; `turns` is what they became so far."""

    def __init__(self, ledger: Ledger) -> None:
        self.turns: list[Turn] = []
        self._ledger = ledger
        self._called: set[str] = set()
        self._after_result = False

    def read(self, raw: bytes, at: str) -> None:
        message = read_json(MESSAGE, raw, at)
        if message.role in _RESULTS:
            self._add_result(self._result(message, at), at)
            return
        role = _ROLES.get(message.role)
        if role is None:
            raise invalid(f"{at}.role", f"must be one of {', '.join([*_ROLES, *_RESULTS])}")
        if message.name is not None:
            self._ledger.dropped(f"{at}.name", "the upstream's protocol has no names of speakers")
        blocks = [*self._thoughts(message, at), *self._content(message, at), *self._calls(message, at)]
        if message.content is None and not blocks and role is not Role.ASSISTANT:
            raise invalid(f"{at}.content", "must be a text or a list of parts")
        self._after_result = False
        if blocks:
            self.turns.append(Turn(role, tuple(blocks), at=at))

    def _add_result(self, result: ToolResult, at: str) -> None:
        if self._after_result:
            last = self.turns.pop()
            self.turns.append(Turn(Role.USER, (*last.blocks, result), at=last.at))
        else:
            self.turns.append(Turn(Role.USER, (result,), at=at))
        self._after_result = True

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
        text = message.reasoning_content or message.reasoning_text or message.reasoning
        opaque = message.reasoning_opaque
        if not text and not opaque:
            return []
        signature = unwrap(opaque, Protocol.CHAT) if opaque else None
        return [Reasoning((text,) if text else (), signature, at=f"{at}.reasoning_content")]

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
                return [Refusal(part.refusal or "", at=at)]
            case "image_url":
                return [self._image(part, cache, at)]
            case "input_audio":
                if part.input_audio is None:
                    raise invalid(f"{at}.input_audio", "must be an object")
                return [Audio(part.input_audio.data, part.input_audio.format, at=at)]
            case "file":
                return [self._file(part, cache, at)]
            case _:
                return [Opaque(Protocol.CHAT, part.type[:_MOST_TYPE], raw, at=at)]

    def _image(self, part: Part, cache: CacheMark | None, at: str) -> Image:
        image = part.image_url
        if image is None:
            raise invalid(f"{at}.image_url", "must be an object with a `url`")
        url, detail = (image, None) if isinstance(image, str) else (image.url, image.detail)
        if not url:
            raise invalid(f"{at}.image_url.url", "must not be empty")
        return Image(_source(url, SourceKind.URL), detail, cache, at=at)

    def _file(self, part: Part, cache: CacheMark | None, at: str) -> Document:
        file = part.file
        if file is None or not (file.file_data or file.file_id):
            raise invalid(f"{at}.file", "must have `file_data` or `file_id`")
        source = (
            _source(file.file_data, SourceKind.BASE64)
            if file.file_data
            else Source(SourceKind.FILE_ID, file.file_id or "")
        )
        return Document(source, file.filename, cache, at=at)

    def _calls(self, message: Message, at: str) -> list[Block]:
        calls = list(message.tool_calls or ())
        if message.function_call is not None:
            called = message.function_call
            calls.append(WireCall(_LEGACY_ID + called.name, "function", called))
        return [self._call(call, f"{at}.tool_calls[{place}]") for place, call in enumerate(calls)]

    def _call(self, call: WireCall, at: str) -> Block:
        if not call.id:
            raise invalid(f"{at}.id", "must not be empty")
        self._called.add(call.id)
        if call.function is not None:
            return ToolCall(call.id, ToolRef(call.function.name), call.function.arguments, at=at)
        if call.custom is not None:
            return ToolCall(call.id, ToolRef(call.custom.name), call.custom.input, ToolKind.CUSTOM, at=at)
        raise invalid(at, "must have a `function` or a `custom`")


def _source(text: str, otherwise: SourceKind) -> Source:
    """The content that a data URL holds; any other text is an address, or bare base64, as the member says."""
    found = _DATA_URL.fullmatch(text)
    if found is not None:
        return Source(SourceKind.BASE64, found[2], found[1] or None)
    return Source(otherwise, text)
