"""A request as a frame, and an upstream's frames as the events of a stream."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import Problem, ProtocolError
from capi_core.protocols.responses import upstream_frames
from capi_core.protocols.responses.upstream_frames import UpstreamFrame, encode_create, read_frame
from capi_core.sse import SSEDecoder


def event_of(frame: UpstreamFrame) -> tuple[bytes, dict[str, object]]:
    (event,) = SSEDecoder().feed(frame.to_event())
    assert event.data is not None
    data = json.loads(event.data)
    assert isinstance(data, dict)
    return event.type, data


# -- requests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "frame"),
    [
        (b'{"model":"m","stream":true,"input":"x"}', '{"type":"response.create","model":"m","input":"x"}'),
        (b'{"stream":true}', '{"type":"response.create"}'),
        (b'\n{ "stream" : true , "n" : 1e999 }\n', '{"type":"response.create","n" : 1e999 }\n'),
        (b'{"stream":true,"background":false,"a":1}', '{"type":"response.create","a":1}'),
    ],
)
def test_a_request_that_streams_becomes_a_frame_with_the_same_members(body: bytes, frame: str) -> None:
    assert encode_create(body) == frame


def test_a_member_that_means_something_else_on_a_connection_does_not_get_there() -> None:
    body = b'{"type":"response.steer","stream_id":"a","generate":false,"stream":true,"model":"m"}'
    assert encode_create(body) == '{"type":"response.create","model":"m"}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m"}',
        b'{"stream":false}',
        b'{"stream":"true"}',
        b'{"stream":true,"background":true}',
        b"[]",
        b"",
        b'{"stream":true,"stream":true}',
        b'{"stream":true,"x":"\xff"}',
    ],
)
def test_what_a_connection_cannot_do_becomes_no_frame(body: bytes) -> None:
    assert encode_create(body) is None


@given(st.dictionaries(st.text(), st.none() | st.text() | st.integers() | st.lists(st.booleans())))
def test_every_other_member_goes_out(members: dict[str, object]) -> None:
    for own in ("type", "stream", "stream_id", "generate", "background"):
        members.pop(own, None)
    body = json.dumps({**members, "stream": True}, ensure_ascii=False).encode("utf-8", "replace")
    frame = encode_create(body)
    assert frame is not None
    wanted = json.loads(json.dumps(members, ensure_ascii=False).encode("utf-8", "replace"))
    assert json.loads(frame) == {"type": "response.create", **wanted}


# -- frames --------------------------------------------------------------------------------------------------------


def test_an_event_is_passed_on_as_it_came() -> None:
    text = '{"type":"response.output_text.delta", "delta":"\\ud83d h\xe9", "n": 1e999}'
    frame = read_frame(text)
    assert frame.to_event() == b"event: response.output_text.delta\ndata: %b\n\n" % text.encode()
    assert not frame.is_error
    assert not frame.completes


def test_an_event_of_several_lines_becomes_one() -> None:
    frame = read_frame('{\r\n"type":\n"response.created"\n}')
    assert frame.to_event() == b'event: response.created\ndata: {  "type": "response.created" }\n\n'


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
def test_these_events_complete_an_answer(kind: str) -> None:
    assert read_frame(json.dumps({"type": kind})).completes


@pytest.mark.parametrize(
    "message",
    [
        b'{"type":"response.created"}',
        "",
        "hello",
        "[]",
        "{}",
        '{"type":null}',
        '{"type":""}',
        '{"type":"a\\ndata: {}"}',
        '{"type":"é"}',
        '{"type":"%s"}' % ("x" * 129),
        "[" * 100_000,
        '{"type":"\ud83d"}',
    ],
)
def test_what_is_no_event_is_refused_without_being_quoted(message: str | bytes) -> None:
    with pytest.raises(ProtocolError, match=r"^a frame of the upstream (is not|has a type)") as raised:
        read_frame(message)
    assert (raised.value.code, raised.value.status_hint) == ("upstream_garbage", 502)


def test_a_frame_shows_its_type_only() -> None:
    assert repr(read_frame('{"type":"x","secret":"s"}')) == "UpstreamFrame(type='x')"


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (
            {"status": 429, "error": {"type": "rate_limit_error", "code": "slow", "message": "wait", "param": "p"}},
            Problem(429, "slow", "wait", "p"),
        ),
        ({"error": {"type": "x", "code": "previous_response_not_found", "message": "m"}}, 400),
        ({"status": 200, "error": {"code": "rate_limit_exceeded"}}, 429),
        ({"status": "429", "error": {"message": "m"}}, 502),
        ({"status": 700, "error": {"message": "m"}}, 502),
        ({"status": True, "error": {"message": "m"}}, 502),
        ({"code": "server_is_overloaded", "message": "flat"}, Problem(503, "server_is_overloaded", "flat")),
        ({"status": 500, "error": [1]}, 500),
        ({}, 502),
    ],
)
def test_an_error_is_read_nested_or_flat(frame: dict[str, object], problem: Problem | int) -> None:
    read, headers = read_frame(json.dumps({"type": "error", **frame})).problem()
    assert headers == ()
    if isinstance(problem, int):
        assert read.status == problem
    else:
        assert read == problem


@pytest.mark.parametrize("nested", [False, True])
def test_of_an_errors_headers_those_about_a_retry_are_kept(nested: bool) -> None:
    told = {"headers": {"Retry-After": "7", "retry-after-ms": 7000, "x-account": "acme", "content-type": "text/html"}}
    frame = {"type": "error", "error": {"message": "m", **told}} if nested else {"type": "error", **told}
    _, headers = read_frame(json.dumps(frame)).problem()
    assert headers == ((b"retry-after", b"7"), (b"retry-after-ms", b"7000"))


def test_an_error_within_a_stream_is_flat() -> None:
    frame = read_frame('{"type":"error","sequence_number":4,"error":{"code":"c","message":"m","param":null,"x":1}}')
    assert frame.is_error
    assert event_of(frame) == (
        b"error",
        {"type": "error", "code": "c", "message": "m", "param": None, "sequence_number": 4},
    )


def test_an_error_without_a_number_gets_none() -> None:
    assert event_of(read_frame('{"type":"error","sequence_number":"4","error":"m"}')) == (
        b"error",
        {"type": "error", "code": "upstream_error", "message": "m", "param": None},
    )


def test_an_error_that_cannot_be_read_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """How deep a reader gets depends on the stack below it, so that two readings of a text may differ."""

    def fails(*_: object) -> object:
        raise RecursionError

    frame = read_frame('{"type":"error","status":429}')
    monkeypatch.setattr(upstream_frames, "decode", fails)
    assert frame.problem()[0].status == 502
