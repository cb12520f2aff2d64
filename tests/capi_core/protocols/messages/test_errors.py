"""Errors of Messages are read wherever they stand, and written as Anthropic's SDKs map them."""

import json

import pytest

from capi_core.errors import Problem
from capi_core.protocols.messages.errors import ErrorBody, decode_error, encode_error, error_event, problem_of


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (409, "conflict_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_a_problem_has_the_type_of_its_status(status: int, kind: str) -> None:
    written = json.loads(encode_error(Problem(status, "c", "m"), "q"))
    assert written == {"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "q"}


def test_the_upstreams_own_type_is_kept() -> None:
    assert json.loads(encode_error(Problem(502, "overloaded_error", "m"), "q"))["error"]["type"] == "overloaded_error"


def test_an_error_event_ends_a_stream_for_the_sdk() -> None:
    assert error_event(Problem(500, "c", "m\ud800")) == (
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"m?"}}\n\n'
    )


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        (
            b'{"type":"error","error":{"type":"overloaded_error","message":"m"},"request_id":"r"}',
            200,
            Problem(529, "overloaded_error", "m"),
        ),
        (b'{"type":"error","error":{"type":"api_error","message":"m"}}', 503, Problem(503, "api_error", "m")),
        (b'{"type":"error","error":{"type":"new_error","message":"m"}}', 200, Problem(502, "new_error", "m")),
        (b'{"error":{"code":"quota","message":"m","param":"p"}}', 402, Problem(402, "quota", "m", "p")),
        (b'{"error":"m"}', 500, Problem(500, "upstream_error", "m")),
        (b'{"message":"m","code":7}', 400, Problem(400, "7", "m")),
        (
            b'{"type":"error"}',
            200,
            Problem(502, "upstream_error", "the upstream reported an error without a message"),
        ),
        (b'{"message":"m"}', 200, None),
        (b'{"type":"message","content":[]}', 200, None),
        (b'{"type":"message","error":null}', 400, None),
        (b"<html>", 500, None),
        (b"[" * 3000, 500, None),
        (b'{"error":{"type":3}}', 500, None),
    ],
)
def test_an_upstreams_error_is_read(body: bytes, status: int, problem: Problem | None) -> None:
    assert decode_error(body, status) == problem


def test_a_message_is_bounded() -> None:
    assert len(problem_of(ErrorBody(message="m" * 9999)).message) == 4096
