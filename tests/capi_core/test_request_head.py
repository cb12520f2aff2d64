"""The head's grammar, by the same table that the whole machine is held to (tests/support/framing_cases.py)."""

import pytest

from capi_core.request_head import CRLF, FramingError, FramingFault, FramingLimits, Head, HeadReader
from tests.support.framing_cases import CASES, FramingCase, drive


def read(request_line: bytes, *fields: bytes, limits: FramingLimits | None = None) -> Head:
    reader = HeadReader(request_line, limits or FramingLimits())
    for line in fields:
        reader.add(line)
    return reader.finish()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_head_is_accepted_or_refused_as_the_table_says(case: FramingCase) -> None:
    transcript = drive([case.data])
    assert (transcript.status, transcript.code) == (case.status, case.code)


def test_the_canonical_head_has_no_hop_by_hop_field() -> None:
    head = read(
        b"POST /v1/chat/completions?a=b HTTP/1.1",
        b"Host:  example.test:80 ",
        b"Connection: keep-alive, X-Private",
        b"X-Private: 1",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAA",
        b"Content-Length: 3",
    )
    assert bytes(head) == (
        b"POST /v1/chat/completions?a=b HTTP/1.1\r\nhost: example.test:80\r\ncontent-length: 3\r\n\r\n"
    )
    assert head.keep_alive


def test_the_repr_shows_neither_target_nor_headers() -> None:
    head = read(b"GET /secret-in-path HTTP/1.1", b"host: h", b"authorization: Bearer secret")
    assert "secret" not in repr(head)


def test_field_count_and_size_have_their_limits() -> None:
    limits = FramingLimits(fields=2, head=200)
    assert len(read(b"GET / HTTP/1.1", b"host: h", b"a: b", limits=limits).headers) == 2
    with pytest.raises(FramingError) as refused:
        read(b"GET / HTTP/1.1", b"host: h", b"a: b", b"c: d", limits=limits)
    assert refused.value.fault is FramingFault.TOO_MANY_FIELDS
    reader = HeadReader(b"GET / HTTP/1.1", limits)
    assert reader.room == limits.head - len(b"GET / HTTP/1.1") - len(CRLF)


def test_a_websocket_handshake_is_handed_on_where_one_is_taken() -> None:
    """RFC 6455 4.2.1; anywhere else the upgrade is declined by leaving it out."""
    line = b"GET /ws HTTP/1.1"
    fields = (
        b"host: h",
        b"upgrade: WebSocket",
        b"connection: Upgrade",
        b"sec-websocket-version: 13",
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
        b"sec-websocket-protocol: x",
    )
    head = read(line, *fields, limits=FramingLimits(websockets=frozenset({"/ws"})))
    assert head.upgrade
    assert not head.keep_alive
    assert dict(head.headers)[b"upgrade"] == b"WebSocket"
    declined = read(line, *fields)
    assert not declined.upgrade
    assert declined.keep_alive
    assert dict(declined.headers) == {b"host": b"h", b"sec-websocket-protocol": b"x"}
