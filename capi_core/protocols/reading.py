"""What all decoders read with: typed JSON with the path in its errors, and events with their faults told once.

`read_json` turns whatever is wrong with a text into one `ProtocolError`: not JSON, a wrong type deep inside, nested
too deeply. `EventReader` is the part of a stream decoder that is the same for every protocol.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from capi_core.errors import ProtocolError
from capi_core.members import decode
from capi_core.sse import Event, SSEDecoder, SSEError

__all__ = ["EventReader", "invalid", "is_json", "read_json", "shown_path", "untranslatable"]

_T = TypeVar("_T")
_ANY: Final = msgspec.json.Decoder(msgspec.Raw)
_INNER: Final = " - at `$"


def read_json(decoder: msgspec.json.Decoder[_T], raw: bytes, at: str = "$", *, status: int = 400) -> _T:
    """What `decoder` makes of `raw`, which stands at the JSON path `at` of the peer's document.

    Raises `ProtocolError` with `status`, the code `invalid_request` (`upstream_garbage` when status is 502) and, as
    `param`, the path of what is wrong. Unpaired surrogate escapes read as U+FFFD. The message holds no value.
    """
    code = "invalid_request" if status < 500 else "upstream_garbage"
    try:
        return decode(decoder, raw)[0]
    except RecursionError:
        raise ProtocolError(
            "the JSON is nested too deeply", code=code, status_hint=status, param=shown_path(at)
        ) from None
    except UnicodeError:
        raise ProtocolError("not valid UTF-8", code=code, status_hint=status, param=shown_path(at)) from None
    except msgspec.DecodeError as error:
        reason, _, inner = str(error).partition(_INNER)
        path = shown_path(at + inner.rstrip("`"))
        raise ProtocolError(f"{path}: {reason}", code=code, status_hint=status, param=path) from None


def shown_path(path: str) -> str:
    """A JSON path as errors show it: without the leading `$.`, which OpenAI's and Anthropic's own errors lack."""
    return path.removeprefix("$").removeprefix(".") or "$"


def invalid(path: str, message: str) -> ProtocolError:
    """A client's mistake at the JSON path `path`."""
    shown = shown_path(path)
    return ProtocolError(f"{shown}: {message}", code="invalid_request", param=shown)


def untranslatable(path: str, message: str) -> ProtocolError:
    """What a client asks for cannot be had from an upstream of another protocol, and must not be left out unsaid."""
    return ProtocolError(message, code="untranslatable", param=shown_path(path))


def is_json(text: bytes) -> bool:
    """Whether `text` is one JSON value."""
    try:
        decode(_ANY, text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False
    return True


class EventReader:
    """Bytes of an event stream in, events with data out.

    Comments, blank blocks and blocks without data are dropped. `fault` is set, once and for all, when the stream has
    something in it that is no event stream, or an event over `max_event_bytes`; the events before it are still given.
    """

    def __init__(self, *, max_event_bytes: int) -> None:
        self.fault: ProtocolError | None = None
        self._decoder = SSEDecoder(max_event_bytes=max_event_bytes)

    def receive_data(self, data: bytes) -> list[Event]:
        """The events that these bytes complete, in any chunking."""
        if self.fault is not None:
            return []
        try:
            events = self._decoder.feed(data)
        except SSEError:  # `failed` tells of it, also when events come before
            events = []
        return self._with_data(events)

    def finish(self, end_marks: frozenset[bytes] = frozenset()) -> list[Event]:
        """The stream is over. An event that lacks its blank line counts if its data is a whole JSON object or one of
        `end_marks`: Copilot ends streams like that (wire.md 1.8)."""
        if self.fault is not None:
            return []
        events = self._decoder.finish(lenient=True)
        if self._decoder.residue and not _is_whole(events[-1].data, end_marks):
            events = events[:-1]
        return self._with_data(events)

    def _with_data(self, events: list[Event]) -> list[Event]:
        found = []
        for event in events:
            if event.data:
                found.append(event)
            elif not _is_harmless(event.raw):
                self.fault = _garbage("the upstream sent something that is not an event stream")
                return found
        if self._decoder.failed:
            self.fault = ProtocolError(
                "the upstream sent an event larger than this gateway relays",
                code="upstream_event_too_large",
                status_hint=502,
            )
        return found


_FIELDS: Final = frozenset({b"", b"event", b"id", b"retry", b"data"})


def _garbage(message: str) -> ProtocolError:
    return ProtocolError(message, code="upstream_garbage", status_hint=502)


def _is_harmless(raw: bytes) -> bool:
    """Whether a block without data is made of comments and lone fields: no text that was meant to be something."""
    lines = raw.replace(b"\r", b"\n").split(b"\n")
    return {line.partition(b":")[0] for line in lines if line} <= _FIELDS


def _is_whole(data: bytes | None, end_marks: frozenset[bytes]) -> bool:
    text = (data or b"").strip()
    return text in end_marks or (text.startswith(b"{") and is_json(text))
