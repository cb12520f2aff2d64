"""What the modules of Messages share of answers."""

import json

import msgspec
import pytest

from capi_core.deltas import Annotation, Finish, FinishReason
from capi_core.protocols.carriage import MARK
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.messages.answer_wire import (
    BLOCK,
    REASONS,
    UNSHOWN,
    UNSIGNED,
    annotation_of,
    message_id,
    stop_members,
)


def told(finish: Finish, *, called: bool = False, refused: bool = False) -> dict[str, object]:
    found: dict[str, object] = json.loads(b"{%b}" % stop_members(finish, called=called, refused=refused))
    return found


def test_a_citation_keeps_its_text_and_shows_its_page() -> None:
    raw = b'{"type":"x","url":"u","title":null, "n":1}'
    assert annotation_of(msgspec.Raw(raw)) == Annotation(Protocol.MESSAGES, raw, "u", None)


@pytest.mark.parametrize("raw", [b"3", b'{"a":"\xff"}'])
def test_a_citation_that_cannot_be_passed_on_is_an_error(raw: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeError)):
        annotation_of(msgspec.Raw(raw))


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [("msg_01Ab-_", "msg_01Ab-_"), ("", "msg_q"), ("chatcmpl-1", "msg_q"), ("msg_" + "a" * 129, "msg_q")],
)
def test_an_id_that_looks_like_one_of_a_message_is_kept(upstream: str, expected: str) -> None:
    assert message_id(upstream, "q") == expected


@pytest.mark.parametrize(("word", "reason"), REASONS.items())
def test_each_reason_has_its_word(word: str, reason: FinishReason) -> None:
    assert told(Finish(reason), called=word == "tool_use") == {"stop_reason": word, "stop_sequence": None}


def test_tool_use_is_said_exactly_when_a_tool_is_called() -> None:
    assert told(Finish(FinishReason.STOP), called=True)["stop_reason"] == "tool_use"
    assert told(Finish(FinishReason.TOOL_CALLS))["stop_reason"] == "end_turn"
    assert told(Finish(FinishReason.LENGTH), called=True)["stop_reason"] == "max_tokens"


def test_a_refusal_is_told_by_the_reason() -> None:
    assert told(Finish(FinishReason.STOP), refused=True)["stop_reason"] == "refusal"
    assert told(Finish(FinishReason.LENGTH), refused=True)["stop_reason"] == "max_tokens"
    assert told(Finish(FinishReason.CONTENT_FILTER, detail="no"))["stop_details"] == {
        "type": "refusal",
        "category": None,
        "explanation": "no",
    }


def test_the_stop_sequence_is_told() -> None:
    assert told(Finish(FinishReason.STOP_SEQUENCE, "END"))["stop_sequence"] == "END"


def test_our_marks_are_no_base64() -> None:
    assert UNSIGNED.startswith(MARK)
    assert "." in UNSHOWN


def test_every_member_of_a_block_may_be_missing_or_null() -> None:
    assert BLOCK.decode(b'{"type":"text","text":null}').text is None
    assert BLOCK.decode(b"{}").type == ""
