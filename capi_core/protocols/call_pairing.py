"""Which result answers which call, and under which id both go.

Source: Anthropic API reference, "Tool use": each `tool_use` is answered in the message right behind it by exactly one
`tool_result`; ids are of `[a-zA-Z0-9_-]` and unique in a request (wire.md 1.5, 1.8). Clients of other protocols
interleave, repeat and forget.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from typing import TYPE_CHECKING, Final

from attrs import define

from capi_core.conversation import Role, ToolCall, ToolResult, Turn
from capi_core.fidelity import Change, Ledger

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PairedCall", "pair_calls"]

_LEGAL: Final = re.compile(r"[a-zA-Z0-9_-]+\Z")
_HEX: Final = 24


@define
class PairedCall:
    """A call of the assistant's. `wire_id`: its id at the upstream; `place`: its turn's. `result`: `None` when the
    conversation has none."""

    call: ToolCall
    wire_id: str
    place: int
    result: ToolResult | None = None


def pair_calls(turns: Sequence[Turn], ledger: Ledger) -> list[list[PairedCall]]:
    """The calls of each turn, in order; no turn but the assistant's has any.

    A result answers the oldest call of its id in the last turn that has such a call, and each call once; one that is
    left over is noted as dropped.
    """
    pairing = _Pairing(ledger)
    return [pairing.turn(place, turn) for place, turn in enumerate(turns)]


class _Pairing:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._taken: set[str] = set()
        self._open: dict[str, deque[PairedCall]] = {}

    def turn(self, place: int, turn: Turn) -> list[PairedCall]:
        calls: list[PairedCall] = []
        for block in turn.blocks:
            if isinstance(block, ToolResult):
                self._answer(block)
            elif isinstance(block, ToolCall) and turn.role is Role.ASSISTANT:
                calls.append(self._call(block, place))
        return calls

    def _call(self, call: ToolCall, place: int) -> PairedCall:
        paired = PairedCall(call, self._wire_id(call), place)
        waiting = self._open.get(call.id)
        if waiting and waiting[-1].place == place:
            waiting.append(paired)
        else:
            self._open[call.id] = deque([paired])
        return paired

    def _answer(self, result: ToolResult) -> None:
        waiting = self._open.get(result.call_id)
        if waiting:
            waiting.popleft().result = result
        else:
            self._ledger.dropped(result.at, "it answers no call before it, or one that has its answer")

    def _wire_id(self, call: ToolCall) -> str:
        """The call's id, or in place of one that is not legal or was there before a digest: the same in every request
        that repeats the conversation."""
        wire_id = call.id
        if not _LEGAL.match(wire_id) or wire_id in self._taken:
            digest = hashlib.sha256(f"{call.id}\0{len(self._taken)}".encode("utf-8", "replace")).hexdigest()
            wire_id = f"toolu_{digest[:_HEX]}"
            self._ledger.add(Change.RENAMED, call.at, "the upstream takes ids of letters, digits, _ and -, each once")
        self._taken.add(wire_id)
        return wire_id
