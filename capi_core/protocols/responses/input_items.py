"""The `input` of a request: items to turns.

Source: OpenAI API reference, "Create a model response", `input`; wire.md 1.2. Items of the assistant that follow each
other are one turn, as are results of tools; each message of another role is a turn of its own.
"""

from __future__ import annotations

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
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.reading import invalid, read_json, untranslatable
from capi_core.protocols.responses.wire import TYPED, ItemPart

if TYPE_CHECKING:
    from collections.abc import Callable

    from capi_core.fidelity import Ledger

__all__ = ["read_input"]

_ROLES: Final = {role.value: role for role in Role}
_MOST_TYPE: Final = 64


class _Breakpoint(msgspec.Struct):
    ttl: str | None = None


class _InputAudio(msgspec.Struct):
    data: str
    format: str


class _Part(ItemPart):
    detail: str | None = None
    image_url: str | None = None
    file_id: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    filename: str | None = None
    input_audio: _InputAudio | None = None
    prompt_cache_breakpoint: _Breakpoint | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[msgspec.Raw]


class _ReasoningItem(msgspec.Struct):
    summary: list[ItemPart] | None = None
    content: list[ItemPart] | None = None
    encrypted_content: str | None = None


class _FunctionCall(msgspec.Struct):
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None


class _CustomCall(msgspec.Struct):
    call_id: str
    name: str
    input: str
    namespace: str | None = None


class _Output(msgspec.Struct):
    call_id: str
    output: str | list[msgspec.Raw]
    status: str | None = None


_INPUT: Final = msgspec.json.Decoder(str | list[msgspec.Raw])
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MESSAGE: Final = msgspec.json.Decoder(_Message)
_PART: Final = msgspec.json.Decoder(_Part)
_REASONING: Final = msgspec.json.Decoder(_ReasoningItem)
_FUNCTION_CALL: Final = msgspec.json.Decoder(_FunctionCall)
_CUSTOM_CALL: Final = msgspec.json.Decoder(_CustomCall)
_OUTPUT: Final = msgspec.json.Decoder(_Output)


def read_input(raw: bytes, ledger: Ledger) -> list[Turn]:
    """The turns of a request's `input`. Raises `ProtocolError` (400)."""
    given = read_json(_INPUT, raw, "$.input")
    if isinstance(given, str):
        return [Turn(Role.USER, (Text(given, at="$.input"),), at="$.input")] if given else []
    reader = _Reader(ledger)
    for place, item in enumerate(given):
        reader.read(bytes(item), f"$.input[{place}]")
    return reader.turns


class _Growing:
    """A turn to which blocks may be added."""

    __slots__ = ("at", "blocks", "role")

    def __init__(self, role: Role, blocks: list[Block], at: str) -> None:
        self.role = role
        self.blocks = blocks
        self.at = at


class _Reader:
    """Reads the items in order; `turns` is what they became."""

    def __init__(self, ledger: Ledger) -> None:
        self._turns: list[_Growing] = []
        self._ledger = ledger
        self._called: set[str] = set()
        self._readers: Final[dict[str, Callable[[bytes, str], None]]] = {
            "message": self._message,
            "reasoning": self._reasoning,
            "function_call": self._function_call,
            "function_call_output": self._function_output,
            "custom_tool_call": self._custom_call,
            "custom_tool_call_output": self._custom_output,
            "additional_tools": lambda raw, at: None,  # read with the request's tools
        }

    def read(self, raw: bytes, at: str) -> None:
        kind = read_json(TYPED, raw, at).type
        if kind is None:  # only messages and references may leave their type out
            kind = "message" if "role" in read_json(_OBJECT, raw, at) else "item_reference"
        reader = self._readers.get(kind)
        if reader is not None:
            reader(raw, at)
            return
        why = _UNTRANSLATABLE.get(kind)
        if why is not None:
            raise untranslatable(at, why)
        if not kind or len(kind) > _MOST_TYPE:
            raise invalid(f"{at}.type", f"must be the name of an item type, of 1 to {_MOST_TYPE} characters")
        role = Role.USER if kind.endswith(("_output", "_response")) else Role.ASSISTANT
        self._add(role, Opaque(Protocol.RESPONSES, kind, raw, at=at))

    @property
    def turns(self) -> list[Turn]:
        return [Turn(turn.role, tuple(turn.blocks), at=turn.at) for turn in self._turns]

    def _add(self, role: Role, block: Block) -> None:
        """Puts a block into the turn that goes on, or into a new one."""
        last = self._turns[-1] if self._turns else None
        if last is not None and last.role is role and _goes_on(last, block):
            last.blocks.append(block)
        else:
            self._turns.append(_Growing(role, [block], block.at))

    def _message(self, raw: bytes, at: str) -> None:
        message = read_json(_MESSAGE, raw, at)
        role = _ROLES.get(message.role)
        if role is None:
            raise invalid(f"{at}.role", "must be user, assistant, system or developer")
        if isinstance(message.content, str):
            blocks: list[Block] = [Text(message.content, at=f"{at}.content")] if message.content else []
        else:
            blocks = [self._part(bytes(part), f"{at}.content[{place}]") for place, part in enumerate(message.content)]
        if role is not Role.ASSISTANT:
            self._turns.append(_Growing(role, blocks, at))
            return
        for block in blocks:
            self._add(role, block)

    def _part(self, raw: bytes, at: str) -> Block:
        part = read_json(_PART, raw, at)
        mark = part.prompt_cache_breakpoint
        cache = None if mark is None else CacheMark(mark.ttl)
        match part.type:
            case "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text":
                if part.text is None:
                    raise invalid(f"{at}.text", "must be a string")
                if part.annotations:
                    self._ledger.dropped(f"{at}.annotations", "citations are not given back to the model")
                return Text(part.text, cache, at=at)
            case "refusal":
                if part.refusal is None:
                    raise invalid(f"{at}.refusal", "must be a string")
                return Refusal(part.refusal, at=at)
            case "input_image":
                return Image(_image_source(part, at), part.detail, cache, at=at)
            case "input_file":
                return Document(_file_source(part, at), part.filename, cache, at=at)
            case "input_audio":
                if part.input_audio is None:
                    raise invalid(f"{at}.input_audio", "must be an object with `data` and `format`")
                return Audio(part.input_audio.data, part.input_audio.format, at=at)
            case "":
                raise invalid(f"{at}.type", "must be the name of a content type")
            case _:
                return Opaque(Protocol.RESPONSES, part.type[:_MOST_TYPE], raw, at=at)

    def _reasoning(self, raw: bytes, at: str) -> None:
        item = read_json(_REASONING, raw, at)
        parts = tuple(part.words for part in item.summary or item.content or [] if part.words)
        signature = unwrap(item.encrypted_content, Protocol.RESPONSES) if item.encrypted_content else None
        if parts or signature is not None:
            self._add(Role.ASSISTANT, Reasoning(parts, signature, at=at))

    def _function_call(self, raw: bytes, at: str) -> None:
        call = read_json(_FUNCTION_CALL, raw, at)
        self._call(call.call_id, ToolRef(call.name, call.namespace), call.arguments, ToolKind.FUNCTION, at)

    def _custom_call(self, raw: bytes, at: str) -> None:
        call = read_json(_CUSTOM_CALL, raw, at)
        self._call(call.call_id, ToolRef(call.name, call.namespace), call.input, ToolKind.CUSTOM, at)

    def _call(self, call_id: str, tool: ToolRef, text: str, kind: ToolKind, at: str) -> None:
        if not call_id or not tool.name:
            raise invalid(at, "a call has a `call_id` and a `name` that are not empty")
        self._called.add(call_id)
        self._add(Role.ASSISTANT, ToolCall(call_id, tool, text, kind, at=at))

    def _function_output(self, raw: bytes, at: str) -> None:
        self._output(raw, ToolKind.FUNCTION, at)

    def _custom_output(self, raw: bytes, at: str) -> None:
        self._output(raw, ToolKind.CUSTOM, at)

    def _output(self, raw: bytes, kind: ToolKind, at: str) -> None:
        output = read_json(_OUTPUT, raw, at)
        if output.call_id not in self._called:  # OpenAI refuses it too, and so would every other upstream
            raise invalid(f"{at}.call_id", "no tool call before it has this call_id")
        failed = output.status == "incomplete"
        content = self._result(output.output, f"{at}.output")
        self._add(Role.USER, ToolResult(output.call_id, content, failed, kind, at=at))

    def _result(self, output: str | list[msgspec.Raw], at: str) -> tuple[ResultBlock, ...]:
        if isinstance(output, str):
            return (Text(output, at=at),) if output else ()
        blocks: list[ResultBlock] = []
        for place, part in enumerate(output):
            block = self._part(bytes(part), f"{at}[{place}]")
            if isinstance(block, Text | Image | Document):
                blocks.append(block)
            else:
                self._ledger.dropped(f"{at}[{place}]", "a tool's result holds text, images and files only")
        return tuple(blocks)


_UNTRANSLATABLE: Final = {
    "item_reference": "an item_reference needs stored responses, which this upstream lacks: send the items themselves",
    "compaction": "a compaction can only be read by the provider that made it: send the conversation itself",
    "compaction_trigger": "this upstream cannot compact a conversation: shorten it on the client's side",
}


def _goes_on(turn: _Growing, block: Block) -> bool:
    """Whether `block` belongs to `turn`, which has its role: a message of the user is a turn of its own."""
    return turn.role is Role.ASSISTANT or isinstance(turn.blocks[-1] if turn.blocks else block, ToolResult | Opaque)


def _data_url(text: str) -> tuple[str, str] | None:
    """Media type and base64 text of a `data:` URL (RFC 2397) in base64; `None` for anything else."""
    head, comma, data = text.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return None
    return head.removeprefix("data:").removesuffix(";base64").partition(";")[0], data


def _embedded(text: str) -> Source | None:
    found = _data_url(text)
    return None if found is None else Source(SourceKind.BASE64, found[1], found[0] or None)


def _image_source(part: _Part, at: str) -> Source:
    if part.image_url:
        return _embedded(part.image_url) or Source(SourceKind.URL, part.image_url)
    if part.file_id:
        return Source(SourceKind.FILE_ID, part.file_id)
    raise invalid(at, "an image has an `image_url` or a `file_id`")


def _file_source(part: _Part, at: str) -> Source:
    if part.file_data:
        return _embedded(part.file_data) or Source(SourceKind.BASE64, part.file_data)
    if part.file_url:
        return Source(SourceKind.URL, part.file_url)
    if part.file_id:
        return Source(SourceKind.FILE_ID, part.file_id)
    raise invalid(at, "a file has `file_data`, a `file_url` or a `file_id`")
