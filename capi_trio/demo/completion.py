"""A chat completion as plain data, and whole as JSON, in OpenAI's shape or in those that some servers give it. Pure."""

from typing import Final

from attrs import frozen

from capi_trio.demo import messages
from capi_trio.demo.faults import Options, Quirk, UsageStyle
from capi_trio.demo.prompt import Call, Reply
from capi_trio.demo.seal import seal

__all__ = ["FINGERPRINT", "Choice", "Completion", "Usage", "reasoning_members", "whole_json"]

FINGERPRINT: Final = "fp_capi_demo"


@frozen
class Usage:
    """Token figures of one completion, over all its choices. Those of the cache are part of `prompt`."""

    prompt: int
    completion: int
    reasoning: int
    cached: int = 0
    cache_write: int = 0
    detailed: bool = True

    def as_json(self) -> dict[str, object]:
        usage: dict[str, object] = {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }
        if not self.detailed:
            return usage
        written = {"cache_write_tokens": self.cache_write} if self.cache_write else {}
        return usage | {
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0, **written},
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


def whole_json(completion: Completion, options: Options) -> dict[str, object]:
    """The whole completion as JSON."""
    if Quirk.ANTHROPIC_BODY in options.quirks:
        return _as_message(completion, options)
    split = Quirk.SPLIT_CHOICES in options.quirks
    choices = [
        choice
        for index, entry in enumerate(completion.choices)
        for choice in (_split(entry) if split else [_choice(index, entry, options.quirks)])
    ]
    whole: dict[str, object] = {
        "id": completion.id,
        "object": "chat.completion",
        "created": completion.created,
        "model": completion.model,
        "choices": choices,
        "system_fingerprint": FINGERPRINT,
    }
    if options.usage is not UsageStyle.MISSING:
        whole["usage"] = completion.usage.as_json()
    return whole


def reasoning_members(text: str, quirks: frozenset[Quirk]) -> dict[str, object]:
    """A message's reasoning, under the names that it goes by."""
    if Quirk.REASONING_TEXT in quirks:
        return {"reasoning_text": text, "reasoning_opaque": seal(text)}
    return {"reasoning_content": text}


def _choice(index: int, choice: Choice, quirks: frozenset[Quirk]) -> dict[str, object]:
    reply = choice.reply
    message: dict[str, object] = {
        "role": "assistant",
        "content": None if reply.calls else "".join(reply.text),
        "refusal": None,
        "annotations": [],
    }
    if reply.reasoning:
        message |= reasoning_members("".join(reply.reasoning), quirks)
    if reply.calls:
        pairs = zip(choice.call_ids, reply.calls, strict=True)
        message["tool_calls"] = [_tool_call(call_id, call) for call_id, call in pairs]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reply.finish.value}


def _split(choice: Choice) -> list[dict[str, object]]:
    """As GitHub Copilot gives Claude's answers: the text, then each call, in choices that have no index."""
    texts: dict[str, object] = {"role": "assistant", "content": "".join(choice.reply.text)}
    pairs = zip(choice.call_ids, choice.reply.calls, strict=True)
    calls = [{"role": "assistant", "tool_calls": [_tool_call(call_id, call)]} for call_id, call in pairs]
    finish = choice.reply.finish.value
    return [{"message": message, "finish_reason": finish} for message in (texts, *calls)]


def _tool_call(call_id: str, call: Call) -> dict[str, object]:
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": "".join(call.arguments)}}


def _as_message(completion: Completion, options: Options) -> dict[str, object]:
    first, figures = completion.choices[0], completion.usage
    usage = messages.Usage(
        fresh=figures.prompt - figures.cached - figures.cache_write,
        cache_read=figures.cached,
        cache_write=figures.cache_write,
        output=figures.completion,
        thinking=figures.reasoning,
    )
    message = messages.Message(completion.id, completion.model, first.reply, first.call_ids, usage, shown=True)
    return messages.message_json(message, options)
