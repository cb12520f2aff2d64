"""The grammar of a Chat Completions stream. Source: OpenAI API reference, "Chat completion chunk object"; wire.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core.conformance.rules import Rule, Severity, Violation, integer, items, members, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from capi_core.conformance.rules import Json

__all__ = ["RULES", "ChatGrammar"]

_MUST, _SHOULD = Severity.MUST, Severity.SHOULD
_API: Final = "OpenAI API reference"
_SDKS: Final = "wire.md 1.7"
_FINISHES: Final = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})

_OBJECT = Rule("chat-object", _SHOULD, "a chunk's `object` is chat.completion.chunk", _API)
_CHOICES = Rule("chat-choices", _MUST, "a chunk's `choices` is a list", _SDKS)
_IDENTITY = Rule("chat-identity", _SHOULD, "`id` and `model` are the same on every chunk", _API)
_INDEX = Rule("chat-choice-index", _MUST, "a choice has an `index` below the number of choices asked for", _API)
_ROLE = Rule("chat-role", _SHOULD, "the first delta of a choice has the role", _API)
_LATE = Rule("chat-after-finish", _MUST, "nothing comes for a choice after its finish_reason", _API)
_UNFINISHED = Rule("chat-unfinished", _MUST, "every choice has a finish_reason before the stream ends", _SDKS)
_REASON = Rule("chat-finish-reason", _SHOULD, "finish_reason is one of those that the protocol knows", _API)
_CALL_INDEX = Rule("chat-call-index", _MUST, "every delta of a tool call has its `index`", _API)
_CALL_START = Rule("chat-call-start", _MUST, "a tool call's first delta has its id and its name", _API)
_USAGE = Rule(
    "chat-usage-chunk", _SHOULD, "usage comes once, in a chunk of its own after the choices have finished", _API
)
_NO_DONE = Rule("chat-done", _SHOULD, "the stream ends with [DONE]", _API)
_AFTER = Rule("chat-after-done", _MUST, "nothing comes after [DONE] or an error", _API)

RULES: Final[Mapping[str, Rule]] = {
    rule.id: rule
    for rule in (
        _OBJECT,
        _CHOICES,
        _IDENTITY,
        _INDEX,
        _ROLE,
        _LATE,
        _UNFINISHED,
        _REASON,
        _CALL_INDEX,
        _CALL_START,
        _USAGE,
        _NO_DONE,
        _AFTER,
    )
}


class ChatGrammar:
    """One stream. An error object ends it legally."""

    def __init__(self, choices: int = 1) -> None:
        self._choices = choices
        self._identity: tuple[object, object] | None = None
        self._begun: set[int] = set()
        self._finished: set[int] = set()
        self._calls: set[tuple[int, int]] = set()
        self._usage = False
        self._done = False
        self._errored = False

    def end_mark(self) -> Iterator[Violation]:
        if self._done or self._errored:
            yield _AFTER()
        self._done = True

    def event(self, name: str, body: Json) -> Iterator[Violation]:
        if self._done or self._errored:
            yield _AFTER()
        elif body.get("error") is not None:
            self._errored = True
        else:
            yield from self._chunk(body)

    def end(self) -> Iterator[Violation]:
        if self._errored:
            return
        if len(self._finished) < self._choices:
            yield _UNFINISHED()
        if not self._done:
            yield _NO_DONE()

    def _chunk(self, body: Json) -> Iterator[Violation]:
        if body.get("object") != "chat.completion.chunk":
            yield _OBJECT("object")
        identity = (body.get("id"), body.get("model"))
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity:
            yield _IDENTITY("id")
        if not isinstance(body.get("choices"), list):
            yield _CHOICES("choices")
        for at, choice in enumerate(items(body.get("choices"))):
            yield from self._choice(members(choice), f"choices[{at}]")
        if body.get("usage") is not None:
            if self._usage or body.get("choices") or len(self._finished) < self._choices:
                yield _USAGE("usage")
            self._usage = True

    def _choice(self, choice: Json, path: str) -> Iterator[Violation]:
        index = integer(choice, "index")
        if index is None or not 0 <= index < self._choices:
            yield _INDEX(f"{path}.index")
            return
        if index in self._finished:
            yield _LATE(path)
        delta = members(choice.get("delta"))
        if index not in self._begun and text(delta, "role") is None:
            yield _ROLE(f"{path}.delta")
        self._begun.add(index)
        for at, call in enumerate(items(delta.get("tool_calls"))):
            yield from self._call(index, members(call), f"{path}.delta.tool_calls[{at}]")
        reason = choice.get("finish_reason")
        if reason is not None:
            if reason not in _FINISHES:
                yield _REASON(f"{path}.finish_reason")
            self._finished.add(index)

    def _call(self, choice: int, call: Json, path: str) -> Iterator[Violation]:
        index = integer(call, "index")
        if index is None:
            yield _CALL_INDEX(path)
        elif (choice, index) not in self._calls:
            self._calls.add((choice, index))
            if not text(call, "id") or not text(members(call.get("function")), "name"):
                yield _CALL_START(path)
