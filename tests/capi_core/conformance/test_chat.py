"""The grammar of Chat Completions streams: each rule has a stream that breaks it and nothing else."""

from collections.abc import Mapping
from typing import Final

import pytest

from capi_core.conformance.chat import RULES, ChatGrammar
from capi_core.conformance.checker import StreamChecker
from tests.support.streams import chat

Chunk = Mapping[str, object]


def chunk(delta: Chunk | None = None, finish: str | None = None, index: int = 0, **more: object) -> Chunk:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more}


def call(index: object = 0, **more: object) -> Chunk:
    return {"tool_calls": [{"index": index, **more}]}


ROLE: Final = chunk({"role": "assistant", "content": ""})
HI: Final = chunk({"content": "hi"})
STOP: Final = chunk(finish="stop")
USAGE: Final = {**STOP, "choices": [], "usage": {"prompt_tokens": 1}}
CALL: Final = chunk(call(id="c1", type="function", function={"name": "f", "arguments": ""}))
ARGUMENTS: Final = chunk(call(function={"arguments": "{}"}))
DONE: Final = "[DONE]"


def broken(*chunks: Chunk | str, choices: int = 1) -> list[tuple[str, str]]:
    checker = StreamChecker(ChatGrammar(choices), max_event_bytes=4096)
    checker.receive_data(chat(*chunks))
    checker.finish()
    return [(violation.rule, violation.path) for violation in checker.violations]


LEGAL: Final[dict[str, tuple[Chunk | str, ...]]] = {
    "text": (ROLE, HI, HI, STOP, DONE),
    "usage": (ROLE, HI, STOP, USAGE, DONE),
    "a tool call": (ROLE, CALL, ARGUMENTS, chunk(finish="tool_calls"), DONE),
    "an error at once": ({"error": {"message": "x"}},),
    "an error in the middle": (ROLE, HI, {"error": {"message": "x"}}),
    "chunks without choices": ({**ROLE, "choices": []}, ROLE, STOP, DONE),
}


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_stream_breaks_nothing(name: str) -> None:
    assert broken(*LEGAL[name]) == []


def test_several_choices() -> None:
    other = chunk({"role": "assistant"}, index=1)
    assert broken(ROLE, other, STOP, chunk(finish="stop", index=1), DONE, choices=2) == []
    assert broken(ROLE, other, STOP, DONE, choices=2) == [("chat-unfinished", "")]


BREAKS: Final[dict[str, tuple[tuple[Chunk | str, ...], str]]] = {
    "chat-object": ((ROLE, {**HI, "object": "text"}, STOP, DONE), "object"),
    "chat-choices": ((ROLE, {**HI, "choices": None}, STOP, DONE), "choices"),
    "chat-identity": ((ROLE, {**HI, "id": "d"}, STOP, DONE), "id"),
    "chat-choice-index": ((ROLE, chunk({"content": "x"}, index=1), STOP, DONE), "choices[0].index"),
    "chat-role": ((HI, STOP, DONE), "choices[0].delta"),
    "chat-after-finish": ((ROLE, STOP, HI, DONE), "choices[0]"),
    "chat-unfinished": ((ROLE, HI, DONE), ""),
    "chat-finish-reason": ((ROLE, chunk(finish="tired"), DONE), "choices[0].finish_reason"),
    "chat-call-index": ((ROLE, chunk(call(None, id="c1")), STOP, DONE), "choices[0].delta.tool_calls[0]"),
    "chat-call-start": ((ROLE, chunk(call(id="c1")), STOP, DONE), "choices[0].delta.tool_calls[0]"),
    "chat-usage-chunk": ((ROLE, USAGE, STOP, DONE), "usage"),
    "chat-done": ((ROLE, STOP), ""),
    "chat-after-done": ((ROLE, STOP, DONE, DONE), ""),
}


def test_every_rule_is_broken_by_a_stream_of_its_own() -> None:
    assert set(BREAKS) == set(RULES)


@pytest.mark.parametrize("rule", BREAKS)
def test_a_stream_breaks_its_rule_and_no_other(rule: str) -> None:
    chunks, path = BREAKS[rule]
    assert broken(*chunks) == [(rule, path)]


def test_other_ways_to_break_them() -> None:
    assert broken(ROLE, STOP, USAGE, USAGE, DONE) == [("chat-usage-chunk", "usage")]
    assert broken(ROLE, {**STOP, "usage": {}}, DONE) == [("chat-usage-chunk", "usage")]
    assert broken(ROLE, STOP, DONE, HI) == [("chat-after-done", "")]
    assert broken({"error": "x"}, DONE) == [("chat-after-done", "")]
    assert broken(ROLE, chunk(finish="stop", index=0), {**HI, "choices": [7]}, DONE) == [
        ("chat-choice-index", "choices[0].index")
    ]
