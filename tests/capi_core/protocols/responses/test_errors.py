"""Errors of Responses, wherever they stand, become one problem; ours get a code that the API knows."""

import pytest

from capi_core.errors import Problem
from capi_core.protocols.responses.errors import ErrorBody, decode_error, problem_of, response_code


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        (
            b'{"error":{"message":"m","type":"invalid_request_error","param":"input","code":"bad"}}',
            400,
            Problem(400, "bad", "m", "input"),
        ),
        (
            b'{"error":{"message":"m","type":"rate_limit_error","code":null}}',
            200,
            Problem(429, "rate_limit_error", "m"),
        ),
        (b'{"error":"busy"}', 503, Problem(503, "upstream_error", "busy")),
        (
            b'{"type":"error","code":"invalid_prompt","message":"m","param":"p"}',
            200,
            Problem(400, "invalid_prompt", "m", "p"),
        ),
        (b'{"message":"no","code":466}', 466, Problem(466, "466", "no")),
        (
            b'{"id":"r","status":"failed","error":{"code":"image_too_large","message":"m"}}',
            200,
            Problem(400, "image_too_large", "m"),
        ),
        (b'{"error":{}}', 200, Problem(502, "upstream_error", "the upstream reported an error without a message")),
        (b'{"id":"r","error":null}', 200, None),
        (b'{"message":"fine"}', 200, None),
        (b"<html>", 502, None),
        (b'{"error":5}', 500, None),
        (b"[" * 3000, 500, None),
        (b"\xff", 500, None),
    ],
)
def test_an_upstreams_error_is_read_from_any_of_its_places(body: bytes, status: int, problem: Problem | None) -> None:
    assert decode_error(body, status) == problem


def test_the_type_decides_where_the_code_says_nothing() -> None:
    assert problem_of(ErrorBody("m", "overloaded_error", "odd")).status == 503


def test_a_message_is_bounded() -> None:
    assert len(problem_of(ErrorBody("m" * 10_000)).message) == 4096


@pytest.mark.parametrize(
    ("status", "upstream", "code"),
    [
        (418, True, "own"),
        (429, False, "rate_limit_exceeded"),
        (400, False, "invalid_prompt"),
        (502, False, "server_error"),
    ],
)
def test_a_failed_response_has_the_upstreams_code_or_one_of_the_apis(status: int, upstream: bool, code: str) -> None:
    assert response_code(Problem(status, "own", "m"), upstream=upstream) == code
