"""Chat Completions, passed through: the request is edited member by member, the stream event by event.

Nothing is re-serialised. Of a request `model` and `stream_options` may change; of an answer `model` may change; of a
stream the chunk that only carries usage is swallowed when the client did not ask for it. Every other byte is the
sender's. Source: OpenAI API reference, "Create chat completion" and "The chat completion chunk object".

Theory of operation of `ChatStream`. The upstream's bytes are cut into SSE events; each is looked at once, by a typed
decode of the three members that matter (`choices`, `usage`, `error`), and forwarded as it came. The states say how a
stream may end:

    OPEN      -> choices are unfinished: the end of the bytes here is a broken stream
    FINISHED  -> every choice has its finish_reason: the end of the bytes is an end, with or without [DONE]
    DONE      -> [DONE] was seen: whatever follows is not part of the answer and is dropped
    ERRORED   -> the upstream put an error object into the stream: a legal, unhappy end
    BROKEN    -> bytes that are not Chat Completions: nothing more can be read
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from attrs import field, frozen

from capi_core.errors import LocalError, Problem, ProtocolError
from capi_core.members import JSONObject, MemberRewriter, MembersError, decode
from capi_core.protocols.chat.replay import own_messages
from capi_core.protocols.codec import ClientRequest, Passage
from capi_core.protocols.openai import encode_error, json_string, read_request, required_model, says_error
from capi_core.protocols.stream import ENDED, StreamState
from capi_core.sse import Event, SSEDecoder, SSEError, encode
from capi_core.usage import Usage, openai_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "ChatRequest",
    "ChatStream",
    "StreamState",
    "encode_request",
    "pass_through",
    "read",
]

_T = TypeVar("_T")

_INCLUDE_USAGE: Final = b'{"include_usage":true}'
_DONE: Final = b"[DONE]"


@frozen
class ChatRequest(ClientRequest):
    """What the gateway reads of a Chat Completions request.

    `choices` is how many choices the stream will finish (`n`); `asks_usage`: the client itself set
    `stream_options.include_usage`.
    """

    choices: int = field(default=1, kw_only=True)


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_ANY: Final = msgspec.json.Decoder(msgspec.Raw)
_OPTIONS: Final[msgspec.json.Decoder[_StreamOptions | None]] = msgspec.json.Decoder(_StreamOptions | None)
_BOOL: Final = msgspec.json.Decoder(bool | None)
_COUNT: Final = msgspec.json.Decoder(int | None)


def read(body: bytes) -> ChatRequest:
    """Reads a request body. Raises `ProtocolError` (400) with a `code` and the `param` to blame.

    Members that only the upstream understands are not judged here: its own error is better than our guess.
    """
    document = read_request(body)
    model = required_model(document)
    stream = _read(document, "stream", _BOOL.decode, "must be true or false") or False
    rule = "must be an object with a boolean `include_usage`, and no name twice"
    asks_usage = _read(document, "stream_options", _asks_usage, rule) or False
    try:
        choices = _COUNT.decode(document.get("n") or b"null") or 1
    except msgspec.DecodeError:
        choices = 1
    return ChatRequest(document, model, stream, asks_usage=asks_usage, choices=max(choices, 1))


def pass_through(
    request: ChatRequest, *, upstream_model: str, public_name: str, ask_usage: bool, max_event_bytes: int
) -> Passage:
    """The request for an upstream of Chat Completions, and the machine for its stream.

    `ask_usage`: a stream whose client does not want usage is asked for it all the same, and the chunk that carries
    it is swallowed.
    """
    injects = ask_usage and not request.asks_usage
    body = encode_request(request, upstream_model=upstream_model, inject_usage=request.stream and injects)
    if not request.stream:
        return Passage(body, None)
    machine = ChatStream(
        public_name=public_name if public_name != upstream_model else None,
        swallow_usage=injects,
        choices=request.choices,
        max_event_bytes=max_event_bytes,
    )
    return Passage(body, machine)


def encode_request(request: ChatRequest, *, upstream_model: str, inject_usage: bool) -> bytes:
    """The request as the upstream gets it: its own name for the model, and `inject_usage` asks for a usage chunk."""
    changes: dict[str, bytes] = {}
    if upstream_model != request.model:
        changes["model"] = json_string(upstream_model)
    if inject_usage:
        changes["stream_options"] = _with_usage(request.document.get("stream_options"))
    messages = request.document.get("messages") or b""
    own = own_messages(messages)
    if own != messages:
        changes["messages"] = own
    return request.document.edit(changes) if changes else request.document.text


class ChatStream:
    """An upstream's event stream in, the client's event stream out.

    `public_name` replaces the top-level `model` of each chunk, `None` leaves it. `swallow_usage`: the usage was asked
    for by the gateway, not by the client. `choices`: how many choices must finish. `max_event_bytes` bounds what is
    held back while an event is incomplete.

    `usage` is what the upstream reported so far, `chunks` how many chunks of the answer went through. When `state` is
    BROKEN, `failure` says why, with a code and status 502; when it is ERRORED, `error` is the upstream's own error
    chunk as raw JSON.
    """

    def __init__(
        self,
        *,
        public_name: str | None = None,
        swallow_usage: bool = False,
        choices: int = 1,
        max_event_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        self.state = StreamState.OPEN
        self.usage: Usage | None = None
        self.chunks = 0
        self.failure: ProtocolError | None = None
        self.error: bytes | None = None
        self._decoder = SSEDecoder(max_event_bytes=max_event_bytes)
        self._rewriter = None if public_name is None else MemberRewriter("model", json_string(public_name))
        self._swallow_usage = swallow_usage
        self._choices = choices
        self._finished: set[int] = set()

    def receive_data(self, data: bytes) -> bytes:
        """Takes upstream bytes, returns what can go to the client now (possibly nothing).

        A stream that breaks still yields the events before the break. Raises `LocalError` once it is broken.
        """
        if self.state is StreamState.BROKEN:
            raise LocalError("the stream is broken: it takes no more bytes")
        if self.state in ENDED:
            return b""
        try:
            events = self._decoder.feed(data)
        except SSEError:  # `_decoder.failed` tells of it, also when events come before
            events = []
        return self._forward_all(events)

    def finish(self) -> bytes:
        """The upstream closed its stream properly. Returns the tail; `state` tells whether this was a legal end.

        An event without its blank line is completed if it holds a whole JSON object or [DONE] (Copilot ends streams
        like that, wire.md 1.8), and dropped if not. A stream with unfinished choices becomes BROKEN: a cut answer must
        not look whole.
        """
        if self.state is StreamState.BROKEN:
            raise LocalError("the stream is broken: it cannot finish")
        if self.state in ENDED:
            return b""
        events = self._decoder.finish(lenient=True)
        if self._decoder.residue and not _is_whole(events[-1].data):
            events = []
        tail = self._forward_all(events)
        if self.state is StreamState.OPEN:
            self._break("upstream_truncated", "the upstream ended its stream before the answer was complete")
        return tail

    def fail(self, problem: Problem) -> bytes:
        """The last bytes of a stream that cannot go on: an error event, after which both official SDKs read no more.

        Nothing when the stream has had its end. Ends the machine.
        """
        if self.state in (StreamState.DONE, StreamState.ERRORED):
            return b""
        self.state, self.error = StreamState.ERRORED, encode_error(problem)
        return encode(self.error)

    def _forward_all(self, events: list[Event]) -> bytes:
        out = [self._forward(event) for event in events]
        if self._decoder.failed and self.state not in ENDED:
            self._break("upstream_event_too_large", "the upstream sent an event larger than this gateway relays")
        return b"".join(out)

    def _forward(self, event: Event) -> bytes:
        if self.state in ENDED:
            return b""
        data = event.data
        if data is None:
            return self._forward_dataless(event)
        try:
            chunk, _ = decode(_CHUNK, data)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            if _is_json(data):  # of another shape: the client's reader may know it
                return self._renamed(event, data, data)
            return self._forward_unreadable(event, data)
        return self._forward_chunk(event, data, chunk)

    def _forward_chunk(self, event: Event, data: bytes, chunk: _Chunk) -> bytes:
        self._note_finished(chunk.choices or ())
        reports_usage = bool(chunk.usage) and bytes(chunk.usage) != _NULL
        if reports_usage:
            self.usage = openai_usage(chunk.usage) or self.usage
        if says_error(chunk.error):
            self.state, self.error = StreamState.ERRORED, data
        elif reports_usage and self._swallow_usage and chunk.choices == []:
            return b""
        else:
            self.chunks += 1
        # Copilot says `choices: null` where it has none; both official SDKs fail on anything but a list (wire.md 1.7).
        text = _NO_CHOICES.rewrite(data) if chunk.choices is None and _CHOICES in data else data
        return self._renamed(event, data, text)

    def _note_finished(self, choices: Iterable[_Choice]) -> None:
        for choice in choices:
            # Some servers write "" for "not yet".
            if choice.finish_reason and 0 <= choice.index < self._choices:
                self._finished.add(choice.index)
                if len(self._finished) == self._choices:
                    self.state = StreamState.FINISHED

    def _forward_unreadable(self, event: Event, data: bytes) -> bytes:
        """Data that is not JSON: the end mark, nothing at all, or garbage."""
        text = data.strip()
        if text == _DONE:
            self.state = StreamState.DONE
            return event.raw
        if text:
            self._break("upstream_garbage", "the upstream sent something that is not a Chat Completions stream")
        return b""  # an event with empty data makes both official SDKs fail (wire.md 1.7)

    def _forward_dataless(self, event: Event) -> bytes:
        """Comments and blank lines pass. A lone `event:`, `id:` or `retry:` is dropped: openai-python fails on it."""
        kinds = {_line_kind(line) for line in event.raw.replace(b"\r", b"\n").split(b"\n") if line}
        if kinds <= {b""}:
            return event.raw
        if not kinds <= _DATALESS_FIELDS:
            self._break("upstream_garbage", "the upstream sent something that is not an event stream")
        return b""

    def _renamed(self, event: Event, data: bytes, text: bytes) -> bytes:
        """The event with `text`, under the client's name for the model, in place of `data`."""
        if self._rewriter is not None:
            text = self._rewriter.rewrite(text)
        if text == data:
            return event.raw
        if b"\n" in data or event.raw.count(data) != 1:  # spread over several lines, or in a comment as well
            return encode(text, type=event.type.replace(b"\0", b""), id=event.id)
        return event.raw.replace(data, text)

    def _break(self, code: str, message: str) -> None:
        self.state = StreamState.BROKEN
        self.failure = ProtocolError(message, code=code, status_hint=502)


_NULL: Final = b"null"
_CHOICES: Final = b'"choices"'
_NO_CHOICES: Final = MemberRewriter("choices", b"[]")
_DATALESS_FIELDS: Final = frozenset({b"", b"event", b"id", b"retry"})


def _line_kind(line: bytes) -> bytes:
    """The field name of a line of an event stream; b"" for a comment."""
    return line.partition(b":")[0]


def _is_json(data: bytes) -> bool:
    try:
        decode(_ANY, data)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _is_whole(data: bytes | None) -> bool:
    """Whether the data of an event that lacks its blank line is all there."""
    text = (data or b"").strip()
    return text == _DONE or (text.startswith(b"{") and _is_json(text))


def _asks_usage(options: bytes) -> bool:
    """Whether `stream_options` has `include_usage` on. Raises on another shape, and on a name that stands twice: which
    of the two would the upstream read?"""
    found = _OPTIONS.decode(options)
    if found is None:
        return False
    JSONObject(options)
    return found.include_usage


def _with_usage(options: bytes | None) -> bytes:
    """The `stream_options` member with `include_usage` on and the client's other options as they were."""
    if options is None or options == _NULL:
        return _INCLUDE_USAGE
    return JSONObject(options).edit({"include_usage": b"true"})


def _read(document: JSONObject, name: str, read: Callable[[bytes], _T], rule: str) -> _T | None:
    raw = document.get(name)
    if raw is None:
        return None
    try:
        return read(raw)
    except (msgspec.DecodeError, MembersError) as error:
        raise ProtocolError(f"`{name}` {rule}", code=f"invalid_{name}", param=name) from error
