"""The items of our own answers, open and done, and the events that belong to one.

Source: OpenAI API reference, "Streaming events"; wire.md 1.2, 1.7. Each block of an answer is one item, with one
part at most: blocks may overlap, and an item has its own `output_index`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import ToolRef
from capi_core.deltas import BlockKind, BlockStart
from capi_core.protocols.carriage import wrap
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.writing import json_text

if TYPE_CHECKING:
    from capi_core.conversation import Signature

__all__ = ["OpenItem"]


class _Form(msgspec.Struct, frozen=True):
    """How a kind of block is told. `prefix`: of the item's id; `event`: of the text's events, without `.delta`;
    `member`: with the whole text in `.done`; `place`: raw members that say which part the text belongs to; `extra`: raw
    members that the events need besides."""

    prefix: str
    event: bytes
    member: bytes
    place: bytes = b""
    extra: bytes = b""


_FORMS: Final = {
    BlockKind.TEXT: _Form("msg", b"response.output_text", b"text", b'"content_index":0,', b'"logprobs":[],'),
    BlockKind.REFUSAL: _Form("msg", b"response.refusal", b"refusal", b'"content_index":0,'),
    BlockKind.REASONING: _Form("rs", b"response.reasoning_summary_text", b"text", b'"summary_index":0,'),
    BlockKind.FUNCTION_CALL: _Form("fc", b"response.function_call_arguments", b"arguments"),
    BlockKind.CUSTOM_CALL: _Form("ctc", b"response.custom_tool_call_input", b"input"),
}


class OpenItem:
    """An item that is being told. Its methods give events as pairs of type and members (raw JSON, a comma at the end),
    to which the stream adds their number."""

    __slots__ = ("_call", "_form", "_parted", "_where", "annotations", "head", "id", "kind", "tail", "texts")

    def __init__(self, start: BlockStart, request_id: str, output_index: int) -> None:
        self.kind = start.kind
        self._form = form = _FORMS[start.kind]
        self.id = json_text(f"{form.prefix}_{request_id}_{output_index}")
        self._call = b"" if start.tool is None else _call(start.id, start.tool, request_id, output_index)
        self._where = b'"output_index":%d,' % output_index
        self._parted = False
        self.texts: list[str] = []
        self.annotations: list[bytes] = []
        kind = form.event + b".delta"
        self.head: Final = b'event: %b\ndata: {"type":"%b",%b"delta":' % (kind, kind, self._part_of())
        """An event of more text is `head`, the text as JSON, `tail`, its number, and the end of the event."""
        self.tail: Final = b"," + form.extra + b'"sequence_number":'

    def _part_of(self) -> bytes:
        return b'"item_id":%b,%b%b' % (self.id, self._where, self._form.place)

    def added(self) -> list[tuple[bytes, bytes]]:
        """The item begins; a message's part does too."""
        item = b'%b"item":%b,' % (self._where, self._item(b"in_progress", b'""', b"", b""))
        events = [(b"response.output_item.added", item)]
        if self.kind in (BlockKind.TEXT, BlockKind.REFUSAL):
            events += self.part_added()
        return events

    def part_added(self) -> list[tuple[bytes, bytes]]:
        """The item's part begins, unless it has: a summary's does with its first text, as it may never have any."""
        name = self._part_name()
        if self._parted or not name:
            return []
        self._parted = True
        return [(name + b".added", b'%b"part":%b,' % (self._part_of(), self._part(b'""')))]

    def annotated(self, annotation: bytes) -> tuple[bytes, bytes]:
        """A citation of the item's text, raw, in the shape of Responses."""
        self.annotations.append(annotation)
        place = b'"annotation_index":%d,"annotation":%b,' % (len(self.annotations) - 1, annotation)
        return b"response.output_text.annotation.added", self._part_of() + place

    def done(self, signature: Signature | None) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """The events with which the item ends, and the whole item."""
        form, text = self._form, json_text("".join(self.texts))
        events = []
        name = self._part_name()
        if self._parted or not name:
            told = b'%b"%b":%b,%b' % (self._part_of(), form.member, text, form.extra)
            events.append((form.event + b".done", told))
        part = b""
        if self._parted:
            part = self._part(text)
            events.append((name + b".done", b'%b"part":%b,' % (self._part_of(), part)))
        encrypted = b"" if signature is None else json_text(wrap(signature, Protocol.RESPONSES))
        item = self._item(b"completed", text, part, encrypted)
        events.append((b"response.output_item.done", b'%b"item":%b,' % (self._where, item)))
        return events, item

    def _part_name(self) -> bytes:
        if self.kind is BlockKind.REASONING:
            return b"response.reasoning_summary_part"
        return b"response.content_part" if self.kind in (BlockKind.TEXT, BlockKind.REFUSAL) else b""

    def _part(self, text: bytes) -> bytes:
        match self.kind:
            case BlockKind.TEXT:
                annotations = b",".join(self.annotations)
                return b'{"type":"output_text","text":%b,"annotations":[%b],"logprobs":[]}' % (text, annotations)
            case BlockKind.REFUSAL:
                return b'{"type":"refusal","refusal":%b}' % text
            case _:
                return b'{"type":"summary_text","text":%b}' % text

    def _item(self, status: bytes, text: bytes, part: bytes, encrypted: bytes) -> bytes:
        """The item as it is at `status`: with the part it has, or with what its tool is called with."""
        match self.kind:
            case BlockKind.REASONING:
                secret = b',"encrypted_content":%b' % encrypted if encrypted else b""
                return b'{"type":"reasoning","id":%b,"summary":[%b]%b}' % (self.id, part, secret)
            case BlockKind.FUNCTION_CALL:
                form = b'{"type":"function_call","id":%b,%b,"arguments":%b,"status":"%b"}'
                return form % (self.id, self._call, text, status)
            case BlockKind.CUSTOM_CALL:
                return b'{"type":"custom_tool_call","id":%b,%b,"input":%b}' % (self.id, self._call, text)
            case _:
                form = b'{"type":"message","id":%b,"role":"assistant","status":"%b","content":[%b]}'
                return form % (self.id, status, part)


def _call(call_id: str, tool: ToolRef, request_id: str, output_index: int) -> bytes:
    """The members that say what is called: raw JSON without braces."""
    call = json_text(call_id or f"call_{request_id}_{output_index}")
    space = b"" if tool.namespace is None else b',"namespace":%b' % json_text(tool.namespace)
    return b'"call_id":%b,"name":%b%b' % (call, json_text(tool.name), space)
