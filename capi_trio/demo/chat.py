"""POST /v1/chat/completions: OpenAI's Chat Completions, streamed and whole (wire.md 1.1). Pure."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Final

import msgspec
from attrs import evolve, frozen

from capi_trio.demo import catalog
from capi_trio.demo.answers import Answer, Refused, Request, World, decode, error_object
from capi_trio.demo.chat_request import ChatRequest, prompt_of
from capi_trio.demo.faults import Options, UsageStyle, parse_options
from capi_trio.demo.prompt import Prompt, Reply
from capi_trio.demo.script import prompt_tokens, reply_to
from capi_trio.demo.wire import FAULT_PROBLEM, ServerEvent, stream_answer, whole_answer

__all__ = ["answer"]

_FINGERPRINT: Final = "fp_capi_demo"
_DONE: Final = ServerEvent(b"[DONE]", "terminator")
_ERROR: Final = ServerEvent(msgspec.json.encode(error_object(FAULT_PROBLEM)), "closing")


@frozen
class Usage:
    """Token figures of one completion, over all its choices."""

    prompt: int
    completion: int
    reasoning: int

    def as_json(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


@frozen
class Choice:
    """One reply with the ids of its calls."""

    reply: Reply
    call_ids: tuple[str, ...]


@frozen
class Completion:
    """Everything an answer says, before it is streamed or sent whole. `created` in Unix seconds."""

    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage


def answer(incoming: Request, world: World) -> Answer:
    """The answer to a request. Raises `Refused` for one that OpenAI's server would not take."""
    request = decode(incoming.body, ChatRequest)
    options = parse_options(request.demo, streaming=bool(request.stream))
    model = catalog.serving(request.model, catalog.CHAT_ENDPOINT)
    prompt = prompt_of(request, model, options)
    tokens = prompt_tokens(prompt)
    if tokens > model.max_prompt_tokens:
        message = (
            f"This model's maximum prompt length is {model.max_prompt_tokens} tokens. "
            f"However, your messages resulted in {tokens} tokens."
        )
        raise Refused.because(message, "context_length_exceeded", "messages")
    completion = _complete(prompt, tokens, request.n or 1, world)
    if not request.stream:
        return whole_answer(_whole(completion, options), options)
    asked = request.stream_options is not None and bool(request.stream_options.include_usage)
    return stream_answer(_Chunks(completion, options, asked).events(), _ERROR, options, world)


def _complete(prompt: Prompt, tokens: int, n: int, world: World) -> Completion:
    choices = []
    for variant in range(n):
        reply = reply_to(prompt, variant)
        choices.append(Choice(reply, tuple(world.new_id("call_") for _ in reply.calls)))
    usage = Usage(
        prompt=tokens,
        completion=sum(choice.reply.completion_tokens for choice in choices),
        reasoning=sum(choice.reply.reasoning_tokens for choice in choices),
    )
    return Completion(world.new_id("chatcmpl-"), int(world.clock()), prompt.model, tuple(choices), usage)


def _whole(completion: Completion, options: Options) -> dict[str, object]:
    whole: dict[str, object] = {
        "id": completion.id,
        "object": "chat.completion",
        "created": completion.created,
        "model": completion.model,
        "choices": [_choice(index, choice) for index, choice in enumerate(completion.choices)],
        "system_fingerprint": _FINGERPRINT,
    }
    if options.usage is not UsageStyle.MISSING:
        whole["usage"] = completion.usage.as_json()
    return whole


def _choice(index: int, choice: Choice) -> dict[str, object]:
    reply = choice.reply
    message: dict[str, object] = {
        "role": "assistant",
        "content": None if reply.calls else "".join(reply.text),
        "refusal": None,
        "annotations": [],
    }
    if reply.reasoning:
        message["reasoning_content"] = "".join(reply.reasoning)
    if reply.calls:
        message["tool_calls"] = [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": "".join(call.arguments)},
            }
            for call_id, call in zip(choice.call_ids, reply.calls, strict=True)
        ]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reply.finish.value}


class _Chunks:
    """The chunks of a streamed completion, with usage in the style asked for."""

    def __init__(self, completion: Completion, options: Options, asked: bool) -> None:
        self._completion = completion
        self._style = options.usage
        self._asked = asked and self._style is UsageStyle.NORMAL
        self._sent = 0

    def events(self) -> Iterator[ServerEvent]:
        choices = self._completion.choices
        for index, choice in enumerate(choices):
            content = None if choice.reply.calls else ""
            delta: dict[str, object] = {"role": "assistant", "content": content, "refusal": None}
            yield ServerEvent(self._chunk(index, delta), "opening")
        # The choices take turns, as they do when a server samples them side by side.
        for row in zip_longest(*(_deltas(choice) for choice in choices)):
            for index, delta in enumerate(row):
                if delta is not None:
                    self._sent += 1
                    yield ServerEvent(self._chunk(index, delta), "content")
        for index, choice in enumerate(choices):
            is_last = index == len(choices) - 1
            yield ServerEvent(self._finish(index, choice, is_last), "closing")
        if self._asked or self._style is UsageStyle.UNASKED:
            yield ServerEvent(self._usage_chunk(), "closing")
        yield _DONE
        if self._style is UsageStyle.AFTER_DONE:
            yield ServerEvent(self._usage_chunk(), "closing")

    def _chunk(self, index: int, delta: dict[str, object], finish: str | None = None) -> bytes:
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

    def _usage_chunk(self) -> bytes:
        return self._encode([], {"usage": self._completion.usage.as_json()})

    def _encode(self, choices: list[dict[str, object]], usage: dict[str, object]) -> bytes:
        completion = self._completion
        chunk: dict[str, object] = {
            "id": completion.id,
            "object": "chat.completion.chunk",
            "created": completion.created,
            "model": completion.model,
            "system_fingerprint": _FINGERPRINT,
            "choices": choices,
            **usage,
        }
        return msgspec.json.encode(chunk)


def _deltas(choice: Choice) -> Iterator[dict[str, object]]:
    for piece in choice.reply.reasoning:
        yield {"reasoning_content": piece}
    for piece in choice.reply.text:
        yield {"content": piece}
    for index, (call_id, call) in enumerate(zip(choice.call_ids, choice.reply.calls, strict=True)):
        function = {"name": call.name, "arguments": ""}
        yield {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        for piece in call.arguments:
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
