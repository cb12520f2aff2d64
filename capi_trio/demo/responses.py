"""POST /v1/responses: OpenAI's Responses, streamed and whole (wire.md 1.2). Pure."""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from attrs import frozen

from capi_trio.demo import catalog
from capi_trio.demo.answers import Answer, Refused, Request, World, decode
from capi_trio.demo.directive import given_options, obey
from capi_trio.demo.faults import Fault, Options, Quirk, UsageStyle
from capi_trio.demo.prompt import Finish, Reply
from capi_trio.demo.response_object import (
    Echo,
    ItemText,
    Plan,
    Usage,
    incomplete_reason,
    output_items,
    response_json,
)
from capi_trio.demo.responses_request import ENCRYPTED_REASONING, ResponsesRequest, custom_tools, prompt_of
from capi_trio.demo.script import prompt_tokens, reply_to
from capi_trio.demo.wire import FAULT_PROBLEM, EventRole, ServerEvent, stream_answer, whole_answer

__all__ = ["answer", "respond"]

# Padded deltas come in multiples of this many bytes, as far as their text goes.
_PADDING: Final = 16
_SILENCE: Final = Reply((), (), (), Finish.STOP, 0, 0)


def answer(incoming: Request, world: World) -> Answer:
    """The answer to a request. Raises `Refused` for one that OpenAI's server would not take."""
    return respond(decode(incoming.body, ResponsesRequest), decode(incoming.body, Echo), world)


def respond(request: ResponsesRequest, echo: Echo, world: World, *, generate: bool = True) -> Answer:
    """The answer to a request whose body is read; without `generate`, nothing is said in it.

    Raises `Refused` for a request that OpenAI's server would not take.
    """
    streaming = bool(request.stream)
    given = given_options(request.demo, streaming=streaming)
    model = catalog.serving(request.model, catalog.RESPONSES_ENDPOINT)
    prompt, options = obey(prompt_of(request, model), given, streaming=streaming)
    tokens = prompt_tokens(prompt)
    if tokens > model.max_prompt_tokens:
        message = "Your input exceeds the context window of this model. Please adjust your input and try again."
        raise Refused.because(message, "context_length_exceeded", "input")
    reply = reply_to(prompt) if generate else _SILENCE
    plan = _plan(prompt.model, reply, tokens, request, echo, options, world)
    events = _Events(plan, options.quirks)
    failed = _Failure(plan, options.fault)
    if streaming:
        return stream_answer(events.events(), failed.event, options, world)
    status = "incomplete" if incomplete_reason(plan.reply) else "completed"
    whole = response_json(plan, status, [entry.item for entry in output_items(plan)])
    return whole_answer(whole, options, failed=failed.response())


def _plan(
    model: str, reply: Reply, tokens: int, request: ResponsesRequest, echo: Echo, options: Options, world: World
) -> Plan:
    response_id = world.new_id("resp_")
    custom = custom_tools(request)
    prefixes = [prefix for prefix, present in (("rs_", reply.reasoning), ("msg_", reply.text)) if present]
    prefixes += ["ctc_" if call.name in custom else "fc_" for call in reply.calls]
    cached = min(options.cached, tokens)
    usage = Usage(
        prompt=tokens,
        cached=cached,
        cache_write=min(options.cache_write, tokens - cached),
        output=reply.completion_tokens,
        reasoning=reply.reasoning_tokens,
    )
    return Plan(
        id=response_id,
        created=int(world.clock()),
        model=model,
        reply=reply,
        item_ids=tuple(world.new_id(prefix) for prefix in prefixes),
        call_ids=tuple(world.new_id("call_") for _ in reply.calls),
        custom=custom,
        summarised=bool(request.reasoning and request.reasoning.summary) and Quirk.EMPTY_SUMMARY not in options.quirks,
        sealed=ENCRYPTED_REASONING in (request.include or ()),
        usage=None if options.usage is UsageStyle.MISSING else usage,
        echo=echo,
    )


@frozen
class _Failure:
    """How a response fails in mid-stream: an `error` event, or `response.failed` for the fault of that name."""

    plan: Plan
    fault: Fault | None

    def response(self) -> dict[str, object]:
        error = {"code": "server_error", "message": FAULT_PROBLEM.message}
        return response_json(self.plan, "failed", error=error)

    def event(self, number: int) -> ServerEvent:
        kind = "response.failed" if self.fault is Fault.FAILED else "error"
        members: dict[str, object] = {"response": self.response()}
        if kind == "error":
            members = {"code": FAULT_PROBLEM.code, "message": FAULT_PROBLEM.message, "param": None}
        return ServerEvent(msgspec.json.encode({"type": kind, "sequence_number": number, **members}), "closing", kind)


class _Events:
    """The events of a streamed response, numbered from 0."""

    def __init__(self, plan: Plan, quirks: frozenset[Quirk]) -> None:
        self._plan = plan
        self._quirks = quirks
        self._number = 0

    def events(self) -> Iterator[ServerEvent]:
        plan = self._plan
        for state in ("created", "in_progress"):
            yield self._lifecycle(state, response_json(plan, "in_progress"))
        entries = output_items(plan)
        for index, entry in enumerate(entries):
            yield from self._item(index, entry)
        state = "incomplete" if incomplete_reason(plan.reply) else "completed"
        output = [self._own(entry.item) for entry in entries]
        yield self._lifecycle(state, response_json(plan, state, output), "terminator")

    def _item(self, index: int, entry: ItemText) -> Iterator[ServerEvent]:
        at: dict[str, object] = {"output_index": index}
        yield self._event("response.output_item.added", at | {"item": self._own(_begun(entry.item))})
        match entry.item["type"]:
            case "reasoning":
                yield from self._summary(entry, at)
            case "message":
                yield from self._text(entry, at)
            case "function_call":
                yield from self._pieces("response.function_call_arguments", entry, at, "arguments")
            case _:
                yield from self._pieces("response.custom_tool_call_input", entry, at, "input")
        yield self._event("response.output_item.done", at | {"item": self._own(entry.item)})

    def _summary(self, entry: ItemText, at: dict[str, object]) -> Iterator[ServerEvent]:
        if not entry.pieces:
            return
        at = at | {"summary_index": 0}
        part = {"type": "summary_text", "text": ""}
        yield self._of_item("response.reasoning_summary_part.added", entry, at | {"part": part})
        yield from self._pieces("response.reasoning_summary_text", entry, at, "text")
        yield self._of_item("response.reasoning_summary_part.done", entry, at | {"part": part | {"text": entry.text}})

    def _text(self, entry: ItemText, at: dict[str, object]) -> Iterator[ServerEvent]:
        at = at | {"content_index": 0}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._of_item("response.content_part.added", entry, at | {"part": part})
        yield from self._pieces("response.output_text", entry, at | {"logprobs": []}, "text")
        yield self._of_item("response.content_part.done", entry, at | {"part": part | {"text": entry.text}})

    def _pieces(self, kind: str, entry: ItemText, at: dict[str, object], member: str) -> Iterator[ServerEvent]:
        for piece in () if Quirk.DONE_ONLY in self._quirks else entry.pieces:
            padding: dict[str, object] = {}
            if Quirk.OBFUSCATION in self._quirks:
                padding = {"obfuscation": "x" * (_PADDING - len(piece) % _PADDING)}
            yield self._of_item(f"{kind}.delta", entry, at | {"delta": piece} | padding, "content")
        done = at | {member: entry.text}
        if member == "arguments":
            done["name"] = entry.item["name"]
        yield self._of_item(f"{kind}.done", entry, done)

    def _lifecycle(self, state: str, response: dict[str, object], role: EventRole = "opening") -> ServerEvent:
        return self._event(f"response.{state}", {"response": self._own(response)}, role)

    def _of_item(
        self, kind: str, entry: ItemText, members: dict[str, object], role: EventRole = "opening"
    ) -> ServerEvent:
        return self._event(kind, {"item_id": self._own(entry.item)["id"], **members}, role)

    def _event(self, kind: str, members: dict[str, object], role: EventRole = "opening") -> ServerEvent:
        event = {"type": kind, "sequence_number": self._number, **members}
        self._number += 1
        return ServerEvent(msgspec.json.encode(event), role, kind)

    def _own(self, thing: Mapping[str, object]) -> dict[str, object]:
        """An item or response with the id that it goes by in the next event."""
        turn = f"_{self._number}" if Quirk.ROTATING_IDS in self._quirks else ""
        return {**thing, "id": f"{thing['id']}{turn}"}


def _begun(item: Mapping[str, object]) -> dict[str, object]:
    """The item as it is when it is added: nothing in it yet."""
    empty: dict[str, object] = {"summary": [], "content": [], "arguments": "", "input": "", "status": "in_progress"}
    begun = {name: empty.get(name, value) for name, value in item.items()}
    begun.pop("encrypted_content", None)
    return begun
