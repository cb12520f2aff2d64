"""Server-sent events: bytes to blocks and back (WHATWG HTML, section 9.2.6).

Theory of operation. A stream is cut into *blocks*: everything up to and including a blank line. The decoder
only finds where blocks end; it never looks inside. `Event.raw` is what passthrough forwards; the fields are
parsed when somebody asks for one, which for most events nobody does.

A line ends with LF, CR or CRLF and with nothing else: VT, FF, U+0085 and U+2028 are data, which is why no
`splitlines` occurs here. A block ends where one line end follows another:

    LF LF, CR CR, LF CRLF, and LF CR when the byte after that CR is known not to be LF

CRLF CRLF and CRLF LF are covered, as they contain LF CRLF and LF LF. Only LF CR has to wait for one more byte
(or for the end of the stream), as that CR may be half of a CRLF. After CR CR nothing waits: an LF that follows
opens the next block, where it reads as a blank line and does nothing. So the blocks, and the concatenation of
their bytes, do not depend on how the stream was cut into chunks.

Not here: decoding UTF-8 (the standard decodes with replacement; every value below stays `bytes`), and the last
event id that persists from block to block (it is the reader's state, not the block's).
"""

import re
from enum import Enum, auto
from typing import Final, NoReturn

import msgspec

from capi_core.errors import LocalError, ProtocolError

__all__ = ["KEEP_ALIVE", "DecoderState", "Event", "SSEDecoder", "SSEError", "comment", "encode"]

KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment block: says that the stream lives, and dispatches nothing."""

_BOM: Final = b"\xef\xbb\xbf"
_CR: Final = 0x0D
"""As a number: `_CR in data` is a bare memchr, and several times faster than `b"\\r" in data`."""
_BLOCK_END: Final = re.compile(rb"\n\n|\r\r|\n\r\n|\n\r(?=[^\n])")
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_OVERLAP: Final = 2
"""A block end that was not complete in the bytes so far starts in their last two: it is at most three bytes
long, or two and one of look-ahead."""
_RETRY_DIGITS: Final = 18
"""More digits than this are more milliseconds than any clock counts; `int()` itself gives up at 4,300."""


class SSEError(ProtocolError):
    """The peer's stream cannot be decoded. Code `sse_event_too_large`, status hint 502."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One block of a stream, its blank line included.

    A `msgspec.Struct` and not an attrs class because one is made for each event of each stream, and making it
    is then a tenth of the cost. It holds bytes only, so that the garbage collector need not track it.
    """

    raw: bytes
    """Exactly the bytes received (or, from a lenient `finish`, completed)."""

    @property
    def data(self) -> bytes | None:
        """The values of the `data` lines, joined with LF.

        None if the block has no `data` field (a comment, a ping, an id or retry alone): such a block is not
        dispatched. `b""` is a dispatched event with empty data.
        """
        raw = self.raw
        # Nearly every block is one data line, alone or after one event line: the LF that ends it is the one
        # before the blank line.
        start = raw.find(b"\n") + 1 if raw.startswith(b"event: ") else 0
        if raw.startswith(b"data: ", start) and raw.find(b"\n", start) == len(raw) - 2 and _CR not in raw:
            return raw[start + 6 : -2]
        values = _values(raw, b"data")
        return b"\n".join(values) if values else None

    @property
    def type(self) -> bytes:
        """The value of the last `event` field; `b""` without one, which a reader takes for "message"."""
        values = _values(self.raw, b"event")
        return values[-1] if values else b""

    @property
    def id(self) -> bytes | None:
        """The value of the last `id` field that holds no NUL; None without one."""
        values = [value for value in _values(self.raw, b"id") if b"\0" not in value]
        return values[-1] if values else None

    @property
    def retry(self) -> int | None:
        """The reconnection time in ms: the last `retry` field made of ASCII digits only; None without one."""
        values = [value.lstrip(b"0") or b"0" for value in _values(self.raw, b"retry") if value.isdigit()]
        values = [value for value in values if len(value) <= _RETRY_DIGITS]
        return int(values[-1]) if values else None


class DecoderState(Enum):
    """Where a decoder stands. OPEN is the only state in which it can be called."""

    OPEN = auto()
    FINISHED = auto()
    FAILED = auto()


_OPEN: Final = DecoderState.OPEN  # looking a member up in its class costs more than the rest of the check


class SSEDecoder:
    """Cuts a byte stream into events, however it is chunked.

    `feed` each chunk, then `finish` once. The events of all calls together, the error if there is one, and
    `residue` at the end are the same for every chunking, and the `raw` of all events plus `residue` is the
    input without its byte order mark.

    A block longer than `max_event_bytes` fails the stream. A `feed` that already has events to give returns
    those; the next call raises `SSEError` (`failed` tells it at once). A `feed` without events raises on the
    spot. After it was raised, every call raises `LocalError`.
    """

    def __init__(self, *, max_event_bytes: int = 4 * 1024 * 1024) -> None:
        """`max_event_bytes` bounds one block, blank line included, and with it the memory held.

        The default leaves room for a picture of 3 MB in base64, the largest thing streams carry. Raises `LocalError`
        below 3 bytes: a byte order mark cut in two must fit.
        """
        if max_event_bytes < len(_BOM):
            raise LocalError("max_event_bytes must be at least 3")
        self._limit = max_event_bytes
        self._pending = bytearray()
        self._at_start = True
        self._state = DecoderState.OPEN
        self._error: SSEError | None = None

    @property
    def state(self) -> DecoderState:
        """OPEN, FINISHED or FAILED."""
        return self._state

    @property
    def failed(self) -> bool:
        """True once the stream broke the size limit, also while the error waits to be raised."""
        return self._state is DecoderState.FAILED

    @property
    def residue(self) -> bytes:
        """The bytes after the last complete block; empty after a failure.

        What is left after `finish` was cut off by the peer, and the standard discards it. A lenient `finish`
        leaves it readable too: not empty means that the last event was made of it.
        """
        return bytes(self._pending)

    def feed(self, data: bytes) -> list[Event]:
        """Takes the next bytes; returns the events that they complete.

        An event is returned by the call that brings its last byte, except after LF CR (see the module's
        docstring). Takes time linear in `data`, also when it comes byte by byte. Raises `SSEError`, and
        `LocalError` after the end.
        """
        if self._state is not _OPEN:
            self._refuse()
        if self._at_start:
            data = self._without_bom(data)
        if self._pending:
            events, data = self._complete_pending(data)
            events += self._cut(data)
        elif 1 < data.find(b"\n\n") + 2 == len(data) <= self._limit and _CR not in data:
            return [Event(data)]  # a live stream mostly comes as one event at a time: nothing to cut, no copy
        else:
            events = self._cut(data)
        if not events and self._state is not _OPEN:
            self._refuse()
        return events

    def peek(self, data: bytes) -> bytes:
        """All blocks that `data` would complete, in one piece, where that is plain to see; `b""` where it is not.

        For a reader that can judge many events at once: if it wants them, `take` follows with the same `data`, else
        `feed`. Nothing is taken, and whatever is odd (a CR, a byte order mark, a block that may be too long, the end of
        the stream) is left to `feed`. What is given starts a block and ends with LF LF.
        """
        if self._state is not _OPEN or self._at_start or _CR in data:
            return b""
        end = data.rfind(b"\n\n") + 2
        if end < 2 or len(self._pending) + len(data) > self._limit:
            return b""
        if not self._pending:
            return data[:end]
        run = bytes(self._pending) + data[:end]
        return b"" if _CR in run else run

    def take(self, data: bytes) -> None:
        """Takes `data`, of which `peek` gave the blocks."""
        self._pending[:] = data[data.rfind(b"\n\n") + 2 :]

    def finish(self, *, lenient: bool = False) -> list[Event]:
        """Takes the end of the stream; returns the event, if any, that only the end completes.

        An unterminated block is discarded, as the standard says. With `lenient` it becomes an event: the line
        ends that it lacks are added to its `raw`, beyond the size limit if need be. Some upstreams leave out
        the last blank line; whether that event is whole is for its reader to judge. Raises `SSEError` if that
        was still due, and `LocalError` after the end.
        """
        if self._state is not _OPEN:
            self._refuse()
        self._state = DecoderState.FINISHED
        residue = self.residue
        if residue.endswith(b"\n\r"):  # the end of the stream shows that this CR was a line end of its own
            self._pending.clear()
            return [Event(residue)]
        if lenient and residue:
            return [Event(residue + (b"\n" if residue.endswith(b"\n") else b"\n\n"))]
        return []

    def _without_bom(self, data: bytes) -> bytes:
        head = bytes(self._pending) + data
        if len(head) < len(_BOM) and _BOM.startswith(head):
            self._pending[:] = head
            return b""
        self._pending.clear()
        self._at_start = False
        return head.removeprefix(_BOM)

    def _complete_pending(self, data: bytes) -> tuple[list[Event], bytes]:
        """Looks for the end of the pending block; returns the event and what follows it in `data`.

        Only the last bytes of the pending block are looked at again, so that trickled bytes cost O(1) each.
        """
        overlap = bytes(self._pending[-_OVERLAP:])
        end = _first_block_end(overlap + data)
        if end < 0:
            self._hold(data)
            return [], b""
        cut = end - len(overlap)
        self._pending += data[:cut]
        raw = bytes(self._pending)
        self._pending.clear()
        if len(raw) > self._limit:
            self._fail()
            return [], b""
        return [Event(raw)], data[cut:]

    def _cut(self, data: bytes) -> list[Event]:
        """Cuts `data`, which starts a block, into events, and holds the rest."""
        events, rest = _split(data)
        if len(data) > self._limit:  # else no block in it can be too long
            for index, event in enumerate(events):
                if len(event.raw) > self._limit:
                    self._fail()
                    return events[:index]
        if rest:
            self._hold(rest)
        return events

    def _hold(self, data: bytes) -> None:
        if len(self._pending) + len(data) > self._limit:
            self._fail()
        else:
            self._pending += data

    def _fail(self) -> None:
        self._pending.clear()
        self._state = DecoderState.FAILED
        self._error = SSEError(
            f"an event of the stream is longer than {self._limit} bytes",
            code="sse_event_too_large",
            status_hint=502,
        )

    def _refuse(self) -> NoReturn:
        error, self._error = self._error, None
        if error is not None:
            raise error
        raise LocalError(f"the decoder takes nothing more: it is {self._state.name}")


def encode(data: bytes, *, type: bytes = b"", id: bytes | None = None) -> bytes:
    """One event as bytes: the `event` field unless `type` is empty, `id` unless None, then `data`.

    Total over `data`: each of its lines, ended by CR, LF or CRLF, becomes a `data` line, so a reader gets it
    back with LF for each line end. Raises `LocalError` if `type` or `id` holds CR, LF or NUL.
    """
    head = b""
    if type:
        head = b"event: %b\n" % _one_line(type)
    if id is not None:
        head += b"id: %b\n" % _one_line(id)
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(_LINE_END.split(data))
    return b"%bdata: %b\n\n" % (head, data)


def comment(text: bytes = b"") -> bytes:
    """A comment block, which a reader ignores. Total: each line of `text` becomes a comment line."""
    return b": %b\n\n" % b"\n: ".join(_LINE_END.split(text))


def _one_line(value: bytes) -> bytes:
    if b"\n" in value or b"\r" in value or b"\0" in value:
        raise LocalError("an event's type and id hold no CR, LF or NUL")
    return value


def _values(raw: bytes, name: bytes) -> list[bytes]:
    """The values of all fields called `name`, in order: after the colon and at most one space."""
    lines = _LINE_END.split(raw) if _CR in raw else raw.split(b"\n")
    values = []
    for line in lines:
        if line.startswith(name):
            rest = line[len(name) :]
            if not rest:  # a line without a colon is a field with an empty value
                values.append(rest)
            elif rest.startswith(b":"):
                values.append(rest[1:].removeprefix(b" "))
    return values


def _first_block_end(data: bytes) -> int:
    """The offset just after the first block in `data`, or -1."""
    if _CR not in data:
        at = data.find(b"\n\n")
        return at if at < 0 else at + 2
    match = _BLOCK_END.search(data)
    return match.end() if match else -1


def _split(data: bytes) -> tuple[list[Event], bytes]:
    """All complete blocks of `data`, which starts a block, and the rest.

    Where all line ends are alike (nearly always), `bytes.split` finds the blocks several times faster than the
    pattern does, and finds the same ones.
    """
    if _CR not in data:
        separator = b"\n\n"
    elif data.count(b"\r") == data.count(b"\r\n") == data.count(b"\n"):
        separator = b"\r\n\r\n"
    else:
        return _split_mixed(data)
    blocks = data.split(separator)
    rest = blocks.pop()
    return [Event(block + separator) for block in blocks], rest


def _split_mixed(data: bytes) -> tuple[list[Event], bytes]:
    events = []
    start = 0
    for match in _BLOCK_END.finditer(data):
        events.append(Event(data[start : match.end()]))
        start = match.end()
    return events, data[start:]
