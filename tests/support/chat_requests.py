"""What OpenAI is known to refuse in a Chat Completions request (wire.md 1.1, 1.5), as a check of one."""

import re
from typing import Final

import msgspec

__all__ = ["check_legal"]


class Part(msgspec.Struct):
    """`text` is raw: a part of a type that is not known here may have anything."""

    type: str
    text: msgspec.Raw = msgspec.Raw()


class Named(msgspec.Struct):
    name: str


class Call(msgspec.Struct):
    id: str
    function: Named


class Message(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str | list[Part] | None
    refusal: str | None = None
    tool_calls: list[Call] = []
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning_text: str | None = None
    reasoning_opaque: str | None = None


class Tool(msgspec.Struct):
    type: str
    function: msgspec.Raw = msgspec.Raw()


class Request(msgspec.Struct):
    """A request as strictly as OpenAI is known to read it."""

    model: str
    messages: list[Message]
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, object] | None = None
    parallel_tool_calls: bool | None = None
    stop: list[str] | None = None
    user: str = "x"
    prompt_cache_key: str = "x"
    max_completion_tokens: int = 1


REQUEST: Final = msgspec.json.Decoder(Request)
FUNCTION: Final = msgspec.json.Decoder(Named)
NAME: Final = re.compile("[a-zA-Z0-9_-]{1,64}")


def check_message(message: Message) -> None:
    if message.role == "assistant":
        assert message.content or message.tool_calls or message.refusal
        assert message.content is None or isinstance(message.content, str)
        return
    assert not message.tool_calls
    if message.role == "tool":
        assert isinstance(message.content, str)
        return
    assert message.role in ("user", "system", "developer")
    assert message.content
    if isinstance(message.content, list):
        assert all(bytes(part.text) != b'""' for part in message.content if part.type == "text")
        assert message.role == "user" or {part.type for part in message.content} == {"text"}


def check_calls(messages: list[Message]) -> None:
    """Each call is answered right behind it, once; and nothing else is."""
    waiting: list[str] = []
    seen: list[str] = []
    for message in messages:
        if message.role == "tool":
            assert message.tool_call_id == waiting.pop(0)
            continue
        assert not waiting
        waiting = [call.id for call in message.tool_calls]
        seen += waiting
        assert all(NAME.fullmatch(call.function.name) for call in message.tool_calls)
    assert not waiting
    assert len(set(seen)) == len(seen)
    assert all(0 < len(one) <= 40 for one in seen)


def check_legal(body: bytes) -> None:
    """Fails when OpenAI is known to refuse the request: its order of calls and results, and its limits."""
    request = REQUEST.decode(body)
    assert request.messages
    for message in request.messages:
        check_message(message)
    check_calls(request.messages)
    names = [FUNCTION.decode(tool.function).name for tool in request.tools or () if tool.type == "function"]
    assert len(set(names)) == len(names)
    assert all(NAME.fullmatch(name) for name in names)
    assert request.tools != []
    if request.tools is None:
        assert (request.tool_choice, request.parallel_tool_calls) == (None, None)
    assert request.stop is None or 0 < len(request.stop) <= 4
    assert all(request.stop or ())
    assert len(request.user) <= 64
    assert len(request.prompt_cache_key) <= 64
    assert request.max_completion_tokens >= 1
    assert b'"metadata"' not in body
