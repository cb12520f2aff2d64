"""The response object has every member that the official type requires, the client's where it gave one."""

import json

from openai.types.responses import Response

from capi_core.members import JSONObject
from capi_core.protocols.codec import Envelope
from capi_core.protocols.responses.response_object import ResponseObject
from capi_core.usage import Usage


def test_it_is_a_response_whatever_the_request_left_out() -> None:
    for request in (None, JSONObject(b'{"model":"m","tools":null}')):
        made = ResponseObject(Envelope("q", "pub", 9, request=request))
        found = Response.model_validate_json(made.text(b"completed", usage=Usage(1, 0, 0, 2, 0)))
        assert (found.id, found.model, found.created_at, found.status) == ("resp_q", "pub", 9, "completed")
        assert (found.tools, found.tool_choice, found.parallel_tool_calls, found.top_p) == ([], "auto", True, 1.0)


def test_what_the_client_asked_is_repeated_on_one_line() -> None:
    request = JSONObject(b'{"tools":[\n{"type":"web_search"}],"temperature":0.5,"metadata":{"a":"b"},"store":true}')
    text = ResponseObject(Envelope("q", "pub", request=request)).text(b"in_progress")
    assert b"\n" not in text
    found = json.loads(text)
    assert (found["tools"], found["temperature"], found["metadata"]) == ([{"type": "web_search"}], 0.5, {"a": "b"})


def test_how_it_ended_is_told() -> None:
    made = ResponseObject(Envelope("q", "pub"))
    found = json.loads(made.text(b"incomplete", [b"1", b"2"], error=b'{"code":"c"}', incomplete=b"content_filter"))
    assert (found["output"], found["error"], found["incomplete_details"]) == (
        [1, 2],
        {"code": "c"},
        {"reason": "content_filter"},
    )
    assert found["usage"] is None
