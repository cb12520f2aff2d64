"""The head of an HTTP/1.x request: its grammar, its limits, and every reason to refuse it.

A head is read line by line (`HeadReader`) and ends as a `Head`, whose bytes are its canonical form: what one reader
could take differently from another is refused, and what only concerns this hop is left out.
"""

import re
from enum import Enum
from typing import Final, Literal

from attrs import field, frozen

from capi_core.errors import ProtocolError

__all__ = ["CRLF", "FIELD", "TOKEN", "FramingError", "FramingFault", "FramingLimits", "Head", "HeadReader"]


@frozen
class FramingLimits:
    """What one request may take, in bytes unless said otherwise."""

    # RFC 9112 3 asks for 8000 octets at least.
    request_line: int = 8 * 1024
    # Request line, fields and the empty line. Agents send a few KiB.
    head: int = 32 * 1024
    # A count. The official SDKs send fewer than 30.
    fields: int = 100
    # Size and extensions of one chunk. No client that we know sends extensions.
    chunk_line: int = 1024
    # What all chunk lines may take beyond 16 bytes a chunk and twice its data: else a client can make us read
    # 1 KiB of extension for every byte of content.
    chunk_excess: int = 16 * 1024
    # Dropped anyway.
    trailer: int = 8 * 1024
    # Content, without chunk framing: what the official APIs take.
    body: int = 32 * 1024 * 1024
    # Pipelined bytes behind one request: one read of the socket.
    held: int = 64 * 1024
    # The paths at which a WebSocket handshake is handed on as one; anywhere else the upgrade is declined.
    websockets: frozenset[str] = frozenset()


class FramingFault(Enum):
    """Every reason for a refusal: its status and message. The name in lower case is the error's `code`."""

    INVALID_LINE_ENDING = 400, "A line does not end in CR LF, or holds a bare CR or LF."
    INVALID_REQUEST_LINE = 400, "The request line is not `METHOD /target HTTP/1.1`."
    INVALID_TARGET = 400, "The request target must be a path in visible ASCII, without a fragment."
    INVALID_FIELD = 400, "A field is not `name: value` on one line without control characters."
    DUPLICATE_FIELD = 400, "A header field that must be unique was sent twice."
    INVALID_HOST = 400, "HTTP/1.1 needs exactly one valid Host header field."
    INVALID_CONTENT_LENGTH = 400, "Content-Length is not a plain decimal number."
    INVALID_CONNECTION = 400, "The Connection header field is malformed or names an end-to-end field."
    AMBIGUOUS_BODY_LENGTH = 400, "Transfer-Encoding cannot be used with Content-Length or in HTTP/1.0."
    INVALID_CHUNK = 400, "The chunked body is malformed."
    CHUNK_LINE_TOO_LONG = 400, "A chunk size line is too long."
    CHUNK_EXCESS = 400, "The chunked body is mostly chunk extensions."
    PIPELINE_TOO_LONG = 400, "Too many bytes were sent before the answer to the current request."
    REQUEST_LINE_TOO_LONG = 414, "The request line is too long."
    UNSUPPORTED_CONTENT_ENCODING = 415, "Encoded request bodies are not accepted."
    UNSUPPORTED_EXPECTATION = 417, "The only expectation that is supported is `100-continue`."
    HEAD_TOO_LARGE = 431, "The request head is too large."
    TOO_MANY_FIELDS = 431, "The request has too many header fields."
    TRAILER_TOO_LARGE = 431, "The trailer section is too large."
    UNSUPPORTED_METHOD = 501, "The request method is not supported."
    UNSUPPORTED_TRANSFER_ENCODING = 501, "The only transfer coding that is supported is `chunked`."
    UNSUPPORTED_VERSION = 505, "Only HTTP/1.1 and HTTP/1.0 are supported here."


class FramingError(ProtocolError):
    """The client's bytes are refused: answer `status_hint` if nothing was answered yet, and close.

    `canonical` holds what the same call had produced before the fault: content bytes of a request that was
    handed on already, or a whole one. It is safe to hand on, and as safe to drop.
    """

    def __init__(self, fault: FramingFault) -> None:
        status, message = fault.value
        super().__init__(message, code=fault.name.lower(), status_hint=status)
        self.fault = fault
        self.canonical = b""


@frozen
class Head:
    """A request head that was accepted. `bytes(head)` is its canonical form.

    `headers` are the fields that were handed on: names in lower case, values without surrounding white space,
    no hop-by-hop fields. Target and headers are kept out of the repr: they may hold a secret.
    `upgrade`: a WebSocket handshake (RFC 6455 4.2.1), handed on as one; whoever serves it may still decline.
    """

    method: str
    target: str = field(repr=False)
    version: Literal["1.0", "1.1"]
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    content_length: int | None
    chunked: bool
    expects_continue: bool  # the client waits for `100 Continue`, which the caller sends unless `too_large`
    too_large: bool  # the declared length is over the limit: the body is not read
    keep_alive: bool  # another request may follow on this connection
    upgrade: bool = False

    def __bytes__(self) -> bytes:
        request_line = f"{self.method} {self.target} HTTP/{self.version}\r\n".encode("ascii")
        return request_line + b"".join([b"%b: %b\r\n" % item for item in self.headers]) + b"\r\n"


# Request line, RFC 9112 3: `method SP request-target SP HTTP-version`, one space each.
_TCHAR: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"  # RFC 9110 5.6.2
TOKEN: Final = re.compile(_TCHAR + rb"+")
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")  # RFC 9112 2.3, case-sensitive
_METHOD: Final = re.compile(rb"[A-Z-]{1,32}")  # the longest registered method has 17 letters
_REFUSED_METHODS: Final = frozenset({b"CONNECT", b"TRACE"})  # not for an origin server; echoes credentials
_TARGET: Final = re.compile(rb"/[!-\"$-~]*")  # origin-form, RFC 9112 3.2.1; `#` never goes on the wire

# Fields, RFC 9112 5. No space before the colon, no obs-fold, no control characters but HTAB.
FIELD: Final = re.compile(rb"(" + _TCHAR + rb"+):([\t -~\x80-\xff]*)")
_OWS: Final = b" \t"
# RFC 9112 3.2; stricter than RFC 3986 3.2.2, so that no two readers can disagree about where the host ends.
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_MAX_LENGTH_DIGITS: Final = 18  # fits 64 bits signed, whoever reads it
# A second one of these would be a second opinion about who asks, or what, or how long it is.
_UNIQUE: Final = frozenset(
    b"authorization content-encoding content-length content-type expect host transfer-encoding".split()
) | {b"x-api-key"}
# Hop-by-hop (RFC 9110 7.6.1), or between this machine and the client only. An upgrade is declined by leaving
# Upgrade out (RFC 9110 7.8). The framing fields among them are written anew, and so is a WebSocket handshake, without
# extensions: to inflate what a client sends is to take a thousand bytes for each of its own (RFC 7692 needs no answer).
_DROPPED: Final = frozenset(
    b"connection content-length expect http2-settings keep-alive proxy-connection te trailer".split()
) | {b"transfer-encoding", b"upgrade", b"sec-websocket-extensions", b"sec-websocket-key", b"sec-websocket-version"}
_HANDSHAKE: Final = frozenset({b"upgrade", b"sec-websocket-key", b"sec-websocket-version"})
# The base64 of 16 bytes, RFC 6455 4.2.1: its last letter has four bits to spare.
_WEBSOCKET_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")
_WEBSOCKET_VERSION: Final = b"13"
# `Connection: authorization` asks this hop to remove what later decisions rest on: forbidden, RFC 9110 7.6.1.
_END_TO_END: Final = _UNIQUE.union(
    b"cookie forwarded origin x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip".split()
)
CRLF: Final = b"\r\n"


def _parse_request_line(line: bytes) -> tuple[bytes, bytes, Literal["1.0", "1.1"]]:
    method, _, rest = line.partition(b" ")
    target, _, version = rest.partition(b" ")
    if not (TOKEN.fullmatch(method) and target and _VERSION.fullmatch(version)):
        raise FramingError(FramingFault.INVALID_REQUEST_LINE)
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):  # before the rest, for `PRI * HTTP/2.0`
        raise FramingError(FramingFault.UNSUPPORTED_VERSION)
    # Methods are case-sensitive (RFC 9110 9.1), but the server behind folds them.
    if method in _REFUSED_METHODS or not _METHOD.fullmatch(method):
        raise FramingError(FramingFault.UNSUPPORTED_METHOD)
    if not _TARGET.fullmatch(target):
        raise FramingError(FramingFault.INVALID_TARGET)
    return method, target, "1.1" if version == b"HTTP/1.1" else "1.0"


def _connection_options(value: bytes) -> set[bytes]:
    """The options of one Connection field, in lower case (RFC 9110 7.6.1); empty list elements are legal."""
    options = {option.strip(_OWS).lower() for option in value.split(b",")} - {b""}
    if not _END_TO_END.isdisjoint(options) or not all(map(TOKEN.fullmatch, options)):
        raise FramingError(FramingFault.INVALID_CONNECTION)
    return options


class HeadReader:
    """One request head: begun with its request line, fed its field lines, then finished or refused."""

    def __init__(self, request_line: bytes, limits: FramingLimits) -> None:
        self._method, self._target, self._version = _parse_request_line(request_line)
        self._limits = limits
        self._count = 0
        self._fields: list[tuple[bytes, bytes]] = []
        self._unique: dict[bytes, bytes] = {}
        self._options: set[bytes] = set()
        self._handshake: list[tuple[bytes, bytes]] = []
        self.room = limits.head - len(request_line) - len(CRLF)  # bytes that the rest of the head may have

    def add(self, line: bytes) -> None:
        self.room -= len(line) + len(CRLF)
        self._count += 1
        if self._count > self._limits.fields:
            raise FramingError(FramingFault.TOO_MANY_FIELDS)
        match = FIELD.fullmatch(line)
        if match is None:
            raise FramingError(FramingFault.INVALID_FIELD)
        name, value = match[1].lower(), match[2].strip(_OWS)
        if name in _UNIQUE:
            if name in self._unique:
                raise FramingError(FramingFault.DUPLICATE_FIELD)
            self._unique[name] = value
        if name not in _DROPPED:
            self._fields.append((name, value))
        elif name == b"connection":
            self._options |= _connection_options(value)
        elif name in _HANDSHAKE:
            self._handshake.append((name, value))

    def finish(self) -> Head:
        self._check_host()
        if self._unique.get(b"content-encoding", b"identity").lower() != b"identity":  # RFC 9110 15.5.16
            raise FramingError(FramingFault.UNSUPPORTED_CONTENT_ENCODING)
        if self._unique.get(b"expect", b"100-continue").lower() != b"100-continue":  # RFC 9110 10.1.1
            raise FramingError(FramingFault.UNSUPPORTED_EXPECTATION)
        length, chunked = self._body_length()
        too_large = length is not None and length > self._limits.body
        upgrade = self._is_handshake() and not length and not chunked
        keep_alive = self._version == "1.1" and b"close" not in self._options and not too_large and not upgrade
        # Meaningless in 1.0 and without content (RFC 9110 10.1.1).
        may_wait = self._version == "1.1" and (chunked or bool(length))
        return Head(
            method=self._method.decode("ascii"),
            target=self._target.decode("ascii"),
            version=self._version,
            headers=self._canonical_fields(length, chunked, keep_alive, upgrade),
            content_length=length,
            chunked=chunked,
            expects_continue=may_wait and b"expect" in self._unique,
            too_large=too_large,
            keep_alive=keep_alive,
            upgrade=upgrade,
        )

    def _is_handshake(self) -> bool:
        """RFC 6455 4.2.1. What is not a whole handshake is a request like any other, with the upgrade declined."""
        fields = dict(self._handshake)
        path = self._target.partition(b"?")[0].decode("ascii")
        return (
            path in self._limits.websockets
            and self._method == b"GET"
            and self._version == "1.1"
            and b"upgrade" in self._options
            and len(fields) == len(self._handshake) == len(_HANDSHAKE)
            and fields[b"upgrade"].lower() == b"websocket"
            and _WEBSOCKET_KEY.fullmatch(fields[b"sec-websocket-key"]) is not None
            and fields[b"sec-websocket-version"] == _WEBSOCKET_VERSION
        )

    def _check_host(self) -> None:
        """RFC 9112 3.2."""
        host = self._unique.get(b"host")
        if host is None:
            if self._version == "1.1":
                raise FramingError(FramingFault.INVALID_HOST)
        elif not _HOST.fullmatch(host):
            raise FramingError(FramingFault.INVALID_HOST)

    def _body_length(self) -> tuple[int | None, bool]:
        """RFC 9112 6.1 and 6.3, with every doubtful case refused."""
        length = self._unique.get(b"content-length")
        coding = self._unique.get(b"transfer-encoding")
        if coding is not None:
            if length is not None or self._version == "1.0":
                raise FramingError(FramingFault.AMBIGUOUS_BODY_LENGTH)
            if not coding.isascii():
                raise FramingError(FramingFault.INVALID_FIELD)
            if coding.lower() != b"chunked":
                raise FramingError(FramingFault.UNSUPPORTED_TRANSFER_ENCODING)
            return None, True
        if length is None:
            return None, False
        if not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS:
            raise FramingError(FramingFault.INVALID_CONTENT_LENGTH)
        return int(length), False

    def _canonical_fields(
        self, length: int | None, chunked: bool, keep_alive: bool, upgrade: bool
    ) -> tuple[tuple[bytes, bytes], ...]:
        fields = [item for item in self._fields if item[0] not in self._options]
        if upgrade:
            return (*fields, (b"connection", b"upgrade"), *self._handshake)
        if chunked:
            fields.append((b"transfer-encoding", b"chunked"))
        elif length is not None:
            fields.append((b"content-length", b"%d" % length))
        if not keep_alive:
            fields.append((b"connection", b"close"))
        return tuple(fields)
