"""The record of a request."""

from capi_trio.demo.records import Outcome, RequestRecord

RECORD = RequestRecord(
    method="POST",
    path="/v1/responses",
    headers=((b"x-some", b"first"), (b"x-some", b"second"), (b"authorization", b"Bearer sk-secret")),
    body=b"of a secret",
    status=200,
    outcome=Outcome.COMPLETED,
    started=1.0,
    ended=2.5,
)


def test_a_header_is_found_by_its_name() -> None:
    assert RECORD.header(b"x-some") == b"first"
    assert RECORD.header(b"x-other") is None


def test_headers_and_body_are_not_shown() -> None:
    assert "secret" not in repr(RECORD)
    assert not RECORD.websocket
