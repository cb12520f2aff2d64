"""An Anthropic Messages request as JSON, read into a `Prompt` (wire.md 1.3). Pure.

As strict as Anthropic's own server where a gateway's translation could go wrong: tool calls and their results,
signatures, empty texts, members that a version no longer takes.
"""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from capi_trio.demo import catalog
from capi_trio.demo.answers import Refused
from capi_trio.demo.prompt import Call, JsonMode, Prompt, Role, Tool, ToolChoice, Turn, thoughts_for
from capi_trio.demo.seal import unseal

__all__ = ["VERSIONS", "MessagesRequest", "check_version", "prompt_of"]

_CURRENT: Final = "2026-10-21"
VERSIONS: Final = ("2023-06-01", _CURRENT)
# Budgets from which on the model thinks in one sentence more.
_BUDGET_STEPS: Final = (2048, 4096)


class Block(msgspec.Struct, frozen=True):
    """A block of content; only what the model looks at is kept."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, object] | None = None
    tool_use_id: str | None = None
    content: "str | list[Block] | None" = None
    source: dict[str, object] | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class Message(msgspec.Struct, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool of the client's. One of the server's has a `type` and no `input_schema`."""

    name: str
    type: str = "custom"
    description: str | None = None
    input_schema: dict[str, object] | None = None


class ToolChoiceSpec(msgspec.Struct, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(msgspec.Struct, frozen=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class Format(msgspec.Struct, frozen=True):
    type: Literal["json_schema"]
    schema: dict[str, object]


class OutputConfig(msgspec.Struct, frozen=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None


class MessagesRequest(msgspec.Struct, frozen=True):
    """The members that the demo model heeds, and those that it refuses."""

    model: str | None = None
    messages: list[Message] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    system: str | list[Block] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: ToolChoiceSpec | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    temperature: object | UnsetType = UNSET
    top_p: object | UnsetType = UNSET
    top_k: object | UnsetType = UNSET
    demo: object = None


def check_version(version: bytes | None, request: MessagesRequest) -> None:
    """Raises `Refused` (400) without a known `anthropic-version`, and for what that version does not take."""
    if version is None:
        raise _bad("anthropic-version: header is required")
    name = version.decode("latin-1")
    if name not in VERSIONS:
        raise _bad(f'anthropic-version: "{name}" is not a valid version')
    if name == _CURRENT:
        for member in ("temperature", "top_p", "top_k"):
            if getattr(request, member) is not UNSET:
                raise _bad(f"{member}: Extra inputs are not permitted")


def prompt_of(request: MessagesRequest, model: catalog.Model) -> Prompt:
    """The request as a prompt. Raises `Refused` (400) for what Anthropic's server would not take either.

    Whether `max_tokens` is there is for the caller to check: counting tokens goes without.
    """
    tools = tuple(
        Tool(tool.name, tool.description or "", tool.input_schema)
        for tool in request.tools or ()
        if tool.input_schema is not None
    )
    choice = request.tool_choice or ToolChoiceSpec("auto")
    mode, forced = _tool_choice(choice, tools)
    wanted = request.output_config and request.output_config.format
    return Prompt(
        model=model.id,
        turns=(*_system(request.system), *_turns(request.messages, model)),
        max_tokens=_max_tokens(request, model),
        limited=True,
        tools=tools,
        tool_choice=mode,
        forced_tool=forced,
        parallel_calls=not choice.disable_parallel_tool_use,
        json_mode=JsonMode(wanted.schema) if wanted else None,
        stop=tuple(request.stop_sequences or ()),
        thoughts=_thoughts(request, model, mode),
    )


def _bad(message: str) -> Refused:
    return Refused.because(message, "invalid_request")


def _max_tokens(request: MessagesRequest, model: catalog.Model) -> int:
    asked = request.max_tokens or model.max_output_tokens
    if asked > model.max_output_tokens:
        raise _bad(
            f"max_tokens: {asked} > {model.max_output_tokens}, "
            f"which is the maximum allowed number of output tokens for {model.id}"
        )
    return asked


def _system(system: str | list[Block] | None) -> Iterator[Turn]:
    if isinstance(system, str):
        yield Turn(Role.SYSTEM, system)
    elif system:
        yield Turn(Role.SYSTEM, _text(system, "system"))


def _turns(messages: list[Message] | None, model: catalog.Model) -> Iterable[Turn]:
    if messages is None:
        raise _bad("messages: Field required")
    if not messages:
        raise _bad("messages: at least one message is required")
    history = _History(model)
    for index, message in enumerate(messages):
        yield from history.turns(message, f"messages.{index}")
    if messages[-1].role == "assistant":
        raise _bad("This model does not support assistant message prefill. The conversation must end with a user turn.")


class _History:
    """Reads messages in turn; knows which calls of the message before are waiting for their results."""

    def __init__(self, model: catalog.Model) -> None:
        self._model = model
        self._waiting: dict[str, str] = {}

    def turns(self, message: Message, where: str) -> Iterator[Turn]:
        content = message.content
        blocks = [Block("text", text=content)] if isinstance(content, str) else content
        # Results come first: what stands behind anything else answers nothing.
        results = takewhile(lambda block: block.type == "tool_result", blocks)
        answered = {block.tool_use_id for block in results}
        if missing := [call_id for call_id in self._waiting if call_id not in answered]:
            raise _bad(
                f"{where}: `tool_use` ids were found without `tool_result` blocks immediately after: "
                f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block "
                "in the next message."
            )
        match message.role:
            case "system":
                yield Turn(Role.SYSTEM, _text(blocks, where))
            case "assistant":
                yield self._assistant(blocks, where)
            case _:
                yield from self._user(blocks, where)

    def _assistant(self, blocks: list[Block], where: str) -> Turn:
        texts: list[str] = []
        calls: list[Call] = []
        for number, block in enumerate(blocks):
            at = f"{where}.content.{number}"
            match block.type:
                case "text":
                    texts.append(_text([block], at))
                case "tool_use":
                    calls.append(self._call(block, at))
                case "thinking" | "redacted_thinking":
                    _check_seal(block, at)
                case other:
                    raise _unknown(other, at)
        return Turn(Role.ASSISTANT, "\n".join(texts), calls=tuple(calls))

    def _call(self, block: Block, at: str) -> Call:
        if block.id is None or block.name is None or block.input is None:
            raise _bad(f"{at}.tool_use: `id`, `name` and `input` are required")
        if block.id in self._waiting:
            raise _bad(f"{at}: `tool_use` ids must be unique")
        self._waiting[block.id] = block.name
        return Call(block.name, (msgspec.json.encode(block.input).decode(),))

    def _user(self, blocks: list[Block], where: str) -> Iterator[Turn]:
        texts: list[str] = []
        images = 0
        for number, block in enumerate(blocks):
            at = f"{where}.content.{number}"
            match block.type:
                case "text":
                    texts.append(_text([block], at))
                case "image":
                    images += self._image(at)
                case "tool_result":
                    yield self._result(block, at)
                case other:
                    raise _unknown(other, at)
        if texts or images:
            yield Turn(Role.USER, "\n".join(texts), images)

    def _image(self, at: str) -> int:
        if not self._model.vision:
            raise _bad(f"{at}.image: the model {self._model.id} does not accept images")
        return 1

    def _result(self, block: Block, at: str) -> Turn:
        name = self._waiting.pop(block.tool_use_id or "", None)
        if name is None:
            raise _bad(
                f"{at}: unexpected `tool_use_id` found in `tool_result` blocks: {block.tool_use_id}. Each "
                "`tool_result` block must have a corresponding `tool_use` block in the previous message."
            )
        if block.content is None or isinstance(block.content, str):
            return Turn(Role.TOOL, block.content or "", name=name)
        parts = block.content
        images = sum(self._image(at) for part in parts if part.type == "image")
        return Turn(Role.TOOL, _text([part for part in parts if part.type != "image"], at), images, name=name)


def _text(blocks: list[Block], where: str) -> str:
    """The text of text blocks. Raises `Refused` (400) for any other kind and for empty ones."""
    for block in blocks:
        if block.type != "text":
            raise _unknown(block.type, where)
        if not block.text:
            raise _bad(f"{where}: text content blocks must be non-empty")
    return "\n".join(block.text or "" for block in blocks)


def _unknown(kind: str, where: str) -> Refused:
    return _bad(f"{where}: Input tag '{kind}' found using 'type' does not match any of the expected tags")


def _check_seal(block: Block, at: str) -> None:
    """Thinking comes back as it was given: with the signature of its text, or of what was not shown."""
    if block.type == "redacted_thinking":
        if block.data is None or unseal(block.data) is None:
            raise _bad(f"{at}: Invalid `data` in `redacted_thinking` block")
    elif block.signature is None or block.thinking is None:
        raise _bad(f"{at}.thinking: `thinking` and `signature` are required")
    elif unseal(block.signature) is None or (block.thinking and unseal(block.signature) != block.thinking):
        raise _bad(f"{at}: Invalid `signature` in `thinking` block")


def _tool_choice(choice: ToolChoiceSpec, tools: tuple[Tool, ...]) -> tuple[ToolChoice, str | None]:
    match choice.type:
        case "auto":
            return ToolChoice.AUTO, None
        case "none":
            return ToolChoice.NONE, None
        case _ if not tools:
            raise _bad("tool_choice: `tool_choice` may only be specified while providing `tools`")
        case "any":
            return ToolChoice.REQUIRED, None
        case _:
            if choice.name not in {tool.name for tool in tools}:
                raise _bad(f"tool_choice: Tool '{choice.name}' not found in provided tools")
            return ToolChoice.REQUIRED, choice.name


def _thoughts(request: MessagesRequest, model: catalog.Model, mode: ToolChoice) -> int:
    thinking = request.thinking
    if thinking is None or thinking.type == "disabled":
        return 0
    if not model.reasons:
        raise _bad(f"thinking: the model {model.id} does not support thinking")
    if mode is ToolChoice.REQUIRED:
        raise _bad("Thinking may not be enabled when tool_choice forces tool use.")
    if thinking.type == "adaptive":
        effort = request.output_config and request.output_config.effort
        return thoughts_for(effort or "high")
    budget = thinking.budget_tokens
    if budget is None or budget < catalog.MIN_THINKING_BUDGET:
        raise _bad(
            f"thinking.enabled.budget_tokens: Input should be greater than or equal to {catalog.MIN_THINKING_BUDGET}"
        )
    if request.max_tokens is not None and budget >= request.max_tokens:
        raise _bad("`max_tokens` must be greater than `thinking.budget_tokens`.")
    return 1 + sum(budget >= step for step in _BUDGET_STEPS)
