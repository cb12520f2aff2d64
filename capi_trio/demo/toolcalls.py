"""Which tools the demo model calls, and with what. Pure."""

import re
from typing import Final

import msgspec

from capi_trio.demo.prompt import Call, Prompt, Role, Tool, ToolChoice, Turn
from capi_trio.demo.synthesis import synthesise

__all__ = ["choose_calls"]

# How arguments are streamed: short, so that every call of more than one member comes in several fragments.
_FRAGMENT: Final = 8
# Shorter words of a tool's name ("get", "in") say nothing about what a user wants.
_SHORTEST_WORD: Final = 4

_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def choose_calls(prompt: Prompt, last: Turn) -> tuple[Call, ...]:
    """The calls in answer to `last`, the turn that the model has to answer; empty when it should speak.

    A tool is called when the user spoke last, tools are allowed, and the caller forces it or the text names
    the tool or a word of its name. Several are called only when a call is required and the text names several.
    """
    if last.role is not Role.USER or not prompt.tools or prompt.tool_choice is ToolChoice.NONE:
        return ()
    return tuple(_call(tool, last.text) for tool in _choose(prompt, last.text))


def _choose(prompt: Prompt, text: str) -> list[Tool]:
    if prompt.forced_tool is not None:
        return [tool for tool in prompt.tools if tool.name == prompt.forced_tool][:1]
    ranked = [(_mention(tool, text), tool) for tool in prompt.tools]
    if prompt.tool_choice is ToolChoice.REQUIRED:
        named = [tool for score, tool in ranked if score]
        return (named if prompt.parallel_calls else named[:1]) or [prompt.tools[0]]
    score, best = max(ranked, key=lambda pair: pair[0])
    return [best] if score else []


def _mention(tool: Tool, text: str) -> int:
    """How clearly `text` asks for `tool`: 0 not at all, the number of its words, most for its whole name."""
    if re.search(rf"(?<!\w){re.escape(tool.name)}(?!\w)", text, re.IGNORECASE):
        return 1000
    spoken = set(re.findall(r"\w+", text.casefold()))
    words = {word.casefold() for word in _WORD.findall(tool.name)}
    return len({word for word in words if len(word) >= _SHORTEST_WORD} & spoken)


def _call(tool: Tool, text: str) -> Call:
    value = synthesise(tool.schema, text)
    # Arguments are an object whatever the schema says: that is what every client parses.
    arguments = msgspec.json.encode(value if isinstance(value, dict) else {}).decode()
    return Call(tool.name, tuple(arguments[i : i + _FRAGMENT] for i in range(0, len(arguments), _FRAGMENT)))
