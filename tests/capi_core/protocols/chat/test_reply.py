"""Whole answers of Chat: passed, read and written."""

import json

import pytest

from capi_core.conversation import Opaque, Reasoning, Refusal, Signature, ToolCall, ToolKind, ToolRef
from capi_core.deltas import Annotation, Finish, FinishReason, Reply, ReplyBlock, ReplyText
from capi_core.errors import ProtocolError
from capi_core.fidelity import Ledger
from capi_core.protocols.chat.reply import decode_reply, encode_reply, pass_answer
from capi_core.protocols.codec import Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.usage import Usage
from tests.support.chat_events import answer

ENVELOPE = Envelope("rid", "pub", now_s=4)
CITED = {"type": "url_citation", "url_citation": {"url": "u"}}
SIGNED = Signature(Protocol.CHAT, "S")
CALL = {"id": "i", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def reply(*blocks: ReplyBlock, reason: FinishReason = FinishReason.STOP) -> Reply:
    return Reply("c1", "up", blocks, Finish(reason), None, 7)


def written(*blocks: ReplyBlock, ledger: Ledger | None = None) -> dict[str, object]:
    document = json.loads(encode_reply(reply(*blocks), ENVELOPE, ledger or Ledger()))
    message: dict[str, object] = document["choices"][0]["message"]
    return message


def test_an_answer_passes_but_for_its_models_name() -> None:
    body = answer({"content": "x"}, usage={"prompt_tokens": 1, "completion_tokens": 2})
    assert pass_answer(body, public_name=None).body == body
    found = pass_answer(body, public_name="pub")
    assert (found.body, found.error) == (body.replace(b'"up"', b'"pub"'), False)
    assert found.usage == Usage(1, None, None, 2, None)


def test_an_answer_of_all_kinds_is_read() -> None:
    custom = {"id": "j", "type": "custom", "custom": {"name": "c", "input": "raw"}}
    message = {"content": "x", "refusal": "no", "reasoning_content": "r", "reasoning_opaque": "S"}
    found = decode_reply(answer({**message, "annotations": [CITED], "tool_calls": [CALL, custom]}), Ledger())
    assert found == reply(
        Reasoning(("r",), SIGNED),
        ReplyText("x"),
        Refusal("no"),
        ReplyText("", (Annotation(Protocol.CHAT, json.dumps(CITED).encode(), "u"),)),
        ToolCall("i", ToolRef("f"), "{}"),
        ToolCall("j", ToolRef("c"), "raw", ToolKind.CUSTOM),
        reason=FinishReason.TOOL_CALLS,
    )


def test_copilots_split_choices_are_one_answer() -> None:
    second = {**CALL, "id": "j"}
    found = decode_reply(answer({"content": "x"}, {"tool_calls": [CALL]}, {"tool_calls": [second]}), Ledger())
    assert [type(block) for block in found.blocks] == [ReplyText, ToolCall, ToolCall]
    assert found.finish.reason is FinishReason.TOOL_CALLS


def test_a_missing_finish_reason_is_noted() -> None:
    ledger = Ledger()
    assert decode_reply(answer({"content": "x"}, finish=None), ledger).finish.reason is FinishReason.STOP
    assert ledger.total == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"<html>", "upstream_garbage"),
        (b"{}", "upstream_garbage"),
        (b'{"choices":[]}', "upstream_garbage"),
        (b'{"choices":1}', "upstream_garbage"),
        (b'{"type":"message","content":[]}', "foreign_answer"),
        (b'{"error":{"message":"m","code":"c"}}', "c"),
        (b'{"error":[]}', "upstream_error"),
        (answer({"tool_calls": [{"id": "i"}]}), "upstream_garbage"),
        (answer({}, finish=None), "upstream_truncated"),
    ],
)
def test_what_is_no_answer_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_reply(body, Ledger())
    assert (caught.value.code, caught.value.status_hint) == (code, 502)


def test_an_answer_is_written_as_openai_writes_it() -> None:
    whole = Reply("", "up", (ReplyText("a"), ReplyText("b")), Finish(FinishReason.STOP), Usage(1, output=2))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "ab", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert json.loads(encode_reply(whole, ENVELOPE, Ledger())) == {
        "id": "chatcmpl-rid",
        "object": "chat.completion",
        "created": 4,
        "model": "pub",
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }


def test_calls_without_text_have_null_content_and_arguments_are_json() -> None:
    found = written(ToolCall("i", ToolRef("f"), ""), ToolCall("j", ToolRef("c"), "raw", ToolKind.CUSTOM))
    custom = {"id": "j", "type": "custom", "custom": {"name": "c", "input": "raw"}}
    assert (found["content"], found["tool_calls"]) == (None, [CALL, custom])


def test_there_is_one_signature_and_what_has_no_form_is_noted() -> None:
    ledger = Ledger()
    found = written(
        Reasoning(("a", ""), Signature(Protocol.MESSAGES, "S")),
        Reasoning(("b",)),
        Reasoning((), SIGNED),
        ReplyText("x", (Annotation(Protocol.MESSAGES, b"{}"), Annotation(Protocol.CHAT, b'{"a":1}'))),
        Refusal("no"),
        Opaque(Protocol.MESSAGES, "t", b"{}"),
        ledger=ledger,
    )
    assert found == {
        "role": "assistant",
        "content": "x",
        "refusal": "no",
        "reasoning_content": "a\n\nb",
        "reasoning_opaque": "capi1.messages.S",
        "annotations": [{"a": 1}],
    }
    assert ledger.losses == 3


def test_a_written_answer_reads_back() -> None:
    blocks = (Reasoning(("r",), SIGNED), ReplyText("x"), ToolCall("i", ToolRef("f"), "{}"))
    whole = Reply("c1", "pub", blocks, Finish(FinishReason.TOOL_CALLS), Usage(1, 2, 3, 4, 5), 7)
    assert decode_reply(encode_reply(whole, ENVELOPE, Ledger()), Ledger()) == whole
