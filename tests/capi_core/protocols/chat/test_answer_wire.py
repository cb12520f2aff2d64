"""Answers are read for what they say, under whichever name."""

import msgspec
import pytest

from capi_core.deltas import Annotation
from capi_core.protocols.chat.answer_wire import CHUNK, CallPart, Message, read_annotation
from capi_core.protocols.kinds import Protocol


@pytest.mark.parametrize(
    ("members", "words", "thoughts"),
    [
        ({}, "", ""),
        ({"content": "a", "reasoning": "", "reasoning_text": "b"}, "a", "b"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "x", "text": "b"}]}, "a", ""),
        ({"reasoning_details": [{"text": "a"}, {"summary": "b"}, {}]}, "", "ab"),
    ],
)
def test_words_and_thoughts(members: dict[str, object], words: str, thoughts: str) -> None:
    found = msgspec.convert(members, Message)
    assert (found.words, found.thoughts) == (words, thoughts)


@pytest.mark.parametrize(
    ("members", "name", "text"),
    [
        ({}, "", ""),
        ({"function": {}}, "", ""),
        ({"function": {"name": "f", "arguments": "1"}}, "f", "1"),
        ({"custom": {"name": "c", "input": "2"}}, "c", "2"),
    ],
)
def test_the_parts_of_a_call(members: dict[str, object], name: str, text: str) -> None:
    part = msgspec.convert(members, CallPart)
    assert (part.name, part.text) == (name, text)


@pytest.mark.parametrize("raw", [b"1", b'{"url_citation":1}', b"{}", b"[" * 5000])
def test_a_citation_of_an_unknown_shape_is_kept_raw(raw: bytes) -> None:
    assert read_annotation(msgspec.Raw(raw)) == Annotation(Protocol.CHAT, raw)


def test_a_citation_that_is_no_utf8_becomes_some() -> None:
    assert read_annotation(msgspec.Raw(b'{"type":"\xff"}')).raw == b'{"type":"\xef\xbf\xbd"}'


def test_a_citation_names_its_page() -> None:
    raw = b'{"url_citation":{"url":"u","title":"t"}}'
    assert read_annotation(msgspec.Raw(raw)) == Annotation(Protocol.CHAT, raw, "u", "t")


def test_all_members_may_be_missing() -> None:
    assert CHUNK.decode(b"{}").choices is None
