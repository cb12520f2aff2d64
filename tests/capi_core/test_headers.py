"""Headers: only what is on a list crosses the gateway, in either direction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.headers import client_response_headers, find, retry_after_s, upstream_request_headers

ALLOWED = {b"retry-after", b"retry-after-ms", b"x-should-retry"}

listed = [b"retry-after", b"Retry-After", b"RETRY-AFTER-MS", b"x-should-retry"]
about_the_account = [b"set-cookie", b"x-ratelimit-remaining-requests", b"openai-organization", b"x-request-id"]
about_the_message = [b"content-encoding", b"transfer-encoding", b"connection", b"location", b"server"]
near_misses = [b"X-Should-Retry ", b"retry-after\r\nset-cookie: a=b", b"retry_after", b""]
names = st.sampled_from(listed * 2 + about_the_account + about_the_message + near_misses)
values = st.sampled_from([b"1", b"20", b"true", b"", b"1\r\nset-cookie: a=b", b"\0", b"\n", b"\x7f", b"\xff"])
fields = st.tuples(names | st.binary(max_size=12), values | st.binary(max_size=300))


def test_an_upstream_request_has_exactly_these_headers() -> None:
    assert upstream_request_headers(stream=False, request_id="req_1") == (
        (b"accept", b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"content-type", b"application/json"),
        (b"x-request-id", b"req_1"),
    )


def test_a_streaming_request_asks_for_an_event_stream() -> None:
    assert dict(upstream_request_headers(stream=True, request_id="req_1"))[b"accept"] == b"text/event-stream"


@given(st.lists(fields, max_size=8))
def test_only_listed_headers_reach_a_client_and_none_can_split_the_response(headers: list[tuple[bytes, bytes]]) -> None:
    shown = client_response_headers(headers)
    assert {name for name, _ in shown} <= ALLOWED
    for name, value in shown:
        assert not set(value) & set(b"\r\n\0")
        assert all(0x20 <= byte < 0x7F for byte in value)
        assert len(value) <= 256
        assert any(given_name.lower() == name and given_value == value for given_name, given_value in headers)


@given(st.lists(fields, max_size=12))
def test_an_upstream_cannot_make_our_response_head_grow(headers: list[tuple[bytes, bytes]]) -> None:
    shown = client_response_headers(headers)
    assert len({name for name, _ in shown}) == len(shown) <= len(ALLOWED)


@pytest.mark.parametrize(
    ("given_headers", "expected"),
    [
        ([(b"Retry-After", b"20"), (b"Server", b"x")], ((b"retry-after", b"20"),)),
        (
            [(b"retry-after-ms", b"1500"), (b"x-should-retry", b"false")],
            ((b"retry-after-ms", b"1500"), (b"x-should-retry", b"false")),
        ),
        ([(b"retry-after", b"Wed, 21 Oct 2026 07:28:00 GMT")], ((b"retry-after", b"Wed, 21 Oct 2026 07:28:00 GMT"),)),
        ([(b"retry-after", b"1"), (b"Retry-After", b"2")], ((b"retry-after", b"1"),)),
        ([(b"retry-after", b"\xff"), (b"retry-after", b"2")], ((b"retry-after", b"2"),)),
        ([(b"retry-after", b"x" * 256)], ((b"retry-after", b"x" * 256),)),
        ([(b"retry-after", b"x" * 257)], ()),
        ([(b"retry-after", b"1\t2")], ()),
        ([], ()),
    ],
)
def test_what_helps_a_client_to_retry_crosses(
    given_headers: list[tuple[bytes, bytes]], expected: tuple[tuple[bytes, bytes], ...]
) -> None:
    assert client_response_headers(given_headers) == expected


def test_find_takes_the_first_of_a_name_in_any_case() -> None:
    headers = [(b"A", b"1"), (b"Content-Type", b"x"), (b"content-type", b"y")]
    assert find(headers, b"content-type") == b"x"
    assert find(headers, b"accept") is None


@pytest.mark.parametrize(
    ("given_headers", "expected"),
    [
        ([], None),
        ([(b"Retry-After", b"20")], 20),
        ([(b"retry-after", b" 1.5 ")], 1.5),
        ([(b"retry-after", b"0")], 0),
        ([(b"retry-after", b"20"), (b"retry-after-ms", b"1500")], 1.5),
        ([(b"retry-after-ms", b"soon"), (b"retry-after", b"3")], 3),
        ([(b"retry-after", b"Thu, 01 Jan 1970 00:02:00 GMT")], 20),
        ([(b"retry-after", b"Thu, 01 Jan 1970 00:00:01 GMT")], 0),
        ([(b"retry-after", b"Thu, 31 Feb 2026 00:00:01 GMT")], None),
        ([(b"retry-after", b"Thu, 01 Nix 1970 00:02:00 GMT")], None),
        ([(b"retry-after", b"-5")], None),
        ([(b"retry-after", b"1e9")], None),
        ([(b"retry-after", b"9999999999")], 9_999_999_999),
        ([(b"retry-after", b"9" * 19)], None),
        ([(b"retry-after", "\u0663".encode())], None),
    ],
)
def test_how_long_an_upstream_wants_to_be_left_alone(
    given_headers: list[tuple[bytes, bytes]], expected: float | None
) -> None:
    """RFC 9110 10.2.3; what cannot be read says nothing."""
    assert retry_after_s(given_headers, now_s=100) == expected
