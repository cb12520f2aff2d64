"""What the machines that pass a stream on in its own protocol have in common.

`PassedStream` drives one: bytes in any chunking become blocks, blocks become events, and each protocol says what
becomes of an event. The rules that are the same everywhere are here: what comes after the end is dropped, an event that
is too large breaks the stream, and an event without its blank line counts if it is whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from capi_core.errors import LocalError, ProtocolError
from capi_core.protocols.reading import is_json
from capi_core.protocols.stream import ENDED, StreamState
from capi_core.sse import DecoderState, Event, SSEDecoder, SSEError, encode

if TYPE_CHECKING:
    from capi_core.usage import Usage

__all__ = ["DONE_MARK", "PassedStream", "field_names", "with_data"]

DONE_MARK: Final = b"[DONE]"
"""The data of the event that ends a Chat Completions stream, and that some servers append to others."""

_OPEN: Final = StreamState.OPEN  # looking a member up in its class costs more than the check, and hashing it too
_BROKEN: Final = StreamState.BROKEN
_DATALESS_FIELDS: Final = frozenset({b"", b"event", b"id", b"retry"})


class PassedStream(ABC):
    """An upstream's event stream in, the client's event stream out: the half of a `StreamMachine` that is the same for
    every protocol. `max_event_bytes` bounds what is held back while an event is incomplete."""

    def __init__(self, *, max_event_bytes: int) -> None:
        self.state = StreamState.OPEN
        self.usage: Usage | None = None
        self.chunks = 0
        self.failure: ProtocolError | None = None
        self.error: bytes | None = None
        self._decoder = SSEDecoder(max_event_bytes=max_event_bytes)

    def receive_data(self, data: bytes) -> bytes:
        """Takes upstream bytes in any chunking; returns what can go to the client now (possibly nothing).

        A stream that breaks still yields the events before the break. Raises `LocalError` once it is BROKEN.
        """
        if self.state is not _OPEN:
            if self.state is _BROKEN:
                raise LocalError("the stream is broken: it takes no more bytes")
            if self.state in ENDED:
                self._hear_late(data)
                return b""
        run = self._decoder.peek(data)
        if run:
            out = self._pass_quiet(run)
            if out is not None:
                self._decoder.take(data)
                return out
        try:
            events = self._decoder.feed(data)
        except SSEError:  # `_decoder.failed` tells of it, also when events come before
            events = []
        return self._forward_all(events)

    def finish(self) -> bytes:
        """The upstream ended its response properly. Returns the tail; `state` tells whether this was a legal end.

        An event without its blank line is completed if it holds a whole JSON object or what else is a whole event
        (Copilot ends streams like that, wire.md 1.8), and dropped if not. An answer that is not complete is BROKEN.
        """
        if self.state is _BROKEN:
            raise LocalError("the stream is broken: it cannot finish")
        if self.state in ENDED:
            return b""
        events = self._decoder.finish(lenient=True)
        if self._decoder.residue and not self._is_whole((events[-1].data or b"").strip()):
            events = []
        return self._forward_all(events) + self._end()

    @abstractmethod
    def _pass_quiet(self, run: bytes) -> bytes | None:
        """What becomes of a run of blocks that is seen through at once; `None`, and nothing noted, for any other."""

    @abstractmethod
    def _forward_data(self, event: Event, data: bytes) -> bytes:
        """What becomes of an event that has data."""

    def _forward_all(self, events: list[Event]) -> bytes:
        out = [self._forward(event) for event in events]
        if self._decoder.failed and self.state not in ENDED:
            out.append(self._too_large())
        return b"".join(out)

    def _forward(self, event: Event) -> bytes:
        if self.state is not _OPEN and self.state in ENDED:
            if self.state is StreamState.DONE:
                self._late(event)
            return b""
        data = event.data
        return self._forward_dataless(event) if data is None else self._forward_data(event, data)

    def _hear_late(self, data: bytes) -> None:
        """Bytes after the end. However many come, none of them can do any harm."""
        if self.state is StreamState.DONE and self._decoder.state is DecoderState.OPEN:
            try:
                events = self._decoder.feed(data)
            except SSEError:
                return
            for event in events:
                self._late(event)

    def _late(self, event: Event) -> None:
        """An event after DONE: not part of the answer, and never passed on."""
        return

    def _forward_dataless(self, event: Event) -> bytes:
        """Comments and blank lines pass. A lone `event:`, `id:` or `retry:` is dropped: openai-python fails on it."""
        names = field_names(event)
        if names <= {b""}:
            return event.raw
        return b"" if names <= _DATALESS_FIELDS else self._garbage()

    def _is_whole(self, text: bytes) -> bool:
        """Whether `text`, the data of an event that lacks its blank line, is all there."""
        return text.startswith(b"{") and is_json(text)

    def _end(self) -> bytes:
        """The upstream says no more. A cut answer must not look whole."""
        if self.state is _OPEN:
            return self._break("upstream_truncated", "the upstream ended its stream before the answer was complete")
        return b""

    @abstractmethod
    def _garbage(self) -> bytes:
        """The stream is not in the protocol: `_break` in its words."""

    def _too_large(self) -> bytes:
        return self._break("upstream_event_too_large", "the upstream sent an event larger than this gateway relays")

    def _break(self, code: str, message: str) -> bytes:
        """Nothing more can be read. Returns what the client gets for it."""
        self.state = _BROKEN
        self.failure = ProtocolError(message, code=code, status_hint=502)
        return b""


def field_names(event: Event) -> set[bytes]:
    """The names of the fields of an event; `b""` for a comment."""
    return {line.partition(b":")[0] for line in event.raw.replace(b"\r", b"\n").split(b"\n") if line}


def with_data(event: Event, data: bytes, text: bytes) -> bytes:
    """The event with `text` in place of its data."""
    if text == data:
        return event.raw
    if b"\n" in data or event.raw.count(data) != 1:  # spread over several lines, or in a comment as well
        return encode(text, type=event.type.replace(b"\0", b""), id=event.id)
    return event.raw.replace(data, text)
