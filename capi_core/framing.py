"""Strict framing of HTTP/1.x requests, in front of a lenient server.

Every client byte goes through `RequestFraming` first. It refuses what two parsers could read in two ways and
hands on a canonical serialisation of what it understood. The server behind never sees a byte that was not
understood here: no parser differential, no smuggled request, no upgrade but a WebSocket's that was accepted.

    HEAD -> [BODY_LENGTH | BODY_CHUNKED] -> COMPLETE -> next_request() -> HEAD
    a body over its limit, or next_request() after `connection: close` -> DISCARD (swallows the rest)
    COMPLETE -> switch() after a WebSocket handshake -> SWITCHED: another protocol's bytes, handed on as they are
    a broken rule -> FAILED (sticky: every later call raises LocalError)

One request at a time: what follows a complete request is held back until `next_request`, so that the caller
can go on reading the socket, and see a disconnect, while the answer is being made.

Any split of the input has the same outcome. To that end a limit counts bytes from a fixed place, never "what
happens to be buffered", and the rule that is broken first in the byte stream is the one that is reported.
"""

import re
from enum import Enum, auto
from typing import Final, assert_never

from capi_core.errors import LocalError
from capi_core.request_head import (
    CRLF,
    FIELD,
    TOKEN,
    FramingError,
    FramingFault,
    FramingLimits,
    Head,
    HeadReader,
)

__all__ = ["FramingError", "FramingFault", "FramingLimits", "FramingState", "Head", "RequestFraming"]


class FramingState(Enum):
    """Where the machine stands in the client's byte stream."""

    HEAD = auto()
    BODY_LENGTH = auto()
    BODY_CHUNKED = auto()
    COMPLETE = auto()
    SWITCHED = auto()
    DISCARD = auto()
    FAILED = auto()


_DEFAULT_LIMITS: Final = FramingLimits()
_LEADING_EMPTY_LINES: Final = 2  # RFC 9112 2.2 asks for one at least
# RFC 9112 7.1. White space around the size ("bad white space") is refused: parsers disagree about it.
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t -~\x80-\xff]*)?")
_CHUNK_ALLOWANCE: Final = 16  # what any chunk may spend on its line, besides twice its data
_LAST_CHUNK: Final = b"0\r\n\r\n"


class _Buffer:
    """Received bytes that are not consumed yet. Every byte is looked at a bounded number of times."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._start = 0  # consumed bytes leave in one piece, in `compact`
        self._scanned = 0  # up to here the current line holds neither CR nor LF

    def __len__(self) -> int:
        return len(self._data) - self._start

    def append(self, data: bytes) -> None:
        self._data += data

    def clear(self) -> None:
        self._data.clear()
        self._start = self._scanned = 0

    def compact(self) -> None:
        if self._start:
            del self._data[: self._start]
            self._scanned = max(0, self._scanned - self._start)
            self._start = 0

    def peek(self, count: int) -> bytes:
        return bytes(self._data[self._start : self._start + count])

    def take(self, count: int) -> bytes:
        """Up to `count` bytes."""
        data = self.peek(count)
        self._start += len(data)
        return data

    def take_line(self, limit: int, too_long: FramingFault) -> bytes | None:
        """The next line without its CR LF, or None while it is incomplete. At most `limit` bytes long."""
        data, start = self._data, self._start
        scan = max(start, self._scanned)
        cr = data.find(b"\r", scan)
        end = cr if cr >= 0 else len(data)
        lf = data.find(b"\n", scan, end)
        if (lf if lf >= 0 else end) - start > limit:
            raise FramingError(too_long)
        if lf >= 0:
            raise FramingError(FramingFault.INVALID_LINE_ENDING)
        if end + 1 >= len(data):  # no CR, or one that waits for its LF
            self._scanned = end
            return None
        if data[end + 1] != 0x0A:
            raise FramingError(FramingFault.INVALID_LINE_ENDING)
        self._start = end + 2
        return bytes(data[start:end])


class _ChunkPart(Enum):
    """Where BODY_CHUNKED stands (RFC 9112 7.1)."""

    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()


class RequestFraming:
    """The client's half of one HTTP/1.x connection, request by request.

    Give every received byte to `receive_data` and pass what it returns to the server behind; `head` tells
    when a request has begun. In state COMPLETE go on calling `receive_data` while the answer is being made,
    then call `next_request`. In state DISCARD answer and close. On `FramingError` refuse and close.
    """

    def __init__(self, limits: FramingLimits = _DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._buffer = _Buffer()
        self._output: list[bytes] = []  # canonical bytes of the current call
        self._content: list[bytes] = []  # chunk data of the current call, which becomes one canonical chunk
        self._begin()

    def _begin(self) -> None:
        self._state = FramingState.HEAD
        self._empty_lines = 0
        self._reader: HeadReader | None = None
        self._head: Head | None = None
        self._body_received = 0
        self._remaining = 0  # content bytes to come: of the body, or of the current chunk
        self._part = _ChunkPart.SIZE
        self._excess = 0
        self._trailer_room = self._limits.trailer

    @property
    def state(self) -> FramingState:
        return self._state

    @property
    def head(self) -> Head | None:
        """The head of the current request, from its last byte on until `next_request`."""
        return self._head

    @property
    def body_received(self) -> int:
        """Content bytes of the current request that were handed on, without chunk framing."""
        return self._body_received

    @property
    def held(self) -> int:
        """Bytes held back behind a complete request."""
        return len(self._buffer) if self._state is FramingState.COMPLETE else 0

    @property
    def head_started(self) -> bool:
        """Whether a byte of the current request has arrived; empty lines before it do not count."""
        begun = self._head is not None or self._reader is not None
        return begun or self._buffer.peek(2) not in (b"", b"\r")

    def receive_data(self, data: bytes) -> bytes:
        """Take bytes from the client; return the canonical bytes that they complete, often none.

        The end of input is the caller's to judge: a request was cut short if `head_started` and the state is
        neither COMPLETE nor DISCARD.

        Raises `FramingError` when a rule is broken, `LocalError` after that.
        """
        if self._state is FramingState.FAILED:
            raise LocalError("the connection was refused: nothing more can be received")
        if self._state is FramingState.SWITCHED:
            return data
        if self._state is not FramingState.DISCARD:
            self._buffer.append(data)
        return self._advance()

    def switch(self) -> bytes:
        """The handshake was accepted, with 101: what is held, and all that comes, is the other protocol's.

        Raises `LocalError` unless the state is COMPLETE and the request asked for the upgrade.
        """
        if self._state is not FramingState.COMPLETE or self._head is None or not self._head.upgrade:
            raise LocalError("there is no handshake to accept")
        self._state = FramingState.SWITCHED
        held = self._buffer.take(len(self._buffer))
        self._buffer.clear()
        return held

    def next_request(self) -> bytes:
        """The current request has been answered: go on with what is held. Returns like `receive_data`.

        After a request that closes the connection the state becomes DISCARD: nothing behind it may be
        processed (RFC 9112 9.6). Raises `FramingError`, and `LocalError` unless the state is COMPLETE.
        """
        if self._state is not FramingState.COMPLETE or self._head is None:
            raise LocalError(f"no request to follow in state {self._state.name}")
        if not self._head.keep_alive:
            self._state = FramingState.DISCARD
            return b""
        self._begin()
        return self._advance()

    def _advance(self) -> bytes:
        try:
            while self._step():
                pass
            self._hold()
        except FramingError as error:
            self._state = FramingState.FAILED
            self._buffer.clear()
            error.canonical = self._collect()
            raise
        self._buffer.compact()
        return self._collect()

    def _collect(self) -> bytes:
        self._flush_chunk()
        canonical = b"".join(self._output)
        self._output.clear()
        return canonical

    def _step(self) -> bool:
        """Consume one element of the grammar; False when there is none to be had now."""
        match self._state:
            case FramingState.HEAD:
                return self._read_fields(self._reader) if self._reader else self._read_request_line()
            case FramingState.BODY_LENGTH:
                return self._read_content()
            case FramingState.BODY_CHUNKED:
                return self._read_chunked()
            case _:
                return False

    def _hold(self) -> None:
        """Bound what waits behind a complete request; forget what will never be processed."""
        if self._state is FramingState.DISCARD:
            self._buffer.clear()
        elif self._state is FramingState.COMPLETE and self._head is not None:
            if not self._head.keep_alive and not self._head.upgrade:
                self._buffer.clear()
            elif len(self._buffer) > self._limits.held:
                raise FramingError(FramingFault.PIPELINE_TOO_LONG)

    def _read_request_line(self) -> bool:
        first = self._buffer.peek(1)
        # A TLS hello may hold no line end: refuse it at its first byte. CR and LF are for take_line to judge.
        if first and first not in CRLF and not TOKEN.match(first):
            raise FramingError(FramingFault.INVALID_REQUEST_LINE)
        line = self._buffer.take_line(self._limits.request_line, FramingFault.REQUEST_LINE_TOO_LONG)
        if line is None:
            return False
        if line:
            self._reader = HeadReader(line, self._limits)
            return True
        self._empty_lines += 1
        if self._empty_lines > _LEADING_EMPTY_LINES:
            raise FramingError(FramingFault.INVALID_REQUEST_LINE)
        return True

    def _read_fields(self, reader: HeadReader) -> bool:
        while line := self._buffer.take_line(reader.room - len(CRLF), FramingFault.HEAD_TOO_LARGE):
            reader.add(line)
        if line is None:
            return False
        self._end_head(reader.finish())
        return True

    def _end_head(self, head: Head) -> None:
        self._head, self._reader = head, None
        self._output.append(bytes(head))
        if head.too_large:
            self._state = FramingState.DISCARD
        elif head.chunked:
            self._state = FramingState.BODY_CHUNKED
        elif head.content_length:
            self._state = FramingState.BODY_LENGTH
            self._remaining = head.content_length
        else:
            self._state = FramingState.COMPLETE

    def _take_content(self, count: int) -> bytes:
        content = self._buffer.take(count)
        self._remaining -= len(content)
        self._body_received += len(content)
        return content

    def _read_content(self) -> bool:
        self._output.append(self._take_content(self._remaining))
        if self._remaining:
            return False
        self._state = FramingState.COMPLETE
        return True

    def _read_chunked(self) -> bool:
        match self._part:
            case _ChunkPart.SIZE:
                return self._read_chunk_line()
            case _ChunkPart.DATA:
                return self._read_chunk_data()
            case _ChunkPart.DATA_END:
                return self._read_chunk_end()
            case _ChunkPart.TRAILER:
                return self._read_trailer()
            case _:
                assert_never(self._part)

    def _read_chunk_line(self) -> bool:
        line = self._buffer.take_line(self._limits.chunk_line, FramingFault.CHUNK_LINE_TOO_LONG)
        if line is None:
            return False
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise FramingError(FramingFault.INVALID_CHUNK)
        self._remaining = int(match[1], 16)
        self._excess = max(0, self._excess + len(line) - _CHUNK_ALLOWANCE - 2 * self._remaining)
        if self._excess > self._limits.chunk_excess:
            raise FramingError(FramingFault.CHUNK_EXCESS)
        if self._remaining == 0:
            self._part = _ChunkPart.TRAILER
            return True
        self._part = _ChunkPart.DATA
        return self._read_chunk_data()

    def _read_chunk_data(self) -> bool:
        # One byte over the limit is enough for the server behind to see that its cap is passed.
        allowed = self._limits.body + 1 - self._body_received
        content = self._take_content(min(self._remaining, allowed))
        self._content.append(content)
        if len(content) == allowed:
            self._state = FramingState.DISCARD
            return False
        if self._remaining:
            return False
        self._part = _ChunkPart.DATA_END
        return self._read_chunk_end()

    def _read_chunk_end(self) -> bool:
        if self._buffer.take_line(0, FramingFault.INVALID_CHUNK) is None:
            return False
        self._part = _ChunkPart.SIZE
        return True

    def _read_trailer(self) -> bool:
        """Trailer fields are dropped, not merged (RFC 9110 6.5.1)."""
        while line := self._buffer.take_line(self._trailer_room - len(CRLF), FramingFault.TRAILER_TOO_LARGE):
            self._trailer_room -= len(line) + len(CRLF)
            if not FIELD.fullmatch(line):
                raise FramingError(FramingFault.INVALID_FIELD)
        if line is None:
            return False
        self._flush_chunk()
        self._output.append(_LAST_CHUNK)
        self._state = FramingState.COMPLETE
        return True

    def _flush_chunk(self) -> None:
        size = sum(map(len, self._content))
        if size:
            self._output += (b"%x\r\n" % size, *self._content, CRLF)
        self._content.clear()
