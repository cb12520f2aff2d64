"""The grammar of a Messages stream. Source: Anthropic, "Streaming Messages"; wire.md 1.3, 1.7."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conformance.rules import Rule, Severity, Violation, integer, members, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from capi_core.conformance.rules import Json

__all__ = ["RULES", "MessagesGrammar"]

_MUST, _SHOULD = Severity.MUST, Severity.SHOULD
_API: Final = "Anthropic, Streaming Messages"
_SDKS: Final = "wire.md 1.7"
_MAX_INPUT: Final = 1024 * 1024
"""Characters of a tool's input that are held to see whether they are a JSON object; more are not judged."""

_NAME = Rule("messages-event-name", _MUST, "every event has an `event:` field, the same as its `type`", _SDKS)
_ORDER = Rule("messages-order", _MUST, "message_start, then blocks, one message_delta, message_stop", _API)
_INDEX = Rule("messages-block-index", _MUST, "blocks count up from 0 without a gap", _SDKS)
_OPEN = Rule("messages-block-open", _MUST, "one block is open at a time; deltas and stops are for that one", _API)
_DELTA = Rule("messages-delta-kind", _MUST, "a delta is of its block's kind", _API)
_SIGNATURE = Rule(
    "messages-signature", _MUST, "a thinking block's signature comes whole, once, after its text", "wire.md 0.6"
)
_INPUT = Rule("messages-tool-input", _MUST, "the pieces of a tool's input make a JSON object, or there are none", _API)
_REASON = Rule("messages-stop-reason", _MUST, "message_delta has a stop_reason", _API)
_USAGE = Rule("messages-usage", _MUST, "message_start and message_delta have usage", _SDKS)
_TRUNCATED = Rule("messages-unfinished", _MUST, "the stream ends with message_stop, or with an error event", _SDKS)
_DONE = Rule("messages-done-mark", _SHOULD, "there is no [DONE]", _SDKS)
_UNKNOWN = Rule("messages-unknown-event", _SHOULD, "every event is one that the protocol knows", _SDKS)

RULES: Final[Mapping[str, Rule]] = {
    rule.id: rule
    for rule in (
        _NAME,
        _ORDER,
        _INDEX,
        _OPEN,
        _DELTA,
        _SIGNATURE,
        _INPUT,
        _REASON,
        _USAGE,
        _TRUNCATED,
        _DONE,
        _UNKNOWN,
    )
}


class _State(enum.Enum):
    START = enum.auto()
    BLOCKS = enum.auto()
    DELTA = enum.auto()
    STOPPED = enum.auto()


_NEXT: Final[Mapping[tuple[_State, str], _State]] = {
    (_State.START, "message_start"): _State.BLOCKS,
    (_State.BLOCKS, "content_block_start"): _State.BLOCKS,
    (_State.BLOCKS, "content_block_delta"): _State.BLOCKS,
    (_State.BLOCKS, "content_block_stop"): _State.BLOCKS,
    (_State.BLOCKS, "message_delta"): _State.DELTA,
    (_State.DELTA, "message_stop"): _State.STOPPED,
    (_State.START, "error"): _State.STOPPED,
    (_State.BLOCKS, "error"): _State.STOPPED,
    (_State.DELTA, "error"): _State.STOPPED,
}
_KNOWN: Final = frozenset(kind for _, kind in _NEXT)

_DELTAS: Final[Mapping[str, frozenset[str]]] = {
    "text": frozenset({"text_delta", "citations_delta"}),
    "thinking": frozenset({"thinking_delta", "signature_delta"}),
    "tool_use": frozenset({"input_json_delta"}),
    "server_tool_use": frozenset({"input_json_delta"}),
    "mcp_tool_use": frozenset({"input_json_delta"}),
    "compaction": frozenset({"compaction_delta"}),
}
"""Block kinds that have deltas, and which; the others come whole."""
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class MessagesGrammar:
    """One stream. An `error` event ends it legally."""

    def __init__(self) -> None:
        self._state = _State.START
        self._blocks = 0
        self._kind: str | None = None
        """Of the open block."""
        self._signed = False
        self._input: list[str] = []
        self._input_size = 0

    def end_mark(self) -> Iterator[Violation]:
        yield _DONE()

    def event(self, name: str, body: Json) -> Iterator[Violation]:
        kind = text(body, "type") or ""
        if name != kind:
            yield _NAME("type")
        if kind == "ping":
            return
        if kind not in _KNOWN:
            yield _UNKNOWN("type")
            return
        following = _NEXT.get((self._state, kind))
        if following is None:
            yield _ORDER("type")
            return
        self._state = following
        yield from self._judge(kind, body)

    def end(self) -> Iterator[Violation]:
        if self._state is not _State.STOPPED:
            yield _TRUNCATED()

    def _judge(self, kind: str, body: Json) -> Iterator[Violation]:
        match kind:
            case "message_start":
                if "usage" not in members(body.get("message")):
                    yield _USAGE("message.usage")
            case "content_block_start":
                yield from self._start(body)
            case "content_block_delta":
                yield from self._delta(body)
            case "content_block_stop":
                yield from self._stop(body)
            case "message_delta":
                yield from self._message_delta(body)
            case _:
                pass

    def _start(self, body: Json) -> Iterator[Violation]:
        if self._kind is not None:
            yield _OPEN("index")
        if integer(body, "index") != self._blocks:
            yield _INDEX("index")
        self._blocks += 1
        self._kind = text(members(body.get("content_block")), "type") or ""
        self._signed = False
        self._input, self._input_size = [], 0

    def _delta(self, body: Json) -> Iterator[Violation]:
        if self._kind is None or integer(body, "index") != self._blocks - 1:
            yield _OPEN("index")
            return
        delta = members(body.get("delta"))
        kind = text(delta, "type") or ""
        if kind not in _DELTAS.get(self._kind, frozenset()):
            yield _DELTA("delta.type")
        if self._signed and kind in ("thinking_delta", "signature_delta"):
            yield _SIGNATURE("delta")
        self._signed = self._signed or kind == "signature_delta"
        piece = text(delta, "partial_json") or ""
        self._input_size += len(piece)
        if self._input_size <= _MAX_INPUT:
            self._input.append(piece)

    def _stop(self, body: Json) -> Iterator[Violation]:
        if self._kind is None or integer(body, "index") != self._blocks - 1:
            yield _OPEN("index")
            return
        self._kind = None
        if 0 < self._input_size <= _MAX_INPUT and not _is_object("".join(self._input)):
            yield _INPUT("index")

    def _message_delta(self, body: Json) -> Iterator[Violation]:
        if self._kind is not None:
            yield _OPEN("type")
        if text(members(body.get("delta")), "stop_reason") is None:
            yield _REASON("delta.stop_reason")
        if "output_tokens" not in members(body.get("usage")):
            yield _USAGE("usage")


def _is_object(joined: str) -> bool:
    try:
        _OBJECT.decode(joined.encode("utf-8", "replace"))
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
