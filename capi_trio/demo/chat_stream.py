"""A chat completion as the chunks of a stream, in OpenAI's order or in those that some servers give it. Pure."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Final

import msgspec
from attrs import evolve

from capi_trio.demo.completion import FINGERPRINT, Choice, Completion, Usage
from capi_trio.demo.faults import Options, Quirk, UsageStyle
from capi_trio.demo.seal import seal
from capi_trio.demo.wire import EventRole, ServerEvent

__all__ = ["Chunks"]

_DONE: Final = ServerEvent(b"[DONE]", "terminator")

_Delta = dict[str, object]


class Chunks:
    """The chunks of a streamed completion, with usage in the style asked for; `asked`: by `include_usage`."""

    def __init__(self, completion: Completion, options: Options, asked: bool) -> None:
        self._completion = completion
        self._style = options.usage
        self._quirks = options.quirks
        self._asked = asked and self._style is UsageStyle.NORMAL
        self._sent = 0

    def events(self) -> Iterator[ServerEvent]:
        """The events in order."""
        choices = self._completion.choices
        yield from self._opening()
        # The choices take turns, as they do when a server samples them side by side.
        for row in zip_longest(*(_deltas(choice, self._quirks) for choice in choices)):
            for index, delta in enumerate(row):
                if delta is not None:
                    self._sent += 1
                    yield ServerEvent(self._chunk(index, delta), "content")
        for _ in range(self._finishes()):
            for index, choice in enumerate(choices):
                is_last = index == len(choices) - 1
                yield ServerEvent(self._finish(index, choice, is_last), "closing")
        if self._asked or self._style is UsageStyle.UNASKED:
            yield self._usage_chunk()
        yield _DONE
        if self._style is UsageStyle.AFTER_DONE:
            yield self._usage_chunk()

    def _opening(self) -> Iterator[ServerEvent]:
        if Quirk.FILTER_RESULTS_FIRST in self._quirks:
            results = [{"prompt_index": 0, "content_filter_results": {}}]
            yield self._other([], {"id": "", "prompt_filter_results": results}, "opening")
        for index, choice in enumerate(self._completion.choices):
            content = None if choice.reply.calls else ""
            yield ServerEvent(self._chunk(index, {"role": "assistant", "content": content, "refusal": None}), "opening")
        if Quirk.CHOICES_NULL in self._quirks:
            yield self._other(None, {"copilot_references": []}, "opening")

    def _finishes(self) -> int:
        """How often the finish comes."""
        if Quirk.NO_FINISH in self._quirks:
            return 0
        return 2 if Quirk.DUPLICATE_FINISH in self._quirks else 1

    def _chunk(self, index: int, delta: _Delta, finish: str | None = None) -> bytes:
        usage: dict[str, object] = {}
        if self._asked:
            usage = {"usage": None}
        elif self._style is UsageStyle.EVERY_CHUNK:
            usage = {"usage": self._running().as_json()}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._encode([choice], usage)

    def _finish(self, index: int, choice: Choice, is_last: bool) -> bytes:
        finish = choice.reply.finish.value
        if is_last and self._style in (UsageStyle.WITH_FINISH, UsageStyle.EVERY_CHUNK):
            final = {"index": index, "delta": {}, "logprobs": None, "finish_reason": finish}
            return self._encode([final], {"usage": self._completion.usage.as_json()})
        return self._chunk(index, {}, finish)

    def _running(self) -> Usage:
        """The figures so far: a token for each event, never more than there will be."""
        usage = self._completion.usage
        completion = min(self._sent, usage.completion)
        return evolve(usage, completion=completion, reasoning=min(completion, usage.reasoning))

    def _usage_chunk(self) -> ServerEvent:
        return self._other([], {"usage": self._completion.usage.as_json()}, "closing")

    def _other(self, choices: list[_Delta] | None, members: dict[str, object], role: EventRole) -> ServerEvent:
        """A chunk that says nothing for any choice."""
        return ServerEvent(self._encode(choices, members), role)

    def _encode(self, choices: list[_Delta] | None, members: dict[str, object]) -> bytes:
        completion = self._completion
        chunk: dict[str, object] = {
            "id": completion.id,
            "object": "chat.completion.chunk",
            "created": completion.created,
            "model": completion.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }
        return msgspec.json.encode(chunk | members)


def _deltas(choice: Choice, quirks: frozenset[Quirk]) -> Iterator[_Delta]:
    named = Quirk.REASONING_TEXT in quirks
    for piece in choice.reply.reasoning:
        yield {"reasoning_text" if named else "reasoning_content": piece}
    if named and choice.reply.reasoning:
        yield {"content": "", "reasoning_opaque": seal("".join(choice.reply.reasoning))}
    for piece in choice.reply.text:
        yield {"content": piece}
    calls = [_call_deltas(choice, index, quirks) for index in range(len(choice.call_ids))]
    if Quirk.INTERLEAVED_CALLS in quirks:
        yield from (delta for row in zip_longest(*calls) for delta in row if delta is not None)
    else:
        yield from (delta for call in calls for delta in call)


def _call_deltas(choice: Choice, index: int, quirks: frozenset[Quirk]) -> Iterator[_Delta]:
    call, call_id = choice.reply.calls[index], choice.call_ids[index]
    identity: _Delta = {"index": index, "id": call_id, "type": "function"}
    function: _Delta = {"function": {"name": call.name, "arguments": ""}}
    if Quirk.SPLIT_TOOL_ID in quirks:
        yield {"tool_calls": [identity]}
        yield {"tool_calls": [{"index": index} | function]}
    else:
        yield {"tool_calls": [identity | function]}
    for piece in call.arguments:
        yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
