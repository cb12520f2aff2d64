"""Ready answers and refusals."""

import msgspec
import pytest

from capi_core.errors import Problem
from capi_trio.demo.answers import Refused, Write, decode, error_object, json_answer, refusal


class Thing(msgspec.Struct):
    name: str
    count: int = 0


def test_a_body_is_decoded_and_unknown_members_are_ignored() -> None:
    assert decode(b'{"name":"a","other":[1]}', Thing) == Thing("a")


@pytest.mark.parametrize(
    ("body", "param"),
    [(b'{"name":"a","count":"1"}', "count"), (b"[]", None), (b"{}", None)],
)
def test_a_wrong_type_is_refused_with_the_member_that_is_to_blame(body: bytes, param: str | None) -> None:
    with pytest.raises(Refused) as refused:
        decode(body, Thing)
    problem = refused.value.problem
    assert (problem.status, problem.code, problem.param) == (400, "invalid_type", param)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"name":"\xff"}', b'{"name":"\\ud800"}', b'{"x":' + b"[" * 100_000]
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        decode(body, Thing)
    assert refused.value.problem.code == "invalid_json"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (404, "invalid_request_error"), (429, "rate_limit_error"),
     (500, "server_error"), (503, "server_error")],
)  # fmt: skip
def test_errors_have_openais_shape(status: int, kind: str) -> None:
    assert error_object(Problem(status, "some_code", "What happened.", param="model")) == {
        "error": {"message": "What happened.", "type": kind, "param": "model", "code": "some_code"}
    }


def test_a_json_answer_says_its_length() -> None:
    answer = json_answer({"a": 1})
    assert answer.status == 200
    assert answer.headers == ((b"content-type", b"application/json"), (b"content-length", b"7"))
    assert list(answer.steps) == [Write(b'{"a":1}')]


def test_a_refusal_says_when_to_come_back_if_that_is_known() -> None:
    assert b"retry-after" not in dict(refusal(Problem(429, "busy", "Wait.")).headers)
    answer = refusal(Problem(429, "busy", "Wait.", retry_after_s=2))
    assert dict(answer.headers)[b"retry-after"] == b"2"
    assert answer.status == 429
