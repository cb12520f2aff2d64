"""A Responses stream in, deltas out; and a whole answer, which is the same without the events before its last.

Source: OpenAI API reference, "Streaming events"; wire.md 1.2, 1.5, 1.6, 1.8.

Theory of operation. `_HANDLERS` is the table of the events that say something; all others (progress of hosted tools,
`keepalive`, `[DONE]`, what is yet to be invented) are passed over. Text of a `.done` event counts where no delta came
before it, and the whole item in `response.output_item.done` or `response.output` where nothing came at all: the items
and their blocks are `ItemReader`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.deltas import (
    AnswerDelta,
    BlockKind,
    End,
    Failed,
    Finish,
    FinishReason,
    Start,
    UsageReport,
)
from capi_core.errors import Problem
from capi_core.members import decode
from capi_core.protocols.openai import says_error
from capi_core.protocols.reading import EventReader
from capi_core.protocols.responses.errors import ErrorBody, problem_of
from capi_core.protocols.responses.item_reader import ItemReader
from capi_core.protocols.responses.wire import CALLS, TYPED
from capi_core.usage import responses_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


__all__ = ["ResponsesDecoder"]

_MOST_BLOCKS: Final = 4096
_MOST_CALLS: Final = 128
"""Calls that are open at the same time."""
_WHOLE: Final = -1
"""In place of a content_index: the block is the whole item."""
_READ: Final = frozenset({"message", "reasoning", *CALLS})
_PARTS: Final = {"output_text": BlockKind.TEXT, "refusal": BlockKind.REFUSAL, "text": BlockKind.TEXT}
_LIMITS: Final = {"content_filter": FinishReason.CONTENT_FILTER, "steered": FinishReason.PAUSE}
"""By `incomplete_details.reason`; every other is a limit of some sort."""
_DONE: Final = b"[DONE]"
_NULL: Final = b"null"


class _Event(msgspec.Struct, gc=False):
    """All events in one: what each needs is a subset, and the hot ones need next to nothing."""

    type: str = ""
    output_index: int = 0
    content_index: int = 0
    summary_index: int = 0
    delta: str | None = None
    text: str | None = None
    refusal: str | None = None
    arguments: str | None = None
    input: str | None = None
    item: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    annotation: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    message: str | None = None
    code: str | int | None = None
    param: str | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    created_at: int | float | None = None
    status: str | None = None
    output: list[msgspec.Raw] | None = None
    error: ErrorBody | None = None
    incomplete_details: _Incomplete | None = None
    usage: msgspec.Raw = msgspec.Raw()


_EVENT: Final = msgspec.json.Decoder(_Event)
_RESPONSE: Final = msgspec.json.Decoder(_Response)
_ERROR: Final = msgspec.json.Decoder(ErrorBody)


class ResponsesDecoder:
    """A `StreamDecoder` for one upstream's stream."""

    def __init__(self, *, max_event_bytes: int) -> None:
        self._reader = EventReader(max_event_bytes=max_event_bytes)
        self._out: list[AnswerDelta] = []
        self._ended = False
        self._started = False
        self._items = ItemReader(self._emit, lambda message: self._fail("upstream_garbage", message))

    def receive_data(self, data: bytes) -> list[AnswerDelta]:
        """Takes upstream bytes in any chunking."""
        if self._ended:
            return []
        for event in self._reader.receive_data(data):
            self._take(event.data or b"")
        return self._drain()

    def finish(self) -> list[AnswerDelta]:
        """The upstream ended its response properly: `End`, or `Failed` when no terminal event came."""
        if self._ended:
            return []
        for event in self._reader.finish(frozenset({_DONE})):
            self._take(event.data or b"")
        found = self._drain()
        self._fail("upstream_truncated", "the upstream ended its stream before the answer was complete")
        return found + self._drain()

    def whole(self, response: bytes) -> list[AnswerDelta]:
        """A whole answer in place of a stream; JSON in which surrogates are paired. Raises `msgspec.DecodeError`."""
        self._terminal(_Event(response=msgspec.Raw(response)))
        return self._drain()

    def _drain(self) -> list[AnswerDelta]:
        fault = self._reader.fault
        if fault is not None:
            self._end(Failed(Problem.of(fault), upstream=False))
        out, self._out = self._out, []
        return out

    def _take(self, data: bytes) -> None:
        if self._ended or data.strip() in (b"", _DONE):
            return
        try:
            event, _ = decode(_EVENT, data)
            handler = _HANDLERS.get(event.type)
            if handler is not None:
                handler(self, event)
            elif not event.type and says_error(event.error):  # Chat's error object, as Copilot may send anywhere
                self._end(Failed(problem_of(_ERROR.decode(event.error)), upstream=True))
        except msgspec.ValidationError:
            self._take_odd(data)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            self._fail("upstream_garbage", "the upstream sent something that is not a Responses stream")

    def _take_odd(self, data: bytes) -> None:
        """An event with a member of another type than ours: of a kind that we know it is a broken one."""
        try:
            known = decode(TYPED, data)[0].type in _HANDLERS
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            known = True
        if known:
            self._fail("upstream_garbage", "the upstream sent an event with a member of a wrong type")

    def _fail(self, code: str, message: str) -> None:
        self._end(Failed(Problem(502, code, message), upstream=False))

    def _end(self, last: End | Failed) -> None:
        self._emit(last)
        self._ended = True

    def _emit(self, delta: AnswerDelta) -> None:
        """The only place that puts deltas out: Start first, whatever an upstream left out; nothing after the end."""
        if not self._started and type(delta) is not Failed:
            self._start(_Response())
        if not self._ended:
            self._out.append(delta)

    # Lifecycle

    def _lifecycle(self, event: _Event) -> None:
        self._start(_RESPONSE.decode(event.response) if event.response else _Response())

    def _start(self, response: _Response) -> None:
        if not self._started:
            self._started = True
            created = response.created_at
            seconds = int(created) if created is not None and 0 <= created < 2**53 else None
            self._emit(Start(response.id or "", response.model or "", seconds))

    def _terminal(self, event: _Event) -> None:
        response = _RESPONSE.decode(event.response) if event.response else _Response()
        self._start(response)
        failed = event.type in ("response.failed", "response.cancelled") or response.status in ("failed", "cancelled")
        if failed or (response.error is not None and response.status != "completed"):
            default = ErrorBody(f"the upstream's answer is {response.status or 'failed'}")
            self._end(Failed(problem_of(response.error or default), upstream=True))
            return
        self._items.finish_all(response.output or [])
        usage = responses_usage(response.usage) if response.usage else None
        if usage is not None:
            self._emit(UsageReport(usage))
        self._emit(Finish(self._reason(event, response)))
        self._end(End())

    def _reason(self, event: _Event, response: _Response) -> FinishReason:
        if event.type == "response.incomplete" or response.status == "incomplete":
            details = response.incomplete_details or _Incomplete()
            return _LIMITS.get(details.reason or "", FinishReason.LENGTH)
        return FinishReason.TOOL_CALLS if self._items.called else FinishReason.STOP

    # Handlers of single events

    def _error(self, event: _Event) -> None:
        error = ErrorBody(event.message, None, event.code, event.param)
        if says_error(event.error):  # nested, as on WebSockets
            error = _ERROR.decode(event.error)
        self._end(Failed(problem_of(error), upstream=True))

    def _item_added(self, event: _Event) -> None:
        if event.item:
            self._items.added(event.output_index, event.item)

    def _item_done(self, event: _Event) -> None:
        if event.item:
            self._items.done(event.output_index, event.item)

    def _text_delta(self, event: _Event) -> None:
        self._items.text(event.output_index, event.content_index, BlockKind.TEXT, event.delta, whole=False)

    def _text_done(self, event: _Event) -> None:
        self._items.text(event.output_index, event.content_index, BlockKind.TEXT, event.text, whole=True)

    def _refusal_delta(self, event: _Event) -> None:
        self._items.text(event.output_index, event.content_index, BlockKind.REFUSAL, event.delta, whole=False)

    def _refusal_done(self, event: _Event) -> None:
        self._items.text(event.output_index, event.content_index, BlockKind.REFUSAL, event.refusal, whole=True)

    def _call_delta(self, event: _Event) -> None:
        self._items.call(event.output_index, event.delta, whole=False)

    def _call_done(self, event: _Event) -> None:
        self._items.call(event.output_index, event.arguments or event.input, whole=True)

    def _summary_delta(self, event: _Event) -> None:
        self._items.think(event.output_index, ("summary", event.summary_index), event.delta, whole=False)

    def _summary_done(self, event: _Event) -> None:
        self._items.think(event.output_index, ("summary", event.summary_index), event.text, whole=True)

    def _reasoning_delta(self, event: _Event) -> None:
        self._items.think(event.output_index, ("content", event.content_index), event.delta, whole=False)

    def _reasoning_done(self, event: _Event) -> None:
        self._items.think(event.output_index, ("content", event.content_index), event.text, whole=True)

    def _annotation(self, event: _Event) -> None:
        if event.annotation:
            self._items.annotation(event.output_index, event.content_index, event.annotation)


_HANDLERS: Final[Mapping[str, Callable[[ResponsesDecoder, _Event], None]]] = {
    "response.created": ResponsesDecoder._lifecycle,
    "response.queued": ResponsesDecoder._lifecycle,
    "response.in_progress": ResponsesDecoder._lifecycle,
    "response.output_item.added": ResponsesDecoder._item_added,
    "response.output_item.done": ResponsesDecoder._item_done,
    "response.output_text.delta": ResponsesDecoder._text_delta,
    "response.output_text.done": ResponsesDecoder._text_done,
    "response.output_text.annotation.added": ResponsesDecoder._annotation,
    "response.refusal.delta": ResponsesDecoder._refusal_delta,
    "response.refusal.done": ResponsesDecoder._refusal_done,
    "response.function_call_arguments.delta": ResponsesDecoder._call_delta,
    "response.function_call_arguments.done": ResponsesDecoder._call_done,
    "response.custom_tool_call_input.delta": ResponsesDecoder._call_delta,
    "response.custom_tool_call_input.done": ResponsesDecoder._call_done,
    "response.reasoning_summary_text.delta": ResponsesDecoder._summary_delta,
    "response.reasoning_summary_text.done": ResponsesDecoder._summary_done,
    "response.reasoning_text.delta": ResponsesDecoder._reasoning_delta,
    "response.reasoning_text.done": ResponsesDecoder._reasoning_done,
    "response.completed": ResponsesDecoder._terminal,
    "response.incomplete": ResponsesDecoder._terminal,
    "response.failed": ResponsesDecoder._terminal,
    "response.cancelled": ResponsesDecoder._terminal,
    "error": ResponsesDecoder._error,
}
