"""A Messages stream in, deltas out; and a whole Message.

Source: Anthropic API reference, "Streaming Messages"; wire.md 1.3, 1.6, 1.8.

Theory of operation. `_HANDLERS` is the table of the events; what is not in it is passed over. Usage comes twice, in
`message_start` and, cumulative, in each `message_delta`; each report here is all that is known by then. The first
`stop_reason` makes the Finish, and with it the answer is complete: Copilot may send `[DONE]` in place of
`message_stop`, or nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.deltas import AnswerDelta, End, Failed, Finish, FinishReason, Ping, Start, UsageReport
from capi_core.errors import Problem
from capi_core.fidelity import Change
from capi_core.members import MembersError, decode
from capi_core.protocols.messages.answer_wire import REASONS, StopDetails
from capi_core.protocols.messages.block_reader import BlockDelta, BlockReader
from capi_core.protocols.messages.errors import ErrorBody, problem_of
from capi_core.protocols.openai import says_error
from capi_core.protocols.reading import EventReader
from capi_core.usage import Usage, anthropic_usage, merge_anthropic_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from capi_core.fidelity import Ledger
    from capi_core.sse import Event

__all__ = ["Message", "MessagesDecoder"]

_DONE: Final = b"[DONE]"


class _Delta(BlockDelta, gc=False):
    """The member `delta` of both events that have one."""

    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: StopDetails | None = None


class Message(msgspec.Struct):
    """A whole answer, or the empty one in `message_start`."""

    id: str | None = None
    model: str | None = None
    content: list[msgspec.Raw] | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: StopDetails | None = None
    usage: msgspec.Raw = msgspec.Raw()


class _Event(msgspec.Struct, gc=False):
    """All events in one: what each needs is a subset, and the hot ones need next to nothing."""

    type: str = ""
    index: int = 0
    delta: _Delta | None = None
    content_block: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Typed(msgspec.Struct):
    type: str = ""


_EVENT: Final = msgspec.json.Decoder(_Event)
_MESSAGE: Final = msgspec.json.Decoder(Message)
_ERROR: Final = msgspec.json.Decoder(ErrorBody)
_TYPED: Final = msgspec.json.Decoder(_Typed)


class MessagesDecoder:
    """A `StreamDecoder` for one upstream's stream."""

    def __init__(self, ledger: Ledger, *, max_event_bytes: int) -> None:
        self._reader = EventReader(max_event_bytes=max_event_bytes)
        self._ledger = ledger
        self._out: list[AnswerDelta] = []
        self._started = False
        self._finished = False
        self._ended = False
        self._usage: Usage | None = None
        self._blocks = BlockReader(self._emit, self._garbage, max_held=max_event_bytes)

    def receive_data(self, data: bytes) -> list[AnswerDelta]:
        """Takes upstream bytes in any chunking."""
        if self._ended:
            return []
        for event in self._reader.receive_data(data):
            self._take(event)
        return self._drain()

    def finish(self) -> list[AnswerDelta]:
        """The upstream ended its response properly: `End`, or `Failed` when no stop reason came."""
        if self._ended:
            return []
        for event in self._reader.finish(frozenset({_DONE})):
            self._take(event)
        found = self._drain()
        self._fail("upstream_truncated", "the upstream ended its stream before the answer was complete")
        return found + self._drain()

    def whole(self, message: Message) -> list[AnswerDelta]:
        """A whole answer in place of a stream. Raises `msgspec.DecodeError`."""
        self._start(message)
        for place, raw in enumerate(message.content or ()):
            self._blocks.start(place, bytes(raw))
            self._blocks.stop(place)
        if message.usage:
            self._report(anthropic_usage(message.usage))
        self._finish(message.stop_reason, message.stop_sequence, message.stop_details)
        self._end(End())
        return self._drain()

    def _drain(self) -> list[AnswerDelta]:
        fault = self._reader.fault
        if fault is not None:
            self._fail(fault.code, str(fault))
        out, self._out = self._out, []
        return out

    def _take(self, sent: Event) -> None:
        data = (sent.data or b"").strip()
        if self._ended or not data:
            return
        if data == _DONE:
            self._done_mark()
            return
        try:
            event, _ = decode(_EVENT, data)
            handler = _HANDLERS.get(event.type or sent.type.decode("latin-1"))
            if handler is not None:
                handler(self, event)
            elif says_error(event.error):  # Chat's error object, as Copilot may send anywhere
                self._error(event)
        except msgspec.ValidationError:
            self._take_odd(data)
        except (msgspec.DecodeError, MembersError, RecursionError, UnicodeError):
            self._garbage("the upstream sent something that is not a Messages stream")

    def _take_odd(self, data: bytes) -> None:
        """An event with a member of another type than ours: of a kind that we know it is a broken one."""
        try:
            known = decode(_TYPED, data)[0].type in _HANDLERS
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            known = True
        if known:
            self._garbage("the upstream sent an event with a member of a wrong type")

    def _done_mark(self) -> None:
        """No part of this protocol; it may stand for `message_stop`."""
        if self._finished:
            self._end(End())

    def _garbage(self, message: str) -> None:
        self._fail("upstream_garbage", message)

    def _fail(self, code: str, message: str) -> None:
        """Nothing more can be read. An answer that is complete does not suffer from it."""
        self._end(End() if self._finished else Failed(Problem(502, code, message), upstream=False))

    def _end(self, last: End | Failed) -> None:
        self._emit(last)
        self._ended = True

    def _emit(self, delta: AnswerDelta) -> None:
        """The only place that puts deltas out: Start first, whatever an upstream left out; nothing after the end."""
        if not self._started and type(delta) not in (Failed, Ping):
            self._start(Message())
        if not self._ended:
            self._out.append(delta)

    def _start(self, message: Message) -> None:
        if not self._started:
            self._started = True
            self._emit(Start(message.id or "", message.model or ""))

    def _report(self, usage: Usage | None) -> None:
        merged = merge_anthropic_usage(self._usage, usage)
        if merged is not None and usage is not None:
            self._usage = merged
            self._emit(UsageReport(merged))

    def _finish(self, word: str | None, sequence: str | None, details: StopDetails | None) -> None:
        """The answer is complete. `word`: the stop reason, `None` when the upstream left it out."""
        self._blocks.stop_all()
        reason = REASONS.get(word or "")
        if reason is None:
            reason = FinishReason.TOOL_CALLS if self._blocks.called else FinishReason.STOP
            if word:
                self._ledger.add(
                    Change.ALTERED, "$.stop_reason", "a reason that is not known: the answer looks complete"
                )
        detail = None if details is None else details.explanation
        self._emit(Finish(reason, sequence, detail))
        self._finished = True

    # Handlers of single events

    def _message_start(self, event: _Event) -> None:
        message = decode(_MESSAGE, bytes(event.message))[0] if event.message else Message()
        self._start(message)
        if message.usage:
            self._report(anthropic_usage(message.usage, opening=True))

    def _block_start(self, event: _Event) -> None:
        if event.content_block and not self._finished:
            self._blocks.start(event.index, bytes(event.content_block))

    def _block_delta(self, event: _Event) -> None:
        if event.delta is not None and not self._finished:
            self._blocks.delta(event.index, event.delta)

    def _block_stop(self, event: _Event) -> None:
        self._blocks.stop(event.index)

    def _message_delta(self, event: _Event) -> None:
        delta = event.delta
        if event.usage:
            self._report(anthropic_usage(event.usage))
        if delta is not None and delta.stop_reason and not self._finished:
            self._finish(delta.stop_reason, delta.stop_sequence, delta.stop_details)

    def _message_stop(self, event: _Event) -> None:
        if not self._finished:
            self._finish(None, None, None)
        self._end(End())

    def _ping(self, event: _Event) -> None:
        self._emit(Ping())

    def _error(self, event: _Event) -> None:
        error = decode(_ERROR, bytes(event.error))[0] if says_error(event.error) else ErrorBody()
        self._end(Failed(problem_of(error), upstream=True))


_HANDLERS: Final[Mapping[str, Callable[[MessagesDecoder, _Event], None]]] = {
    "message_start": MessagesDecoder._message_start,
    "content_block_start": MessagesDecoder._block_start,
    "content_block_delta": MessagesDecoder._block_delta,
    "content_block_stop": MessagesDecoder._block_stop,
    "message_delta": MessagesDecoder._message_delta,
    "message_stop": MessagesDecoder._message_stop,
    "ping": MessagesDecoder._ping,
    "error": MessagesDecoder._error,
}
