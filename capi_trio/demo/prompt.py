"""A request to the model and its reply as plain data, in no protocol's shape.

Protocol modules translate to `Prompt` and from `Reply`; the script knows only these.
"""

import enum
from collections.abc import Mapping
from typing import Final

from attrs import frozen

__all__ = ["Call", "Finish", "JsonMode", "Prompt", "Reply", "Role", "Tool", "ToolChoice", "Turn", "thoughts_for"]


class Role(enum.Enum):
    """Who speaks. Developer messages count as SYSTEM, results of functions as TOOL."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class ToolChoice(enum.Enum):
    """What the caller allows: no tool, the model decides, or at least one call."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


class Finish(enum.Enum):
    """Why the reply ended: of itself or at a stop sequence, at the token limit, to call tools."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@frozen
class Call:
    """A call of a tool; `arguments` is JSON text, in the pieces in which it is streamed."""

    name: str
    arguments: tuple[str, ...]


@frozen
class Turn:
    """One message: its text, how many images came with it, the calls an assistant made in it.

    `name` is the tool whose result a TOOL turn carries, or empty when that is not known.
    """

    role: Role
    text: str
    images: int = 0
    calls: tuple[Call, ...] = ()
    name: str = ""


@frozen
class Tool:
    """A tool that the caller offers; `schema` is the JSON Schema of its arguments."""

    name: str
    description: str
    schema: Mapping[str, object]


@frozen
class JsonMode:
    """The caller wants JSON; with `schema`, JSON of that shape."""

    schema: Mapping[str, object] | None = None


@frozen
class Prompt:
    """Everything that decides a reply.

    `max_tokens` limits reasoning, text and calls together; `limited` says whether the caller set it. `thoughts` is
    how many sentences of reasoning come first. `events` forces the number of text pieces (None: as many as the text
    has words).
    """

    model: str
    turns: tuple[Turn, ...]
    max_tokens: int
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice.AUTO
    forced_tool: str | None = None
    parallel_calls: bool = True
    json_mode: JsonMode | None = None
    stop: tuple[str, ...] = ()
    thoughts: int = 0
    events: int | None = None
    limited: bool = False


@frozen
class Reply:
    """What the model says: reasoning, then text or calls, each in the pieces in which it is streamed.

    Token figures are estimates (see `tokens`). `stop_sequence` is the caller's sequence that ended the text.
    """

    reasoning: tuple[str, ...]
    text: tuple[str, ...]
    calls: tuple[Call, ...]
    finish: Finish
    reasoning_tokens: int
    completion_tokens: int
    stop_sequence: str | None = None


# Sentences of reasoning by effort; what is not listed reasons like "medium".
_THOUGHTS: Final[Mapping[str, int]] = {"none": 0, "minimal": 1, "low": 1, "high": 3, "xhigh": 3, "max": 3}
_MEDIUM: Final = 2


def thoughts_for(effort: str | None) -> int:
    """How many sentences of reasoning an effort is worth (none, minimal, low, medium, high, xhigh, max)."""
    return _THOUGHTS.get(effort or "", _MEDIUM)
