"""A Responses request as JSON, read into a `Prompt` (wire.md 1.2). Pure.

As strict as OpenAI's own server where a gateway's translation could go wrong: items that belong together, kinds of
content by role, reasoning that comes back.
"""

from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec
from attrs import frozen
from msgspec import Meta

from capi_trio.demo import catalog
from capi_trio.demo.answers import Refused
from capi_trio.demo.prompt import Call, JsonMode, Prompt, Role, Tool, ToolChoice, Turn, thoughts_for
from capi_trio.demo.seal import unseal

__all__ = ["ENCRYPTED_REASONING", "ResponsesRequest", "custom_tools", "prompt_of"]

ENCRYPTED_REASONING: Final = "reasoning.encrypted_content"
# What the model is told about a custom tool: it takes one text.
_CUSTOM_SCHEMA: Final[dict[str, object]] = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
}


class Part(msgspec.Struct, frozen=True):
    """A part of a message's content or of a call's output."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct, frozen=True):
    """An item of the input. Without `type` it is a message."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | list[Part] | None = None
    encrypted_content: str | None = None


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool; those that are neither "function" nor "custom" run at the server and are never used here."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, object] | None = None


class ToolName(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None


class ToolChoiceSpec(msgspec.Struct, frozen=True):
    """`{type: "function"|"custom", name}` or `{type: "allowed_tools", mode, tools}`."""

    type: Literal["function", "custom", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[ToolName] | None = None


class Reasoning(msgspec.Struct, frozen=True):
    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class Format(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, object] | None = None


class Text(msgspec.Struct, frozen=True):
    format: Format | None = None


class ResponsesRequest(msgspec.Struct, frozen=True):
    """The members that the demo model heeds, and those that it refuses."""

    model: str | None = None
    input: str | list[Item] | None = None
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Meta(ge=16)] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceSpec | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    include: list[str] | None = None
    previous_response_id: str | None = None
    demo: object = None


@frozen
class _Choice:
    """What may be called; `names` None: every tool."""

    mode: ToolChoice
    forced: str | None = None
    names: frozenset[str] | None = None


def prompt_of(request: ResponsesRequest, model: catalog.Model) -> Prompt:
    """The request as a prompt. Raises `Refused` (400) for what OpenAI's server would not take either."""
    if request.previous_response_id is not None:
        message = f"Previous response with id '{request.previous_response_id}' not found."
        raise Refused.because(message, "previous_response_not_found", "previous_response_id")
    tools = tuple(_tools(request))
    choice = _tool_choice(request.tool_choice, tools)
    instructions = (Turn(Role.SYSTEM, request.instructions),) if request.instructions else ()
    asked = request.max_output_tokens
    effort = request.reasoning.effort if request.reasoning else None
    return Prompt(
        model=model.id,
        turns=(*instructions, *_turns(request.input, model)),
        max_tokens=min(asked or model.max_output_tokens, model.max_output_tokens),
        limited=asked is not None,
        tools=tuple(tool for tool in tools if choice.names is None or tool.name in choice.names),
        tool_choice=choice.mode,
        forced_tool=choice.forced,
        parallel_calls=request.parallel_tool_calls is not False,
        json_mode=_json_mode(request.text.format if request.text else None),
        thoughts=thoughts_for(effort) if model.reasons else 0,
    )


def custom_tools(request: ResponsesRequest) -> frozenset[str]:
    """The names of the tools that take a text and not JSON."""
    return frozenset(tool.name for tool in request.tools or () if tool.type == "custom" and tool.name)


def _tools(request: ResponsesRequest) -> Iterator[Tool]:
    for number, tool in enumerate(request.tools or ()):
        if tool.type not in ("function", "custom"):
            continue
        if not tool.name:
            where = f"tools[{number}].name"
            raise Refused.because(f"Missing required parameter: '{where}'.", "missing_required_parameter", where)
        schema = _CUSTOM_SCHEMA if tool.type == "custom" else tool.parameters or {}
        yield Tool(tool.name, tool.description or "", schema)


def _turns(items: str | list[Item] | None, model: catalog.Model) -> Iterator[Turn]:
    if items is None:
        raise Refused.because("Missing required parameter: 'input'.", "missing_required_parameter", "input")
    if isinstance(items, str):
        yield Turn(Role.USER, items)
        return
    if not items:
        raise Refused.because("'input' must hold at least one item.", "empty_array", "input")
    history = _History(model)
    for number, item in enumerate(items):
        if turn := history.turn(item, f"input[{number}]"):
            yield turn
    if history.waiting:
        message = f"No tool output found for function call {next(iter(history.waiting))}."
        raise Refused.because(message, "invalid_request_error", "input")


class _History:
    """Reads items in turn. `waiting`: the names of the calls that have no output yet, by call id."""

    def __init__(self, model: catalog.Model) -> None:
        self._model = model
        self.waiting: dict[str, str] = {}

    def turn(self, item: Item, where: str) -> Turn | None:
        match item.type:
            case "message":
                return self._message(item, where)
            case "function_call":
                return self._call(item, item.arguments, where)
            case "custom_tool_call":
                return self._call(item, item.input, where)
            case "function_call_output":
                return self._output(item, "function call output", where)
            case "custom_tool_call_output":
                return self._output(item, "custom tool call output", where)
            case "reasoning":
                _check_seal(item, where)
                return None
            case other:
                raise Refused.because(f"Invalid value: '{other}'.", "invalid_value", f"{where}.type")

    def _message(self, item: Item, where: str) -> Turn:
        match item.role:
            case None:
                message = f"Missing required parameter: '{where}.role'."
                raise Refused.because(message, "missing_required_parameter", f"{where}.role")
            case "user":
                return Turn(Role.USER, *self._content(item.content, ("input_text", "input_image"), where))
            case "assistant":
                return Turn(Role.ASSISTANT, *self._content(item.content, ("output_text", "refusal"), where))
            case _:
                return Turn(Role.SYSTEM, *self._content(item.content, ("input_text",), where))

    def _content(self, content: str | list[Part] | None, kinds: tuple[str, ...], where: str) -> tuple[str, int]:
        """The text and the number of images."""
        if content is None:
            message = f"Missing required parameter: '{where}.content'."
            raise Refused.because(message, "missing_required_parameter", f"{where}.content")
        if isinstance(content, str):
            return content, 0
        for number, part in enumerate(content):
            if part.type not in kinds:
                message = f"Invalid value: '{part.type}'. Supported values are: {', '.join(map(repr, kinds))}."
                raise Refused.because(message, "invalid_value", f"{where}.content[{number}]")
            if part.type == "input_image" and not self._model.vision:
                message = f"The model `{self._model.id}` does not accept images."
                raise Refused.because(message, "unsupported_image", f"{where}.content[{number}]")
        texts = [part.text or part.refusal or "" for part in content if part.type != "input_image"]
        return "\n".join(texts), len(content) - len(texts)

    def _call(self, item: Item, arguments: str | None, where: str) -> Turn:
        if item.call_id is None or item.name is None or arguments is None:
            message = f"A {item.type} needs 'call_id', 'name' and its input."
            raise Refused.because(message, "missing_required_parameter", where)
        self.waiting[item.call_id] = item.name
        return Turn(Role.ASSISTANT, "", calls=(Call(item.name, (arguments,)),))

    def _output(self, item: Item, kind: str, where: str) -> Turn:
        name = self.waiting.pop(item.call_id or "", None)
        if name is None:
            message = f"No tool call found for {kind} with call_id {item.call_id}."
            raise Refused.because(message, "invalid_request_error", "input")
        text, images = self._content(item.output, ("input_text", "input_image"), where)
        return Turn(Role.TOOL, text, images, name=name)


def _check_seal(item: Item, where: str) -> None:
    if item.encrypted_content is not None and unseal(item.encrypted_content) is None:
        message = "The encrypted content could not be verified: it could not be decrypted or parsed."
        raise Refused.because(message, "invalid_encrypted_content", f"{where}.encrypted_content")


def _tool_choice(choice: str | ToolChoiceSpec | None, tools: tuple[Tool, ...]) -> _Choice:
    if not isinstance(choice, ToolChoiceSpec):
        mode = ToolChoice(choice or "auto")
        if mode is ToolChoice.REQUIRED and not tools:
            raise _bad_choice("Tool choice 'required' must be specified with 'tools' parameter.")
        return _Choice(mode)
    allowed = choice.type == "allowed_tools"
    names = [tool.name for tool in choice.tools or ()] if allowed else [choice.name]
    offered = {tool.name for tool in tools}
    found = frozenset(name for name in names if name in offered)
    if not names or len(found) != len(set(names)):
        missing = ", ".join(str(name) for name in names if name not in offered)
        raise _bad_choice(f"Tool choice '{missing}' not found in 'tools' parameter.")
    if allowed:
        return _Choice(ToolChoice(choice.mode), names=frozenset(name for name in found if name))
    return _Choice(ToolChoice.REQUIRED, forced=choice.name)


def _bad_choice(message: str) -> Refused:
    return Refused.because(message, "invalid_tool_choice", "tool_choice")


def _json_mode(wanted: Format | None) -> JsonMode | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JsonMode()
    for member in ("name", "schema"):
        if getattr(wanted, member) is None:
            where = f"text.format.{member}"
            raise Refused.because(f"Missing required parameter: '{where}'.", "missing_required_parameter", where)
    return JsonMode(wanted.schema)
