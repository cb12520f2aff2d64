"""What a client keeps of an answer's stream, read the client's way and not with the gateway's own codecs: a mistake
there must meet a reader that does not make it too.

Total: whatever a stream holds, it is heard as far as it makes sense; whether it is legal is for `conformance` to say.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.conformance.rules import integer, items, members, text
from capi_core.protocols.kinds import Protocol
from capi_core.sse import SSEDecoder, SSEError
from capi_core.usage import Usage, anthropic_usage, merge_anthropic_usage, openai_usage, responses_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from capi_core.conformance.rules import Json

__all__ = ["Answer", "Call", "Listener"]


class Call(msgspec.Struct):
    """A tool call: `arguments` is JSON text."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    @property
    def readable(self) -> bool:
        """Whether the arguments are the JSON object that every client parses."""
        try:
            return isinstance(json.loads(self.arguments or "{}"), dict)
        except (ValueError, RecursionError):
            return False


class Answer:
    """What was heard. `problem`: the code of an error that the stream told, `""` for one without a code."""

    def __init__(self) -> None:
        self.spoke = False
        self.reasoned = False
        self.calls: list[Call] = []
        self.usage: Usage | None = None
        self.problem: str | None = None
        self.turns: list[object] = []
        """The answer as the client sends it back with its next request."""


class Listener:
    """Hears one stream. `answer` is whole once the stream has ended."""

    def __init__(self, protocol: Protocol) -> None:
        self.answer = Answer()
        self.events = 0
        self.keep_alives = 0
        """Comments and pings."""
        self._sse = SSEDecoder()
        self._reader = _READERS[protocol](self.answer)

    def receive_data(self, data: bytes) -> int:
        """Takes bytes in any chunking; returns how many events with news came whole."""
        if self._sse.failed:
            return 0
        before = self.events
        try:
            events = self._sse.feed(data)
        except SSEError:
            return 0
        for event in events:
            if event.type == b"ping" or event.data is None:
                self.keep_alives += 1
                continue
            self.events += 1
            self._reader.take(_object(event.data))
        return self.events - before

    def finish(self) -> Answer:
        """The stream is over."""
        self._reader.finish()
        return self.answer


class _Chat:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._calls: dict[int, Call] = {}
        self._text = ""

    def take(self, body: Json) -> None:
        if "error" in body and body["error"] is not None:
            self._answer.problem = text(members(body["error"]), "code") or ""
        self._answer.usage = _usage(openai_usage, body) or self._answer.usage
        for choice in items(body.get("choices")):
            self._delta(members(members(choice).get("delta")))

    def _delta(self, delta: Json) -> None:
        said = text(delta, "content") or ""
        self._text += said
        self._answer.spoke |= bool(said)
        self._answer.reasoned |= any(text(delta, name) for name in ("reasoning_content", "reasoning", "reasoning_text"))
        for one in map(members, items(delta.get("tool_calls"))):
            call = self._calls.setdefault(integer(one, "index") or 0, Call())
            function = members(one.get("function"))
            call.id = call.id or text(one, "id") or ""
            call.name = call.name or text(function, "name") or ""
            call.arguments += text(function, "arguments") or ""

    def finish(self) -> None:
        self._answer.calls = list(self._calls.values())
        made = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in self._answer.calls
        ]
        self._answer.turns = [{"role": "assistant", "content": self._text, **({"tool_calls": made} if made else {})}]


class _Responses:
    """Items go back as they came, which is what Codex does."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def take(self, body: Json) -> None:
        response = members(body.get("response"))
        self._answer.usage = _usage(responses_usage, response) or self._answer.usage
        match body.get("type"):
            case "error":
                self._answer.problem = text(body, "code") or text(members(body.get("error")), "code") or ""
            case "response.failed":
                self._answer.problem = text(members(response.get("error")), "code") or ""
            case "response.output_text.delta":
                self._answer.spoke = True
            case "response.output_item.done":
                self._item(members(body.get("item")))
            case _:
                pass

    def _item(self, item: Json) -> None:
        self._answer.turns.append(item)
        match item.get("type"):
            case "message":
                self._answer.spoke = True
            case "reasoning":
                self._answer.reasoned = True
            case "function_call":
                names = (text(item, "call_id") or "", text(item, "name") or "", text(item, "arguments") or "")
                self._answer.calls.append(Call(*names))
            case _:
                pass

    def finish(self) -> None:
        """Everything came with the items."""


class _Messages:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._blocks: dict[int, Json] = {}
        self._inputs: dict[int, str] = {}

    def take(self, body: Json) -> None:
        match body.get("type"):
            case "error":
                self._answer.problem = text(members(body.get("error")), "type") or ""
            case "message_start":
                opened = _usage(lambda raw: anthropic_usage(raw, opening=True), members(body.get("message")))
                self._answer.usage = merge_anthropic_usage(self._answer.usage, opened)
            case "message_delta":
                self._answer.usage = merge_anthropic_usage(self._answer.usage, _usage(anthropic_usage, body))
            case "content_block_start":
                self._blocks[integer(body, "index") or 0] = dict(members(body.get("content_block")))
            case "content_block_delta":
                self._delta(integer(body, "index") or 0, members(body.get("delta")))
            case _:
                pass

    def _delta(self, index: int, delta: Json) -> None:
        block = self._blocks.setdefault(index, {})
        for name in ("text", "thinking"):
            if name in delta:
                block[name] = (text(block, name) or "") + (text(delta, name) or "")
        if "signature" in delta:
            block["signature"] = delta["signature"]
        self._inputs[index] = self._inputs.get(index, "") + (text(delta, "partial_json") or "")

    def finish(self) -> None:
        turns: list[object] = []
        for index, block in sorted(self._blocks.items()):
            match block.get("type"):
                case "text":
                    self._answer.spoke |= bool(block.get("text"))
                case "thinking" | "redacted_thinking":
                    self._answer.reasoned = True
                case "tool_use":
                    call = Call(text(block, "id") or "", text(block, "name") or "", self._inputs.get(index, ""))
                    self._answer.calls.append(call)
                    block["input"] = _object(call.arguments.encode())
                case _:
                    pass
            turns.append(block)
        self._answer.turns = [{"role": "assistant", "content": turns}]


_READERS: Final[Mapping[Protocol, type[_Chat | _Responses | _Messages]]] = {
    Protocol.CHAT: _Chat,
    Protocol.RESPONSES: _Responses,
    Protocol.MESSAGES: _Messages,
}


def _object(data: bytes) -> Json:
    try:
        return members(msgspec.json.decode(data))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return {}


def _usage(read: Callable[[bytes], Usage | None], parent: Json) -> Usage | None:
    found = parent.get("usage")
    return None if found is None else read(msgspec.json.encode(found))
