"""Deltas in, a Chat Completions stream out.

Source: OpenAI API reference, "The chat completion chunk object"; wire.md 1.1, 1.6, 1.7.

Chat has no blocks: text, reasoning and each tool call are told apart by members of `delta`, so blocks that overlap need
no buffer, and nothing of the answer is held. Reasoning goes as `reasoning_content` and its signature as
`reasoning_opaque`: the names that clients know and replay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core.deltas import (
    PART_BREAK,
    Annotated,
    AnswerDelta,
    BlockKind,
    BlockStart,
    BlockStop,
    Delta,
    End,
    Failed,
    Finish,
    Ping,
    Signed,
    Start,
    UsageReport,
)
from capi_core.errors import LocalError
from capi_core.fidelity import Change
from capi_core.protocols.carriage import wrap
from capi_core.protocols.chat.answer_parts import answer_created, answer_id, citation, finish_word
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.openai import encode_error
from capi_core.protocols.writing import json_text
from capi_core.sse import KEEP_ALIVE, encode
from capi_core.usage import encode_openai_usage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.fidelity import Ledger
    from capi_core.protocols.codec import Envelope
    from capi_core.usage import Usage

__all__ = ["ChatEncoder"]

_MEMBERS: Final = {
    BlockKind.TEXT: b"content",
    BlockKind.REASONING: b"reasoning_content",
    BlockKind.REFUSAL: b"refusal",
}
"""By kind of block: the member of a delta that has its text."""


class _Open:
    """A block that more may come of. `head`, `tail`: what stands around its text."""

    __slots__ = ("empty", "head", "kind", "tail")

    def __init__(self, kind: BlockKind, head: bytes, tail: bytes) -> None:
        self.kind = kind
        self.head = head
        self.tail = tail
        self.empty = True


class ChatEncoder:
    """A `StreamEncoder` for one client's stream."""

    def __init__(self, envelope: Envelope, ledger: Ledger) -> None:
        self._envelope = envelope
        self._ledger = ledger
        self._head = b""
        """What every chunk begins with, up to the list of choices."""
        self._blocks: dict[int, _Open] = {}
        self._calls = 0
        self._length = 0
        self._thought = False
        """Whether there was reasoning in an earlier block."""
        self._signed = False
        self._usage: Usage | None = None
        self._finished = False
        self._ended = False

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
                self._start(delta, out)
            case BlockStart():
                self._open(delta, out)
            case BlockStop():
                self._stop(delta.index, out)
            case Signed():
                self._sign(delta, out)
            case Annotated():
                self._annotate(delta, out)
            case UsageReport():
                self._usage = delta.usage
            case Finish():
                self._finish(delta, out)
            case Ping():
                out.append(KEEP_ALIVE)
            case End():
                self._end(out)
            case _:  # Failed, the only one left
                self._fail(delta, out)

    def _text(self, delta: Delta, out: list[bytes]) -> None:
        block = self._block(delta.index)
        if not delta.text:
            return
        if block.kind is BlockKind.TEXT:
            self._length += len(delta.text)
        elif block.kind is BlockKind.REASONING:
            if block.empty and self._thought:
                out.append(b"%b%b%b" % (block.head, json_text(PART_BREAK), block.tail))
            self._thought = True
        block.empty = False
        out.append(b"%b%b%b" % (block.head, json_text(delta.text), block.tail))

    def _block(self, index: int) -> _Open:
        block = self._blocks.get(index)
        if block is None:
            raise LocalError(f"there is no open block {index}")
        return block

    def _start(self, start: Start, out: list[bytes]) -> None:
        self._head = b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":[' % (
            json_text(answer_id(start.id, self._envelope)),
            answer_created(start.created_s, self._envelope),
            json_text(self._envelope.model),
        )
        self._chunk(b'"role":"assistant","content":""', out)

    @property
    def _tail(self) -> bytes:
        """What every chunk of the choice ends with. With `include_usage` all but the last one have a null there."""
        return b'},"finish_reason":null}]%b}\n\n' % self._no_usage

    @property
    def _no_usage(self) -> bytes:
        return b',"usage":null' if self._envelope.include_usage else b""

    def _chunk(self, members: bytes, out: list[bytes]) -> None:
        out.append(b'%b{"index":0,"delta":{%b%b' % (self._head, members, self._tail))

    def _open(self, start: BlockStart, out: list[bytes]) -> None:
        member = _MEMBERS.get(start.kind)
        if member is not None:
            head = b'%b{"index":0,"delta":{"%b":' % (self._head, member)
            self._blocks[start.index] = _Open(start.kind, head, self._tail)
        elif start.kind is BlockKind.OPAQUE:
            self._ledger.dropped("$.choices[0].message", "a part of the answer that only its own protocol knows")
        else:
            self._open_call(start, out)

    def _open_call(self, start: BlockStart, out: list[bytes]) -> None:
        if start.tool is None:
            raise LocalError("a tool call starts with its name")
        path = f"$.choices[0].message.tool_calls[{self._calls}]"
        if start.kind is BlockKind.CUSTOM_CALL:
            self._ledger.add(Change.ALTERED, path, "Chat streams no calls of custom tools: it goes as a function's")
        form = b'"tool_calls":[{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":""}}]'
        self._chunk(form % (self._calls, json_text(start.id), json_text(start.tool.name)), out)
        head = b'%b{"index":0,"delta":{"tool_calls":[{"index":%d,"function":{"arguments":' % (self._head, self._calls)
        self._blocks[start.index] = _Open(start.kind, head, b"}}]" + self._tail)
        self._calls += 1

    def _stop(self, index: int, out: list[bytes]) -> None:
        """Ends a block. Clients parse the arguments of a function: none at all are an empty object."""
        block = self._blocks.pop(index, None)
        if block is not None and block.empty and block.kind is BlockKind.FUNCTION_CALL:
            out.append(b'%b"{}"%b' % (block.head, block.tail))

    def _sign(self, delta: Signed, out: list[bytes]) -> None:
        if self._signed:
            self._ledger.dropped("$.choices[0].message", "Chat has one signature for all the reasoning of an answer")
            return
        self._signed = True
        self._chunk(b'"reasoning_opaque":%b' % json_text(wrap(delta.signature, Protocol.CHAT)), out)

    def _annotate(self, delta: Annotated, out: list[bytes]) -> None:
        raw = citation(delta.annotation, self._length, self._ledger)
        if raw is not None:
            self._chunk(b'"annotations":[%b]' % raw, out)

    def _finish(self, finish: Finish, out: list[bytes]) -> None:
        self._finished = True
        word = finish_word(finish, self._ledger).encode()
        out.append(b'%b{"index":0,"delta":{},"finish_reason":"%b"}]%b}\n\n' % (self._head, word, self._no_usage))

    def _end(self, out: list[bytes]) -> None:
        if not self._finished:
            raise LocalError("an answer ends after its Finish")
        self._ended = True
        if self._usage is not None and self._envelope.include_usage:
            out.append(b'%b],"usage":%b}\n\n' % (self._head, encode_openai_usage(self._usage)))
        out.append(b"data: [DONE]\n\n")

    def _fail(self, failed: Failed, out: list[bytes]) -> None:
        """Both official SDKs raise `APIError` on it and read no more: there is no end mark after an error."""
        self._ended = True
        out.append(encode(encode_error(failed.problem)))
