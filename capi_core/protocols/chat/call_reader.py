"""The tool calls of an answer, put together from their parts.

Source: OpenAI API reference, `ChatCompletionMessageToolCall`; wire.md 1.6, 1.8. A call is named by its `index`; its id
and its name may come in different chunks, and what comes before both are known is held. A server that leaves the index
out begins a new call with each id, and goes on with the last one without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core.conversation import ToolRef
from capi_core.deltas import AnswerDelta, BlockKind, BlockStart, BlockStop, Delta
from capi_core.errors import Problem

if TYPE_CHECKING:
    from capi_core.protocols.chat.answer_wire import CallPart

__all__ = ["CallReader"]

_MOST_CALLS: Final = 128
_MOST_PENDING: Final = 1024 * 1024
"""Characters that are held for calls which lack their id or their name."""
_MOST_BLANK: Final = 64 * 1024
"""White space in a row: a model that has lost its way writes line ends for ever (wire.md 1.8)."""

_TOO_MANY: Final = Problem(502, "upstream_too_many_calls", f"the upstream sent more than {_MOST_CALLS} tool calls")
_TOO_LONG: Final = Problem(
    502, "upstream_call_too_large", "the upstream sent the arguments of a tool call without its id and its name"
)
_RUNAWAY: Final = Problem(
    502, "upstream_runaway_call", "the upstream sent a tool call whose arguments are nothing but white space"
)
_NAMELESS: Final = Problem(502, "upstream_garbage", "the upstream sent a tool call without an id or without a name")


class _Call:
    """`block`: its place among the blocks, once it has begun."""

    __slots__ = ("blank", "block", "custom", "id", "name", "pending")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.custom = False
        self.block: int | None = None
        self.pending: list[str] = []
        self.blank = 0


class CallReader:
    """The calls of one answer. `begun`: how many of them have a block."""

    def __init__(self) -> None:
        self.begun = 0
        self._calls: dict[int, _Call] = {}
        self._last = -1
        self._pending = 0

    def take(self, part: CallPart, block: int, out: list[AnswerDelta]) -> Problem | None:
        """Takes a part; its deltas go to `out`. `block` is the index for a block that begins. Returns what is wrong."""
        call = self._find(part)
        if call is None:
            return _TOO_MANY
        if call.block is None:
            call.id = call.id or part.id or ""
            call.name = call.name or part.name
            call.custom = call.custom or part.custom is not None
        text = part.text
        if text and self._is_runaway(call, text):
            return _RUNAWAY
        if call.block is not None:
            if text:
                out.append(Delta(call.block, text))
            return None
        return self._begin(call, text, block, out)

    def close(self, out: list[AnswerDelta]) -> Problem | None:
        """Closes all calls. Returns what is wrong: one has no id or no name."""
        for call in self._calls.values():
            if call.block is None:
                return _NAMELESS
            out.append(BlockStop(call.block))
        return None

    def _find(self, part: CallPart) -> _Call | None:
        index = part.index
        if index is None:
            index = self._last if self._last in self._calls and not part.id else len(self._calls)
        self._last = index
        call = self._calls.get(index)
        if call is None and len(self._calls) < _MOST_CALLS:
            call = self._calls[index] = _Call()
        return call

    def _begin(self, call: _Call, text: str, block: int, out: list[AnswerDelta]) -> Problem | None:
        if text:
            call.pending.append(text)
            self._pending += len(text)
        if not call.id or not call.name:
            return _TOO_LONG if self._pending > _MOST_PENDING else None
        call.block = block
        self.begun += 1
        kind = BlockKind.CUSTOM_CALL if call.custom else BlockKind.FUNCTION_CALL
        out.append(BlockStart(block, kind, call.id, ToolRef(call.name)))
        held = "".join(call.pending)
        if held:
            out.append(Delta(block, held))
        self._pending -= len(held)
        call.pending.clear()
        return None

    @staticmethod
    def _is_runaway(call: _Call, text: str) -> bool:
        kept = len(text.rstrip(" \t\r\n"))
        call.blank = len(text) - kept + (0 if kept else call.blank)
        return call.blank > _MOST_BLANK
