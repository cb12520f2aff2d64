"""The grammar of a Responses stream. Source: OpenAI API reference, "Streaming events"; wire.md 1.2, 1.7."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from capi_core.conformance.rules import Rule, Running, Severity, Violation, integer, items, members, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from capi_core.conformance.rules import Json

__all__ = ["RULES", "ResponsesGrammar"]

_MUST, _SHOULD = Severity.MUST, Severity.SHOULD
_API: Final = "OpenAI API reference, Streaming events"
_SDKS: Final = "wire.md 1.7"

_NAME = Rule("responses-event-name", _SHOULD, "every event has an `event:` field, the same as its `type`", _SDKS)
_NUMBER = Rule("responses-sequence", _MUST, "sequence_number counts up from 0 by one", _API)
_CREATED = Rule("responses-created", _MUST, "response.created comes first, and once", _API)
_IDENTITY = Rule("responses-identity", _MUST, "response.id is the same on every event that has one", _SDKS)
_ITEM_INDEX = Rule("responses-output-index", _MUST, "items count up from 0 without a gap", _SDKS)
_ITEM_ID = Rule("responses-item-id", _MUST, "an item has one id, on every event about it", _SDKS)
_ITEM_OPEN = Rule("responses-item-open", _MUST, "events about an item come between its added and its done", _API)
_PART_OPEN = Rule("responses-part-open", _MUST, "a part is added before its deltas and done after them", _SDKS)
_TEXT = Rule("responses-text", _MUST, "the deltas of a text spell what its done event says", _API)
_OUTPUT = Rule("responses-output", _MUST, "the final response's output is the items that were done", _SDKS)
_STATUS = Rule("responses-status", _MUST, "the final response's status is that of its event", _API)
_USAGE = Rule("responses-usage", _MUST, "usage, where there is any, has both of its details", _API)
_TERMINAL = Rule("responses-unfinished", _MUST, "the stream ends with one terminal event", _SDKS)
_AFTER = Rule("responses-after-end", _MUST, "nothing comes after the terminal event", _API)
_DONE = Rule("responses-done-mark", _SHOULD, "there is no [DONE]", _SDKS)
_UNKNOWN = Rule("responses-unknown-event", _SHOULD, "every event is one that the protocol knows", _SDKS)

RULES: Final[Mapping[str, Rule]] = {
    rule.id: rule
    for rule in (
        _NAME,
        _NUMBER,
        _CREATED,
        _IDENTITY,
        _ITEM_INDEX,
        _ITEM_ID,
        _ITEM_OPEN,
        _PART_OPEN,
        _TEXT,
        _OUTPUT,
        _STATUS,
        _USAGE,
        _TERMINAL,
        _AFTER,
        _DONE,
        _UNKNOWN,
    )
}

_TERMINAL_STATUS: Final[Mapping[str, str]] = {
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
}
_TEXTS: Final[Mapping[str, tuple[str, str]]] = {
    "response.output_text": ("content_index", "text"),
    "response.refusal": ("content_index", "refusal"),
    "response.reasoning_text": ("content_index", "text"),
    "response.reasoning_summary_text": ("summary_index", "text"),
}
"""Texts inside parts: which member numbers the part, and which says the whole text when it is done."""
_WHOLES: Final[Mapping[str, str]] = {
    "response.function_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
}
"""Texts of an item itself."""
_PARTS: Final[Mapping[str, str]] = {
    "response.content_part": "content_index",
    "response.reasoning_summary_part": "summary_index",
}
_OTHER_FAMILIES: Final = (
    "response.mcp_",
    "response.web_search_call",
    "response.file_search_call",
    "response.code_interpreter_call",
    "response.image_generation_call",
    "response.shell_call",
    "response.audio",
    "response.compaction",
    "response.steer",
    "response.output_text.annotation",
)


@define(eq=False)
class _Item:
    """An item between its added and its done. `parts`: the open ones, with the text so far."""

    id: str | None
    open: bool = True
    parts: dict[tuple[str, int], Running] = field(factory=dict)
    whole: Running = field(factory=Running)


class ResponsesGrammar:
    """One stream. `response.failed` and a flat `error` are legal, unhappy ends."""

    def __init__(self) -> None:
        self._number = 0
        self._begun = False
        self._ended = False
        self._id: str | None = None
        self._items: list[_Item] = []
        self._done: dict[int, tuple[str | None, str | None]] = {}
        """By output_index: type and id of each item that is done. Items may end in another order than they began."""

    def end_mark(self) -> Iterator[Violation]:
        yield _DONE()

    def event(self, name: str, body: Json) -> Iterator[Violation]:
        kind = text(body, "type") or ""
        if name != kind:
            yield _NAME("type")
        if kind == "keepalive":
            return
        if integer(body, "sequence_number") != self._number:
            yield _NUMBER("sequence_number")
        self._number += 1
        if self._ended:
            yield _AFTER("type")
            return
        if self._begun == (kind == "response.created") and kind != "error":
            yield _CREATED("type")
        self._begun = True
        yield from self._identity(body)
        yield from self._judge(kind, body)

    def end(self) -> Iterator[Violation]:
        if not self._ended:
            yield _TERMINAL()

    def _identity(self, body: Json) -> Iterator[Violation]:
        found = text(members(body.get("response")), "id")
        if found is None:
            return
        if self._id is not None and found != self._id:
            yield _IDENTITY("response.id")
        self._id = self._id or found

    def _judge(self, kind: str, body: Json) -> Iterator[Violation]:
        family, _, verb = kind.rpartition(".")
        if kind in _TERMINAL_STATUS:
            yield from self._terminal(kind, members(body.get("response")))
        elif kind == "error":
            self._ended = True
        elif kind == "response.output_item.added":
            yield from self._added(body)
        elif kind == "response.output_item.done":
            yield from self._item_done(body)
        elif (family in _PARTS or family in _TEXTS or family in _WHOLES) and verb in ("added", "delta", "done"):
            yield from self._within(body, family, verb)
        elif kind not in _LIFECYCLE and not kind.startswith(_OTHER_FAMILIES):
            yield _UNKNOWN("type")

    def _added(self, body: Json) -> Iterator[Violation]:
        if integer(body, "output_index") != len(self._items):
            yield _ITEM_INDEX("output_index")
        self._items.append(_Item(text(members(body.get("item")), "id")))

    def _item(self, body: Json, found_id: str | None, path: str) -> tuple[_Item | None, list[Violation]]:
        index = integer(body, "output_index")
        item = self._items[index] if index is not None and 0 <= index < len(self._items) else None
        if item is None or not item.open:
            return None, [_ITEM_OPEN("output_index")]
        return item, [_ITEM_ID(path)] if found_id != item.id else []

    def _item_done(self, body: Json) -> Iterator[Violation]:
        told = members(body.get("item"))
        item, found = self._item(body, text(told, "id"), "item.id")
        yield from found
        if item is None:
            return
        if item.parts:
            yield _PART_OPEN("item")
        item.open = False
        self._done[self._items.index(item)] = (text(told, "type"), text(told, "id"))

    def _within(self, body: Json, family: str, verb: str) -> Iterator[Violation]:
        item, found = self._item(body, text(body, "item_id"), "item_id")
        yield from found
        if item is None:
            return
        if family in _WHOLES:
            yield from _spelled(item.whole, body, verb, _WHOLES[family])
            return
        member = _PARTS.get(family) or _TEXTS[family][0]
        key = (member, integer(body, member) or 0)
        if family in _PARTS:
            yield from _part(item, key, verb)
        elif key not in item.parts:
            yield _PART_OPEN(member)
        else:
            yield from _spelled(item.parts[key], body, verb, _TEXTS[family][1])

    def _terminal(self, kind: str, response: Json) -> Iterator[Violation]:
        self._ended = True
        if text(response, "status") != _TERMINAL_STATUS[kind]:
            yield _STATUS("response.status")
        if kind == "response.failed":
            return
        if any(item.open for item in self._items):
            yield _ITEM_OPEN("response.output")
        told = [(text(members(item), "type"), text(members(item), "id")) for item in items(response.get("output"))]
        if told != [done for _, done in sorted(self._done.items())]:
            yield _OUTPUT("response.output")
        usage = response.get("usage")
        details = ("input_tokens_details", "output_tokens_details")
        if usage is not None and not all(isinstance(members(usage).get(name), dict) for name in details):
            yield _USAGE("response.usage")


_LIFECYCLE: Final = frozenset({"response.created", "response.in_progress", "response.queued"})


def _part(item: _Item, key: tuple[str, int], verb: str) -> Iterator[Violation]:
    if (verb == "added") == (key in item.parts):
        yield _PART_OPEN(key[0])
    if verb == "added":
        item.parts[key] = Running()
    else:
        item.parts.pop(key, None)


def _spelled(running: Running, body: Json, verb: str, whole: str) -> Iterator[Violation]:
    if verb == "delta":
        running.add(text(body, "delta") or "")
    elif not running.same(text(body, whole) or ""):
        yield _TEXT(whole)
