"""From a reply's events to bytes and pauses, with the trouble that the caller asked for. Pure.

Protocol modules hand over `ServerEvent`s or a whole JSON body; what comes back is an `Answer` for `app` to play.
Every fault lives here, so that a new protocol gets them all.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, TypeVar

import msgspec
from attrs import evolve, field, frozen

from capi_core.errors import Problem
from capi_trio.demo.answers import (
    Answer,
    Drop,
    ErrorShape,
    Pause,
    Step,
    World,
    Write,
    error_object,
    json_headers,
    refusal,
)
from capi_trio.demo.faults import Fault, LineEnd, Options

__all__ = ["FAULT_PROBLEM", "ErrorEvent", "EventRole", "ServerEvent", "stream_answer", "whole_answer"]

T = TypeVar("T")

EventRole = Literal["opening", "content", "closing", "terminator"]


@frozen
class ServerEvent:
    """One event of a stream: its data, and its type for protocols that name them.

    `role` tells faults and pacing what it is: "content" is paced and counted; "opening" is what comes before the
    content or, where a protocol has blocks, between it; "closing" is what comes after all of it; "terminator" is
    what says that nothing follows, such as [DONE].
    """

    data: bytes = field(repr=False)
    role: EventRole
    name: str | None = None


# The protocol's event for a failure in mid-stream, given how many events came before it.
ErrorEvent = Callable[[int], ServerEvent]

_LINE_ENDS: Final = {LineEnd.LF: b"\n", LineEnd.CRLF: b"\r\n", LineEnd.CR: b"\r"}
_GARBAGE: Final = b"\x00\xff\xfe\x80"
_HTML: Final = b"<html><head><title>502 Bad Gateway</title></head><body>demo fault</body></html>\n"

_UNSOUND: Final = frozenset(
    {
        Fault.STATUS,
        Fault.RESET,
        Fault.ERROR_EVENT,
        Fault.FAILED,
        Fault.GARBAGE,
        Fault.BAD_JSON,
        Fault.END,
        Fault.NO_DONE,
        Fault.NO_BLANK,
    }
)

FAULT_PROBLEM: Final = Problem(500, "demo_fault", "The demo provider fails here because it was asked to.")


def stream_answer(
    events: Iterable[ServerEvent],
    error: ErrorEvent,
    options: Options,
    world: World,
    shape: ErrorShape = error_object,
) -> Answer:
    """A streamed answer of `events`; `error` makes the event of a failure, `shape` the body of an error answer."""
    if options.fault is Fault.STATUS:
        return _status(options, shape)
    steps = _Stream(error, options, world).steps(events)
    return Answer(
        status=200,
        headers=((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")),
        steps=_torn(steps, options),
        delay_s=_head_delay(options),
        sound=options.fault not in _UNSOUND,
    )


def whole_answer(
    value: object, options: Options, shape: ErrorShape = error_object, failed: object | None = None
) -> Answer:
    """An answer with `value` as its whole JSON body; `failed` is what says that it failed, else an error body."""
    if options.fault is Fault.STATUS:
        return _status(options, shape)
    if options.fault is Fault.ERROR_EVENT:
        value = shape(FAULT_PROBLEM)
    elif options.fault is Fault.FAILED:
        value = shape(FAULT_PROBLEM) if failed is None else failed
    headers, steps = _whole(msgspec.json.encode(value), options)
    return Answer(
        status=200,
        headers=headers,
        steps=_torn(steps, options),
        delay_s=_head_delay(options),
        sound=options.fault not in _UNSOUND,
    )


def _status(options: Options, shape: ErrorShape) -> Answer:
    problem = evolve(FAULT_PROBLEM, status=options.status, retry_after_s=options.retry_after)
    return evolve(refusal(problem, shape), sound=False)


def _head_delay(options: Options) -> float:
    return _seconds(options.delay_ms, 5.0) if options.fault is Fault.SLOW_HEAD else 0.0


def _seconds(milliseconds: float | None, default: float) -> float:
    return default if milliseconds is None else milliseconds / 1000


def _padded(data: bytes, size: int) -> bytes:
    """The JSON object with one more member, so that it has `size` bytes (never fewer than it needs).

    The member is `obfuscation`: OpenAI's own padding, which clients must not mind.
    """
    head = data[:-1] + b',"obfuscation":"'
    return head + b"x" * (size - len(head) - 2) + b'"}'


def _whole(body: bytes, options: Options) -> tuple[tuple[tuple[bytes, bytes], ...], list[Step]]:
    half = len(body) // 2
    match options.fault:
        case Fault.RESET:
            return json_headers(len(body)), [Write(body[:half]), Drop()]
        case Fault.SILENCE:
            pause = Pause(_seconds(options.silence_ms, math.inf))
            return json_headers(len(body)), [Write(body[:half]), pause, Write(body[half:])]
        case Fault.GARBAGE:
            length = b"%d" % len(_HTML)
            return ((b"content-type", b"text/html"), (b"content-length", length)), [Write(_HTML)]
        case Fault.BAD_JSON:
            body = body[:half]
        case Fault.HUGE_EVENT:
            body = _padded(body, options.size)
        case _:
            pass
    return json_headers(len(body)), [Write(body)]


class _Stream:
    """Plays events into steps; knows whether the fault has struck yet."""

    def __init__(self, error: ErrorEvent, options: Options, world: World) -> None:
        self._error = error
        self._options = options
        self._fault = options.fault
        self._pace = Pause(_seconds(options.pace_ms, world.pace_s))
        self._end = _LINE_ENDS[LineEnd.CRLF if options.fault is Fault.CRLF else options.line_end]
        self._struck = False

    def steps(self, events: Iterable[ServerEvent]) -> Iterator[Step]:
        if self._fault in (Fault.NO_DONE, Fault.NO_BLANK):
            events = (event for event in events if event.role != "terminator")
        content = 0
        for number, (event, is_last) in enumerate(_with_last(events)):
            if event.role == "content":
                if content and self._pace.seconds:
                    yield self._pace
                content += 1
            if self._strikes_before(event, content - 1):
                self._struck = True
                yield from self._strike(number)
                if self._fault in (Fault.RESET, Fault.END, Fault.ERROR_EVENT, Fault.FAILED):
                    return
                event = self._spoilt(event)
            if self._fault is Fault.COMMENTS:
                yield self._comment(b"ping")
            frame = self._frame(event)
            yield Write(frame.removesuffix(self._end) if is_last and self._fault is Fault.NO_BLANK else frame)

    def _strikes_before(self, event: ServerEvent, index: int) -> bool:
        if self._struck or event.role == "opening":
            return False
        return event.role != "content" or index == self._options.at

    def _strike(self, number: int) -> Iterator[Step]:
        """What the fault puts before the event that it strikes."""
        match self._fault:
            case Fault.RESET:
                yield Drop()
            case Fault.ERROR_EVENT | Fault.FAILED:
                yield Write(self._frame(self._error(number)))
            case Fault.GARBAGE:
                yield Write(b"data: " + _GARBAGE + self._end + self._end)
            case Fault.SILENCE:
                yield Pause(_seconds(self._options.silence_ms, math.inf))
            case Fault.KEEPALIVE:
                yield from self._keep_alive()
            case _:
                pass

    def _spoilt(self, event: ServerEvent) -> ServerEvent:
        """The event that the fault strikes, as the fault leaves it."""
        match self._fault:
            case Fault.BAD_JSON:
                return evolve(event, data=event.data[: len(event.data) // 2])
            case Fault.HUGE_EVENT:
                return evolve(event, data=_padded(event.data, self._options.size))
            case _:
                return event

    def _keep_alive(self) -> Iterator[Step]:
        left = _seconds(self._options.silence_ms, 60.0)
        # At least a millisecond: a silence of many comments without a pause would never yield to others.
        interval = max(_seconds(self._options.delay_ms, 15.0), 0.001)
        while left > interval:
            yield Pause(interval)
            yield self._comment(b"keep-alive")
            left -= interval
        yield Pause(left)

    def _comment(self, text: bytes) -> Write:
        return Write(b": " + text + self._end + self._end)

    def _frame(self, event: ServerEvent) -> bytes:
        name = b"" if event.name is None else b"event: " + event.name.encode() + self._end
        return name + b"data: " + event.data + self._end + self._end


def _with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last one."""
    iterator = iter(items)
    try:
        held = next(iterator)
    except StopIteration:
        return
    for item in iterator:
        yield held, False
        held = item
    yield held, True


def _torn(steps: Iterable[Step], options: Options) -> Iterator[Step]:
    """The steps with each write broken into writes of at most `split` bytes."""
    if options.split is None:
        yield from steps
        return
    for step in steps:
        if isinstance(step, Write):
            for start in range(0, len(step.data), options.split):
                yield Write(step.data[start : start + options.split])
        else:
            yield step
