"""A connection's own history: what was said is found again by the id of the response, within bounds."""

import json

import pytest

from capi_core.errors import ProtocolError
from capi_core.members import JSONObject
from capi_core.protocols.responses.history import ResponseHistory


def document(**members: object) -> JSONObject:
    return JSONObject(json.dumps({"model": "m", **members}).encode())


def response(*output: object) -> bytes:
    return json.dumps({"id": "r", "output": output}).encode()


def expanded(history: ResponseHistory, **members: object) -> dict[str, object]:
    found = json.loads(history.expand(document(**members)).text)
    assert isinstance(found, dict)
    return found


def test_the_way_of_codex_warm_up_then_only_what_is_new() -> None:
    history = ResponseHistory()
    first = document(input=[{"role": "developer", "content": "d"}], generate=False, tools=[{"type": "web_search"}])
    events = [json.loads(text) for text in history.warm_up(first, "resp_w", 9)]
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.completed"]
    assert [event["sequence_number"] for event in events] == [0, 1, 2]
    done = events[-1]["response"]
    assert (done["id"], done["created_at"], done["output"], done["model"]) == ("resp_w", 9, [], "m")
    assert (done["usage"]["total_tokens"], done["tools"]) == (0, [{"type": "web_search"}])

    second = history.expand(document(previous_response_id="resp_w", input="hi"))
    said = [{"role": "developer", "content": "d"}, {"type": "message", "role": "user", "content": "hi"}]
    assert json.loads(second.text) == {"model": "m", "input": said}
    call = {"type": "function_call", "call_id": "c"}
    history.remember("resp_2", second, response(call))
    output = {"type": "function_call_output", "call_id": "c", "output": ""}
    assert expanded(history, previous_response_id="resp_2", input=[output])["input"] == [*said, call, output]
    assert expanded(history, previous_response_id="resp_2", input=[])["input"] == [*said, call]
    assert expanded(history, previous_response_id="resp_2")["input"] == [*said, call]


def test_a_response_that_says_nothing_of_its_output_has_none() -> None:
    history = ResponseHistory()
    for text in (b'{"id":"r"}', b'{"id":"r","output":null}'):
        history.remember("r", document(input=[]), text)
        assert expanded(history, previous_response_id="r", input=[])["input"] == []


def test_a_request_that_refers_to_nothing_is_not_touched() -> None:
    plain = document(input="x", previous_response_id=None)
    assert ResponseHistory().expand(plain) is plain
    bare = document(input="x")
    assert ResponseHistory().expand(bare) is bare


@pytest.mark.parametrize("previous", ["resp_unknown", 5])
def test_an_unknown_response_is_refused(previous: object) -> None:
    with pytest.raises(ProtocolError) as caught:
        ResponseHistory().expand(document(previous_response_id=previous, store=False))
    error = caught.value
    assert (error.code, error.status_hint, error.param) == ("previous_response_not_found", 400, "previous_response_id")


def test_the_oldest_are_forgotten_first() -> None:
    history = ResponseHistory(max_responses=2)
    for name in ("a", "b", "a", "c"):
        history.remember(name, document(input=name), response())
    with pytest.raises(ProtocolError):
        expanded(history, previous_response_id="b", store=False)
    assert {"input", "model", "store"} == set(expanded(history, previous_response_id="a", store=False))


def test_the_text_that_is_held_is_bounded() -> None:
    history = ResponseHistory(max_bytes=180)
    history.remember("a", document(input="x"), response())
    history.remember("b", document(input="y" * 100), response())
    with pytest.raises(ProtocolError):
        expanded(history, previous_response_id="a", store=False)
    history.remember("c", document(input="z" * 300), response())
    for name in ("b", "c"):
        with pytest.raises(ProtocolError):
            expanded(history, previous_response_id=name, store=False)


@pytest.mark.parametrize(
    ("given", "answer", "status"), [({"input": 5}, response(), 400), ({"input": "x"}, b'{"output":5}', 502)]
)
def test_what_is_no_request_or_no_response_is_refused(given: dict[str, object], answer: bytes, status: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        ResponseHistory().remember("r", document(**given), answer)
    assert caught.value.status_hint == status


def test_a_warm_up_without_a_model_is_answered_too() -> None:
    assert len(ResponseHistory().warm_up(JSONObject(b'{"input":[]}'), "r", 0)) == 3


def test_what_the_upstream_may_have_stored_is_for_it_to_find() -> None:
    """And what continues it is nothing that this connection could tell the whole of."""
    history = ResponseHistory()
    elsewhere = document(previous_response_id="resp_stored", input="x")
    assert history.expand(elsewhere) is elsewhere
    history.remember("resp_2", elsewhere, response())
    following = document(previous_response_id="resp_2")
    assert history.expand(following) is following
    with pytest.raises(ProtocolError) as caught:
        history.warm_up(elsewhere, "resp_w", 0)
    assert caught.value.code == "previous_response_not_found"
