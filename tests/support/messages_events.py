"""Messages streams for tests: events as Anthropic writes them."""

import json
from collections.abc import Mapping

__all__ = ["STOP", "block", "delta", "event", "everything", "finish", "start", "written"]

Event = Mapping[str, object]


def event(kind: str, **members: object) -> dict[str, object]:
    """One event."""
    return {"type": kind, **members}


def start(model: str = "up", **usage: int) -> dict[str, object]:
    """`message_start`."""
    message: dict[str, object] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage or {"input_tokens": 5, "output_tokens": 1},
    }
    return event("message_start", message=message)


def delta(index: int, kind: str, **members: object) -> dict[str, object]:
    """`content_block_delta`."""
    return event("content_block_delta", index=index, delta={"type": kind, **members})


def block(index: int, content: Mapping[str, object], *deltas: Mapping[str, object]) -> list[dict[str, object]]:
    """All events of a block; each of `deltas` is a delta's members."""
    return [
        event("content_block_start", index=index, content_block=content),
        *(event("content_block_delta", index=index, delta=members) for members in deltas),
        event("content_block_stop", index=index),
    ]


def finish(reason: str | None = "end_turn", usage: object = None, **members: object) -> dict[str, object]:
    """`message_delta`."""
    told = {"output_tokens": 7} if usage is None else usage
    return event("message_delta", delta={"stop_reason": reason, "stop_sequence": None, **members}, usage=told)


STOP = event("message_stop")


def everything() -> list[dict[str, object]]:
    """One of each kind of block."""
    cited = {"type": "web_search_result_location", "url": "u", "title": "t", "cited_text": "x", "encrypted_index": "e"}
    thinking = {"type": "thinking", "thinking": "", "signature": ""}
    text = {"type": "text", "text": ""}
    return [
        start(),
        event("ping"),
        *block(
            0,
            thinking,
            {"type": "thinking_delta", "thinking": "hm"},
            {"type": "thinking_delta", "thinking": "m"},
            {"type": "signature_delta", "signature": "SIG"},
        ),
        *block(1, {"type": "redacted_thinking", "data": "RED"}),
        *block(
            2,
            text,
            {"type": "text_delta", "text": "hé"},
            {"type": "citations_delta", "citation": cited},
            {"type": "text_delta", "text": "llo"},
        ),
        *block(
            3,
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
            {"type": "input_json_delta", "partial_json": '{"q":'},
            {"type": "input_json_delta", "partial_json": "1}"},
        ),
        *block(4, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}),
        *block(
            5,
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
            {"type": "input_json_delta", "partial_json": ""},
            {"type": "input_json_delta", "partial_json": '{"a":'},
            {"type": "input_json_delta", "partial_json": "2}"},
        ),
        *block(6, {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}}),
        finish("tool_use"),
        STOP,
    ]


def written(*events: Event) -> bytes:
    """The stream's bytes."""
    out = [f"event: {members['type']}\ndata: {json.dumps(members, ensure_ascii=False)}\n\n" for members in events]
    return "".join(out).encode()
