"""Whether the user or the agent began a request, and whether it shows images: what Copilot wants told (wire.md 1.8).

`X-Initiator` decides what a request costs, so it is decided by one rule and never to save quota:

- USER when the last message is the user's own: when it holds anything but results of tools;
- AGENT when it is results of tools only, or the assistant's turn.

System and developer messages are instructions that clients put anywhere: the message before them counts. Where nobody
has spoken, or an item is of no known kind, it is USER.

Both functions take any request that the gateway takes. What is malformed deeper down is the upstream's to refuse.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from capi_core.members import decode, is_crowded
from capi_core.protocols.kinds import Protocol

if TYPE_CHECKING:
    from capi_core.members import JSONObject

__all__ = ["Initiator", "has_images", "initiator_of"]

_T = TypeVar("_T")


class Initiator(enum.Enum):
    """The value is that of the header `x-initiator`."""

    USER = "user"
    AGENT = "agent"


_MEMBERS: Final = {Protocol.CHAT: "messages", Protocol.MESSAGES: "messages", Protocol.RESPONSES: "input"}
_INSTRUCTIONS: Final = frozenset({"system", "developer"})
_AGENT_ROLES: Final = frozenset({"assistant", "tool", "function"})
_AGENT_ITEMS: Final = frozenset({"reasoning", "mcp_list_tools", "mcp_approval_request"})
"""Besides calls and their outputs, whose types end like that: what an assistant's turn is made of in Responses."""
_AGENT_ENDINGS: Final = ("_call", "_output")
_RESULT_ENDING: Final = "tool_result"
"""`tool_result`, and what Messages' server tools give back: `web_search_tool_result`, `mcp_tool_result`."""
_SILENT_ITEMS: Final = frozenset({"additional_tools"})

_IMAGES: Final = frozenset({"image", "image_url", "input_image", "computer_screenshot"})
_WRITTEN_IMAGES: Final = tuple(f'"{kind}"'.encode() for kind in sorted(_IMAGES))
"""In a text, the quotes would be escaped."""
_HIDDEN_LETTER: Final = re.compile(rb"\\u00[5-7]")
_MOST_PARTS: Final = 20_000
"""Each part costs a reading of its own."""
_DEEPEST: Final = 5
"""Levels of parts: a message, a tool's result in it, a document in that, its source, an image in that."""


class _Spoken(msgspec.Struct):
    """A message or an item. Open where only some forms are of interest."""

    role: str | None = None
    type: str | None = None
    content: msgspec.Raw = msgspec.Raw()


class _Part(msgspec.Struct):
    """Whatever may hold an image, or is one: a message, an item, a block, a source."""

    type: str | None = None
    content: msgspec.Raw = msgspec.Raw()
    output: msgspec.Raw = msgspec.Raw()
    source: msgspec.Raw = msgspec.Raw()


_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_SPOKEN: Final = msgspec.json.Decoder(_Spoken)
_PART: Final = msgspec.json.Decoder(_Part)


def initiator_of(protocol: Protocol, document: JSONObject) -> Initiator:
    """Who began the request `document` of `protocol`. Never raises."""
    value = document.get(_MEMBERS[protocol]) or b""
    for item in () if is_crowded(value) else reversed(_items(value)):
        spoken = _read(_SPOKEN, item)
        if spoken is None:
            return Initiator.USER
        if spoken.role in _INSTRUCTIONS or spoken.type in _SILENT_ITEMS:
            continue
        return Initiator.AGENT if _is_agents(spoken) else Initiator.USER
    return Initiator.USER


def has_images(protocol: Protocol, document: JSONObject) -> bool:
    """Whether any message of the request shows an image, results of tools included. Never raises.

    Costs a search of the text, and only where that finds what could be the type of an image, a second reading. When
    there are more parts than any client sends, what the search has found decides.
    """
    value = document.get(_MEMBERS[protocol]) or b""
    if not any(kind in value for kind in _WRITTEN_IMAGES) and not _HIDDEN_LETTER.search(value):
        return False
    if is_crowded(value):
        return True
    waiting = [(item, 1) for item in _items(value)[:_MOST_PARTS]]
    for _ in range(_MOST_PARTS):
        if not waiting:
            return False
        raw, level = waiting.pop()
        part = _read(_PART, raw)
        if part is None:
            continue
        if part.type in _IMAGES:
            return True
        if level < _DEEPEST:
            waiting += [(inner, level + 1) for inner in _inner(part)]
    return True


def _is_agents(spoken: _Spoken) -> bool:
    if spoken.role is None:
        kind = spoken.type or ""
        return kind in _AGENT_ITEMS or kind.endswith(_AGENT_ENDINGS)
    if spoken.role in _AGENT_ROLES:
        return True
    parts = _items(spoken.content)
    return bool(parts) and all(_is_result(part) for part in parts)


def _is_result(raw: msgspec.Raw) -> bool:
    part = _read(_PART, raw)
    return part is not None and (part.type or "").endswith(_RESULT_ENDING)


def _inner(part: _Part) -> list[msgspec.Raw]:
    """What may be an image, or hold one, inside a part."""
    objects = [value for value in (part.output, part.source) if _starts_with(value, b"{")]
    return [*_items(part.content)[:_MOST_PARTS], *_items(part.output)[:_MOST_PARTS], *objects]


def _items(value: bytes | msgspec.Raw) -> list[msgspec.Raw]:
    """The elements of a raw array; none for any other value."""
    return (_read(_ITEMS, value) or []) if _starts_with(value, b"[") else []


def _starts_with(value: bytes | msgspec.Raw, bracket: bytes) -> bool:
    return memoryview(value)[:1].tobytes() == bracket


def _read(decoder: msgspec.json.Decoder[_T], raw: bytes | msgspec.Raw) -> _T | None:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _read_mended(decoder, bytes(raw))


def _read_mended(decoder: msgspec.json.Decoder[_T], raw: bytes) -> _T | None:
    """For texts with cut surrogate pairs in them, which `members` takes for JSON and msgspec does not."""
    try:
        return decode(decoder, raw)[0]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
