"""The blocks of an answer, from their events or whole, as deltas.

Source: Anthropic API reference, "Streaming Messages"; wire.md 1.3.

Text, thinking and calls are told as they come. Blocks that only Messages knows (server tools and their results) are
held until they stop, as a delta stream has them whole. So are signatures, of which a block has one, and the input of a
call that stands in its `content_block_start`, as some servers write it: it counts when no pieces follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import Opaque, Signature, ToolRef
from capi_core.deltas import Annotated, AnswerDelta, BlockKind, BlockStart, BlockStop, Delta, Signed
from capi_core.errors import LocalError
from capi_core.members import JSONObject, decode
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.answer_wire import BLOCK, UNSHOWN, ContentBlock, annotation_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BlockDelta", "BlockReader"]

_MOST_OPEN: Final = 128
"""Blocks that are open at the same time; Anthropic opens one."""
_MOST_BLOCKS: Final = 4096
_KINDS: Final = {
    "text": BlockKind.TEXT,
    "thinking": BlockKind.REASONING,
    "redacted_thinking": BlockKind.REASONING,
    "tool_use": BlockKind.FUNCTION_CALL,
}
_FOR: Final = {
    "text_delta": BlockKind.TEXT,
    "citations_delta": BlockKind.TEXT,
    "thinking_delta": BlockKind.REASONING,
    "signature_delta": BlockKind.REASONING,
    "input_json_delta": BlockKind.FUNCTION_CALL,
}
"""Which kind of block a delta is for. Others are passed over."""
_EMPTY: Final = (b"", b"{}", b"null")


class BlockDelta(msgspec.Struct, gc=False):
    """The member `delta` of `content_block_delta`."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    signature: str | None = None
    citation: msgspec.Raw = msgspec.Raw()


class _Block(msgspec.Struct):
    """A block that is open. `index`: in the delta stream, where an opaque block has none before it stops."""

    index: int
    kind: BlockKind
    raw: bytes = b""
    type: str = ""
    given: str = ""
    """The input from the block's start."""
    told: bool = False
    """Something of its text came."""
    held: list[str] = []
    """Pieces of its signature, or of an opaque block's input."""


class BlockReader:
    """Puts out what the blocks of one answer tell. `fail`: called with what is wrong, and that ends the answer.

    `max_held`: bytes that may wait for a block's stop.
    """

    def __init__(self, emit: Callable[[AnswerDelta], None], fail: Callable[[str], None], *, max_held: int) -> None:
        self.called = False
        """Whether a tool of the client's was called."""
        self._emit = emit
        self._fail = fail
        self._open: dict[int, _Block] = {}
        self._count = 0
        self._room = max_held

    def start(self, place: int, raw: bytes) -> None:
        """`content_block_start`: `place` is the block's index there. Raises `msgspec.DecodeError` or `UnicodeError`."""
        block, readable = decode(BLOCK, raw)
        if place in self._open or len(self._open) >= _MOST_OPEN or self._count >= _MOST_BLOCKS:
            self._fail("the upstream opened a block twice, or too many of them")
            return
        kind = _KINDS.get(block.type)
        if kind is None:
            readable.decode()  # it is passed on as it is: in UTF-8 or not at all
            self._open[place] = _Block(-1, BlockKind.OPAQUE, readable, block.type)
            self._hold(len(raw))
        elif kind is BlockKind.FUNCTION_CALL and not (block.id and block.name):
            self._fail("the upstream called a tool without an id or without a name")
        else:
            self._begin(place, kind, block)

    def delta(self, place: int, delta: BlockDelta) -> None:
        """`content_block_delta`. Raises `msgspec.DecodeError` for a citation that is no object."""
        block = self._open.get(place)
        if block is None:
            self._fail("the upstream sent a delta for a block that is not open")
        elif block.kind is BlockKind.OPAQUE:
            self._keep(block, delta.partial_json)
        elif (kind := _FOR.get(delta.type)) is block.kind:
            self._take(block, delta)
        elif kind is not None:
            self._fail("the upstream sent a delta of another kind than its block")

    def stop(self, place: int) -> None:
        """`content_block_stop`."""
        block = self._open.pop(place, None)
        if block is None:
            return
        if block.kind is BlockKind.OPAQUE:
            self._tell_opaque(block)
            return
        if block.given and not block.told:
            self._emit(Delta(block.index, block.given))
        signature = "".join(block.held)
        if signature:
            hidden = block.type == "thinking" and not block.told
            self._emit(Signed(block.index, Signature(Protocol.MESSAGES, UNSHOWN + signature if hidden else signature)))
        self._emit(BlockStop(block.index))

    def stop_all(self) -> None:
        """The answer is complete, whatever stops were left out."""
        for place in list(self._open):
            self.stop(place)

    def _begin(self, place: int, kind: BlockKind, start: ContentBlock) -> None:
        block = self._open[place] = _Block(self._next(), kind, type=start.type)
        if kind is BlockKind.FUNCTION_CALL:
            self.called = True
            self._emit(BlockStart(block.index, kind, start.id or "", ToolRef(start.name or "")))
            given = bytes(start.input)
            if given not in _EMPTY:
                self._hold(len(given))
                block.given = given.decode()
            return
        self._emit(BlockStart(block.index, kind))
        self._tell(block, start.text or start.thinking)
        self._keep(block, start.signature or start.data)
        for citation in start.citations or ():
            self._emit(Annotated(block.index, annotation_of(citation)))

    def _take(self, block: _Block, delta: BlockDelta) -> None:
        if delta.type == "signature_delta":
            self._keep(block, delta.signature)
        elif delta.type != "citations_delta":
            self._tell(block, delta.text or delta.thinking or delta.partial_json)
        elif delta.citation:
            self._emit(Annotated(block.index, annotation_of(delta.citation)))

    def _tell(self, block: _Block, text: str | None) -> None:
        if text:
            block.told = True
            self._emit(Delta(block.index, text))

    def _keep(self, block: _Block, piece: str | None) -> None:
        if piece:
            self._hold(len(piece))
            block.held.append(piece)

    def _hold(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            self._fail("the upstream sent blocks that are too large to be held")

    def _tell_opaque(self, block: _Block) -> None:
        raw = block.raw
        if block.held:
            try:
                raw = JSONObject(raw).edit({"input": "".join(block.held).encode("utf-8", "replace")})
            except LocalError:
                self._fail("the upstream sent the input of a server tool that is not JSON")
                return
        index = self._next()
        self._emit(BlockStart(index, BlockKind.OPAQUE, opaque=Opaque(Protocol.MESSAGES, block.type, raw)))
        self._emit(BlockStop(index))

    def _next(self) -> int:
        self._count += 1
        return self._count - 1
