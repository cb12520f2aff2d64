"""What each client asks a gateway, in its own protocol, members and headers: short requests in the recorded shapes of
Claude Code 2.1.197, Codex 0.169.0, opencode 1.18.33 and the official SDKs (wire.md section 3).

What makes a gateway stumble is kept: query strings, betas, cache marks, a system turn in mid-conversation, members that
no reference knows, namespaces of tools. What only makes a request long is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from capi_core.protocols.kinds import Protocol
from capi_trio.client_setup import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from capi_core.headers import Headers

__all__ = ["VOICES", "Voice"]

_Json = dict[str, object]

_ID: Final = "00000000-0000-0000-0000-000000000000"
_TURNS: Final[Mapping[Protocol, str]] = {
    Protocol.CHAT: "messages",
    Protocol.RESPONSES: "input",
    Protocol.MESSAGES: "messages",
}
_BEARER: Final = (b"authorization", b"Bearer ")
_X_API_KEY: Final = (b"x-api-key", b"")
_JSON: Final = (b"content-type", b"application/json")
_VERSION: Final = (b"anthropic-version", b"2023-06-01")
_INSTRUCTIONS: Final = "You help with programming tasks. Answer briefly."


@frozen
class Voice:
    """How a client speaks one protocol.

    `credentials`: the headers that carry its key, each with what stands before the key. `tool`: the name of the tool
    that it offers. `opening`, `closing`: turns before and after the user's own. `thinking`: what asks for reasoning,
    where not every request does. `count_path`: where it has tokens counted, if it does.
    """

    protocol: Protocol
    path: str
    headers: Headers
    credentials: Headers
    user: Callable[[str], _Json]
    members: Mapping[str, object]
    tool: str
    tools: Sequence[object]
    opening: Sequence[object] = ()
    closing: Sequence[object] = ()
    thinking: Mapping[str, object] = field(factory=dict)
    count_path: str | None = None
    count_headers: Headers = ()

    def head(self, key: str, *, count: bool = False) -> Headers:
        """The headers of a request. `key`: what is sent as its key."""
        carried = tuple((name, before + key.encode()) for name, before in self.credentials)
        return (*(self.count_headers if count else self.headers), *carried)

    def request(self, model: str, text: str, *, thinking: bool = False, tools: bool = True) -> _Json:
        """A streaming request in which the user says `text`. `tools`: as an agent asks, which always offers its own."""
        more = dict(self.thinking) if thinking else {}
        offered = {"tools": [*self.tools], **self._tool_choice} if tools else {}
        turns = [*self.opening, self.user(text), *self.closing]
        return {"model": model, **self.members, **more, **offered, "stream": True, _TURNS[self.protocol]: turns}

    def go_on(self, request: _Json, turns: Sequence[object]) -> _Json:
        """The same request with more turns."""
        name = _TURNS[self.protocol]
        before = request[name]
        return {**request, name: [*(before if isinstance(before, list) else ()), *turns]}

    def result(self, call_id: str, output: str) -> _Json:
        """The turn that gives a tool's result back."""
        match self.protocol:
            case Protocol.CHAT:
                return {"role": "tool", "tool_call_id": call_id, "content": output}
            case Protocol.RESPONSES:
                return {"type": "function_call_output", "call_id": call_id, "output": output}
            case Protocol.MESSAGES:
                block = {"type": "tool_result", "tool_use_id": call_id, "content": output, "is_error": False}
                return {"role": "user", "content": [block]}

    def count(self, model: str, text: str) -> _Json:
        """A request to count tokens."""
        return {"model": model, "messages": [self.user(text)], "tools": []}

    @property
    def _tool_choice(self) -> Mapping[str, object]:
        return {} if self.protocol is Protocol.MESSAGES else {"tool_choice": "auto"}


def _schema(member: str) -> _Json:
    properties = {member: {"type": "string", "description": "The command to run."}}
    return {"type": "object", "properties": properties, "required": [member], "additionalProperties": False}


def _blocks(text: str) -> _Json:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def _cached_blocks(text: str) -> _Json:
    block = {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}
    return {"role": "user", "content": [{"type": "text", "text": "<system-reminder>None.</system-reminder>"}, block]}


def _words(text: str) -> _Json:
    return {"role": "user", "content": text}


def _item(role: str, text: str) -> _Json:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "id": f"msg_{_ID}", "role": role, "content": content}


def _user_item(text: str) -> _Json:
    return _item("user", text)


_CLAUDE_CODE_BETAS: Final = (
    "claude-code-20250219,context-1m-2025-08-07,interleaved-thinking-2025-05-14,thinking-token-count-2026-05-13,"
    "context-management-2025-06-27,prompt-caching-scope-2026-01-05,mid-conversation-system-2026-04-07,"
    "effort-2025-11-24"
)
_CLAUDE_CODE_HEADERS: Final[Headers] = (
    (b"accept", b"application/json"),
    _JSON,
    (b"user-agent", b"claude-cli/2.1.197 (external, sdk-cli)"),
    (b"x-claude-code-session-id", _ID.encode()),
    (b"x-stainless-lang", b"js"),
    (b"anthropic-dangerous-direct-browser-access", b"true"),
    _VERSION,
    (b"x-app", b"cli"),
)
_CLAUDE_CODE: Final = Voice(
    Protocol.MESSAGES,
    "/v1/messages?beta=true",
    (*_CLAUDE_CODE_HEADERS, (b"anthropic-beta", _CLAUDE_CODE_BETAS.encode())),
    (_BEARER, _X_API_KEY),  # an apiKeyHelper's key is sent as both
    _cached_blocks,
    {
        "max_tokens": 32_000,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197; cc_entrypoint=sdk-cli;"},
            {"type": "text", "text": _INSTRUCTIONS, "cache_control": {"type": "ephemeral"}},
        ],
        "metadata": {"user_id": f'{{"device_id":"0","account_uuid":"","session_id":"{_ID}"}}'},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
    },
    "Bash",
    [{"name": "Bash", "description": "Runs a command.", "input_schema": _schema("command")}],
    closing=({"role": "system", "content": "Agents: none."},),
    count_path="/v1/messages/count_tokens?beta=true",
    count_headers=(
        *_CLAUDE_CODE_HEADERS,
        (b"anthropic-beta", f"{_CLAUDE_CODE_BETAS},token-counting-2024-11-01".encode()),
    ),
)

_CODEX: Final = Voice(
    Protocol.RESPONSES,
    "/v1/responses",
    (
        (b"accept", b"text/event-stream"),
        _JSON,
        (b"originator", b"codex_exec"),
        (b"user-agent", b"codex_exec/0.169.0"),
        (b"session-id", _ID.encode()),
        (b"thread-id", _ID.encode()),
        (b"x-codex-beta-features", b"remote_compaction_v2"),
        (b"x-codex-window-id", f"{_ID}:0".encode()),
    ),
    (_BEARER,),
    _user_item,
    {
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": _ID,
        "client_metadata": {"session_id": _ID, "thread_id": _ID, "turn_id": _ID},
    },
    "exec_command",
    [
        {
            "type": "function",
            "name": "exec_command",
            "description": "Runs a command.",
            "strict": False,
            "parameters": _schema("cmd"),
        },
        {
            "type": "namespace",
            "name": "multi_agent_v1",
            "description": "Other agents.",
            "tools": [
                {
                    "type": "function",
                    "name": "close_agent",
                    "description": "Closes an agent.",
                    "strict": False,
                    "parameters": _schema("target"),
                }
            ],
        },
        {"type": "web_search", "external_web_access": True},
    ],
    opening=(_item("developer", _INSTRUCTIONS),),
    thinking={"reasoning": {"effort": "medium", "summary": "auto"}},
)

_OPENCODE: Final = Voice(
    Protocol.CHAT,
    "/v1/chat/completions",
    ((b"accept", b"*/*"), _JSON, (b"user-agent", b"opencode/1.18.33"), (b"x-session-affinity", b"ses_0")),
    (_BEARER,),
    _words,
    {"max_tokens": 32_000, "stream_options": {"include_usage": True}},
    "bash",
    [
        {
            "type": "function",
            "function": {"name": "bash", "description": "Runs a command.", "parameters": _schema("command")},
        }
    ],
    opening=({"role": "system", "content": _INSTRUCTIONS},),
    thinking={"reasoning_effort": "medium"},
)

_OPENAI_HEADERS: Final[Headers] = (
    (b"accept", b"application/json"),
    _JSON,
    (b"user-agent", b"OpenAI/Python 3.54.0"),
    (b"x-stainless-lang", b"python"),
)
_OPENAI_CHAT: Final = Voice(
    Protocol.CHAT,
    "/v1/chat/completions",
    _OPENAI_HEADERS,
    (_BEARER,),
    _words,
    {"stream_options": {"include_usage": True}},
    "run_command",
    [
        {
            "type": "function",
            "function": {"name": "run_command", "description": "Runs a command.", "parameters": _schema("command")},
        }
    ],
    thinking={"reasoning_effort": "medium"},
)
_OPENAI_RESPONSES: Final = Voice(
    Protocol.RESPONSES,
    "/v1/responses",
    _OPENAI_HEADERS,
    (_BEARER,),
    _words,
    {"store": False},
    "run_command",
    [
        {
            "type": "function",
            "name": "run_command",
            "description": "Runs a command.",
            "strict": False,
            "parameters": _schema("command"),
        }
    ],
    thinking={
        "reasoning": {"effort": "medium", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
    },
)
_ANTHROPIC_HEADERS: Final[Headers] = (
    (b"accept", b"application/json"),
    _JSON,
    (b"user-agent", b"Anthropic/Python 1.17.0"),
    (b"x-stainless-lang", b"python"),
    _VERSION,
)
_ANTHROPIC: Final = Voice(
    Protocol.MESSAGES,
    "/v1/messages",
    _ANTHROPIC_HEADERS,
    (_X_API_KEY,),
    _blocks,
    {"max_tokens": 8_192},
    "run_command",
    [{"name": "run_command", "description": "Runs a command.", "input_schema": _schema("command")}],
    thinking={"thinking": {"type": "enabled", "budget_tokens": 2_048}},
    count_path="/v1/messages/count_tokens",
    count_headers=_ANTHROPIC_HEADERS,
)

VOICES: Final[Mapping[Client, tuple[Voice, ...]]] = {
    Client.CLAUDE_CODE: (_CLAUDE_CODE,),
    Client.CODEX: (_CODEX,),
    Client.OPENCODE: (_OPENCODE,),
    Client.ENV: (_OPENAI_CHAT, _OPENAI_RESPONSES, _ANTHROPIC),
}
"""Every client's voices: the official SDKs, which ENV stands for, speak all three protocols."""
