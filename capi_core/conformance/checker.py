"""Bytes to events to violations: what is the same for every protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from attrs import evolve

from capi_core.conformance.chat import RULES as CHAT_RULES
from capi_core.conformance.chat import ChatGrammar
from capi_core.conformance.messages import RULES as MESSAGES_RULES
from capi_core.conformance.messages import MessagesGrammar
from capi_core.conformance.responses import RULES as RESPONSES_RULES
from capi_core.conformance.responses import ResponsesGrammar
from capi_core.conformance.rules import Rule, Severity, Violation, is_object
from capi_core.members import decode
from capi_core.protocols.kinds import Protocol as Wire
from capi_core.sse import SSEDecoder, SSEError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from capi_core.conformance.rules import Json
    from capi_core.sse import Event

__all__ = ["RULES", "SSE_RULES", "Grammar", "StreamChecker", "checker_for"]

_MOST_VIOLATIONS: Final = 1_000
"""A stream that is nothing but violations needs no longer list."""
_JSON: Final = msgspec.json.Decoder(object)

_SSE: Final = "WHATWG HTML 9.2.6"
_UNREADABLE = Rule("sse-event-size", Severity.MUST, "an event is no larger than its reader takes", _SSE)
_UNENDED = Rule(
    "sse-unended-event", Severity.MUST, "every event ends with a blank line; readers drop the last otherwise", _SSE
)
_NO_DATA = Rule(
    "sse-event-without-data",
    Severity.MUST,
    "an event with a type, an id or a retry time has data; openai-python fails on one that has none",
    "wire.md 1.7",
)
_NOT_JSON = Rule("sse-json", Severity.MUST, "the data of every event is a JSON object", "wire.md 1")

SSE_RULES: Final[Mapping[str, Rule]] = {rule.id: rule for rule in (_UNREADABLE, _UNENDED, _NO_DATA, _NOT_JSON)}
RULES: Final[Mapping[str, Rule]] = {**SSE_RULES, **CHAT_RULES, **MESSAGES_RULES, **RESPONSES_RULES}
"""Every rule by its id."""


class Grammar(Protocol):
    """One protocol's automaton."""

    def end_mark(self) -> Iterable[Violation]:
        """`[DONE]` came."""
        ...

    def event(self, name: str, body: Json) -> Iterable[Violation]:
        """An event with a JSON object; `name` is its `event:` field, empty without one."""
        ...

    def end(self) -> Iterable[Violation]:
        """The stream is over."""
        ...


class StreamChecker:
    """Holds one stream to a grammar."""

    def __init__(self, grammar: Grammar, *, max_event_bytes: int) -> None:
        self._grammar = grammar
        self._decoder = SSEDecoder(max_event_bytes=max_event_bytes)
        self._count = 0
        self._violations: list[Violation] = []
        self._over = False

    @property
    def violations(self) -> tuple[Violation, ...]:
        """All so far, the first 1,000."""
        return tuple(self._violations)

    def receive_data(self, data: bytes) -> list[Violation]:
        """Takes bytes of the stream in any chunking; returns what is wrong with them."""
        if self._over:
            return []
        try:
            events = self._decoder.feed(data)
        except SSEError:  # `failed` tells of it, also when events come before
            events = []
        found = [violation for event in events for violation in self._check(event)]
        if self._decoder.failed:
            self._over = True
            found.append(_UNREADABLE())
        return self._kept(found)

    def finish(self) -> list[Violation]:
        """The stream is over; returns what is missing."""
        if self._over:
            return []
        self._over = True
        self._decoder.finish()
        found = [_UNENDED()] if self._decoder.residue.strip() else []
        return self._kept([*found, *self._grammar.end()])

    def _check(self, event: Event) -> list[Violation]:
        data = event.data
        if data is None:
            named = bool(event.type) or event.id is not None or event.retry is not None
            return [_NO_DATA()] if named else []
        number, self._count = self._count, self._count + 1
        if data.strip() == b"[DONE]":
            found = self._grammar.end_mark()
        else:
            body = _decoded(data)
            name = event.type.decode("utf-8", "replace")
            found = [_NOT_JSON()] if body is None else self._grammar.event(name, body)
        return [evolve(violation, event=number) for violation in found]

    def _kept(self, found: list[Violation]) -> list[Violation]:
        self._violations += found[: _MOST_VIOLATIONS - len(self._violations)]
        return found


def checker_for(protocol: Wire, *, choices: int = 1, max_event_bytes: int = 4 * 1024 * 1024) -> StreamChecker:
    """A checker for one stream. `choices`: how many a Chat request asked for (`n`)."""
    grammars: dict[Wire, Callable[[], Grammar]] = {
        Wire.CHAT: lambda: ChatGrammar(choices),
        Wire.MESSAGES: MessagesGrammar,
        Wire.RESPONSES: ResponsesGrammar,
    }
    return StreamChecker(grammars[protocol](), max_event_bytes=max_event_bytes)


def _decoded(data: bytes) -> Json | None:
    try:
        body = decode(_JSON, data)[0]
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return body if is_object(body) else None
