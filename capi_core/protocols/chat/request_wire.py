"""What is read of a Chat Completions request. Source: OpenAI API reference, "Create chat completion"; wire.md 1.1.

Strict where a wrong type could only be a mistake, and open (`msgspec.Raw`) where several forms are legal.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = [
    "CHOICE",
    "FORMAT",
    "MESSAGE",
    "PART",
    "REQUEST",
    "TOOL",
    "Choice",
    "CustomFormat",
    "Message",
    "NamedTool",
    "Part",
    "Request",
    "Tool",
    "WireCall",
    "WireFunction",
]


class ImageUrl(msgspec.Struct):
    url: str
    detail: str | None = None


class InputAudio(msgspec.Struct):
    data: str
    format: str


class File(msgspec.Struct):
    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class Breakpoint(msgspec.Struct):
    ttl: str | None = None


class Part(msgspec.Struct):
    """A part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | str | None = None
    input_audio: InputAudio | None = None
    file: File | None = None
    prompt_cache_breakpoint: Breakpoint | None = None


class WireFunction(msgspec.Struct):
    name: str
    arguments: str = ""


class WireCustom(msgspec.Struct):
    name: str
    input: str = ""


class WireCall(msgspec.Struct):
    id: str
    type: str = "function"
    function: WireFunction | None = None
    custom: WireCustom | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[msgspec.Raw] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[WireCall] | None = None
    function_call: WireFunction | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_text: str | None = None
    reasoning_opaque: str | None = None
    reasoning_details: msgspec.Raw = msgspec.Raw()
    audio: msgspec.Raw = msgspec.Raw()


class NamedTool(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw()
    strict: bool | None = None
    format: msgspec.Raw = msgspec.Raw()


class Tool(msgspec.Struct):
    type: str = "function"
    function: NamedTool | None = None
    custom: NamedTool | None = None


class Grammar(msgspec.Struct):
    syntax: str
    definition: str


class CustomFormat(msgspec.Struct):
    """What a custom tool's input must be."""

    type: str
    grammar: Grammar | None = None


class Named(msgspec.Struct):
    name: str


class Allowed(msgspec.Struct):
    mode: str = "auto"
    tools: list[Choice] = []


class Choice(msgspec.Struct):
    type: str = "function"
    name: str | None = None
    function: Named | None = None
    custom: Named | None = None
    allowed_tools: Allowed | None = None


class JsonSchema(msgspec.Struct):
    name: str | None = None
    schema: msgspec.Raw = msgspec.Raw()
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: JsonSchema | None = None


class Request(msgspec.Struct):
    messages: list[msgspec.Raw]
    stream: bool | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    tools: list[msgspec.Raw] | None = None
    functions: list[NamedTool] | None = None
    tool_choice: msgspec.Raw = msgspec.Raw()
    function_call: msgspec.Raw = msgspec.Raw()
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    response_format: ResponseFormat | None = None
    verbosity: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    modalities: list[str] | None = None
    web_search_options: msgspec.Raw = msgspec.Raw()


REQUEST: Final = msgspec.json.Decoder(Request)
MESSAGE: Final = msgspec.json.Decoder(Message)
PART: Final = msgspec.json.Decoder(Part)
TOOL: Final = msgspec.json.Decoder(Tool)
FORMAT: Final = msgspec.json.Decoder(CustomFormat)
CHOICE: Final = msgspec.json.Decoder(str | Choice | None)
