"""Whole answers of Messages: passed, read and written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import Opaque, Reasoning, Refusal, Signature, ToolCall, ToolRef
from capi_core.deltas import Annotation, Finish, FinishReason, Reply, ReplyText
from capi_core.errors import ProtocolError
from capi_core.fidelity import Ledger
from capi_core.protocols.codec import Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.reply import decode_reply, encode_reply, pass_answer
from capi_core.usage import Usage

BODY = (
    b'{"id":"msg_1","type":"message","role":"assistant","model":"up", "content":[{"type":"text","text":"hi"}],'
    b'"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":5,"output_tokens":2}}'
)
REPLY = Reply(
    "msg_1",
    "up",
    (
        Reasoning(("thought",), Signature(Protocol.MESSAGES, "SIG")),
        ReplyText("hi", (Annotation(Protocol.MESSAGES, b'{"url":"u"}', "u"),)),
        ToolCall("t", ToolRef("f"), '{"a":1}'),
        Opaque(Protocol.MESSAGES, "x", b'{"type":"x"}'),
    ),
    Finish(FinishReason.TOOL_CALLS),
    Usage(5, 1, 2, 3, 4),
)


def test_only_the_model_of_a_passed_answer_changes() -> None:
    passed = pass_answer(BODY, public_name="pub")
    assert passed.body == BODY.replace(b'"up"', b'"pub"')
    assert (passed.usage, passed.error) == (Usage(5, output=2), False)
    assert pass_answer(BODY, public_name=None).body == BODY


def test_an_error_inside_a_success_is_told() -> None:
    passed = pass_answer(b'{"type":"error","error":{"type":"api_error","message":"m"}}', public_name="pub")
    assert (passed.error, passed.usage) == (True, None)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"", b"{" * 3000, b'{"usage":'])
def test_what_is_no_object_is_not_passed(body: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        pass_answer(body, public_name="pub")
    assert (caught.value.code, caught.value.status_hint) == ("upstream_garbage", 502)


def test_an_answer_is_read() -> None:
    found = decode_reply(BODY, Ledger())
    assert found == Reply("msg_1", "up", (ReplyText("hi"),), Finish(FinishReason.STOP), Usage(5, output=2))


def test_what_is_written_reads_back_the_same() -> None:
    assert decode_reply(encode_reply(REPLY, Envelope("q", "up"), Ledger()), Ledger()) == REPLY


def test_a_written_answer_has_all_members() -> None:
    reply = Reply("chatcmpl-1", "up", (ReplyText(""), Refusal("no")), Finish(FinishReason.STOP))
    assert json.loads(encode_reply(reply, Envelope("q", "pub"), Ledger())) == {
        "id": "msg_q",
        "type": "message",
        "role": "assistant",
        "model": "pub",
        "content": [{"type": "text", "text": "no"}],
        "stop_reason": "refusal",
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"<html>", "upstream_garbage"),
        (b"{}", "upstream_garbage"),
        (b'{"content":3}', "upstream_garbage"),
        (b'{"content":[3]}', "upstream_garbage"),
        (b'{"content":[{"type":"x","y":"\xff"}]}', "upstream_garbage"),
        (b'{"content":[{"type":"tool_use"}]}', "upstream_garbage"),
        (b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}', "overloaded_error"),
    ],
)
def test_what_is_no_answer_is_an_error(body: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_reply(body, Ledger())
    assert (caught.value.code, caught.value.status_hint) == (code, 502)


def test_figures_may_be_missing() -> None:
    assert decode_reply(b'{"content":[]}', Ledger()).usage is None


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_content_is_an_answer_or_an_error(content: object) -> None:
    body = json.dumps({"content": content, "usage": content, "stop_reason": content}).encode()
    try:
        decode_reply(body, Ledger())
    except ProtocolError as error:
        status = error.status_hint
    else:
        status = 502
    assert status == 502
