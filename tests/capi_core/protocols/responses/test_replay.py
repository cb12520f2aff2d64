"""A passed request keeps every byte but the model's name, foreign reasoning, and, for Copilot, ids."""

import pytest

from capi_core.members import JSONObject
from capi_core.protocols.responses.replay import Replay, encode_passed_request

ITEMS = (
    b'[{"type":"message","id":"m1","role":"user","content":"x"},{"role":"user","id":"m2","content":"y"},'
    b'{"type":"reasoning","id":"r1","summary":[],"encrypted_content":"abc","status":null},'
    b'{"type":"reasoning","id":"r2","summary":[],"encrypted_content":"capi1.messages.abc"},'
    b'{"type":"item_reference","id":"r1"},{"id":"r3"},"odd",{"type":"function_call","id":1,"\\u0069d":2},'
    b'{"type":"function_call_output","call_id":"c","status":"completed","output":""}]'
)


def passed(text: bytes, replay: Replay = Replay.KEEP, upstream: str = "m") -> bytes:
    return encode_passed_request(JSONObject(text), model="m", upstream_model=upstream, replay=replay)


@pytest.mark.parametrize(
    "text", [b'{"model":"m"}', b'{"model":"m","input":"x"}', b'{ "model":"m", "input":[ {"id":"a"} , 1 ] }']
)
def test_a_request_that_needs_no_change_is_the_clients_bytes(text: bytes) -> None:
    assert passed(text) == text


def test_the_model_has_the_upstreams_name() -> None:
    assert passed(b'{ "model" : "m","input":"x"}', upstream="up") == b'{ "model" : "up","input":"x"}'


def test_reasoning_of_another_protocol_goes_whole() -> None:
    kept = ITEMS.replace(b'{"type":"reasoning","id":"r2","summary":[],"encrypted_content":"capi1.messages.abc"},', b"")
    assert passed(b'{"model":"m","input":%b}' % ITEMS) == b'{"model":"m","input":%b}' % kept


def test_ids_that_bind_are_taken_out_where_the_upstream_gives_many() -> None:
    assert passed(b'{"model":"m","input":%b}' % ITEMS, Replay.STRIP) == (
        b'{"model":"m","input":[{"type":"message","role":"user","content":"x"},{"role":"user","content":"y"},'
        b'{"type":"reasoning","summary":[],"encrypted_content":"abc"},'
        b'{"type":"item_reference","id":"r1"},{"id":"r3"},"odd",{"type":"function_call","id":1,"\\u0069d":2},'
        b'{"type":"function_call_output","call_id":"c","status":"completed","output":""}]}'
    )
