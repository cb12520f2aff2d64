"""Frames of a WebSocket: one JSON text each, errors nested, lanes echoed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import Problem, ProtocolError
from capi_core.headers import Headers
from capi_core.protocols.responses.websocket import (
    FrameEncoder,
    FrameError,
    encode_error_frame,
    read_client_frame,
)
from capi_core.sse import KEEP_ALIVE, encode
from tests.support.responses_events import CREATED, completed, numbered, text_item

EVENTS = [CREATED, *text_item(0, "é"), completed()]


def test_a_create_is_the_request_of_http_and_streams() -> None:
    text = '{"type":"response.create","model":"m","stream":false,"generate":false,"stream_id":"l1","input":[]}'
    for given_text in (text, text.encode()):
        frame = read_client_frame(given_text)
        assert json.loads(frame.document.text) == {"model": "m", "stream": True, "input": []}
        assert (frame.stream_id, frame.generate) == ("l1", False)
    plain = read_client_frame('{"type":"response.create","stream_id":null}')
    assert (plain.document.text, plain.stream_id, plain.generate) == (b'{"stream":true}', None, True)


@pytest.mark.parametrize(
    ("text", "code", "lane"),
    [
        ('{"type":"response.steer","stream_id":"l"}', "unsupported_event", "l"),
        ('{"type":"session.update"}', "unsupported_event", None),
        ('{"type":"response.create","background":true,"stream_id":"l"}', "untranslatable", "l"),
        ('{"type":"response.create","stream_id":"%s"}' % ("x" * 257), "invalid_stream_id", None),
        ('{"type":"response.create","stream_id":5}', "invalid_request", None),
        ('{"model":"m"}', "invalid_request", None),
        ("[]", "not_an_object", None),
        ("nope\ud83d", "invalid_json", None),
    ],
)
def test_a_frame_that_cannot_be_served_is_refused_in_its_lane(text: str, code: str, lane: str | None) -> None:
    with pytest.raises(FrameError) as caught:
        read_client_frame(text)
    assert (caught.value.code, caught.value.stream_id, caught.value.status_hint) == (code, lane, 400)
    frame = json.loads(encode_error_frame(Problem.of(caught.value), stream_id=caught.value.stream_id))
    assert (frame["type"], frame["status"], frame["error"]["code"], frame.get("stream_id")) == (
        "error",
        400,
        code,
        lane,
    )


def test_an_error_frame_tells_what_is_known() -> None:
    assert json.loads(encode_error_frame(Problem(503, "c", "m", "p"), sequence_number=4)) == {
        "type": "error",
        "status": 503,
        "error": {"type": "server_error", "code": "c", "message": "m", "param": "p"},
        "sequence_number": 4,
    }


@pytest.mark.parametrize(
    ("problem", "headers", "told"),
    [
        (Problem(429, "c", "m", retry_after_s=7), (), {"retry-after": "7"}),
        (Problem(429, "c", "m"), ((b"retry-after-ms", b"70"), (b"x-request-id", b"i")), {"retry-after-ms": "70"}),
        (Problem(429, "c", "m"), ((b"retry-after", b"\xff"),), None),
    ],
)
def test_an_error_frame_says_when_to_try_again(problem: Problem, headers: Headers, told: object) -> None:
    assert json.loads(encode_error_frame(problem, headers=headers)).get("headers") == told


@pytest.mark.parametrize("lane", [None, "l"])
@given(size=st.integers(1, 99))
def test_each_event_is_one_frame_however_the_bytes_are_cut(lane: str | None, size: int) -> None:
    stream = KEEP_ALIVE + numbered(EVENTS) + b"data: [DONE]\n\n"
    encoder = FrameEncoder(stream_id=lane)
    frames = [frame for at in range(0, len(stream), size) for frame in encoder.receive_data(stream[at : at + size])]
    echo = {} if lane is None else {"stream_id": lane}
    assert [json.loads(frame) for frame in frames] == [
        {**event, "sequence_number": number, **echo} for number, event in enumerate(EVENTS)
    ]


def test_a_flat_error_becomes_a_nested_one() -> None:
    event = b'{"type":"error","code":"rate_limit_exceeded","message":"m","param":null,"sequence_number":3}'
    (frame,) = FrameEncoder(stream_id="l").receive_data(encode(event))
    assert json.loads(frame) == {
        "type": "error",
        "status": 429,
        "error": {"type": "invalid_request_error", "code": "rate_limit_exceeded", "message": "m", "param": None},
        "sequence_number": 3,
        "stream_id": "l",
    }


@pytest.mark.parametrize("data", [b'{"a":1,"a":"error"}', b'{"type":5,"x":"error"}', b'{"type":"error"'])
def test_what_an_upstream_sent_oddly_stays_odd(data: bytes) -> None:
    assert FrameEncoder(stream_id="l").receive_data(encode(data))[0].startswith(data.decode()[:8])


def test_an_event_over_the_limit_is_refused() -> None:
    with pytest.raises(ProtocolError):
        FrameEncoder(max_event_bytes=10).receive_data(b"data: " + b"x" * 20)
