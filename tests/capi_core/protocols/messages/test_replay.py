"""A request for an upstream of its own protocol: only the model changes, and carried thinking goes."""

import json

import pytest

from capi_core.protocols.codec import ClientRequest
from capi_core.protocols.messages.answer_wire import UNSIGNED
from capi_core.protocols.messages.replay import encode_passed_request
from capi_core.protocols.openai import read_request, required_model

USER = {"role": "user", "content": "hi"}
OWN = {"type": "thinking", "thinking": "x", "signature": "SIG"}
CARRIED = {"type": "thinking", "thinking": "x", "signature": "capi1.responses.ENC"}
REDACTED = {"type": "redacted_thinking", "data": "capi1.responses.ENC"}
TEXT = {"type": "text", "text": '"capi1.'}
QUOTED = {"type": "text", "text": "capi1.responses.ENC"}
CALL = {"type": "tool_use", "id": "t", "name": "f", "input": {"type": "thinking", "signature": "capi1.x"}}


def passed(body: bytes, upstream_model: str = "m") -> bytes:
    document = read_request(body)
    return encode_passed_request(
        ClientRequest(document, required_model(document), False), upstream_model=upstream_model
    )


def kept(*messages: object) -> list[object]:
    found: list[object] = json.loads(passed(json.dumps({"model": "m", "messages": messages}).encode()))["messages"]
    return found


def assistant(*content: object) -> dict[str, object]:
    return {"role": "assistant", "content": list(content)}


def test_every_byte_but_the_models_stays() -> None:
    body = b'{ "model" :"m",  "messages":[ {"role":"user","content":"a\\u0062"} ] , "x":1e999}'
    assert passed(body) == body
    assert passed(body, "up") == body.replace(b'"m"', b'"up"')


def test_thinking_of_another_protocol_is_left_out() -> None:
    unsigned = {**CARRIED, "signature": UNSIGNED}
    found = kept(USER, assistant(CARRIED, OWN, REDACTED, unsigned, QUOTED, CALL), USER)
    assert found == [USER, assistant(OWN, QUOTED, CALL), USER]


def test_a_turn_that_had_nothing_else_goes_too() -> None:
    assert kept(USER, assistant(CARRIED, REDACTED), USER) == [USER, USER]


@pytest.mark.parametrize(
    "turn",
    [
        assistant(OWN, TEXT, QUOTED, CALL),
        {"role": "user", "content": "capi1."},
        {"role": "assistant", "content": {"type": "thinking", "signature": "capi1.x"}},
        {"role": "assistant", "signature": "capi1.x"},
        assistant({"type": "thinking", "signature": ["capi1.x"]}, {"type": "other", "signature": "capi1.x"}),
        [CARRIED],
        "capi1.",
    ],
)
def test_what_only_looks_like_it_stays(turn: object) -> None:
    assert kept(USER, turn, CALL) == [USER, turn, CALL]


@pytest.mark.parametrize(
    "messages",
    [b'{"a":"capi1."}', b'[{"content":[{"type":"redacted_thinking","data":"capi1.x"}, 1],"content":[1]}]', b"null"],
)
def test_what_only_the_upstream_can_judge_stays(messages: bytes) -> None:
    body = b'{"model":"m","messages":%b}' % messages
    assert passed(body) == body


def test_of_a_turn_only_the_blocks_change() -> None:
    carried = json.dumps(CARRIED).encode()
    body = b'{"model":"m","messages":[{"role" : "assistant", "content": [%b, {"type":"text"} ], "x":1 } ]}' % carried
    assert passed(body) == body.replace(carried + b", ", b"")


def test_a_request_may_have_no_messages() -> None:
    assert passed(b'{"model":"m"}') == b'{"model":"m"}'
