"""How a caller asks the demo provider for trouble: the request's optional `demo` member. Pure.

Any request may carry it at top level; with the official SDKs it goes in `extra_body`:

    client.chat.completions.create(..., extra_body={"demo": {"pace_ms": 20, "fault": "reset", "at": 3}})

The same object may stand in the text of the last user message instead: see `directive`. `Options` lists the
members, `Fault` the kinds of trouble. What is not known is refused with the list of what is.
"""

import enum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from capi_trio.demo.answers import Refused

__all__ = ["Fault", "LineEnd", "Options", "Quirk", "UsageStyle", "parse_options"]


class Fault(enum.Enum):
    """What goes wrong. `at` counts content events from 0; the trouble strikes before that event.

    When the reply is shorter than `at`, it strikes before the event that finishes the reply. "Whole" is what
    happens to an answer that is not streamed; faults without it need `stream: true`.
    """

    STATUS = "status"
    """An error answer with `status`, and `retry-after: retry_after` when given. Whole: the same."""
    SLOW_HEAD = "slow_head"
    """`delay_ms` pass before the response head. Whole: the same."""
    RESET = "reset"
    """The connection drops without a clean end. Whole: after half of the body."""
    SILENCE = "silence"
    """Nothing is sent for `silence_ms`, or until the client goes. Whole: after half of the body."""
    ERROR_EVENT = "error_event"
    """An error event, then the end. Whole: an error object with status 200."""
    FAILED = "failed"
    """Responses: `response.failed`, then the end; whole: a failed response. Elsewhere the same as `error_event`."""
    GARBAGE = "garbage"
    """Bytes that are neither text nor JSON, then the reply goes on. Whole: an HTML page with status 200."""
    BAD_JSON = "bad_json"
    """The event's JSON is cut in half, then the reply goes on. Whole: the body is cut in half."""
    HUGE_EVENT = "huge_event"
    """The event is padded to `size` bytes of data. Whole: the body is."""
    END = "end"
    """A clean but early end of the body: no finish, no terminator."""
    NO_DONE = "no_done"
    """Everything but the terminator ([DONE], message_stop, response.completed)."""
    NO_BLANK = "no_blank"
    """No terminator, and the last event is not followed by its blank line."""
    COMMENTS = "comments"
    """A `: ping` comment before each event."""
    KEEPALIVE = "keepalive"
    """`silence_ms` (else 60 s) of silence but for a `: keep-alive` comment each `delay_ms` (else 15 s)."""
    CRLF = "crlf"
    """Lines end in CR LF: short for `line_end`."""


class LineEnd(enum.Enum):
    """What ends a line of an event stream (WHATWG HTML 9.2.6 allows all three)."""

    LF = "lf"
    CRLF = "crlf"
    CR = "cr"


class UsageStyle(enum.Enum):
    """How usage is reported in a stream. All but NORMAL do so without being asked, as some servers do."""

    NORMAL = "normal"
    """As the protocol says: for Chat Completions a last chunk without choices, when asked for."""
    UNASKED = "unasked"
    """The same chunk, asked for or not."""
    WITH_FINISH = "with_finish"
    """On the chunk that finishes the last choice."""
    EVERY_CHUNK = "every_chunk"
    """Running figures on every chunk; those at the finish are final."""
    AFTER_DONE = "after_done"
    """In a chunk after the terminator."""
    MISSING = "missing"
    """Not at all, not even when asked for; nor in an answer that is not streamed."""


class Quirk(enum.Enum):
    """Where an answer strays from its protocol as real servers do (wire.md 1.8). "Whole": not in streams."""

    ROTATING_IDS = "rotating_ids"
    """Responses: every event gives the response and its items other ids; only `call_id` stays."""
    DONE_ONLY = "done_only"
    """Responses: no `.delta` events."""
    EMPTY_SUMMARY = "empty_summary"
    """Responses: reasoning without a summary, though one was asked for."""
    OBFUSCATION = "obfuscation"
    """Responses: padding on each delta."""
    DONE_AFTER_STOP = "done_after_stop"
    """Messages: [DONE] after message_stop."""
    DONE_INSTEAD_OF_STOP = "done_instead_of_stop"
    """Messages: [DONE] and no message_stop."""
    NO_EVENT_NAMES = "no_event_names"
    """Messages: no `event:` lines."""
    SPLIT_SIGNATURE = "split_signature"
    """Messages: a signature in two deltas."""
    REDACTED_THINKING = "redacted_thinking"
    """Messages: thinking comes as a `redacted_thinking` block."""
    REASONING_TEXT = "reasoning_text"
    """Chat: reasoning in `reasoning_text`, then a signature in `reasoning_opaque`."""
    SPLIT_TOOL_ID = "split_tool_id"
    """Chat: a call's id and its name come in different chunks."""
    INTERLEAVED_CALLS = "interleaved_calls"
    """Chat: the fragments of several calls take turns."""
    CHOICES_NULL = "choices_null"
    """Chat: a chunk with `choices: null` in between."""
    FILTER_RESULTS_FIRST = "filter_results_first"
    """Chat: a first chunk without choices and id, with `prompt_filter_results`."""
    DUPLICATE_FINISH = "duplicate_finish"
    """Chat: the finish comes twice."""
    NO_FINISH = "no_finish"
    """Chat: no finish before [DONE]."""
    SPLIT_CHOICES = "split_choices"
    """Chat, whole: text and each call in choices of their own, without `index`."""
    ANTHROPIC_BODY = "anthropic_body"
    """Chat, whole: the answer in the shape of Anthropic's Messages."""
    NO_USAGE_DETAILS = "no_usage_details"
    """Chat: usage without its details."""


_Milliseconds = Annotated[float, Meta(ge=0, le=3_600_000)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `demo` member. Times in milliseconds, sizes in bytes.

    `pace_ms`: pause between content events. `events`: number of text events of the reply. `split`: bytes per
    write, to tear events apart. `line_end`, `usage`: see there. `quirks`: where the answer strays from its
    protocol as some real server does; those of other protocols change nothing. `cached`, `cache_write`: tokens
    of the prompt to report as read from a cache and as written to it. The rest belongs to `fault`.
    """

    pace_ms: _Milliseconds | None = None
    events: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    split: Annotated[int, Meta(ge=1, le=1_048_576)] | None = None
    line_end: LineEnd = LineEnd.LF
    usage: UsageStyle = UsageStyle.NORMAL
    quirks: frozenset[Quirk] = frozenset()
    cached: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    cache_write: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    fault: Fault | None = None
    at: Annotated[int, Meta(ge=0, le=100_000)] = 1
    status: Annotated[int, Meta(ge=400, le=599)] = 500
    retry_after: Annotated[int, Meta(ge=0, le=86_400)] | None = None
    delay_ms: _Milliseconds | None = None
    silence_ms: _Milliseconds | None = None
    size: Annotated[int, Meta(ge=1, le=67_108_864)] = 1_048_576


_STREAM_ONLY: Final = frozenset({Fault.END, Fault.NO_DONE, Fault.NO_BLANK, Fault.COMMENTS, Fault.KEEPALIVE, Fault.CRLF})


def _names(kinds: type[enum.Enum]) -> str:
    return ", ".join(str(kind.value) for kind in kinds)


_ALLOWED: Final = (
    f"Members of `demo`: {', '.join(Options.__struct_fields__)}. fault: {_names(Fault)}. "
    f"line_end: {_names(LineEnd)}. usage: {_names(UsageStyle)}. quirks: {_names(Quirk)}."
)


def parse_options(member: object, *, streaming: bool) -> Options:
    """The options in the `demo` member as JSON decoded it; defaults for None.

    Raises `Refused` (400, naming everything that is allowed) for an unknown member, kind or value, and for a
    fault that cannot happen to an answer which is not streamed.
    """
    if member is None:
        return Options()
    try:
        options = msgspec.convert(member, Options)
    except msgspec.ValidationError as error:
        raise _bad(f"demo: {error}. {_ALLOWED}") from None
    if not streaming and options.fault in _STREAM_ONLY:
        raise _bad(f'demo: fault "{options.fault.value}" needs a streamed answer. {_ALLOWED}')
    return options


def _bad(message: str) -> Refused:
    return Refused.because(message, "invalid_demo_options", "demo")
