"""The table of protocols has a row for each, and each row tells its own error from another's."""

import pytest

from capi_core.errors import Problem
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS

STATUSES = (400, 401, 403, 404, 413, 429, 500, 502, 503, 504)


def test_every_protocol_has_a_row() -> None:
    assert set(CODECS) == set(Protocol)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("protocol", Protocol)
def test_an_error_of_ours_reads_back_under_its_status(protocol: Protocol, status: int) -> None:
    codec = CODECS[protocol]
    body = codec.encode_error(Problem(status, "some_code", "what to do"), "req_1")
    again = codec.decode_error(body, status)
    assert again is not None
    assert (again.status, again.message) == (status, "what to do")


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b"<html>", b'{"choices":[]}', b'{"type":"message"}'])
def test_what_tells_of_no_error_is_none(protocol: Protocol, body: bytes) -> None:
    assert CODECS[protocol].decode_error(body, 200) is None
