"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages, streamed and whole (wire.md 1.3). Pure."""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from attrs import evolve, frozen

from capi_core.errors import Problem
from capi_trio.demo import catalog
from capi_trio.demo.answers import Answer, ErrorShape, Refused, Request, World, decode
from capi_trio.demo.directive import given_options, obey
from capi_trio.demo.faults import Options, Quirk, UsageStyle, parse_options
from capi_trio.demo.messages_request import MessagesRequest, check_version, prompt_of
from capi_trio.demo.prompt import Call, Finish, Prompt, Reply
from capi_trio.demo.script import prompt_tokens, reply_to
from capi_trio.demo.seal import seal
from capi_trio.demo.wire import FAULT_PROBLEM, EventRole, ServerEvent, stream_answer, whole_answer

__all__ = ["answer", "count_tokens", "error_shape", "message_json"]

_KINDS: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_REASONS: Final[Mapping[Finish, str]] = {
    Finish.LENGTH: "max_tokens",
    Finish.TOOL_CALLS: "tool_use",
    Finish.STOP: "end_turn",
}
_DONE: Final = ServerEvent(b"[DONE]", "terminator")


@frozen
class Usage:
    """Token figures of one message. Those of the prompt add up to the whole of it."""

    fresh: int
    cache_read: int
    cache_write: int
    output: int
    thinking: int

    def as_json(self) -> dict[str, object]:
        return {
            "input_tokens": self.fresh,
            "cache_creation_input_tokens": self.cache_write,
            "cache_read_input_tokens": self.cache_read,
            "output_tokens": self.output,
            "output_tokens_details": {"thinking_tokens": self.thinking},
        }

    def at_start(self) -> dict[str, object]:
        """As message_start gives it: hardly anything has been said yet."""
        started = evolve(self, output=min(1, self.output), thinking=0).as_json()
        del started["output_tokens_details"]
        lifetimes = {"ephemeral_5m_input_tokens": self.cache_write, "ephemeral_1h_input_tokens": 0}
        return started | {"cache_creation": lifetimes, "service_tier": "standard"}


@frozen
class Message:
    """Everything an answer says, before it is streamed or sent whole. `shown` is False for thinking kept back."""

    id: str
    model: str
    reply: Reply
    call_ids: tuple[str, ...]
    usage: Usage
    shown: bool


def answer(incoming: Request, world: World) -> Answer:
    """The answer to a request. Raises `Refused` for one that Anthropic's server would not take."""
    request = decode(incoming.body, MessagesRequest)
    streaming = bool(request.stream)
    given = given_options(request.demo, streaming=streaming)
    model, prompt = _read(incoming, request)
    if request.max_tokens is None:
        raise Refused.because("max_tokens: Field required", "invalid_request")
    prompt, options = obey(prompt, given, streaming=streaming)
    tokens = prompt_tokens(prompt)
    if tokens > model.max_prompt_tokens:
        too_long = f"prompt is too long: {tokens} tokens > {model.max_prompt_tokens} maximum"
        raise Refused.because(too_long, "invalid_request")
    shown = request.thinking is None or request.thinking.display != "omitted"
    message = _complete(prompt, tokens, options, shown, world)
    shape = error_shape(incoming)
    if not streaming:
        return whole_answer(message_json(message, options), options, shape)
    error = ServerEvent(msgspec.json.encode(shape(FAULT_PROBLEM)), "closing", "error")
    return stream_answer(_Events(message, options).events(), lambda _number: error, options, world, shape)


def count_tokens(incoming: Request, _world: World) -> Answer:
    """The answer to a request to count: the figure that the same prompt has when it is answered.

    A directive is meant for that answer: here it is only taken out.
    """
    request = decode(incoming.body, MessagesRequest)
    given = parse_options(request.demo, streaming=False)
    _, prompt = _read(incoming, request)
    prompt, options = obey(prompt, given, streaming=False)
    return whole_answer({"input_tokens": prompt_tokens(prompt)}, options, error_shape(incoming))


def error_shape(incoming: Request) -> ErrorShape:
    """How Anthropic's servers put problems: `{"type": "error", "error": {type, message}, "request_id"}`."""

    def shape(problem: Problem) -> dict[str, object]:
        default = "api_error" if problem.status >= 500 else "invalid_request_error"
        error = {"type": _KINDS.get(problem.status, default), "message": problem.message}
        return {"type": "error", "error": error, "request_id": incoming.id}

    return shape


def _read(incoming: Request, request: MessagesRequest) -> tuple[catalog.Model, Prompt]:
    check_version(incoming.header(b"anthropic-version"), request)
    model = catalog.serving(request.model, catalog.MESSAGES_ENDPOINT)
    return model, prompt_of(request, model)


def _complete(prompt: Prompt, tokens: int, options: Options, shown: bool, world: World) -> Message:
    message_id = world.new_id("msg_")
    reply = reply_to(prompt)
    call_ids = tuple(world.new_id("toolu_") for _ in reply.calls)
    read = min(options.cached, tokens)
    written = min(options.cache_write, tokens - read)
    usage = Usage(tokens - read - written, read, written, reply.completion_tokens, reply.reasoning_tokens)
    return Message(message_id, prompt.model, reply, call_ids, usage, shown)


def message_json(message: Message, options: Options) -> dict[str, object]:
    """The whole message as JSON."""
    reply = message.reply
    content: list[dict[str, object]] = []
    if reply.reasoning:
        thinking = "".join(reply.reasoning)
        if Quirk.REDACTED_THINKING in options.quirks:
            content.append({"type": "redacted_thinking", "data": seal(thinking)})
        else:
            shown = thinking if message.shown else ""
            content.append({"type": "thinking", "thinking": shown, "signature": seal(thinking)})
    if reply.text:
        content.append({"type": "text", "text": "".join(reply.text)})
    content += [
        {"type": "tool_use", "id": call_id, "name": call.name, "input": _input(call)}
        for call_id, call in zip(message.call_ids, reply.calls, strict=True)
    ]
    usage = {} if options.usage is UsageStyle.MISSING else {"usage": message.usage.as_json()}
    return _head(message) | {"content": content, **_stop(reply), **usage}


def _head(message: Message) -> dict[str, object]:
    return {
        "id": message.id,
        "type": "message",
        "role": "assistant",
        "model": message.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _stop(reply: Reply) -> dict[str, object]:
    reason = _REASONS[reply.finish] if reply.stop_sequence is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": reply.stop_sequence}


def _input(call: Call) -> object:
    """The arguments as a value. Those that the token limit cut short are no JSON; there is nothing to give then."""
    try:
        return msgspec.json.decode("".join(call.arguments))
    except msgspec.DecodeError:
        return {}


class _Events:
    """The events of a streamed message."""

    def __init__(self, message: Message, options: Options) -> None:
        self._message = message
        self._quirks = options.quirks
        self._reports = options.usage is not UsageStyle.MISSING
        self._index = -1

    def events(self) -> Iterator[ServerEvent]:
        message = self._message
        usage: dict[str, object] = {"usage": message.usage.at_start()} if self._reports else {}
        yield self._event("message_start", "opening", {"message": _head(message) | usage})
        yield self._event("ping", "opening", {})
        if message.reply.reasoning:
            yield from self._thinking("".join(message.reply.reasoning))
        if message.reply.text:
            deltas = [{"type": "text_delta", "text": piece} for piece in message.reply.text]
            yield from self._block({"type": "text", "text": ""}, deltas)
        for call_id, call in zip(message.call_ids, message.reply.calls, strict=True):
            # The first fragment is empty, as Anthropic's is.
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *call.arguments)]
            yield from self._block({"type": "tool_use", "id": call_id, "name": call.name, "input": {}}, deltas)
        final: dict[str, object] = {"usage": message.usage.as_json()} if self._reports else {}
        yield self._event("message_delta", "closing", {"delta": _stop(message.reply), **final})
        if Quirk.DONE_INSTEAD_OF_STOP not in self._quirks:
            yield self._event("message_stop", "terminator", {})
        if self._quirks & {Quirk.DONE_INSTEAD_OF_STOP, Quirk.DONE_AFTER_STOP}:
            yield _DONE

    def _thinking(self, thinking: str) -> Iterator[ServerEvent]:
        signature = seal(thinking)
        if Quirk.REDACTED_THINKING in self._quirks:
            yield from self._block({"type": "redacted_thinking", "data": signature}, [])
            return
        pieces = self._message.reply.reasoning if self._message.shown else ()
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces]
        half = len(signature) // 2 if Quirk.SPLIT_SIGNATURE in self._quirks else len(signature)
        parts = [part for part in (signature[:half], signature[half:]) if part]
        deltas += [{"type": "signature_delta", "signature": part} for part in parts]
        yield from self._block({"type": "thinking", "thinking": "", "signature": ""}, deltas)

    def _block(self, block: dict[str, object], deltas: list[dict[str, str]]) -> Iterator[ServerEvent]:
        self._index += 1
        index: dict[str, object] = {"index": self._index}
        yield self._event("content_block_start", "opening", index | {"content_block": block})
        for delta in deltas:
            role: EventRole = "opening" if delta["type"] == "signature_delta" else "content"
            yield self._event("content_block_delta", role, index | {"delta": delta})
        yield self._event("content_block_stop", "opening", index)

    def _event(self, kind: str, role: EventRole, members: dict[str, object]) -> ServerEvent:
        data = msgspec.json.encode({"type": kind, **members})
        return ServerEvent(data, role, None if Quirk.NO_EVENT_NAMES in self._quirks else kind)
