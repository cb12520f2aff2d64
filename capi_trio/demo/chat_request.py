"""A Chat Completions request as JSON, read into a `Prompt`. Pure.

As strict as OpenAI's own server where a gateway's translation could go wrong (types, tool calls and their results),
and as lenient in that members it does not know are ignored.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from capi_trio.demo import catalog
from capi_trio.demo.answers import Refused
from capi_trio.demo.prompt import Call, JsonMode, Prompt, Role, Tool, ToolChoice, Turn, thoughts_for
from capi_trio.demo.seal import unseal

__all__ = ["ChatRequest", "prompt_of"]

_MAX_STOPS: Final = 4


class Part(msgspec.Struct, frozen=True):
    """A part of a message's content; only what the model looks at is kept."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_opaque: str | None = None


class FunctionSpec(msgspec.Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, object] | None = None


class ToolSpec(msgspec.Struct, frozen=True):
    function: FunctionSpec
    type: Literal["function"]


class FunctionName(msgspec.Struct, frozen=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True):
    function: FunctionName
    type: Literal["function"] = "function"


class AllowedTools(msgspec.Struct, frozen=True):
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class ToolChoiceObject(msgspec.Struct, frozen=True):
    """`{type: "function", function}` or `{type: "allowed_tools", allowed_tools}`."""

    type: Literal["function", "allowed_tools"]
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class JsonSchema(msgspec.Struct, frozen=True):
    name: str
    schema: dict[str, object] | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


_Tokens = Annotated[int, Meta(ge=1)]


class ChatRequest(msgspec.Struct, frozen=True):
    """The members that the demo model heeds."""

    model: str | None = None
    messages: list[Message] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=8)] | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    stop: str | list[str] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceObject | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    demo: object = None


_ROLES: Final[Mapping[str, Role]] = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}


def prompt_of(request: ChatRequest, model: catalog.Model) -> Prompt:
    """The request as a prompt. Raises `Refused` (400) for what OpenAI's server would not take either."""
    turns = tuple(_turns(request.messages, model))
    tools = tuple(_tool(spec.function) for spec in request.tools or ())
    asked = request.max_completion_tokens or request.max_tokens
    choice, forced, allowed = _tool_choice(request.tool_choice, tools)
    return Prompt(
        model=model.id,
        turns=turns,
        max_tokens=min(asked or model.max_output_tokens, model.max_output_tokens),
        limited=asked is not None,
        tools=tuple(tool for tool in tools if allowed is None or tool.name in allowed),
        tool_choice=choice,
        forced_tool=forced,
        parallel_calls=request.parallel_tool_calls is not False,
        json_mode=_json_mode(request.response_format),
        stop=_stops(request.stop),
        thoughts=thoughts_for(request.reasoning_effort) if model.reasons else 0,
    )


def _turns(messages: list[Message] | None, model: catalog.Model) -> Iterable[Turn]:
    if messages is None:
        raise Refused.because("Missing required parameter: 'messages'.", "missing_required_parameter", "messages")
    if not messages:
        raise Refused.because("'messages' must hold at least one message.", "empty_array", "messages")
    unanswered: dict[str, str] = {}
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        name = message.name or ""
        if message.role == "tool":
            name = _answered(message, unanswered, where)
        elif unanswered:
            raise _unanswered(unanswered, where)
        for call in message.tool_calls or ():
            unanswered[call.id] = call.function.name
        yield _turn(message, name, model, where)
    if unanswered:
        raise _unanswered(unanswered, f"messages[{len(messages) - 1}]")


def _answered(message: Message, unanswered: dict[str, str], where: str) -> str:
    """Takes the call that a tool message answers off the list, and gives its tool's name."""
    if message.tool_call_id is None or message.tool_call_id not in unanswered:
        text = "A message with role 'tool' must answer a call in the assistant message before it."
        raise Refused.because(text, "invalid_tool_message", where)
    return unanswered.pop(message.tool_call_id)


def _unanswered(unanswered: Mapping[str, str], where: str) -> Refused:
    calls = ", ".join(unanswered)
    message = f"An assistant message with 'tool_calls' must be followed by a tool message for each call: {calls}."
    return Refused.because(message, "missing_tool_message", where)


def _turn(message: Message, name: str, model: catalog.Model, where: str) -> Turn:
    if message.reasoning_opaque is not None and unseal(message.reasoning_opaque) is None:
        raise Refused.because("reasoning_opaque is not this provider's own.", "invalid_reasoning_opaque", where)
    text, images = _content(message.content, where)
    if images and not model.vision:
        raise Refused.because(f"The model `{model.id}` does not accept images.", "unsupported_image", where)
    calls = tuple(Call(call.function.name, (call.function.arguments,)) for call in message.tool_calls or ())
    return Turn(_ROLES[message.role], text, images, calls, name)


def _content(content: str | list[Part] | None, where: str) -> tuple[str, int]:
    if content is None or isinstance(content, str):
        return content or "", 0
    for number, part in enumerate(content):
        if part.type not in ("text", "refusal", "image_url"):
            message = f"Content of type '{part.type}' is not supported: use text or image_url."
            raise Refused.because(message, "unsupported_content", f"{where}.content[{number}]")
    texts = [part.text or part.refusal or "" for part in content if part.type != "image_url"]
    return "\n".join(texts), len(content) - len(texts)


def _tool(function: FunctionSpec) -> Tool:
    return Tool(function.name, function.description or "", function.parameters or {})


def _tool_choice(
    choice: str | ToolChoiceObject | None, tools: tuple[Tool, ...]
) -> tuple[ToolChoice, str | None, frozenset[str] | None]:
    """The mode, the tool that must be called, and the names allowed (None: all)."""
    if not isinstance(choice, ToolChoiceObject):
        mode = ToolChoice(choice or "auto")
        if mode is ToolChoice.REQUIRED and not tools:
            raise Refused.because("tool_choice 'required' needs 'tools'.", "missing_tools", "tool_choice")
        return mode, None, None
    if choice.function is not None:
        _check_offered([choice.function.name], tools)
        return ToolChoice.REQUIRED, choice.function.name, None
    if choice.allowed_tools is not None:
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        _check_offered(names, tools)
        return ToolChoice(choice.allowed_tools.mode), None, frozenset(names)
    raise Refused.because(f"tool_choice needs the member '{choice.type}'.", "invalid_tool_choice", "tool_choice")


def _check_offered(names: list[str], tools: tuple[Tool, ...]) -> None:
    offered = {tool.name for tool in tools}
    missing = [name for name in names if name not in offered]
    if missing or not names:
        message = f"tool_choice names tools that are not in 'tools': {', '.join(missing) or '(none)'}."
        raise Refused.because(message, "invalid_tool_choice", "tool_choice")


def _json_mode(wanted: ResponseFormat | None) -> JsonMode | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JsonMode()
    if wanted.json_schema is None:
        message = "response_format of type 'json_schema' needs 'json_schema'."
        raise Refused.because(message, "missing_required_parameter", "response_format.json_schema")
    return JsonMode(wanted.json_schema.schema or {"type": "object"})


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > _MAX_STOPS:
        raise Refused.because(f"At most {_MAX_STOPS} stop sequences are allowed.", "array_above_max_length", "stop")
    return stops
