"""Whole answers: passed through byte for byte, read, and written as the last event of a stream has them."""

import json

import pytest

from capi_core.conversation import Reasoning, Signature, ToolCall, ToolRef
from capi_core.deltas import Finish, FinishReason, Reply, ReplyText
from capi_core.errors import ProtocolError
from capi_core.fidelity import Ledger
from capi_core.protocols.codec import Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.reply import decode_reply, encode_reply, pass_answer
from capi_core.usage import Usage

REPLY = Reply(
    "resp_q",
    "pub",
    (Reasoning(("t",), Signature(Protocol.RESPONSES, "S")), ReplyText("hi"), ToolCall("c", ToolRef("f"), "{}")),
    Finish(FinishReason.TOOL_CALLS),
    Usage(1, 2, 3, 4, 5),
    7,
)


def test_a_passed_answer_changes_its_model_only() -> None:
    body = b'{ "model":"up", "usage":{"input_tokens":3}, "error":null, "output":[{"model":"up"}] }'
    passed = pass_answer(body, public_name="pub")
    assert (passed.body, passed.usage, passed.error) == (body.replace(b'"up"', b'"pub"', 1), Usage(3), False)
    untouched = pass_answer(b'{"error":{"code":"c"}}', public_name=None)
    assert (untouched.body, untouched.usage, untouched.error) == (b'{"error":{"code":"c"}}', None, True)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"[" * 3000, b""])
def test_an_answer_that_is_no_object_is_refused(body: bytes) -> None:
    for read in (lambda text: pass_answer(text, public_name="m"), decode_reply):
        with pytest.raises(ProtocolError) as caught:
            read(body)
        assert (caught.value.code, caught.value.status_hint) == ("upstream_garbage", 502)


def test_what_is_written_reads_back() -> None:
    assert decode_reply(encode_reply(REPLY, Envelope("q", "pub"), Ledger())) == REPLY


def test_a_reply_is_written_whole() -> None:
    found = json.loads(encode_reply(REPLY, Envelope("q", "pub"), Ledger()))
    assert (found["object"], found["status"], len(found["output"])) == ("response", "completed", 3)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"output":[],"status":"in_progress"}', "upstream_garbage"),
        (b'{"id":"x"}', "upstream_garbage"),
        (b'{"output":5}', "upstream_garbage"),
        (b'{"output":[],"status":"failed","error":{"code":"invalid_prompt","message":"m"}}', "invalid_prompt"),
    ],
)
def test_an_answer_that_is_not_whole_or_failed_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_reply(body)
    assert (caught.value.code, caught.value.status_hint) == (code, 502)


def test_half_a_surrogate_pair_is_read_as_the_replacement_character() -> None:
    body = b'{"output":[{"type":"message","content":[{"type":"output_text","text":"\\ud83d"}]}]}'
    assert decode_reply(body).blocks == (ReplyText("�"),)
