"""A Messages stream, passed through: event by event, edited only where a client would fail or learn a wrong name.

Source: Anthropic API reference, "Streaming Messages"; wire.md 0.6, 1.3, 1.7, 1.8.

Theory of operation. Each event is looked at once, by a typed decode of the members that matter, and forwarded as it
came, but for this:

    message.model     in `message_start`: the client's name for the model
    signature_delta   held until its block stops: several go out as one, as both SDKs keep the last
    the `event` field is added where it is missing or another than `type`: the SDKs read no event without it
    usage             is added to a `message_delta` that has none: the SDKs fail on it

The states: OPEN until a `message_delta` with a stop reason, which makes it FINISHED: the answer is whole. Copilot then
sends `message_stop` and `[DONE]`, or only one of them, or neither; the client gets `message_stop`, once, and the stream
is DONE. `error` makes it ERRORED. One that is cut before its stop reason is BROKEN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec
from typing_extensions import override

from capi_core.errors import Problem
from capi_core.members import JSONObject, MembersError, decode
from capi_core.protocols.messages.errors import decode_error, error_event
from capi_core.protocols.openai import json_string, says_error
from capi_core.protocols.passage import DONE_MARK, PassedStream, field_names
from capi_core.protocols.quiet import Quiet, QuietReader
from capi_core.protocols.reading import is_json
from capi_core.protocols.stream import StreamState
from capi_core.protocols.writing import json_text
from capi_core.sse import Event, encode
from capi_core.usage import anthropic_usage, encode_anthropic_usage, merge_anthropic_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["MessagesStream"]


class _Delta(msgspec.Struct, gc=False):
    type: str = ""
    signature: str | None = None
    stop_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    index: int = 0
    delta: _Delta | None = None
    message: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _QuietDelta(msgspec.Struct, gc=False):
    type: Literal["text_delta", "input_json_delta", "thinking_delta"]
    signature: None = None
    stop_reason: None = None


class _QuietEvent(Quiet, gc=False, kw_only=True):
    """A delta that goes out as it comes."""

    type: Literal["content_block_delta"]
    index: int = 0
    delta: _QuietDelta


class _Message(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


class _Held(msgspec.Struct):
    """The signature deltas of a block: their texts, and the first one as it came."""

    texts: list[str]
    raw: bytes


_EVENT: Final = msgspec.json.Decoder(_Event)
_QUIET: Final = QuietReader(_QuietEvent, event=b"content_block_delta")
_MESSAGE: Final = msgspec.json.Decoder(_Message)

_STOP: Final = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_MOST_HELD: Final = 128
"""Blocks whose signatures wait at the same time; Anthropic opens one block."""


class MessagesStream(PassedStream):
    """An upstream's event stream in, the client's event stream out; a `StreamMachine`.

    `public_name` replaces the model in `message_start`, `None` leaves it. `max_event_bytes` bounds what is held back
    while an event is incomplete, and the signatures that wait.
    """

    def __init__(self, *, public_name: str | None = None, max_event_bytes: int = 4 * 1024 * 1024) -> None:
        super().__init__(max_event_bytes=max_event_bytes)
        self._model = None if public_name is None else json_string(public_name)
        self._held: dict[int, _Held] = {}
        self._room = max_event_bytes

    def fail(self, problem: Problem) -> bytes:
        """The last bytes of a stream that cannot go on: an `error` event, which is its legal end.

        Nothing when the stream has had its end. Ends the machine.
        """
        over = self.state in (StreamState.DONE, StreamState.ERRORED)
        self.state = StreamState.ERRORED
        return b"" if over else error_event(problem)

    def _complete(self) -> bytes:
        """The `message_stop` that the upstream left out; without it the JS SDK throws."""
        self.state = StreamState.DONE
        return _STOP

    @override
    def _pass_quiet(self, run: bytes) -> bytes | None:
        """A run of deltas that are no signatures."""
        deltas = _QUIET.read(run)
        if deltas is None:
            return None
        self.chunks += len(deltas)
        return run

    @override
    def _forward_data(self, event: Event, data: bytes) -> bytes:
        try:
            found, _ = decode(_EVENT, data)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return self._forward_unreadable(event, data)
        if not found.type:
            found.type = event.type.decode("latin-1")
        try:
            handler = _HANDLERS.get(found.type, MessagesStream._plain)
            return handler(self, event, data, found)
        except (msgspec.DecodeError, MembersError, UnicodeError, RecursionError):
            # A name might stand in it that cannot be changed: better no answer than a wrong one.
            return self._garbage()

    # Handlers of single events

    def _plain(self, event: Event, data: bytes, found: _Event) -> bytes:
        """Any event that has nothing to change."""
        if found.type not in _HANDLERS and says_error(found.error):  # Chat's error object, as Copilot may send anywhere
            return self._foreign_error(data)
        self.chunks += 1
        return _named(event, data, found.type)

    def _message_start(self, event: Event, data: bytes, found: _Event) -> bytes:
        self.chunks += 1
        if not found.message:
            return _named(event, data, found.type)
        message, _ = decode(_MESSAGE, bytes(found.message))
        if message.usage:
            self.usage = merge_anthropic_usage(self.usage, anthropic_usage(message.usage, opening=True))
        if self._model is None or not message.model or bytes(message.model) == self._model:
            return _named(event, data, found.type)
        body = JSONObject(bytes(found.message)).edit({"model": self._model})
        return _named(event, data, found.type, JSONObject(data).edit({"message": body}))

    def _block_delta(self, event: Event, data: bytes, found: _Event) -> bytes:
        delta = found.delta
        if delta is None or delta.type != "signature_delta":
            return self._plain(event, data, found)
        self.chunks += 1
        text = delta.signature or ""
        held = self._held.get(found.index)
        self._room -= len(text)
        if self._room < 0 or (held is None and len(self._held) >= _MOST_HELD):
            return self._too_large()
        if held is None:
            self._held[found.index] = _Held([text], _named(event, data, found.type))
        else:
            held.texts.append(text)
        return b""

    def _block_stop(self, event: Event, data: bytes, found: _Event) -> bytes:
        return self._signature(found.index) + self._plain(event, data, found)

    def _message_delta(self, event: Event, data: bytes, found: _Event) -> bytes:
        signatures = self._signatures()
        text = data
        if says_error(found.usage):  # present and not null
            self.usage = merge_anthropic_usage(self.usage, anthropic_usage(found.usage))
        else:
            text = JSONObject(data).edit({"usage": encode_anthropic_usage(self.usage, whole=False)})
        if found.delta is not None and found.delta.stop_reason:
            self.state = StreamState.FINISHED
        self.chunks += 1
        return signatures + _named(event, data, found.type, text)

    def _message_stop(self, event: Event, data: bytes, found: _Event) -> bytes:
        out = self._signatures() + self._plain(event, data, found)
        self.state = StreamState.DONE
        return out

    def _ping(self, event: Event, data: bytes, found: _Event) -> bytes:
        return _named(event, data, found.type)

    def _error(self, event: Event, data: bytes, found: _Event) -> bytes:
        self.state, self.error = StreamState.ERRORED, data
        return _named(event, data, found.type)

    # What is none of them

    def _foreign_error(self, data: bytes) -> bytes:
        """The client reads errors of its own protocol only."""
        self.state, self.error = StreamState.ERRORED, data
        problem = decode_error(data, 200)
        return error_event(problem or Problem(502, "upstream_error", "the upstream reported an error"))

    def _forward_unreadable(self, event: Event, data: bytes) -> bytes:
        """Data that is no event of Messages: the end mark of Chat, nothing at all, an unknown shape, or garbage."""
        text = data.strip()
        if text == DONE_MARK:
            return self._complete() if self.state is StreamState.FINISHED else b""
        if not text:  # the Python SDK fails on an event with empty data
            return b""
        return event.raw if _is_foreign(text) else self._garbage()

    @override
    def _forward_dataless(self, event: Event) -> bytes:
        """A ping without data passes, too."""
        is_ping = event.type == b"ping" and field_names(event) <= {b"", b"event"}
        return event.raw if is_ping else super()._forward_dataless(event)

    def _signatures(self) -> bytes:
        """Those of blocks whose stop was left out."""
        return b"".join([self._signature(index) for index in list(self._held)])

    def _signature(self, index: int) -> bytes:
        """The one signature delta of a block."""
        held = self._held.pop(index, None)
        if held is None:
            return b""
        self._room += sum(map(len, held.texts))
        if len(held.texts) == 1:
            return held.raw
        form = b'{"type":"content_block_delta","index":%d,"delta":{"type":"signature_delta","signature":%b}}'
        return encode(form % (index, json_text("".join(held.texts))), type=b"content_block_delta")

    @override
    def _garbage(self) -> bytes:
        return self._break("upstream_garbage", "the upstream sent something that is not a Messages stream")

    @override
    def _end(self) -> bytes:
        return self._complete() if self.state is StreamState.FINISHED else super()._end()

    @override
    def _break(self, code: str, message: str) -> bytes:
        """An answer that is whole does not suffer from what follows."""
        return self._complete() if self.state is StreamState.FINISHED else super()._break(code, message)


_HANDLERS: Final[Mapping[str, Callable[[MessagesStream, Event, bytes, _Event], bytes]]] = {
    "message_start": MessagesStream._message_start,
    "content_block_start": MessagesStream._plain,
    "content_block_delta": MessagesStream._block_delta,
    "content_block_stop": MessagesStream._block_stop,
    "message_delta": MessagesStream._message_delta,
    "message_stop": MessagesStream._message_stop,
    "ping": MessagesStream._ping,
    "error": MessagesStream._error,
}


def _named(event: Event, data: bytes, kind: str, text: bytes | None = None) -> bytes:
    """The event with its type in the `event` field, and with `text` in place of its data."""
    name = kind.encode("utf-8", "replace")
    if event.raw.startswith(b"event: %b\n" % name) or event.type == name:
        if text is None or text == data:
            return event.raw
        if b"\n" not in data and event.raw.count(data) == 1:
            return event.raw.replace(data, text)
    elif any(byte in name for byte in b"\r\n\0"):
        return event.raw
    return encode(data if text is None else text, type=name, id=event.id)


def _is_foreign(text: bytes) -> bool:
    """Whether it is JSON that names no model: a reader may know it, and it has nothing to change."""
    return is_json(text) and not any(name in text for name in (b'"model"', b'"message', b"\\u"))
