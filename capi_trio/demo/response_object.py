"""The `response` object of OpenAI's Responses, and the items of its output (wire.md 1.2). Pure."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from attrs import frozen

from capi_trio.demo.prompt import Call, Finish, Reply
from capi_trio.demo.seal import seal

__all__ = ["Echo", "ItemText", "Plan", "Usage", "incomplete_reason", "output_items", "response_json"]


@frozen
class Usage:
    """Token figures of one response; those of the cache are part of `prompt`."""

    prompt: int
    cached: int
    cache_write: int
    output: int
    reasoning: int

    def as_json(self) -> dict[str, object]:
        return {
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": self.cache_write},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.prompt + self.output,
        }


class Echo(msgspec.Struct, frozen=True):
    """What a response repeats of its request, as it came."""

    instructions: object = None
    max_output_tokens: object = None
    metadata: object = None
    parallel_tool_calls: object = None
    previous_response_id: object = None
    reasoning: object = None
    store: object = None
    text: object = None
    tool_choice: object = None
    tools: list[dict[str, object]] | None = None

    def as_json(self) -> dict[str, object]:
        """The members, with the server's defaults for those that were not sent."""
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "reasoning": self.reasoning or {"effort": None, "summary": None},
            "store": self.store is not False,
            "temperature": 1.0,
            "text": self.text or {"format": {"type": "text"}},
            "tool_choice": self.tool_choice or "auto",
            "tools": [_FUNCTION | tool if tool.get("type") == "function" else tool for tool in self.tools or ()],
            "top_p": 1.0,
            "truncation": "disabled",
        }


_FUNCTION: Final[dict[str, object]] = {"parameters": None, "strict": True}


@frozen
class Plan:
    """Everything a response says, before it is streamed or sent whole. `created` in Unix seconds.

    `summarised`: the reasoning is shown in a summary. `sealed`: it is given in its seal too. `custom`: the tools
    that take a text. `item_ids` has an id for each item: reasoning, message, then the calls with their `call_ids`.
    """

    id: str
    created: int
    model: str
    reply: Reply
    item_ids: tuple[str, ...]
    call_ids: tuple[str, ...]
    custom: frozenset[str]
    summarised: bool
    sealed: bool
    usage: Usage | None
    echo: Echo


@frozen
class ItemText:
    """An item in its final form, and the pieces in which its text is streamed."""

    item: dict[str, object]
    pieces: tuple[str, ...]
    text: str


def incomplete_reason(reply: Reply) -> str | None:
    """Why the response is incomplete, or None when it is not."""
    return "max_output_tokens" if reply.finish is Finish.LENGTH else None


def output_items(plan: Plan) -> tuple[ItemText, ...]:
    """The items of the output in order. The last one is incomplete when the response is."""
    reply = plan.reply
    ids = iter(plan.item_ids)
    items: list[ItemText] = []
    if reply.reasoning:
        items.append(_reasoning(plan, next(ids)))
    if reply.text:
        items.append(_message(reply, next(ids)))
    for call_id, call in zip(plan.call_ids, reply.calls, strict=True):
        items.append(_call(call, next(ids), call_id, call.name in plan.custom))
    if items and incomplete_reason(reply) and "status" in items[-1].item:
        items[-1].item["status"] = "incomplete"
    return tuple(items)


def response_json(
    plan: Plan, status: str, output: Sequence[Mapping[str, object]] = (), error: object = None
) -> dict[str, object]:
    """The response object in that state."""
    ended = status in ("completed", "incomplete")
    reason = incomplete_reason(plan.reply) if status == "incomplete" else None
    return {
        "id": plan.id,
        "object": "response",
        "created_at": plan.created,
        "status": status,
        "error": error,
        "incomplete_details": reason and {"reason": reason},
        "model": plan.model,
        "output": output,
        **plan.echo.as_json(),
        "usage": plan.usage.as_json() if ended and plan.usage else None,
    }


def _reasoning(plan: Plan, item_id: str) -> ItemText:
    text = "".join(plan.reply.reasoning)
    summary = [{"type": "summary_text", "text": text}] if plan.summarised else []
    item: dict[str, object] = {"id": item_id, "type": "reasoning", "summary": summary}
    if plan.sealed:
        item["encrypted_content"] = seal(text)
    return ItemText(item, plan.reply.reasoning if plan.summarised else (), text)


def _message(reply: Reply, item_id: str) -> ItemText:
    text = "".join(reply.text)
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item: dict[str, object] = {"id": item_id, "type": "message", "status": "completed", "role": "assistant"}
    return ItemText(item | {"content": [part]}, reply.text, text)


def _call(call: Call, item_id: str, call_id: str, custom: bool) -> ItemText:
    arguments = "".join(call.arguments)
    common: dict[str, object] = {"id": item_id, "status": "completed", "call_id": call_id, "name": call.name}
    if not custom:
        return ItemText(common | {"type": "function_call", "arguments": arguments}, call.arguments, arguments)
    text = _input(arguments)
    return ItemText(common | {"type": "custom_tool_call", "input": text}, (text,), text)


def _input(arguments: str) -> str:
    """The one text that a custom tool takes; empty when the token limit cut it short."""
    try:
        return msgspec.json.decode(arguments, type=dict[str, str]).get("input", "")
    except msgspec.DecodeError:
        return ""
