"""Requests with one member more than a plain one, for each protocol: what docs/protocols.md has a row for."""

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from capi_core.protocols.kinds import Protocol

__all__ = ["BASES", "EXAMPLES", "Example"]

_CHAT, _RESPONSES, _MESSAGES = Protocol.CHAT, Protocol.RESPONSES, Protocol.MESSAGES


@frozen
class Example:
    """A member, or a part of one, and a request that has it, as changes to the base request of its protocol. `without`:
    the changes that the request it is compared with has."""

    name: str
    changes: Mapping[str, object]
    without: Mapping[str, object] = {}


BASES: Final[Mapping[Protocol, Mapping[str, object]]] = {
    _CHAT: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    _RESPONSES: {"model": "m", "input": [{"role": "user", "content": "hi"}]},
    _MESSAGES: {"model": "m", "max_tokens": 4096, "messages": [{"role": "user", "content": "hi"}]},
}

_SCHEMA: Final = {"type": "object", "properties": {"city": {"type": "string"}}}
_PNG: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_CHAT_TOOL: Final = {"type": "function", "function": {"name": "f", "parameters": _SCHEMA}}
_RESPONSES_TOOL: Final = {"type": "function", "name": "f", "parameters": _SCHEMA, "strict": False}
_MESSAGES_TOOL: Final = {"name": "f", "input_schema": _SCHEMA}


def _chat(*messages: object, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hi"}, *messages], **more}


def _chat_part(part: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, part]}]}


def _items(*items: object, **more: object) -> dict[str, object]:
    return {"input": [{"role": "user", "content": "hi"}, *items], **more}


def _input_part(part: object) -> dict[str, object]:
    return {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}, part]}]}


def _turns(*turns: object, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hi"}, *turns], **more}


def _block(block: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, block]}]}


_GO_ON: Final = {"role": "user", "content": "go on"}
_CHAT_CALL: Final = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
_TOOL_USE: Final = {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {}}]}
_FUNCTION_CALL: Final = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}


def _tool_result(**more: object) -> dict[str, object]:
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "r", **more}
    return _turns(_TOOL_USE, {"role": "user", "content": [result]}, tools=[_MESSAGES_TOOL])


def _output(output: object) -> dict[str, object]:
    result = {"type": "function_call_output", "call_id": "c1", "output": output}
    return _items(_FUNCTION_CALL, result, tools=[_RESPONSES_TOOL])


EXAMPLES: Final[Mapping[Protocol, tuple[Example, ...]]] = {
    _CHAT: (
        Example(
            "system message", {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]}
        ),
        Example("developer message in the middle", _chat({"role": "developer", "content": "d"}, _GO_ON), _chat(_GO_ON)),
        Example("assistant message", _chat({"role": "assistant", "content": "a"}, _GO_ON), _chat(_GO_ON)),
        Example(
            "tool_calls and tool message",
            _chat(_CHAT_CALL, {"role": "tool", "tool_call_id": "c1", "content": "r"}, tools=[_CHAT_TOOL]),
        ),
        Example(
            "image_url (data)", _chat_part({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_PNG}"}})
        ),
        Example(
            "image_url (https)", _chat_part({"type": "image_url", "image_url": {"url": "https://h.example/i.png"}})
        ),
        Example(
            "image_url.detail",
            _chat_part({"type": "image_url", "image_url": {"url": "https://h.example/i.png", "detail": "high"}}),
            _chat_part({"type": "image_url", "image_url": {"url": "https://h.example/i.png"}}),
        ),
        Example(
            "file (data)",
            _chat_part(
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}}
            ),
        ),
        Example("file (id)", _chat_part({"type": "file", "file": {"file_id": "file-1"}})),
        Example(
            "input_audio", _chat_part({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}})
        ),
        Example("name of a message", {"messages": [{"role": "user", "content": "hi", "name": "ann"}]}),
        Example(
            "reasoning_content of an earlier answer",
            _chat({"role": "assistant", "content": "a", "reasoning_content": "t"}, _GO_ON),
            _chat({"role": "assistant", "content": "a"}, _GO_ON),
        ),
        Example(
            "refusal of an earlier answer",
            _chat({"role": "assistant", "content": None, "refusal": "no"}, _GO_ON),
            _chat(_GO_ON),
        ),
        Example("tools (function)", {"tools": [_CHAT_TOOL]}),
        Example("tools (custom)", {"tools": [{"type": "custom", "custom": {"name": "p"}}]}),
        Example(
            "tools[].function.strict",
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": _SCHEMA, "strict": True}}]},
            {"tools": [_CHAT_TOOL]},
        ),
        Example("tool_choice (required)", {"tools": [_CHAT_TOOL], "tool_choice": "required"}, {"tools": [_CHAT_TOOL]}),
        Example(
            "tool_choice (one tool)",
            {"tools": [_CHAT_TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"tools": [_CHAT_TOOL]},
        ),
        Example("parallel_tool_calls", {"tools": [_CHAT_TOOL], "parallel_tool_calls": False}, {"tools": [_CHAT_TOOL]}),
        Example("max_completion_tokens", {"max_completion_tokens": 100}),
        Example("max_tokens", {"max_tokens": 100}),
        Example("temperature", {"temperature": 0.5}),
        Example("top_p", {"top_p": 0.5}),
        Example("stop", {"stop": ["END"]}),
        Example("n", {"n": 2}),
        Example(
            "reasoning_effort",
            {"reasoning_effort": "high", "max_completion_tokens": 32000},
            {"max_completion_tokens": 32000},
        ),
        Example("response_format (json_object)", {"response_format": {"type": "json_object"}}),
        Example(
            "response_format (json_schema)",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "o", "schema": _SCHEMA}}},
        ),
        Example("verbosity", {"verbosity": "low"}),
        Example("user", {"user": "u1"}),
        Example("prompt_cache_key", {"prompt_cache_key": "k"}),
        Example("safety_identifier", {"safety_identifier": "s"}),
        Example("metadata", {"metadata": {"a": "b"}}),
        Example("service_tier", {"service_tier": "flex"}),
        Example("frequency_penalty", {"frequency_penalty": 0.5}),
        Example("presence_penalty", {"presence_penalty": 0.5}),
        Example("logit_bias", {"logit_bias": {"1": 2}}),
        Example("logprobs", {"logprobs": True}),
        Example("seed", {"seed": 7}),
        Example("store", {"store": True}),
        Example("prediction", {"prediction": {"type": "content", "content": "x"}}),
        Example("modalities (audio)", {"modalities": ["text", "audio"], "audio": {"voice": "a", "format": "wav"}}),
        Example("web_search_options", {"web_search_options": {}}),
    ),
    _RESPONSES: (
        Example("instructions", {"instructions": "s"}),
        Example(
            "developer message in the middle", _items({"role": "developer", "content": "d"}, _GO_ON), _items(_GO_ON)
        ),
        Example("input as text", {"input": "hello"}),
        Example(
            "output message",
            _items(
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "a", "annotations": []}],
                },
                _GO_ON,
            ),
            _items(_GO_ON),
        ),
        Example("function_call and its output", _output("r")),
        Example(
            "function_call_output with an image",
            _output([{"type": "input_image", "image_url": f"data:image/png;base64,{_PNG}"}]),
            _output("r"),
        ),
        Example(
            "custom_tool_call and its output",
            _items(
                {"type": "custom_tool_call", "call_id": "c1", "name": "p", "input": "x"},
                {"type": "custom_tool_call_output", "call_id": "c1", "output": "r"},
                tools=[{"type": "custom", "name": "p"}],
            ),
        ),
        Example(
            "reasoning item",
            _items(
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [{"type": "summary_text", "text": "t"}],
                    "encrypted_content": "ENC",
                },
                {"role": "assistant", "content": "a"},
                _GO_ON,
            ),
            _items({"role": "assistant", "content": "a"}, _GO_ON),
        ),
        Example(
            "reasoning item carried from Messages",
            _items(
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [{"type": "summary_text", "text": "t"}],
                    "encrypted_content": "capi1.messages.SIG",
                },
                {"role": "assistant", "content": "a"},
                _GO_ON,
            ),
            _items({"role": "assistant", "content": "a"}, _GO_ON),
        ),
        Example(
            "input_image (data)", _input_part({"type": "input_image", "image_url": f"data:image/png;base64,{_PNG}"})
        ),
        Example("input_image (https)", _input_part({"type": "input_image", "image_url": "https://h.example/i.png"})),
        Example(
            "input_file (data)",
            _input_part(
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}
            ),
        ),
        Example("input_file (id)", _input_part({"type": "input_file", "file_id": "file-1"})),
        Example("item_reference", _items({"type": "item_reference", "id": "msg_1"})),
        Example(
            "web_search_call of an earlier answer",
            _items({"type": "web_search_call", "id": "ws_1", "status": "completed"}, _GO_ON),
            _items(_GO_ON),
        ),
        Example("tools (function)", {"tools": [_RESPONSES_TOOL]}),
        Example("tools (custom)", {"tools": [{"type": "custom", "name": "p"}]}),
        Example(
            "tools (namespace)",
            {"tools": [{"type": "namespace", "name": "ns", "description": "d", "tools": [_RESPONSES_TOOL]}]},
        ),
        Example("tools (web_search)", {"tools": [{"type": "web_search"}]}),
        Example("tools (file_search)", {"tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}),
        Example(
            "tool_choice (required)",
            {"tools": [_RESPONSES_TOOL], "tool_choice": "required"},
            {"tools": [_RESPONSES_TOOL]},
        ),
        Example(
            "tool_choice (allowed_tools)",
            {
                "tools": [_RESPONSES_TOOL, {**_RESPONSES_TOOL, "name": "g"}],
                "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            },
            {"tools": [_RESPONSES_TOOL, {**_RESPONSES_TOOL, "name": "g"}]},
        ),
        Example(
            "parallel_tool_calls",
            {"tools": [_RESPONSES_TOOL], "parallel_tool_calls": False},
            {"tools": [_RESPONSES_TOOL]},
        ),
        Example("max_output_tokens", {"max_output_tokens": 100}),
        Example("temperature", {"temperature": 0.5}),
        Example("top_p", {"top_p": 0.5}),
        Example(
            "reasoning.effort",
            {"reasoning": {"effort": "high"}, "max_output_tokens": 32000},
            {"max_output_tokens": 32000},
        ),
        Example(
            "reasoning.summary",
            {"reasoning": {"summary": "auto", "effort": "high"}, "max_output_tokens": 32000},
            {"reasoning": {"effort": "high"}, "max_output_tokens": 32000},
        ),
        Example("include (reasoning.encrypted_content)", {"include": ["reasoning.encrypted_content"]}),
        Example(
            "text.format (json_schema)", {"text": {"format": {"type": "json_schema", "name": "o", "schema": _SCHEMA}}}
        ),
        Example("text.verbosity", {"text": {"verbosity": "low"}}),
        Example("previous_response_id", {"previous_response_id": "resp_1"}),
        Example("conversation", {"conversation": "conv_1"}),
        Example("prompt", {"prompt": {"id": "p"}}),
        Example("background", {"background": True}),
        Example("store", {"store": True}),
        Example("truncation", {"truncation": "auto"}),
        Example("user", {"user": "u1"}),
        Example("prompt_cache_key", {"prompt_cache_key": "k"}),
        Example("safety_identifier", {"safety_identifier": "s"}),
        Example("metadata", {"metadata": {"a": "b"}}),
        Example("service_tier", {"service_tier": "flex"}),
        Example("top_logprobs", {"top_logprobs": 2}),
        Example("max_tool_calls", {"max_tool_calls": 2}),
    ),
    _MESSAGES: (
        Example("system (text)", {"system": "s"}),
        Example(
            "system (blocks) with cache_control",
            {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
            {"system": [{"type": "text", "text": "s"}]},
        ),
        Example("role: system in messages", _turns({"role": "system", "content": "d"}, _GO_ON), _turns(_GO_ON)),
        Example("assistant text", _turns({"role": "assistant", "content": "a"}, _GO_ON), _turns(_GO_ON)),
        Example("assistant text last (prefill)", _turns({"role": "assistant", "content": "a"})),
        Example("tool_use and tool_result", _tool_result()),
        Example("tool_result.is_error", _tool_result(is_error=True), _tool_result()),
        Example(
            "tool_result with an image",
            _tool_result(
                content=[{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _PNG}}]
            ),
            _tool_result(),
        ),
        Example(
            "thinking with signature",
            _turns(
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "t", "signature": "SIG"},
                        {"type": "text", "text": "a"},
                    ],
                },
                _GO_ON,
            ),
            _turns({"role": "assistant", "content": [{"type": "text", "text": "a"}]}, _GO_ON),
        ),
        Example(
            "thinking carried from Responses",
            _turns(
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "t", "signature": "capi1.responses.ENC"},
                        {"type": "text", "text": "a"},
                    ],
                },
                _GO_ON,
            ),
            _turns({"role": "assistant", "content": [{"type": "text", "text": "a"}]}, _GO_ON),
        ),
        Example(
            "redacted_thinking",
            _turns(
                {
                    "role": "assistant",
                    "content": [{"type": "redacted_thinking", "data": "D"}, {"type": "text", "text": "a"}],
                },
                _GO_ON,
            ),
            _turns({"role": "assistant", "content": [{"type": "text", "text": "a"}]}, _GO_ON),
        ),
        Example(
            "image (base64)",
            _block({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _PNG}}),
        ),
        Example("image (url)", _block({"type": "image", "source": {"type": "url", "url": "https://h.example/i.png"}})),
        Example(
            "document (base64)",
            _block(
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}
            ),
        ),
        Example(
            "document (text)",
            _block({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}}),
        ),
        Example(
            "search_result",
            _block({"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "x"}]}),
        ),
        Example("tools", {"tools": [_MESSAGES_TOOL]}),
        Example(
            "tools[].cache_control",
            {"tools": [{**_MESSAGES_TOOL, "cache_control": {"type": "ephemeral"}}]},
            {"tools": [_MESSAGES_TOOL]},
        ),
        Example("tools (web_search_20250305)", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        Example("tools (bash_20250124)", {"tools": [{"type": "bash_20250124", "name": "bash"}]}),
        Example(
            "tool_choice (any)",
            {"tools": [_MESSAGES_TOOL], "tool_choice": {"type": "any"}},
            {"tools": [_MESSAGES_TOOL]},
        ),
        Example(
            "tool_choice (tool)",
            {"tools": [_MESSAGES_TOOL], "tool_choice": {"type": "tool", "name": "f"}},
            {"tools": [_MESSAGES_TOOL]},
        ),
        Example(
            "disable_parallel_tool_use",
            {"tools": [_MESSAGES_TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            {"tools": [_MESSAGES_TOOL], "tool_choice": {"type": "auto"}},
        ),
        Example("max_tokens", {"max_tokens": 100}),
        Example("temperature", {"temperature": 0.5}),
        Example("top_p", {"top_p": 0.5}),
        Example("top_k", {"top_k": 5}),
        Example("stop_sequences", {"stop_sequences": ["END"]}),
        Example("thinking (enabled)", {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
        Example("thinking (adaptive)", {"thinking": {"type": "adaptive"}}),
        Example("thinking (disabled)", {"thinking": {"type": "disabled"}}),
        Example("output_config.effort", {"output_config": {"effort": "high"}}),
        Example("output_config.format", {"output_config": {"format": {"type": "json_schema", "schema": _SCHEMA}}}),
        Example("metadata.user_id", {"metadata": {"user_id": "u1"}}),
        Example("service_tier", {"service_tier": "standard_only"}),
        Example("cache_control (top level)", {"cache_control": {"type": "ephemeral"}}),
        Example("context_management", {"context_management": {"edits": []}}),
        Example("container", {"container": "c"}),
        Example("mcp_servers", {"mcp_servers": [{"type": "url", "url": "https://h.example", "name": "n"}]}),
    ),
}
