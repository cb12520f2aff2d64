"""The framing table: what a client may send and what is refused, for machine tests and socket tests alike.

`drive` feeds a `RequestFraming` the way the runtime does; `read_back` lets h11 read what it handed on.
"""

from collections.abc import Iterable
from typing import Final

import h11
from attrs import field, frozen

from capi_core.framing import FramingError, FramingLimits, FramingState, RequestFraming

__all__ = ["CASES", "FramingCase", "ReadBack", "Transcript", "drive", "read_back"]


@frozen
class FramingCase:
    """`data` is all that the client sends. Accepted (`status` None): whole requests, `canonical` is handed on.

    Refused: the status and code of the refusal. Whole requests before it, if any, have been handed on.
    """

    name: str
    data: bytes = field(repr=False)
    status: int | None
    code: str | None = None
    canonical: bytes = field(default=b"", repr=False)


@frozen
class Transcript:
    """What a machine made of its input: all canonical bytes, and the code of the refusal that ended it."""

    canonical: bytes
    code: str | None
    status: int | None
    state: FramingState


@frozen
class ReadBack:
    """One request as h11 understands it. `whole` is False if it ended in the middle."""

    method: bytes
    target: bytes
    version: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    content: bytes
    whole: bool


def drive(pieces: Iterable[bytes], limits: FramingLimits | None = None, *, eager: bool = False) -> Transcript:
    """Feed all pieces, then every held request; `eager`: go to the next request as soon as one is complete."""
    framing = RequestFraming() if limits is None else RequestFraming(limits)
    canonical = bytearray()
    try:
        for piece in pieces:
            canonical += framing.receive_data(piece)
            while eager and framing.state is FramingState.COMPLETE:
                canonical += framing.next_request()
        while framing.state is FramingState.COMPLETE and framing.held:
            canonical += framing.next_request()
    except FramingError as error:
        return Transcript(bytes(canonical) + error.canonical, error.code, error.status_hint, framing.state)
    return Transcript(bytes(canonical), None, None, framing.state)


def read_back(canonical: bytes) -> list[ReadBack]:
    """Read canonical bytes with h11 as a server that answers every request at once.

    Raises `h11.RemoteProtocolError` for what h11 refuses, and AssertionError for bytes behind a last request.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(canonical) + 1)
    connection.receive_data(canonical)
    requests: list[ReadBack] = []
    while isinstance(request := connection.next_event(), h11.Request):
        content = bytearray()
        while isinstance(event := connection.next_event(), h11.Data):
            content += event.data
        whole = isinstance(event, h11.EndOfMessage)
        requests.append(
            ReadBack(
                request.method,
                request.target,
                request.http_version,
                tuple(request.headers),
                bytes(content),
                whole,
            )
        )
        if not whole:
            break
        connection.send(h11.Response(status_code=204, headers=[]))
        connection.send(h11.EndOfMessage())
        if connection.our_state is h11.MUST_CLOSE:
            break
        connection.start_next_cycle()
    complete = bool(requests) and requests[-1].whole
    if complete or not requests:
        assert connection.trailing_data[0] == b"", "bytes that h11 did not take for a request"
    return requests


def _get(*lines: bytes, start: bytes = b"GET /v1/models HTTP/1.1", host: bytes = b"Host: h") -> bytes:
    return b"\r\n".join([start, host, *lines, b"", b""])


def _post(*lines: bytes, body: bytes = b"") -> bytes:
    return _get(*lines, start=b"POST /v1/messages HTTP/1.1") + body


def _chunked(body: bytes) -> bytes:
    return _post(b"Transfer-Encoding: chunked", body=body)


_GET_H: Final = b"GET /v1/models HTTP/1.1\r\nhost: h\r\n"
_POST_H: Final = b"POST /v1/messages HTTP/1.1\r\nhost: h\r\n"
_PLAIN: Final = _GET_H + b"\r\n"
_CHUNKED_H: Final = _POST_H + b"transfer-encoding: chunked\r\n\r\n"
_HELLO: Final = _CHUNKED_H + b"5\r\nhello\r\n0\r\n\r\n"


def _accepted(name: str, data: bytes, canonical: bytes) -> FramingCase:
    return FramingCase(name, data, None, None, canonical)


def _refused(name: str, data: bytes, status: int, code: str) -> FramingCase:
    return FramingCase(name, data, status, code)


_REQUEST_LINE_CASES: Final = (
    _accepted("plain_get", _get(), _PLAIN),
    _accepted("one_leading_empty_line", b"\r\n" + _get(), _PLAIN),
    _accepted("two_leading_empty_lines", b"\r\n\r\n" + _get(), _PLAIN),
    _refused("three_leading_empty_lines", b"\r\n\r\n\r\n" + _get(), 400, "invalid_request_line"),
    _refused("leading_lf", b"\n" + _get(), 400, "invalid_line_ending"),
    _refused("leading_space", b" " + _get(), 400, "invalid_request_line"),
    _refused("leading_nul", b"\0" + _get(), 400, "invalid_request_line"),
    _refused("tls_hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "invalid_request_line"),
    _refused("two_spaces_after_method", _get(start=b"GET  / HTTP/1.1"), 400, "invalid_request_line"),
    _refused("two_spaces_after_target", _get(start=b"GET /  HTTP/1.1"), 400, "invalid_request_line"),
    _refused("tab_for_space", _get(start=b"GET\t/ HTTP/1.1"), 400, "invalid_request_line"),
    _refused("trailing_space", _get(start=b"GET / HTTP/1.1 "), 400, "invalid_request_line"),
    _refused("space_in_target", _get(start=b"GET /a b HTTP/1.1"), 400, "invalid_request_line"),
    _refused("method_not_a_token", _get(start=b"G(T / HTTP/1.1"), 400, "invalid_request_line"),
    _refused("simple_request_0_9", b"GET /\r\n", 400, "invalid_request_line"),
    _refused("method_only", b"GET\r\n\r\n", 400, "invalid_request_line"),
    _refused("version_in_lower_case", _get(start=b"GET / http/1.1"), 400, "invalid_request_line"),
    _refused("version_two_digits", _get(start=b"GET / HTTP/1.10"), 400, "invalid_request_line"),
    _refused("version_without_minor", _get(start=b"GET / HTTP/1"), 400, "invalid_request_line"),
    _refused("version_other_protocol", _get(start=b"GET / ICY/1.1"), 400, "invalid_request_line"),
    _refused("version_0_9", _get(start=b"GET / HTTP/0.9"), 505, "unsupported_version"),
    _refused("version_1_2", _get(start=b"GET / HTTP/1.2"), 505, "unsupported_version"),
    _refused("version_2_0", _get(start=b"GET / HTTP/2.0"), 505, "unsupported_version"),
    _refused("h2_preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0", 505, "unsupported_version"),
    _refused("lower_case_method", _get(start=b"get / HTTP/1.1"), 501, "unsupported_method"),
    _refused("mixed_case_method", _get(start=b"GeT / HTTP/1.1"), 501, "unsupported_method"),
    _refused("method_with_digit", _get(start=b"GET2 / HTTP/1.1"), 501, "unsupported_method"),
    _refused("connect", _get(start=b"CONNECT h:443 HTTP/1.1"), 501, "unsupported_method"),
    _refused("connect_origin_form", _get(start=b"CONNECT / HTTP/1.1"), 501, "unsupported_method"),
    _refused("trace", _get(start=b"TRACE / HTTP/1.1"), 501, "unsupported_method"),
    _refused("method_of_33_letters", _get(start=b"A" * 33 + b" / HTTP/1.1"), 501, "unsupported_method"),
    _accepted(
        "method_of_32_letters",
        _get(start=b"A" * 32 + b" / HTTP/1.1"),
        b"A" * 32 + b" / HTTP/1.1\r\nhost: h\r\n\r\n",
    ),
    _accepted(
        "method_with_hyphen",
        _get(start=b"M-SEARCH / HTTP/1.1"),
        b"M-SEARCH / HTTP/1.1\r\nhost: h\r\n\r\n",
    ),
    _refused("options_star", _get(start=b"OPTIONS * HTTP/1.1"), 400, "invalid_target"),
    _refused("absolute_form", _get(start=b"GET http://h/ HTTP/1.1"), 400, "invalid_target"),
    _refused("authority_form", _get(start=b"GET h:80 HTTP/1.1"), 400, "invalid_target"),
    _refused("relative_target", _get(start=b"GET v1/models HTTP/1.1"), 400, "invalid_target"),
    _refused("fragment", _get(start=b"GET /a#b HTTP/1.1"), 400, "invalid_target"),
    _refused("nul_in_target", _get(start=b"GET /a\0b HTTP/1.1"), 400, "invalid_target"),
    _refused("tab_in_target", _get(start=b"GET /a\tb HTTP/1.1"), 400, "invalid_target"),
    _refused("del_in_target", _get(start=b"GET /a\x7fb HTTP/1.1"), 400, "invalid_target"),
    _refused("raw_utf8_in_target", _get(start=b"GET /\xc3\xa4 HTTP/1.1"), 400, "invalid_target"),
    _accepted(
        "odd_but_legal_target",
        _get(start=b"GET //a/./%2e%2e/b;c?d=%00&e[]={f}|\\ HTTP/1.1"),
        b"GET //a/./%2e%2e/b;c?d=%00&e[]={f}|\\ HTTP/1.1\r\nhost: h\r\n\r\n",
    ),
    _accepted(
        "http_1_0_without_host",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\nconnection: close\r\n\r\n",
    ),
    _accepted(
        "http_1_0_keep_alive_is_not_kept",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"GET / HTTP/1.0\r\nconnection: close\r\n\r\n",
    ),
)

_LINE_ENDING_CASES: Final = (
    _refused("bare_lf_request_line", b"GET / HTTP/1.1\nHost: h\r\n\r\n", 400, "invalid_line_ending"),
    _refused("bare_lf_field", b"GET / HTTP/1.1\r\nHost: h\n\r\n", 400, "invalid_line_ending"),
    _refused("bare_lf_head_end", b"GET / HTTP/1.1\r\nHost: h\r\n\n", 400, "invalid_line_ending"),
    _refused("bare_lf_everywhere", b"GET / HTTP/1.1\nHost: h\n\n", 400, "invalid_line_ending"),
    _refused("bare_cr_request_line", b"GET / HTTP/1.1\rHost: h\r\r", 400, "invalid_line_ending"),
    _refused("bare_cr_in_target", _get(start=b"GET /\r HTTP/1.1"), 400, "invalid_line_ending"),
    _refused("bare_cr_in_value", _get(b"A: b\rc: d"), 400, "invalid_line_ending"),
    _refused("cr_cr_lf", _get(b"A: b\r"), 400, "invalid_line_ending"),
    _refused("obs_fold_space", _get(b"A: b", b" c"), 400, "invalid_field"),
    _refused("obs_fold_tab", _get(b"A: b", b"\tc: d"), 400, "invalid_field"),
    _refused("space_before_first_field", b"GET / HTTP/1.1\r\n Host: h\r\nHost: h\r\n\r\n", 400, "invalid_field"),
)

_FIELD_CASES: Final = (
    _refused("space_before_colon", _get(b"A : b"), 400, "invalid_field"),
    _refused("tab_before_colon", _get(b"Content-Length\t: 0"), 400, "invalid_field"),
    _refused("empty_name", _get(b": b"), 400, "invalid_field"),
    _refused("no_colon", _get(b"A"), 400, "invalid_field"),
    _refused("name_not_a_token", _get(b"A(b): c"), 400, "invalid_field"),
    _refused("name_with_nul", _get(b"A\0: c"), 400, "invalid_field"),
    _refused("name_not_ascii", _get(b"\xc3\xa4: c"), 400, "invalid_field"),
    _refused("nul_in_value", _get(b"A: b\0c"), 400, "invalid_field"),
    _refused("vertical_tab_in_value", _get(b"A: \x0bb"), 400, "invalid_field"),
    _refused("escape_in_value", _get(b"A: \x1b[1m"), 400, "invalid_field"),
    _refused("del_in_value", _get(b"A: \x7f"), 400, "invalid_field"),
    _accepted("empty_value", _get(b"A:"), _GET_H + b"a: \r\n\r\n"),
    _accepted("tab_in_value", _get(b"A: b\tc"), _GET_H + b"a: b\tc\r\n\r\n"),
    _accepted("surrounding_white_space", _get(b"A: \t b \t "), _GET_H + b"a: b\r\n\r\n"),
    _accepted("colons_in_value", _get(b"A::b:"), _GET_H + b"a: :b:\r\n\r\n"),
    _accepted("obs_text_in_value", _get(b"A: caf\xe9"), _GET_H + b"a: caf\xe9\r\n\r\n"),
    _accepted("every_tchar_in_name", _get(b"!#$%&'*+-.^_`|~09aZ: b"), _GET_H + b"!#$%&'*+-.^_`|~09az: b\r\n\r\n"),
    _accepted("repeated_field", _get(b"A: b", b"a: c"), _GET_H + b"a: b\r\na: c\r\n\r\n"),
    _accepted("authorization", _get(b"Authorization: Bearer k"), _GET_H + b"authorization: Bearer k\r\n\r\n"),
    *(
        _refused(f"duplicate_{name.lower()}", _post(f"{name}: {value}".encode(), other), 400, "duplicate_field")
        for name, value, other in (
            ("Authorization", "Bearer a", b"authorization: Bearer b"),
            ("X-Api-Key", "a", b"x-api-key: a"),
            ("Content-Type", "a/b", b"Content-type: a/b"),
            ("Content-Length", "0", b"content-LENGTH: 0"),
            ("Transfer-Encoding", "chunked", b"Transfer-Encoding: chunked"),
            ("Expect", "100-continue", b"Expect: 100-continue"),
            ("Content-Encoding", "identity", b"Content-Encoding: identity"),
            ("Accept", "a/b", b"Host: h"),
        )
    ),
    _refused("gzip_body", _post(b"Content-Encoding: gzip"), 415, "unsupported_content_encoding"),
    _refused("empty_content_encoding", _post(b"Content-Encoding:"), 415, "unsupported_content_encoding"),
    _accepted("identity_body", _post(b"Content-Encoding: Identity"), _POST_H + b"content-encoding: Identity\r\n\r\n"),
    _refused("expect_other", _post(b"Expect: 200-ok"), 417, "unsupported_expectation"),
    _refused("expect_empty", _post(b"Expect:"), 417, "unsupported_expectation"),
    _accepted(
        "expect_continue",
        _post(b"Expect: 100-Continue", b"Content-Length: 1", body=b"x"),
        _POST_H + b"content-length: 1\r\n\r\nx",
    ),
)

_HOST_CASES: Final = (
    _refused("host_missing", b"GET / HTTP/1.1\r\n\r\n", 400, "invalid_host"),
    *(
        _refused(f"host_{name}", _get(host=b"Host: " + value), 400, "invalid_host")
        for name, value in (
            ("empty", b""),
            ("with_path", b"h/"),
            ("with_query", b"h/?"),
            ("with_fragment", b"h/#"),
            ("with_userinfo", b"u@h"),
            ("list", b"a, b"),
            ("space_inside", b"a b"),
            ("percent", b"h%00"),
            ("obs_text", b"h\xe9"),
            ("port_empty", b"h:"),
            ("port_not_a_number", b"h:8x"),
            ("port_too_long", b"h:123456"),
            ("bare_ipv6", b"::1"),
            ("open_bracket", b"[::1"),
            ("zone", b"[fe80::1%25eth0]"),
        )
    ),
    _refused("host_invalid_in_1_0", b"GET / HTTP/1.0\r\nHost: a/b\r\n\r\n", 400, "invalid_host"),
    *(
        _accepted(
            f"host_{name}",
            _get(host=b"Host: " + value),
            b"GET /v1/models HTTP/1.1\r\nhost: " + value + b"\r\n\r\n",
        )
        for name, value in (
            ("name_and_port", b"My_Gateway-1.lan:4141"),
            ("ipv4", b"127.0.0.1:65535"),
            ("ipv6", b"[::1]:80"),
            ("ipv6_mapped", b"[::ffff:127.0.0.1]"),
        )
    ),
)

_CONNECTION_CASES: Final = (
    _accepted("connection_close", _get(b"Connection: close"), _GET_H + b"connection: close\r\n\r\n"),
    _accepted("connection_close_in_list", _get(b"Connection: a, ,CLOSE"), _GET_H + b"connection: close\r\n\r\n"),
    _accepted(
        "connection_twice",
        _get(b"Connection: keep-alive", b"Connection: close"),
        _GET_H + b"connection: close\r\n\r\n",
    ),
    _accepted("connection_keep_alive", _get(b"Connection: keep-alive", b"Keep-Alive: timeout=5"), _PLAIN),
    _accepted("connection_empty", _get(b"Connection:"), _PLAIN),
    _accepted("connection_names_field", _get(b"X-Hop: 1", b"Connection: x-HOP", b"X-Hop: 2"), _PLAIN),
    _accepted("hop_by_hop_fields", _get(b"TE: trailers", b"Trailer: a", b"Proxy-Connection: keep-alive"), _PLAIN),
    *(
        _refused(f"connection_names_{name}", _get(f"Connection: close, {name}".encode()), 400, "invalid_connection")
        for name in ("Host", "authorization", "content-length", "transfer-encoding", "X-API-Key", "cookie")
    ),
    _refused("connection_not_a_token", _get(b"Connection: a b"), 400, "invalid_connection"),
    _refused("connection_obs_text", _get(b"Connection: \xe9"), 400, "invalid_connection"),
    _accepted(
        "websocket_upgrade_is_ignored",
        _get(
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ),
        _PLAIN,
    ),
    _accepted(
        "h2c_upgrade_is_ignored",
        _get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAA"),
        _PLAIN,
    ),
    _accepted(
        "h2c_upgrade_without_connection", _get(b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"), _PLAIN
    ),
)

_LENGTH_CASES: Final = (
    _accepted(
        "content_length", _post(b"Content-Length: 5", body=b"hello"), _POST_H + b"content-length: 5\r\n\r\nhello"
    ),
    _accepted("content_length_zero", _post(b"Content-Length: 0"), _POST_H + b"content-length: 0\r\n\r\n"),
    _accepted(
        "content_length_leading_zeros",
        _post(b"Content-Length: 000000000000000005", body=b"hello"),
        _POST_H + b"content-length: 5\r\n\r\nhello",
    ),
    _accepted("post_without_length", _post(), _POST_H + b"\r\n"),
    _accepted(
        "get_with_content",
        _get(b"Content-Length: 2", b"A: b") + b"hi",
        _GET_H + b"a: b\r\ncontent-length: 2\r\n\r\nhi",
    ),
    _accepted(
        "http_1_0_with_content",
        b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi",
        b"POST / HTTP/1.0\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi",
    ),
    *(
        _refused(
            f"content_length_{name}", _post(b"Content-Length: " + value, body=b"hello"), 400, "invalid_content_length"
        )
        for name, value in (
            ("empty", b""),
            ("plus", b"+5"),
            ("minus", b"-5"),
            ("list", b"5, 5"),
            ("inner_space", b"5 5"),
            ("hex", b"0x5"),
            ("underscore", b"1_0"),
            ("fraction", b"5.0"),
            ("superscript", b"\xb2"),
            ("19_digits", b"0000000000000000005"),
        )
    ),
    _refused(
        "content_length_and_chunked",
        _post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        400,
        "ambiguous_body_length",
    ),
    _refused(
        "chunked_and_content_length",
        _post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
        400,
        "ambiguous_body_length",
    ),
    _refused(
        "http_1_0_chunked",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "ambiguous_body_length",
    ),
    *(
        _refused(
            f"transfer_encoding_{name}",
            _post(b"Transfer-Encoding: " + value, body=b"0\r\n\r\n"),
            501,
            "unsupported_transfer_encoding",
        )
        for name, value in (
            ("empty", b""),
            ("identity", b"identity"),
            ("gzip_chunked", b"gzip, chunked"),
            ("chunked_twice", b"chunked, chunked"),
            ("chunked_comma", b"chunked,"),
            ("quoted", b'"chunked"'),
            ("parameter", b"chunked;a=b"),
            ("xchunked", b"xchunked"),
        )
    ),
    _refused("transfer_encoding_obs_text", _post(b"Transfer-Encoding: chunked\xa0"), 400, "invalid_field"),
    _refused("transfer_encoding_vertical_tab", _post(b"Transfer-Encoding: \x0bchunked"), 400, "invalid_field"),
    _refused("transfer_encoding_folded", _post(b"Transfer-Encoding:", b" chunked"), 400, "invalid_field"),
)

_CHUNK_CASES: Final = (
    _accepted("chunked", _chunked(b"5\r\nhello\r\n0\r\n\r\n"), _HELLO),
    _accepted("chunks_coalesce", _chunked(b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), _HELLO),
    _accepted("chunked_empty", _chunked(b"0\r\n\r\n"), _CHUNKED_H + b"0\r\n\r\n"),
    _accepted("chunked_last_chunk_many_zeros", _chunked(b"0000\r\n\r\n"), _CHUNKED_H + b"0\r\n\r\n"),
    _accepted("chunk_size_16_digits", _chunked(b"0000000000000005\r\nhello\r\n0\r\n\r\n"), _HELLO),
    _accepted("chunk_extensions_dropped", _chunked(b'5;a="b;c"\t\r\nhello\r\n0;d\r\n\r\n'), _HELLO),
    _accepted("trailers_dropped", _chunked(b"5\r\nhello\r\n0\r\nA: b\r\nContent-Length: 9\r\n\r\n"), _HELLO),
    _accepted(
        "chunk_size_hex_letters",
        _chunked(b"aA\r\n" + b"x" * 170 + b"\r\n0\r\n\r\n"),
        _CHUNKED_H + b"aa\r\n" + b"x" * 170 + b"\r\n0\r\n\r\n",
    ),
    _accepted(
        "transfer_encoding_any_case",
        _post(b"Transfer-Encoding: Chunked", body=b"5\r\nhello\r\n0\r\n\r\n"),
        _HELLO,
    ),
    *(
        _refused(f"chunk_{name}", _chunked(body), 400, "invalid_chunk")
        for name, body in (
            ("size_empty", b"\r\n"),
            ("size_only_extension", b";a\r\n"),
            ("size_not_hex", b"g\r\n"),
            ("size_prefixed", b"0x5\r\nhello\r\n"),
            ("size_plus", b"+5\r\nhello\r\n"),
            ("size_minus", b"-5\r\nhello\r\n"),
            ("size_underscore", b"1_0\r\n"),
            ("size_17_digits", b"00000000000000005\r\nhello\r\n"),
            ("size_leading_space", b" 5\r\nhello\r\n"),
            ("size_trailing_space", b"5 \r\nhello\r\n"),
            ("size_space_extension", b"5 ;a\r\nhello\r\n"),
            ("extension_nul", b"5;a\0\r\nhello\r\n"),
            ("extension_escape", b"5;\x1b\r\nhello\r\n"),
            ("data_too_long", b"5\r\nhello!\r\n0\r\n\r\n"),
            ("data_no_crlf", b"5\r\nhello0\r\n\r\n"),
        )
    ),
    *(
        _refused(f"chunk_{name}", _chunked(body), 400, "invalid_line_ending")
        for name, body in (
            ("size_bare_lf", b"5\nhello\r\n0\r\n\r\n"),
            ("size_bare_cr", b"5\rhello\r\n0\r\n\r\n"),
            ("extension_bare_lf", b"5;a\nhello\r\n0\r\n\r\n"),
            ("extension_bare_cr", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
            ("data_bare_lf", b"5\r\nhello\n0\r\n\r\n"),
            ("data_bare_cr", b"5\r\nhello\r0\r\n\r\n"),
            ("data_too_short", b"5\r\nhell\r\n0\r\n\r\n"),
            ("end_bare_lf", b"5\r\nhello\r\n0\r\n\n"),
            ("trailer_bare_lf", b"0\r\nA: b\n\r\n"),
        )
    ),
    _refused("trailer_folded", _chunked(b"0\r\nA: b\r\n c\r\n\r\n"), 400, "invalid_field"),
    _refused("trailer_no_colon", _chunked(b"0\r\nGET / HTTP/1.1\r\n\r\n"), 400, "invalid_field"),
)

_LIMIT_CASES: Final = (
    _refused("request_line_endless", b"GET /" + b"a" * 9000, 414, "request_line_too_long"),
    _refused("field_endless", _get()[:-2] + b"A: " + b"a" * 33000, 431, "head_too_large"),
    _refused("fields_101", _get(*[b"A: b"] * 100), 431, "too_many_fields"),
    _accepted("fields_100", _get(*[b"A: b"] * 99), _GET_H + b"a: b\r\n" * 99 + b"\r\n"),
    _refused("chunk_line_endless", _chunked(b"5;" + b"a" * 1023), 400, "chunk_line_too_long"),
    _refused("chunk_mostly_extension", _chunked((b"1;" + b"a" * 900 + b"\r\nx\r\n") * 20), 400, "chunk_excess"),
    _refused("trailer_endless", _chunked(b"0\r\nA: " + b"a" * 8200), 431, "trailer_too_large"),
    _refused("pipeline_too_long", _get() + b"G" * 65537, 400, "pipeline_too_long"),
)

_PIPELINE_CASES: Final = (
    _accepted("two_gets", _get() * 2, _PLAIN * 2),
    _accepted("get_empty_line_get", _get() + b"\r\n" + _get(), _PLAIN * 2),
    _accepted(
        "post_then_get",
        _post(b"Content-Length: 5", body=b"hello") + _get(),
        _POST_H + b"content-length: 5\r\n\r\nhello" + _PLAIN,
    ),
    _accepted("chunked_then_get", _chunked(b"5\r\nhello\r\n0\r\n\r\n") + _get(), _HELLO + _PLAIN),
    _accepted(
        "nothing_behind_close",
        _get(b"Connection: close") + b"\0 not a request\n",
        _GET_H + b"connection: close\r\n\r\n",
    ),
    _refused("get_then_garbage", _get() + b"\0", 400, "invalid_request_line"),
    _refused(
        "content_longer_than_declared",
        _post(b"Content-Length: 5", body=b"hello\n") + _get(),
        400,
        "invalid_line_ending",
    ),
)

CASES: Final[tuple[FramingCase, ...]] = (
    *_REQUEST_LINE_CASES,
    *_LINE_ENDING_CASES,
    *_FIELD_CASES,
    *_HOST_CASES,
    *_CONNECTION_CASES,
    *_LENGTH_CASES,
    *_CHUNK_CASES,
    *_LIMIT_CASES,
    *_PIPELINE_CASES,
)
