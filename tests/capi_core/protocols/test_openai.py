"""What OpenAI's protocols share: errors that SDKs understand, answers that keep their bytes, one list for all SDKs."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.aliases import ListedModel
from capi_core.errors import Problem, ProtocolError
from capi_core.protocols.codec import PassedAnswer
from capi_core.protocols.openai import (
    decode_answer,
    decode_string,
    encode_error,
    encode_model,
    encode_models,
    json_string,
    read_request,
    required_model,
    says_error,
)
from capi_core.usage import Usage

# --- strings ---


@given(st.text())
def test_a_string_survives_being_written_and_read(text: str) -> None:
    assert decode_string(json_string(text)) == text


@pytest.mark.parametrize("raw", [b"", b"5", b"null", b'["a"]', b'"a', b'"\xff"', b'"\\ud83d"'])
def test_what_is_no_string_is_none(raw: bytes) -> None:
    assert decode_string(raw) is None


# --- requests ---


@pytest.mark.parametrize("body", [b"", b" \r\n\t "])
def test_a_request_without_a_body_is_told_so(body: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_request(body)
    assert (caught.value.code, caught.value.status_hint) == ("empty_body", 400)


def test_a_request_is_read_without_being_changed() -> None:
    body = b' {"model" : "x"} '
    assert read_request(body).text == body


def test_the_model_is_read_whatever_its_spelling() -> None:
    assert required_model(read_request(b'{"mod\\u0065l":"gpt\\u002d5"}')) == "gpt-5"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{}", "missing_model"),
        (b'{"Model":"x"}', "missing_model"),
        (b'{"x":{"model":"x"}}', "missing_model"),
        (b'{"model":null}', "invalid_model"),
        (b'{"model":""}', "invalid_model"),
        (b'{"model":"' + b"x" * 257 + b'"}', "invalid_model"),
        (b'{"model":["x"]}', "invalid_model"),
        (b'{"model":"\\udc00"}', "invalid_model"),
    ],
)
def test_a_request_that_names_no_model_is_told_so(body: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        required_model(read_request(body))
    assert (caught.value.code, caught.value.status_hint, caught.value.param) == (code, 400, "model")


# --- errors ---


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (408, "timeout_error"),
        (409, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (599, "api_error"),
    ],
)
def test_an_error_has_openais_shape_and_a_type_for_its_status(status: int, kind: str) -> None:
    body = json.loads(encode_error(Problem(status, "a_code", 'say "hi" é', "n")))
    assert body == {"error": {"message": 'say "hi" é', "type": kind, "param": "n", "code": "a_code"}}


def test_an_error_without_a_param_says_null() -> None:
    """The SDKs read the member without asking whether it is there."""
    assert b'"param":null' in encode_error(Problem(400, "c", "m"))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"{}", False),
        (b'{"error": null }', False),
        (b'{"error":{}}', True),
        (b'{"error":{"message":"x"}}', True),
        (b'{"error":"x"}', True),
        (b'{"x":{"error":"x"}}', False),
    ],
)
def test_an_error_member_tells_of_an_error_unless_it_is_null(text: bytes, error: bool) -> None:
    raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).get("error", msgspec.Raw())
    assert says_error(raw) is error
    assert decode_answer(text, public_name=None).error is error


# --- answers ---


def test_only_the_top_level_model_of_an_answer_changes() -> None:
    body = (
        b'{ "id":"x", "model" : "up-2026", "choices":[{"message":{"tool_calls":[{"function":{"arguments":'
        b'"{\\"model\\":\\"up-2026\\"}"}}],"model":"up-2026"}}],"n":1e999, "usage":{"prompt_tokens":3}}\n'
    )
    expected = body.replace(b'"model" : "up-2026"', b'"model" : "fast"')
    assert decode_answer(body, public_name="fast") == PassedAnswer(expected, Usage(uncached_input=3), error=False)
    assert decode_answer(body, public_name=None) == PassedAnswer(body, Usage(uncached_input=3), error=False)


def test_an_answer_without_usage_or_with_null_has_none() -> None:
    assert decode_answer(b"{}", public_name="fast") == PassedAnswer(b"{}", None, error=False)
    assert decode_answer(b'{"usage":null}', public_name=None).usage is None


def test_half_an_emoji_in_an_answer_is_no_garbage() -> None:
    """Servers that cut text by UTF-16 units write it, and RFC 8259 (section 8.2) allows it."""
    body = b'{"model":"up","choices":[{"message":{"content":"\\ud83d"}}]}'
    assert decode_answer(body, public_name="fast").body == body.replace(b'"up"', b'"fast"')


def test_bytes_that_are_not_utf_8_stay_the_upstreams() -> None:
    body = b'{"choices":[{"message":{"content":"\xff"}}],"model":"up"}'
    assert decode_answer(body, public_name="fast").body == body.replace(b'"up"', b'"fast"')


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"<html>", b'{"a":', b"{} {}", b'{"x":' + b"[" * 100_000, b"\xff", b"data: {}\n\n"]
)
def test_an_answer_that_is_no_json_object_is_the_upstreams_fault(body: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_answer(body, public_name="fast")
    assert (caught.value.code, caught.value.status_hint) == ("upstream_garbage", 502)


# --- models ---


def test_a_list_of_nothing_has_no_first_and_no_last() -> None:
    assert json.loads(encode_models([])) == {
        "object": "list",
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


def test_one_list_serves_the_sdks_of_openai_and_anthropic() -> None:
    listed = [ListedModel("fast", "lab", b'{"created":1750000000,"owned_by":"lab"}'), ListedModel("x", None, None)]
    body = json.loads(encode_models(listed))
    assert (body["first_id"], body["last_id"]) == ("fast", "x")
    assert body["data"][0] == {
        "id": "fast",
        "object": "model",
        "type": "model",
        "created": 1750000000,
        "created_at": "2025-06-15T15:06:40Z",
        "owned_by": "lab",
        "display_name": "fast",
    }
    assert body["data"][1] == json.loads(encode_model(listed[1]))


@pytest.mark.parametrize(
    ("record", "created", "owner"),
    [
        (None, 0, "capi"),
        (b"", 0, "capi"),
        (b"{}", 0, "capi"),
        (b"[]", 0, "capi"),
        (b'{"owned_by":', 0, "capi"),
        (b'{"owned_by":"\xff"}', 0, "capi"),
        (b'{"x":' + b"[" * 100_000, 0, "capi"),
        (b'{"vendor":"Azure OpenAI"}', 0, "Azure OpenAI"),
        (b'{"owned_by":"a","vendor":"b"}', 0, "a"),
        (b'{"owned_by":null,"created":null,"vendor":"b","name":null}', 0, "b"),
        (b'{"owned_by":"a","created":-5}', 0, "a"),
        (b'{"owned_by":"a","created":253402300799}', 253402300799, "a"),
        (b'{"owned_by":"a","created":1' + b"0" * 40 + b"}", 253402300799, "a"),
        (b'{"owned_by":"a","created":"today"}', 0, "capi"),
    ],
)
def test_a_record_is_told_as_far_as_it_can_be_read(record: bytes | None, created: int, owner: str) -> None:
    told = json.loads(encode_model(ListedModel("m", "lab", record)))
    assert (told["created"], told["owned_by"], told["id"]) == (created, owner, "m")


@given(st.binary(max_size=40) | st.sampled_from([b'{"id":"secret-name","price":1,"policy":{"state":"x"}}']))
def test_no_record_is_shown_beyond_what_is_told_of_every_model(record: bytes) -> None:
    told = json.loads(encode_model(ListedModel("m", "lab", record)))
    assert set(told) == {"id", "object", "type", "created", "created_at", "owned_by", "display_name"}
    assert (told["id"], told["display_name"]) == ("m", "m")
