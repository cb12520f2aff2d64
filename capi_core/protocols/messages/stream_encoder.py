"""Deltas in, a Messages stream out, event by event as the strictest official SDKs want it.

Source: Anthropic API reference, "Streaming Messages"; wire.md 0.6, 1.3, 1.6, 1.7.

Theory of operation. One block is open at a time, the *live* one: the first in the order of BlockStart that has not
stopped. Its deltas go out as they come. What comes for the others waits, and goes out joined when the blocks before
them have stopped: memory grows with what waits, the length of the answer at most. The start of a call goes out at once,
that of any other block with its first delta or its stop, and only then it is given its index: a block that turns out to
be empty, which a client could not give back, or another protocol's, has none, so that they count up without a gap.
`message_delta` waits for the end, as usage may come after the finish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.deltas import (
    Annotated,
    Annotation,
    AnswerDelta,
    BlockKind,
    BlockStart,
    BlockStop,
    Delta,
    End,
    Finish,
    Ping,
    Signed,
    Start,
    UsageReport,
)
from capi_core.errors import LocalError
from capi_core.protocols.messages.answer_wire import message_id, stop_members
from capi_core.protocols.messages.block_encoder import (
    annotation_is_lost,
    block_start,
    delta_frame,
    input_piece,
    opaque_is_lost,
    signature_text,
)
from capi_core.protocols.messages.errors import error_event
from capi_core.protocols.splice import one_line
from capi_core.protocols.writing import json_bytes, json_text
from capi_core.usage import Usage, encode_anthropic_usage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.conversation import Signature
    from capi_core.fidelity import Ledger
    from capi_core.protocols.codec import Envelope

__all__ = ["MessagesEncoder"]

_PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_NONE: Final = -1
_CALLS: Final = (BlockKind.FUNCTION_CALL, BlockKind.CUSTOM_CALL)


class _Block(msgspec.Struct):
    """A block that has not gone out whole."""

    start: BlockStart
    texts: list[str] = []
    annotations: list[Annotation] = []
    signature: Signature | None = None
    stopped: bool = False
    begun: bool = False
    """Its `content_block_start` is out."""
    told: bool = False
    """Some of its text is out."""


class MessagesEncoder:
    """A `StreamEncoder` for one client's stream."""

    def __init__(self, envelope: Envelope, ledger: Ledger) -> None:
        self._envelope = envelope
        self._ledger = ledger
        self._ended = False
        self._blocks: dict[int, _Block] = {}
        """In the order of their starts, so the first one is live."""
        self._live = _NONE
        self._head = self._tail = b""
        """Around the text of a delta of the live block, when that can go out at once; else empty."""
        self._count = 0
        self._called = False
        self._refused = False
        self._usage: Usage | None = None
        self._finish: Finish | None = None

    def encode(self, deltas: Iterable[AnswerDelta]) -> bytes:
        """The bytes for these deltas. Raises `LocalError` when they break the rules of a delta stream."""
        out: list[bytes] = []
        for delta in deltas:
            if self._ended:
                break
            self._encode(delta, out)
        return b"".join(out)

    def _encode(self, delta: AnswerDelta, out: list[bytes]) -> None:
        match delta:
            case Delta():  # first, as most are
                self._text(delta, out)
            case Start():
                out.append(self._message_start(delta))
            case BlockStart():
                self._open(delta, out)
            case BlockStop():
                self._block(delta.index).stopped = True
                self._advance(out)
            case Signed():
                self._block(delta.index).signature = delta.signature
            case Annotated():
                self._annotate(delta, out)
            case UsageReport():
                self._usage = delta.usage
            case Finish():
                self._finish = delta
            case Ping():
                out.append(_PING)
            case End():
                self._end(out)
            case _:  # Failed, the only one left
                out.append(error_event(delta.problem))
                self._ended = True

    def _block(self, index: int) -> _Block:
        block = self._blocks.get(index)
        if block is None:
            raise LocalError(f"there is no open block {index}")
        return block

    def _message_start(self, start: Start) -> bytes:
        """Usage is not known yet; the type requires its two figures."""
        return (
            b'event: message_start\ndata: {"type":"message_start","message":{"id":%b,"type":"message",'
            b'"role":"assistant","model":%b,"content":[],"stop_reason":null,"stop_sequence":null,'
            b'"usage":{"input_tokens":0,"output_tokens":0}}}\n\n'
            % (json_bytes(message_id(start.id, self._envelope.request_id)), json_bytes(self._envelope.model))
        )

    def _open(self, start: BlockStart, out: list[bytes]) -> None:
        self._blocks[start.index] = _Block(start)
        self._called = self._called or start.kind in _CALLS
        self._refused = self._refused or start.kind is BlockKind.REFUSAL
        if len(self._blocks) == 1:
            self._advance(out)

    def _text(self, delta: Delta, out: list[bytes]) -> None:
        if delta.index == self._live and self._head and delta.text:
            out.append(b"%b%b%b" % (self._head, json_text(delta.text), self._tail))
            return
        block = self._block(delta.index)
        if delta.text:
            block.texts.append(delta.text)
            if delta.index == self._live:
                self._flush(block, out)

    def _annotate(self, delta: Annotated, out: list[bytes]) -> None:
        block = self._block(delta.index)
        if annotation_is_lost(delta.annotation, self._ledger):
            return
        block.annotations.append(delta.annotation)
        if delta.index == self._live:
            self._flush(block, out)

    def _advance(self, out: list[bytes]) -> None:
        """Lets out the blocks that need wait no longer; the first that has not stopped is live from then on."""
        while self._blocks:
            index, block = next(iter(self._blocks.items()))
            if index != self._live:
                self._live, self._head = index, b""
            if not block.stopped:
                if block.texts or block.annotations or (block.start.kind in _CALLS and not block.begun):
                    self._flush(block, out)
                return
            self._close(block, out)
            del self._blocks[index]
        self._live, self._head = _NONE, b""

    def _begin(self, block: _Block, out: list[bytes]) -> None:
        """The block's `content_block_start`, when it is the live one."""
        block.begun = True
        kind = block.start.kind
        self._start_block(block_start(block.start), out)
        if kind is not BlockKind.CUSTOM_CALL:
            self._head, self._tail = delta_frame(kind, self._count)

    def _start_block(self, content: bytes, out: list[bytes]) -> None:
        form = b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":%b}\n\n'
        out.append(form % (self._count, content))

    def _flush(self, block: _Block, out: list[bytes]) -> None:
        """All that waits of the live block."""
        if not block.begun:
            self._begin(block, out)
        text = "".join(block.texts)
        if block.start.kind is BlockKind.CUSTOM_CALL:
            text = input_piece(text, first=not block.told)
        if text:
            block.told = True
            head, tail = delta_frame(block.start.kind, self._count)
            out.append(b"%b%b%b" % (head, json_text(text), tail))
        for annotation in block.annotations:
            self._delta(b'"type":"citations_delta","citation":%b' % one_line(annotation.raw), out)
        block.texts.clear()
        block.annotations.clear()

    def _delta(self, members: bytes, out: list[bytes]) -> None:
        form = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{%b}}\n\n'
        out.append(form % (self._count, members))

    def _close(self, block: _Block, out: list[bytes]) -> None:
        """The rest of a block that has stopped, and its stop."""
        start, signature = block.start, block.signature
        if start.opaque is not None:
            if opaque_is_lost(start.opaque, self._ledger):
                return
            self._start_block(one_line(start.opaque.raw), out)
        elif start.kind not in _CALLS and not (block.begun or block.texts or block.annotations):
            if signature is None:
                return
            self._start_block(block_start(start, signature), out)
        else:
            self._finish_block(block, out)
        out.append(b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % self._count)
        self._count += 1

    def _finish_block(self, block: _Block, out: list[bytes]) -> None:
        self._flush(block, out)
        if block.start.kind is BlockKind.CUSTOM_CALL:
            self._delta(b'"type":"input_json_delta","partial_json":"\\"}"', out)
        elif block.start.kind is BlockKind.REASONING:
            signature = json_text(signature_text(block.signature))
            self._delta(b'"type":"signature_delta","signature":%b' % signature, out)

    def _end(self, out: list[bytes]) -> None:
        if self._finish is None or self._blocks:
            raise LocalError("an answer ends after its Finish and with no block open")
        self._ended = True
        members = stop_members(self._finish, called=self._called, refused=self._refused)
        usage = encode_anthropic_usage(self._usage, whole=False)
        form = b'event: message_delta\ndata: {"type":"message_delta","delta":{%b},"usage":%b}\n\n'
        out += [form % (members, usage), _STOP]
