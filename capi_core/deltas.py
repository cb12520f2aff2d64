"""An answer of a model in no protocol's shape: as a stream of deltas, and whole.

A stream is a sequence of deltas with these rules, which each decoder keeps and each encoder may rely on:

    Start, then any of the rest, at last End or Failed, and nothing after that;
    BlockStart(i) .. Delta(i)* .. BlockStop(i); indices count up from 0 in the order of BlockStart; blocks may overlap;
    a tool call's BlockStart has its id and its name, and one that never got both is a Failed stream;
    Signed comes at most once in a REASONING block, after its text and before its BlockStop;
    Annotated only in a TEXT block;
    Finish comes exactly once before End, after every BlockStop; UsageReport anywhere before End, the last one counts;
    Ping anywhere.

An answer has one choice: requests for several are not translated.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import msgspec
from attrs import field, frozen

from capi_core.conversation import (
    Opaque,
    Reasoning,
    Refusal,
    Signature,
    ToolCall,
    ToolKind,
    ToolRef,
)
from capi_core.errors import LocalError, Problem
from capi_core.protocols.kinds import Protocol
from capi_core.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "PART_BREAK",
    "Annotated",
    "Annotation",
    "AnswerDelta",
    "BlockKind",
    "BlockStart",
    "BlockStop",
    "Delta",
    "End",
    "Failed",
    "Finish",
    "FinishReason",
    "Ping",
    "Reply",
    "ReplyBlock",
    "ReplyText",
    "Signed",
    "Start",
    "UsageReport",
    "assemble",
]


class BlockKind(enum.Enum):
    """What a block of an answer is."""

    TEXT = "text"
    REASONING = "reasoning"
    REFUSAL = "refusal"
    FUNCTION_CALL = "function_call"
    CUSTOM_CALL = "custom_call"
    OPAQUE = "opaque"
    """A part that only its own protocol knows: whole in BlockStart, no deltas."""


class FinishReason(enum.Enum):
    """Why an answer ended."""

    STOP = "stop"
    STOP_SEQUENCE = "stop_sequence"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    """The provider stopped or declined it."""
    PAUSE = "pause"
    """The provider wants to be asked again to go on (Messages' `pause_turn`)."""
    CONTEXT_FULL = "context_full"


class Start(msgspec.Struct, frozen=True, gc=False):
    """The answer begins. `id` and `model` as the upstream gave them; `created_s`: seconds since epoch, if it said."""

    id: str = ""
    model: str = ""
    created_s: int | None = None


class BlockStart(msgspec.Struct, frozen=True):
    """`id`: a call's id. `tool`: a call's name. `raw`, `protocol`, `type`: of an OPAQUE block."""

    index: int
    kind: BlockKind
    id: str = ""
    tool: ToolRef | None = None
    opaque: Opaque | None = None


class Delta(msgspec.Struct, frozen=True, gc=False):
    """More text of a block: words, thoughts, a refusal's words, argument text."""

    index: int
    text: str


class Signed(msgspec.Struct, frozen=True):
    """The signature of a REASONING block, whole. Both Anthropic SDKs keep only the last of several (wire.md 0.6)."""

    index: int
    signature: Signature


class Annotation(msgspec.Struct, frozen=True):
    """A citation, raw, in the shape of `protocol`. `url` and `title` when it cites a page."""

    protocol: Protocol
    raw: bytes
    url: str | None = None
    title: str | None = None


class Annotated(msgspec.Struct, frozen=True):
    """A citation of a TEXT block."""

    index: int
    annotation: Annotation


class BlockStop(msgspec.Struct, frozen=True, gc=False):
    """The block is complete."""

    index: int


class UsageReport(msgspec.Struct, frozen=True):
    """The upstream's figures so far: cumulative, each report replaces the one before."""

    usage: Usage


class Finish(msgspec.Struct, frozen=True, gc=False):
    """`stop_sequence`: which one ended it, if the protocol says so. `detail`: the provider's words on a refusal."""

    reason: FinishReason
    stop_sequence: str | None = None
    detail: str | None = None


class Ping(msgspec.Struct, frozen=True, gc=False):
    """The upstream is alive and has nothing to say."""


class End(msgspec.Struct, frozen=True, gc=False):
    """The answer is whole."""


class Failed(msgspec.Struct, frozen=True):
    """The answer will not be whole. `upstream`: the upstream said so itself, with an error in its own shape; otherwise
    its stream was cut or could not be read."""

    problem: Problem
    upstream: bool


AnswerDelta = Start | BlockStart | Delta | Signed | Annotated | BlockStop | UsageReport | Finish | Ping | End | Failed


@frozen
class ReplyText:
    """Text of an answer with its citations."""

    text: str = field(repr=False)
    annotations: tuple[Annotation, ...] = ()


ReplyBlock = ReplyText | Reasoning | Refusal | ToolCall | Opaque


@frozen
class Reply:
    """A whole answer."""

    id: str
    model: str
    blocks: tuple[ReplyBlock, ...]
    finish: Finish
    usage: Usage | None = None
    created_s: int | None = None

    def deltas(self) -> Iterator[AnswerDelta]:
        """The same answer as a stream."""
        yield Start(self.id, self.model, self.created_s)
        for index, block in enumerate(self.blocks):
            yield from _block_deltas(index, block)
        yield self.finish
        if self.usage is not None:
            yield UsageReport(self.usage)
        yield End()


def _block_deltas(index: int, block: ReplyBlock) -> Iterator[AnswerDelta]:
    match block:
        case ReplyText():
            yield BlockStart(index, BlockKind.TEXT)
            yield from _text(index, block.text)
            for annotation in block.annotations:
                yield Annotated(index, annotation)
        case Reasoning():
            yield BlockStart(index, BlockKind.REASONING)
            yield from _text(index, PART_BREAK.join(block.parts))
            if block.signature is not None:
                yield Signed(index, block.signature)
        case Refusal():
            yield BlockStart(index, BlockKind.REFUSAL)
            yield from _text(index, block.text)
        case ToolCall():
            kind = BlockKind.CUSTOM_CALL if block.kind is ToolKind.CUSTOM else BlockKind.FUNCTION_CALL
            yield BlockStart(index, kind, block.id, block.tool)
            yield from _text(index, block.arguments)
        case _:  # Opaque, the only one left
            yield BlockStart(index, BlockKind.OPAQUE, opaque=block)
    yield BlockStop(index)


def _text(index: int, text: str) -> Iterator[AnswerDelta]:
    if text:
        yield Delta(index, text)


PART_BREAK: Final = "\n\n"
"""Between two parts of a reasoning summary where they become one text."""


class _Building:
    """A block of which more may come."""

    def __init__(self, start: BlockStart) -> None:
        self.start = start
        self.texts: list[str] = []
        self.annotations: list[Annotation] = []
        self.signature: Signature | None = None

    def built(self) -> ReplyBlock:
        text = "".join(self.texts)
        match self.start.kind:
            case BlockKind.TEXT:
                return ReplyText(text, tuple(self.annotations))
            case BlockKind.REASONING:
                return Reasoning((text,) if text else (), self.signature)
            case BlockKind.REFUSAL:
                return Refusal(text)
            case BlockKind.OPAQUE:
                if self.start.opaque is None:
                    raise LocalError("an opaque block starts with its content")
                return self.start.opaque
            case _:
                custom = self.start.kind is BlockKind.CUSTOM_CALL
                kind = ToolKind.CUSTOM if custom else ToolKind.FUNCTION
                return ToolCall(self.start.id, self.start.tool or ToolRef(""), text, kind)


def assemble(deltas: Iterable[AnswerDelta]) -> Reply | Failed:
    """The whole answer that a stream of deltas tells, or how it failed.

    Raises `LocalError` when they break the rules of this module: no Start, no End, a delta for no block.
    """
    start: Start | None = None
    finish: Finish | None = None
    usage: Usage | None = None
    blocks: dict[int, _Building] = {}
    for delta in deltas:
        match delta:
            case Start():
                start = delta
            case BlockStart():
                blocks[delta.index] = _Building(delta)
            case Delta():
                _block(blocks, delta.index).texts.append(delta.text)
            case Signed():
                _block(blocks, delta.index).signature = delta.signature
            case Annotated():
                _block(blocks, delta.index).annotations.append(delta.annotation)
            case UsageReport():
                usage = delta.usage
            case Finish():
                finish = delta
            case Failed():
                return delta
            case End():
                if start is None or finish is None:
                    raise LocalError("an answer has a Start and a Finish before its End")
                built = tuple(block.built() for block in blocks.values())
                return Reply(start.id, start.model, built, finish, usage, start.created_s)
            case _:  # BlockStop and Ping say nothing here
                pass
    raise LocalError("an answer ends with End or Failed")


def _block(blocks: dict[int, _Building], index: int) -> _Building:
    block = blocks.get(index)
    if block is None:
        raise LocalError(f"there is no block {index}")
    return block
