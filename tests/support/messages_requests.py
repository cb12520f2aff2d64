"""What Anthropic is known to refuse in a Messages request (wire.md 1.3, 1.5, 1.8), as a check of one."""

import re
from itertools import pairwise
from typing import Final

import msgspec

__all__ = ["check_legal"]


class Part(msgspec.Struct):
    """What the rules of Anthropic look at in a block."""

    type: str
    text: str = "x"
    id: str = ""
    tool_use_id: str = ""
    content: str | list[msgspec.Raw] = "x"
    is_error: bool = False


class Message(msgspec.Struct):
    role: str
    content: str | list[Part]

    @property
    def parts(self) -> list[Part]:
        return [Part("text", self.content)] if isinstance(self.content, str) else self.content


class Named(msgspec.Struct):
    name: str


class Thinking(msgspec.Struct, frozen=True):
    type: str
    budget_tokens: int = 1024


class Request(msgspec.Struct):
    """A request as strictly as Anthropic is known to read it."""

    model: str
    max_tokens: int
    messages: list[Message]
    system: str | list[Part] = "x"
    tools: list[Named] = []
    thinking: Thinking = Thinking("disabled")
    temperature: float | None = None
    tool_choice: dict[str, object] = {}


REQUEST: Final = msgspec.json.Decoder(Request)


def check_parts(message: Message) -> None:
    parts = message.parts
    assert parts
    assert all(part.text.strip() for part in parts if part.type == "text")
    assert all(part.content for part in parts if part.is_error)
    if message.role == "assistant":
        assert parts[-1].type not in ("thinking", "redacted_thinking")
        assert all(part.type != "tool_result" for part in parts)
    else:
        assert all(part.type not in ("thinking", "redacted_thinking", "tool_use") for part in parts)
    if message.role == "system":
        assert {part.type for part in parts} == {"text"}


def check_calls(messages: list[Message]) -> None:
    calls: list[str] = []
    seen: list[str] = []
    for message in messages:
        results = [part.tool_use_id for part in message.parts if part.type == "tool_result"]
        assert results == calls
        assert all(part.type == "tool_result" for part in message.parts[: len(results)])
        calls = [part.id for part in message.parts if part.type == "tool_use"]
        seen += calls
    assert not calls
    assert len(set(seen)) == len(seen)
    assert all(re.fullmatch("[a-zA-Z0-9_-]+", one) for one in seen)


def check_legal(body: bytes) -> None:
    """Fails when Anthropic is known to refuse the request: its order of roles, calls and results, and its limits."""
    request = REQUEST.decode(body)
    roles = [message.role for message in request.messages]
    assert roles[0] == "user"
    for before, after in pairwise(roles):
        assert after in {"user": ("assistant", "system"), "assistant": ("user",), "system": ("assistant",)}[before]
    for message in request.messages:
        check_parts(message)
    check_calls(request.messages)
    names = [tool.name for tool in request.tools]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-zA-Z0-9_-]{1,64}", name) for name in names)
    assert body.count(b'"cache_control"') <= 4
    if request.thinking.type == "enabled":
        assert 1024 <= request.thinking.budget_tokens < request.max_tokens
    if request.thinking.type != "disabled":
        assert request.temperature is None
        assert request.tool_choice.get("type") not in ("any", "tool")
    if any(part.type == "tool_use" for message in request.messages for part in message.parts):
        assert names
