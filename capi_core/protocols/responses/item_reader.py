"""The items of an upstream's answer, as their events and their ends tell of them, to deltas.

Source: OpenAI API reference, "Streaming events", "The response object"; wire.md 1.2, 1.6, 1.8.

An item is known by its `output_index`, a part of a message by its `content_index` as well, never by an id: Copilot's
change from event to event. Each part is a block that starts with its first text; a call starts when its id and its name
are known. The whole item at its end counts for what no event told before. A hosted tool's item is opaque, and taken
from its end.

Memory: no text is held, only which of at most 4,096 blocks are open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import Opaque, Signature, ToolRef
from capi_core.deltas import (
    PART_BREAK,
    Annotated,
    Annotation,
    BlockKind,
    BlockStart,
    BlockStop,
    Delta,
    Signed,
)
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.wire import CALLS, ITEM, TYPED, OutputItem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from capi_core.deltas import AnswerDelta

__all__ = ["ItemReader"]

_MOST_BLOCKS: Final = 4096
_MOST_CALLS: Final = 128
"""Calls that are open at the same time."""
_WHOLE: Final = -1
"""In place of a content_index: the block is the whole item."""
_READ: Final = frozenset({"message", "reasoning", *CALLS})
_PARTS: Final = {"output_text": BlockKind.TEXT, "refusal": BlockKind.REFUSAL, "text": BlockKind.TEXT}
_CALL_KINDS: Final = (BlockKind.FUNCTION_CALL, BlockKind.CUSTOM_CALL)


class _Citation(msgspec.Struct):
    url: str | None = None
    title: str | None = None


_CITATION: Final = msgspec.json.Decoder(_Citation)


class _Block:
    """A block that was started. `part`: the part of a reasoning item that its last text belongs to."""

    __slots__ = ("annotated", "index", "kind", "part", "written")

    def __init__(self, index: int, kind: BlockKind) -> None:
        self.index = index
        self.kind = kind
        self.written = False
        self.annotated = False
        self.part = ("", 0)


class ItemReader:
    """Gives `emit` the deltas of the items, from BlockStart to BlockStop; tells `fail` why there can be no more.

    `called`: a tool call was among them. `emit` may be called after `fail`: its owner drops what comes then. Every
    method may raise `msgspec.DecodeError` when an item has a member of a wrong type.
    """

    def __init__(self, emit: Callable[[AnswerDelta], None], fail: Callable[[str], None]) -> None:
        self.called = False
        self._emit = emit
        self._fail = fail
        self._blocks: dict[tuple[int, int], _Block] = {}
        self._next = 0
        self._types: dict[int, str] = {}
        """The items that are known and not done, by output_index."""
        self._finished: set[int] = set()

    def added(self, index: int, raw: msgspec.Raw) -> None:
        """An item begins."""
        kind = TYPED.decode(raw).type
        if kind is None or index in self._types or index in self._finished:
            return
        self._know(index, kind)
        if kind in CALLS:
            self._open_call(index, ITEM.decode(raw))

    def done(self, index: int, raw: msgspec.Raw) -> None:
        """An item ends."""
        if index not in self._finished:
            self._finish_item(index, raw)

    def finish_all(self, output: Sequence[msgspec.Raw]) -> None:
        """What `response.output` says about items that are not done; about all, when it is the first to tell."""
        untold = not self._types and not self._finished
        for index, raw in enumerate(output):
            known = self._types.get(index)
            if untold or (known is not None and known == TYPED.decode(raw).type):
                self._finish_item(index, raw)
        for index in list(self._types):
            self._close_item(index)

    def _know(self, index: int, kind: str) -> None:
        self._types[index] = kind
        if len(self._types) + len(self._finished) > _MOST_BLOCKS:
            self._fail("the upstream's answer has more items than this gateway reads")

    def _finish_item(self, index: int, raw: msgspec.Raw) -> None:
        kind = TYPED.decode(raw).type or ""
        self._know(index, kind)
        if kind not in _READ:
            if kind and (index, _WHOLE) not in self._blocks:  # else it was begun as something else
                opaque = Opaque(Protocol.RESPONSES, kind, bytes(raw), at=f"$.output[{index}]")
                self._open(index, _WHOLE, BlockKind.OPAQUE, opaque=opaque)
        else:
            item = ITEM.decode(raw)
            if kind == "message":
                self._finish_message(index, item)
            elif kind == "reasoning":
                self._finish_reasoning(index, item)
            else:
                self._finish_call(index, item)
        self._close_item(index)

    def _finish_message(self, index: int, item: OutputItem) -> None:
        for place, part in enumerate(item.content or []):
            kind = _PARTS.get(part.type)
            if kind is None:
                continue
            self._write_unwritten(index, place, kind, part.words)
            block = self._blocks.get((index, place))
            if block is not None and not block.annotated:
                for annotation in part.annotations or []:
                    self.annotation(index, place, annotation)

    def _finish_reasoning(self, index: int, item: OutputItem) -> None:
        self._write_unwritten(index, _WHOLE, BlockKind.REASONING, PART_BREAK.join(item.thoughts))
        if item.encrypted_content:
            block = self._block(index, _WHOLE, BlockKind.REASONING)
            if block is not None:
                self._emit(Signed(block.index, Signature(Protocol.RESPONSES, item.encrypted_content)))

    def _finish_call(self, index: int, item: OutputItem) -> None:
        if (index, _WHOLE) not in self._blocks:
            self._open_call(index, item)
        block = self._blocks.get((index, _WHOLE))
        if block is not None:
            self._write_unwritten(index, _WHOLE, block.kind, item.called_with)

    def _close_item(self, index: int) -> None:
        kind = self._types.pop(index, None)
        self._finished.add(index)
        if kind in CALLS and (index, _WHOLE) not in self._blocks:
            self._fail("the upstream's answer has a tool call without an id or a name")
        for key in [key for key in self._blocks if key[0] == index]:
            self._emit(BlockStop(self._blocks.pop(key).index))

    def _open_call(self, index: int, item: OutputItem) -> None:
        if not item.call_id or not item.name:
            return
        self.called = True
        kind = BlockKind.CUSTOM_CALL if item.type == "custom_tool_call" else BlockKind.FUNCTION_CALL
        self._open(index, _WHOLE, kind, id=item.call_id, tool=ToolRef(item.name, item.namespace))
        calls = sum(block.kind in _CALL_KINDS for block in self._blocks.values())
        if calls > _MOST_CALLS:
            self._fail("the upstream's answer has more open tool calls than this gateway reads")

    def _open(
        self,
        index: int,
        place: int,
        kind: BlockKind,
        *,
        id: str = "",
        tool: ToolRef | None = None,
        opaque: Opaque | None = None,
    ) -> _Block:
        block = self._blocks[index, place] = _Block(self._next, kind)
        self._next += 1
        self._emit(BlockStart(block.index, kind, id, tool, opaque))
        if self._next > _MOST_BLOCKS:
            self._fail("the upstream's answer has more parts than this gateway reads")
        return block

    def _block(self, index: int, place: int, kind: BlockKind) -> _Block | None:
        """The block there, started if need be; `None` when the item is done, or is a call that lacks its id or name."""
        block = self._blocks.get((index, place))
        if block is not None:
            same = block.kind is kind or (block.kind in _CALL_KINDS and kind in _CALL_KINDS)
            return block if same else None
        if index in self._finished or kind in _CALL_KINDS:
            return None
        if index not in self._types:
            self._know(index, "reasoning" if kind is BlockKind.REASONING else "message")
        return self._open(index, place, kind)

    def text(self, index: int, place: int, kind: BlockKind, text: str | None, *, whole: bool) -> None:
        """Words of a part of a message; `whole`: all of them, of use only when none came before."""
        (self._write_unwritten if whole else self._write)(index, place, kind, text)

    def call(self, index: int, text: str | None, *, whole: bool) -> None:
        """What a tool is called with."""
        (self._write_unwritten if whole else self._write)(index, _WHOLE, BlockKind.FUNCTION_CALL, text)

    def annotation(self, index: int, place: int, raw: msgspec.Raw) -> None:
        """A citation of a part of a message."""
        block = self._blocks.get((index, place))
        if block is not None and block.kind is BlockKind.TEXT:
            self._annotate(block, raw)

    def _write(self, index: int, place: int, kind: BlockKind, text: str | None) -> None:
        if text:
            block = self._block(index, place, kind)
            if block is not None:
                block.written = True
                self._emit(Delta(block.index, text))

    def _write_unwritten(self, index: int, place: int, kind: BlockKind, text: str | None) -> None:
        block = self._blocks.get((index, place))
        if block is None or not block.written:
            self._write(index, place, kind, text)

    def think(self, index: int, part: tuple[str, int], text: str | None, *, whole: bool) -> None:
        """Text of a part of a reasoning item; `whole`: all of it, of use only when none of it came before."""
        if not text:
            return
        block = self._block(index, _WHOLE, BlockKind.REASONING)
        if block is None or (whole and block.written and block.part == part):
            return
        broken = block.written and block.part != part
        block.part = part
        self._write(index, _WHOLE, BlockKind.REASONING, PART_BREAK + text if broken else text)

    def _annotate(self, block: _Block, raw: msgspec.Raw) -> None:
        found = _CITATION.decode(raw)
        block.annotated = True
        self._emit(Annotated(block.index, Annotation(Protocol.RESPONSES, bytes(raw), found.url, found.title)))
