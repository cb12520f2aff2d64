"""Chat Completions, passed through: the request is edited member by member, the stream event by event.

Nothing is re-serialised. Of a request `model` and `stream_options` may change; of an answer `model` may change. Of a
stream the chunk that only carries usage is swallowed when the client did not ask for it, and what official SDKs would
fail on is put right (`call_repair`, `chunk_repair`). Every other byte is the sender's. Source: OpenAI API reference,
"Create chat completion" and "The chat completion chunk object"; wire.md 1.7, 1.8.

Theory of operation of `ChatStream`. The upstream's bytes are cut into SSE events; each is looked at once, by a typed
decode of the three members that matter (`choices`, `usage`, `error`), and forwarded as it came. Where many come at once
and none of them matters, they are looked at together (`quiet_chunks`). The states say how a stream may end:

    OPEN      -> choices are unfinished: the end of the bytes here is a broken stream
    FINISHED  -> every choice has its finish_reason: the end of the bytes is an end, with or without [DONE]
    DONE      -> [DONE] was seen: whatever follows is dropped, but usage that comes late counts
    ERRORED   -> the upstream put an error object into the stream: a legal, unhappy end
    BROKEN    -> bytes that are not Chat Completions: nothing more can be read

Little is ever held back, and only until the next event or two: chunks without an id before the first one with choices,
the parts of a tool call until its id and its name are known, and usage that comes before the finish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from attrs import field, frozen
from typing_extensions import override

from capi_core.errors import Problem, ProtocolError
from capi_core.members import JSONObject, MemberRewriter, MembersError, decode
from capi_core.protocols.chat.call_repair import CallRepair
from capi_core.protocols.chat.chunk_repair import Identity, is_nameless, read_identity, without_repeated
from capi_core.protocols.chat.quiet_chunks import pass_quiet
from capi_core.protocols.chat.replay import own_messages
from capi_core.protocols.codec import ClientRequest, Passage
from capi_core.protocols.openai import encode_error, json_string, read_request, required_model, says_error
from capi_core.protocols.passage import DONE_MARK, PassedStream, with_data
from capi_core.protocols.reading import is_json
from capi_core.protocols.stream import StreamState
from capi_core.sse import Event, encode
from capi_core.usage import openai_usage

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


class ChatStream(PassedStream):
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
        super().__init__(max_event_bytes=max_event_bytes)
        self._name = None if public_name is None else json_string(public_name)
        self._rewriter = None if self._name is None else MemberRewriter("model", self._name)
        self._swallow_usage = swallow_usage
        self._choices = choices
        self._begun: set[int] = set()  # the choices that there are: not every server gives as many as it was asked for
        self._finished: dict[int, str] = {}
        self._identity: Identity | None = None
        self._opening: list[tuple[Event, bytes, bytes]] = []
        self._calls = CallRepair()
        self._early_usage = b""

    def fail(self, problem: Problem) -> bytes:
        """The last bytes of a stream that cannot go on: an error event, after which both official SDKs read no more.

        Nothing when the stream has had its end. Ends the machine.
        """
        if self.state in (StreamState.DONE, StreamState.ERRORED):
            return b""
        self.state, self.error = StreamState.ERRORED, encode_error(problem)
        return encode(self.error)

    @override
    def _pass_quiet(self, run: bytes) -> bytes | None:
        """A run of chunks of which nothing is noted but that they came."""
        if self._identity is None or self._choices > 1 or self._calls.held or self._early_usage:
            return None
        passed = pass_quiet(run, self._name)
        if passed is None:
            return None
        out, chunks = passed
        self.chunks += chunks
        return out

    @override
    def _forward_data(self, event: Event, data: bytes) -> bytes:
        if self._early_usage and data.strip() != DONE_MARK:
            return self._usage_chunk() + self._forward_data(event, data)
        try:
            chunk, _ = decode(_CHUNK, data)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            if is_json(data):  # of another shape: the client's reader may know it
                return self._renamed(event, data, data)
            return self._forward_unreadable(event, data)
        try:
            return self._forward_chunk(event, data, chunk)
        except (msgspec.DecodeError, RecursionError):  # nested just so deeply that it was read once, and not again
            return self._garbage()

    def _forward_chunk(self, event: Event, data: bytes, chunk: _Chunk) -> bytes:
        reports_usage = bool(chunk.usage) and self._note_usage(chunk.usage)
        # Copilot says `choices: null` where it has none; both official SDKs fail on anything but a list (wire.md 1.7).
        text = _NO_CHOICES.rewrite(data) if chunk.choices is None and _CHOICES in data else data
        if says_error(chunk.error):
            self._note_finished(chunk.choices or ())
            self.state, self.error = StreamState.ERRORED, data
            if self._identity is None:  # nothing of an answer: who knows no more than the error can still be asked anew
                self._opening.clear()
            return self._opened() + self._renamed(event, data, text)
        if self._identity is None:
            if not chunk.choices and not reports_usage and self._waits(event, data, text):
                return b""
            if chunk.choices:
                self._identity = read_identity(data, self._name)
        passed = self._forward_choices(event, data, text, chunk, reports_usage)
        return self._opened() + passed if self._opening else passed

    def _forward_choices(self, event: Event, data: bytes, text: bytes, chunk: _Chunk, reports_usage: bool) -> bytes:
        if self._finished and self._repeats(chunk):
            text = without_repeated(text, self._finished)
            chunk, _ = decode(_CHUNK, text)
            if not chunk.choices and not reports_usage:
                return b""
        if reports_usage and self._swallow_usage and not chunk.choices:
            return b""
        if self._calls.held or _TOOL_CALLS in text:
            text = self._calls.repair(text)
        released = self._note_finished(chunk.choices or ())
        self.chunks += 1
        out = released + self._renamed(event, data, text)
        if reports_usage and not chunk.choices and self.state is StreamState.OPEN and self._identity is not None:
            self._early_usage, out = out, b""
        return out

    def _note_usage(self, usage: msgspec.Raw) -> bool:
        """Notes what a chunk reports; whether it reports any."""
        if bytes(usage) == _NULL:
            return False
        self.usage = openai_usage(usage) or self.usage
        return True

    def _note_finished(self, choices: Iterable[_Choice]) -> bytes:
        """Returns what was held of the choices that finish."""
        released = b""
        for choice in choices:
            if choice.finish_reason and self._calls.held:
                released += self._released(choice.index)
            if 0 <= choice.index < min(self._choices, _MOST_CHOICES):
                self._begun.add(choice.index)
            # Some servers write "" for "not yet".
            if choice.finish_reason and 0 <= choice.index < self._choices:
                self._finished[choice.index] = choice.finish_reason
                if len(self._finished) == self._choices:
                    self.state = StreamState.FINISHED
        return released

    def _repeats(self, chunk: _Chunk) -> bool:
        """Whether a choice finishes as it has before."""
        return any(
            choice.finish_reason and choice.finish_reason == self._finished.get(choice.index)
            for choice in chunk.choices or ()
        )

    def _waits(self, event: Event, data: bytes, text: bytes) -> bool:
        """Whether a chunk before the answer waits for it to get its id."""
        if len(self._opening) == _MOST_OPENING or len(text) > _MOST_WAITING or not is_nameless(data):
            return False
        self._opening.append((event, data, text))
        return True

    def _opened(self) -> bytes:
        """The chunks that waited for the answer to begin, or for its end."""
        if not self._opening:
            return b""
        if self._identity is None and self.state is StreamState.OPEN:  # what came is not the answer yet
            return b""
        opening, self._opening = self._opening, []
        identity = self._identity
        self.chunks += len(opening)
        return b"".join(
            self._renamed(event, data, text if identity is None else identity.name(text))
            for event, data, text in opening
        )

    def _released(self, choice: int) -> bytes:
        """What was held of the choice's tool calls."""
        parts = self._calls.release(choice)
        if not parts or self._identity is None:
            return b""
        return encode(self._identity.chunk(choice, delta=b'{"tool_calls":[%b]}' % b",".join(parts)))

    def _usage_chunk(self) -> bytes:
        """The chunk of usage that came before the finish and waits for the next event: if that is the end mark, a
        finish has to be made, and openai-python forgets the usage when a chunk without it follows."""
        out, self._early_usage = self._early_usage, b""
        return out

    def _complete(self) -> bytes:
        """What the upstream left out before it said that the answer is complete."""
        out = self._opened()
        if self._identity is None:
            return out
        for index in sorted(self._begun - self._finished.keys()):
            reason = b'"tool_calls"' if self._calls.has_calls(index) else b'"stop"'
            out += self._released(index) + encode(self._identity.chunk(index, reason=reason))
        return out + self._usage_chunk()

    @override
    def _late(self, event: Event) -> None:
        """Usage counts also where it comes after the end."""
        try:
            chunk, _ = decode(_CHUNK, event.data or b"")
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return
        if chunk.usage:
            self._note_usage(chunk.usage)

    def _forward_unreadable(self, event: Event, data: bytes) -> bytes:
        """Data that is not JSON: the end mark, nothing at all, or garbage."""
        text = data.strip()
        if text == DONE_MARK:
            self.state = StreamState.DONE
            return self._complete() + event.raw
        # An event with empty data makes both official SDKs fail (wire.md 1.7).
        return self._garbage() if text else b""

    @override
    def _is_whole(self, text: bytes) -> bool:
        return text == DONE_MARK or super()._is_whole(text)

    @override
    def _garbage(self) -> bytes:
        return self._break("upstream_garbage", "the upstream sent something that is not a Chat Completions stream")

    @override
    def _break(self, code: str, message: str) -> bytes:
        return self._usage_chunk() + super()._break(code, message)

    def _renamed(self, event: Event, data: bytes, text: bytes) -> bytes:
        """The event with `text`, under the client's name for the model, in place of `data`."""
        if self._rewriter is not None:
            text = self._rewriter.rewrite(text)
        return with_data(event, data, text)


_NULL: Final = b"null"
_CHOICES: Final = b'"choices"'
_TOOL_CALLS: Final = b'"tool_calls"'
_MOST_OPENING: Final = 8
"""Chunks that wait for the answer to begin, each of at most so many bytes:"""
_MOST_WAITING: Final = 64 * 1024
_MOST_CHOICES: Final = 128
"""The most that OpenAI takes for `n`."""
_NO_CHOICES: Final = MemberRewriter("choices", b"[]")


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
