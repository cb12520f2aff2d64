"""A Chat Completions stream in, deltas out; and a whole answer, which is read as one chunk.

Source: OpenAI API reference, "The chat completion chunk object"; wire.md 1.1, 1.6, 1.8.

Theory of operation. Chat has no blocks: a delta has members, and what they add up to are blocks. Of the kinds that are
prose (text, reasoning, refusal) one block is open at a time: when another kind comes, or a tool call, it is closed, and
prose of its kind that comes later is a block of its own. Tool calls are open until the finish, as their indices may
interleave. A signature of reasoning (`reasoning_opaque`) closes the block it comes in; one that comes after other
content has begun is a reasoning block without text.

    OPEN      -> until a choice has its finish_reason: then all blocks are closed
    FINISHED  -> only usage counts, until [DONE] or the end of the bytes
    ended     -> `End` or `Failed` was given
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conversation import Signature
from capi_core.deltas import (
    Annotated,
    AnswerDelta,
    BlockKind,
    BlockStart,
    BlockStop,
    Delta,
    End,
    Failed,
    Finish,
    FinishReason,
    Signed,
    Start,
    UsageReport,
)
from capi_core.errors import Problem
from capi_core.fidelity import Change
from capi_core.members import decode
from capi_core.protocols.chat.answer_wire import CHUNK, FINISH_REASONS, Choice, Chunk, Message, read_annotation
from capi_core.protocols.chat.call_reader import CallReader
from capi_core.protocols.chat.errors import UNREADABLE, decode_error
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.openai import says_error
from capi_core.protocols.reading import EventReader
from capi_core.usage import openai_usage

if TYPE_CHECKING:
    from capi_core.fidelity import Ledger

__all__ = ["ChatDecoder"]

_DONE: Final = b"[DONE]"


class ChatDecoder:
    """A `StreamDecoder` for one upstream's stream."""

    def __init__(self, ledger: Ledger, *, max_event_bytes: int) -> None:
        self._reader = EventReader(max_event_bytes=max_event_bytes)
        self._ledger = ledger
        self._out: list[AnswerDelta] = []
        self._started = False
        self._finished = False
        self._ended = False
        self._blocks = 0
        self._prose: tuple[BlockKind, int] | None = None
        self._calls = CallReader()

    def receive_data(self, data: bytes) -> list[AnswerDelta]:
        """Takes upstream bytes in any chunking."""
        if self._ended:
            return []
        for event in self._reader.receive_data(data):
            self._take(event.data or b"")
        return self._drain()

    def finish(self) -> list[AnswerDelta]:
        """The upstream ended its response properly: `End`, or `Failed` when nothing said that all was there."""
        if self._ended:
            return []
        for event in self._reader.finish(frozenset({_DONE})):
            self._take(event.data or b"")
        found = self._drain()
        if self._finished:
            self._end(End())
        else:
            self._fail("upstream_truncated", "the upstream ended its stream before the answer was complete")
        return found + self._drain()

    def whole(self, answer: Chunk) -> list[AnswerDelta]:
        """A whole answer in place of a stream. All its choices are one answer: Copilot gives the text and each call a
        choice of its own (wire.md 1.8), and several answers are never asked for."""
        self._chunk(answer, every_choice=True)
        self._done()
        return self._drain()

    def _drain(self) -> list[AnswerDelta]:
        fault = self._reader.fault
        if fault is not None:
            self._end(Failed(Problem.of(fault), upstream=False))
        out, self._out = self._out, []
        return out

    def _take(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            chunk, _ = decode(CHUNK, data)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            self._take_other(data.strip())
            return
        if says_error(chunk.error):
            self._end(Failed(decode_error(data, 200) or UNREADABLE, upstream=True))
        else:
            self._chunk(chunk)

    def _take_other(self, text: bytes) -> None:
        """Data that is no chunk: the end mark, nothing at all, or garbage."""
        if text == _DONE:
            self._done()
        elif text:
            self._fail("upstream_garbage", "the upstream sent something that is not a Chat Completions stream")

    def _done(self) -> None:
        """The end mark says that the answer is complete, also where no finish_reason did."""
        if not self._finished and self._blocks:
            self._ledger.add(Change.SYNTHESISED, "$.choices[0].finish_reason", "the upstream gave no finish_reason")
            self._finish("stop")
        if self._finished:
            self._end(End())
        else:
            self._fail("upstream_truncated", "the upstream ended its stream before the answer began")

    def _fail(self, code: str, message: str) -> None:
        self._end(Failed(Problem(502, code, message), upstream=False))

    def _end(self, last: End | Failed) -> None:
        if not self._ended:
            self._out.append(last)
            self._ended = True

    # -- chunks -------------------------------------------------------------------------------------------------

    def _chunk(self, chunk: Chunk, *, every_choice: bool = False) -> None:
        if not self._started and (chunk.id or chunk.choices or chunk.usage):
            self._start(chunk)
        if chunk.choices:
            self._choices(chunk.choices, every_choice=every_choice)
        if chunk.usage and not self._ended:
            usage = openai_usage(chunk.usage)
            if usage is not None:
                self._out.append(UsageReport(usage))

    def _start(self, chunk: Chunk) -> None:
        """Copilot's first chunk is about the prompt and has no id: it starts nothing."""
        self._started = True
        created = chunk.created
        seconds = int(created) if created is not None and 0 <= created < 2**53 else None
        self._out.append(Start(chunk.id or "", chunk.model or "", seconds))

    def _choices(self, choices: list[Choice], *, every_choice: bool) -> None:
        reasons = []
        for choice in choices:
            if choice.index and not every_choice:
                self._ledger.dropped("$.choices", "a choice that was not asked for")
                continue
            message = choice.delta or choice.message
            if message is not None and not self._finished and not self._ended:
                self._message(message)
            if choice.finish_reason:  # some servers write "" for "not yet"
                reasons.append(choice.finish_reason)
        if reasons and not self._finished and not self._ended:
            self._finish(next((reason for reason in reasons if reason != "stop"), "stop"))

    def _message(self, message: Message) -> None:
        """Reasoning first: it comes before what it led to, also inside one chunk."""
        thoughts = message.thoughts
        if thoughts:
            self._say(BlockKind.REASONING, thoughts)
        if message.reasoning_opaque:
            self._sign(message.reasoning_opaque)
        words = message.words
        if words:
            self._say(BlockKind.TEXT, words)
        if message.refusal:
            self._say(BlockKind.REFUSAL, message.refusal)
        for raw in message.annotations or ():
            index = self._prose_block(BlockKind.TEXT)
            self._out.append(Annotated(index, read_annotation(raw)))
        if message.tool_calls:
            self._call(message)

    def _say(self, kind: BlockKind, text: str) -> None:
        prose = self._prose
        index = prose[1] if prose is not None and prose[0] is kind else self._prose_block(kind)
        self._out.append(Delta(index, text))

    def _sign(self, blob: str) -> None:
        index = self._prose_block(BlockKind.REASONING)
        self._out.append(Signed(index, Signature(Protocol.CHAT, blob)))
        self._close_prose()

    def _call(self, message: Message) -> None:
        self._close_prose()
        for part in message.tool_calls or ():
            begun = self._calls.begun
            problem = self._calls.take(part, self._blocks, self._out)
            if problem is not None:
                self._end(Failed(problem, upstream=False))
                return
            self._blocks += self._calls.begun - begun

    # -- blocks -------------------------------------------------------------------------------------------------

    def _prose_block(self, kind: BlockKind) -> int:
        """The open block of this kind; when another one is open, that is closed."""
        if self._prose is not None and self._prose[0] is kind:
            return self._prose[1]
        self._close_prose()
        index = self._blocks
        self._blocks += 1
        self._prose = (kind, index)
        self._out.append(BlockStart(index, kind))
        return index

    def _close_prose(self) -> None:
        if self._prose is not None:
            self._out.append(BlockStop(self._prose[1]))
            self._prose = None

    def _finish(self, reason: str) -> None:
        self._close_prose()
        problem = self._calls.close(self._out)
        if problem is not None:
            self._end(Failed(problem, upstream=False))
            return
        self._finished = True
        found = FINISH_REASONS.get(reason, FinishReason.STOP)
        if found is FinishReason.STOP and self._calls.begun:  # many servers say "stop" there too
            found = FinishReason.TOOL_CALLS
        self._out.append(Finish(found))
