"""What is done to deltas between an upstream's decoder and a client's encoder.

`ToolNameFilter` gives tools the names back that the client knows them by, and makes calls of custom tools again what
they were before they had to go as functions. `StopFilter` ends an answer at a stop sequence, for upstreams whose
protocol has no such thing (Responses, wire.md 1.5). Both are machines: deltas in, deltas out, any grouping gives the
same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import ToolKind
from capi_core.deltas import (
    AnswerDelta,
    BlockKind,
    BlockStart,
    BlockStop,
    Delta,
    End,
    Failed,
    Finish,
    FinishReason,
)
from capi_core.errors import Problem
from capi_core.members import decode

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    from capi_core.tool_names import ToolNames

    class DeltaFilter(Protocol):
        """Deltas in, deltas out."""

        def apply(self, deltas: Iterable[AnswerDelta]) -> list[AnswerDelta]: ...


__all__ = ["MAX_CUSTOM_INPUT", "StopFilter", "ToolNameFilter"]

MAX_CUSTOM_INPUT: Final = 4 * 1024 * 1024
"""Characters of arguments that are held for a custom tool: they can only be unwrapped whole."""


class _Input(msgspec.Struct):
    input: str


_INPUT: Final = msgspec.json.Decoder(_Input)
_TOO_LONG: Final = Failed(
    Problem(502, "upstream_call_too_large", "the upstream sent a tool call larger than this gateway relays"),
    upstream=False,
)


class ToolNameFilter:
    """The client's own names for tools, and its custom tools' input as the text that it is."""

    def __init__(self, names: ToolNames) -> None:
        self._names = names
        self._held: dict[int, list[str]] = {}
        self._size = 0
        self._failed = False

    def apply(self, deltas: Iterable[AnswerDelta]) -> list[AnswerDelta]:
        out: list[AnswerDelta] = []
        for delta in deltas:
            if self._failed:
                break
            match delta:
                case BlockStart(kind=BlockKind.FUNCTION_CALL):
                    out.append(self._start(delta))
                case Delta(index=index) if index in self._held:
                    self._hold(delta, out)
                case BlockStop(index=index) if index in self._held:
                    text = _unwrapped("".join(self._held.pop(index)))
                    if text:
                        out.append(Delta(index, text))
                    out.append(delta)
                case _:
                    out.append(delta)
        return out

    def _start(self, start: BlockStart) -> BlockStart:
        ref, kind = self._names.client("" if start.tool is None else start.tool.name)
        if kind is ToolKind.FUNCTION:
            return BlockStart(start.index, BlockKind.FUNCTION_CALL, start.id, ref)
        self._held[start.index] = []
        return BlockStart(start.index, BlockKind.CUSTOM_CALL, start.id, ref)

    def _hold(self, delta: Delta, out: list[AnswerDelta]) -> None:
        self._size += len(delta.text)
        if self._size > MAX_CUSTOM_INPUT:
            self._failed = True
            out.append(_TOO_LONG)
        else:
            self._held[delta.index].append(delta.text)


def _unwrapped(arguments: str) -> str:
    """The free text inside `{"input": ...}`; a model that did not keep to it meant what it wrote."""
    try:
        return decode(_INPUT, arguments.encode("utf-8", "replace"))[0].input
    except (msgspec.DecodeError, RecursionError):
        return arguments


class StopFilter:
    """Ends the answer before the first of `sequences` that is complete in its text. Text that may be the beginning of
    one is held back, at most one character less than the longest."""

    def __init__(self, sequences: tuple[str, ...]) -> None:
        """`sequences` without empty ones: an empty one would end every answer at once."""
        self._sequences = tuple(filter(None, sequences))
        self._held: dict[int, str] = {}
        self._open: list[int] = []
        self.hit = False
        """The answer was ended here: the upstream need not go on."""

    def apply(self, deltas: Iterable[AnswerDelta]) -> list[AnswerDelta]:
        out: list[AnswerDelta] = []
        for delta in deltas:
            if self.hit:
                break
            match delta:
                case BlockStart():
                    self._open.append(delta.index)
                    if delta.kind is BlockKind.TEXT:
                        self._held[delta.index] = ""
                    out.append(delta)
                case Delta(index=index, text=text) if index in self._held:
                    self._scan(index, self._held[index] + text, out)
                case BlockStop(index=index):
                    self._open.remove(index)
                    _add(out, index, self._held.pop(index, ""))
                    out.append(delta)
                case _:
                    out.append(delta)
        return out

    def _scan(self, index: int, text: str, out: list[AnswerDelta]) -> None:
        # The first that is complete, as when the model itself had stopped there: that does not depend on the pieces.
        found = min(((at + len(s), at, s) for s in self._sequences if (at := text.find(s)) >= 0), default=None)
        if found is None:
            keep = max((_overlap(text, sequence) for sequence in self._sequences), default=0)
            self._held[index] = text[len(text) - keep :]
            _add(out, index, text[: len(text) - keep])
            return
        self.hit = True
        _add(out, index, text[: found[1]])
        out += [BlockStop(block) for block in self._open]
        out += [Finish(FinishReason.STOP_SEQUENCE, stop_sequence=found[2]), End()]


def _add(out: list[AnswerDelta], index: int, text: str) -> None:
    if text:
        out.append(Delta(index, text))


def _overlap(text: str, sequence: str) -> int:
    """How many characters at the end of `text` may be the beginning of `sequence`."""
    for size in range(min(len(text), len(sequence) - 1), 0, -1):
        if text.endswith(sequence[:size]):
            return size
    return 0
