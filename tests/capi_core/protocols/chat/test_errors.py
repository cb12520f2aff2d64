"""Errors of Chat, written and read."""

import json

import pytest

from capi_core.errors import Problem
from capi_core.protocols.chat.errors import decode_error, encode_error


def test_a_problem_is_written_as_openai_writes_it_and_reads_back() -> None:
    problem = Problem(404, "model_not_found", "no such model", "model")
    body = encode_error(problem, "rid")
    error = {"message": "no such model", "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    assert json.loads(body) == {"error": error}
    assert decode_error(body, 404) == problem


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        ("text", 200, (502, "upstream_error", "text")),
        ({"message": "m", "code": 429}, 200, (429, "429", "m")),
        ({"message": "m", "code": "x", "status": "503"}, 200, (503, "x", "m")),
        ({"message": "m", "code": 429, "type": "t"}, 500, (500, "429", "m")),
        ({"type": "t"}, 200, (502, "t", "the upstream reported an error without a message")),
        ({"message": "m" * 5000}, 400, (400, "upstream_error", "m" * 4096)),
    ],
)
def test_an_upstreams_error(error: object, status: int, expected: tuple[int, str, str]) -> None:
    found = decode_error(json.dumps({"error": error}).encode(), status)
    assert found is not None
    assert (found.status, found.code, found.message) == expected


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"error":null}', b'{"error":[]}', b"[" * 5000])
def test_a_body_without_an_error_is_none(body: bytes) -> None:
    assert decode_error(body, 500) is None
