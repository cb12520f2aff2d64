"""Event streams written event by event, for tests that need one of each protocol."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from capi_core.protocols.kinds import Protocol
from capi_core.usage import Usage, encode_anthropic_usage, encode_openai_usage, encode_responses_usage

__all__ = ["SPENT", "answer_document", "answer_events", "answer_stream", "chat", "named", "responses"]


def chat(*chunks: Mapping[str, object] | str) -> bytes:
    """Data-only events; a text stands for itself."""
    return b"".join(b"data: %b\n\n" % (c if isinstance(c, str) else json.dumps(dict(c))).encode() for c in chunks)


def named(*events: Mapping[str, object]) -> bytes:
    """Events whose name is their type."""
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(dict(event))}\n\n".encode() for event in events)


def responses(events: Iterable[Mapping[str, object]]) -> bytes:
    """The same, numbered."""
    return named(*({**event, "sequence_number": number} for number, event in enumerate(events)))


# -- one answer, in each protocol: reasoning, text, two calls whose arguments come by turns, usage -------------------

SPENT: Final = Usage(uncached_input=11, cache_read=5, cache_write=2, output=7, reasoning=3)
THOUGHT: Final = ("First ", "things first.")
WORDS: Final = ("Hé", "llo, ", "STOP wor", "ld")
CALLS: Final = (("call_1", "get_weather", ('{"city":', '"Oslo"}')), ("call_2", "get_time", ('{"zo', 'ne":"CET"}')))


def answer_stream(protocol: Protocol, *, words: Sequence[str] = WORDS, usage: Usage | None = SPENT) -> bytes:
    """The answer as an upstream of `protocol` streams it."""
    return b"".join(answer_events(protocol, words=words, usage=usage))


def answer_events(protocol: Protocol, *, words: Sequence[str] = WORDS, usage: Usage | None = SPENT) -> list[bytes]:
    """The same, event by event."""
    match protocol:
        case Protocol.CHAT:
            return _chat_answer(words, usage)
        case Protocol.RESPONSES:
            return _responses_answer(words, usage)
        case Protocol.MESSAGES:
            return _messages_answer(words, usage)


def answer_document(protocol: Protocol, *, words: Sequence[str] = WORDS, usage: Usage | None = SPENT) -> bytes:
    """The same answer, whole."""
    text, thought = "".join(words), "".join(THOUGHT)
    document: dict[str, object]
    match protocol:
        case Protocol.CHAT:
            calls = [
                {"id": call, "type": "function", "function": {"name": name, "arguments": "".join(pieces)}}
                for call, name, pieces in CALLS
            ]
            message = {"role": "assistant", "content": text, "reasoning_content": thought, "tool_calls": calls}
            document = {
                "id": "c1",
                "object": "chat.completion",
                "created": 7,
                "model": "up",
                "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
                "usage": _openai(usage),
            }
        case Protocol.RESPONSES:
            document = _response("completed", _items(text), _of_responses(usage))
        case Protocol.MESSAGES:
            blocks: list[Mapping[str, object]] = [
                {"type": "thinking", "thinking": thought, "signature": "SIG"},
                {"type": "text", "text": text},
                *(
                    {"type": "tool_use", "id": call, "name": name, "input": json.loads("".join(pieces))}
                    for call, name, pieces in CALLS
                ),
            ]
            document = {**_message(_of_messages(usage, whole=True)), "content": blocks, "stop_reason": "tool_use"}
    return json.dumps(document, ensure_ascii=False).encode()


def _openai(usage: Usage | None) -> object:
    return None if usage is None else json.loads(encode_openai_usage(usage))


def _of_responses(usage: Usage | None) -> object:
    return json.loads(encode_responses_usage(usage))


def _of_messages(usage: Usage | None, *, whole: bool) -> object:
    return json.loads(encode_anthropic_usage(usage, whole=whole))


def _chat_answer(words: Sequence[str], usage: Usage | None) -> list[bytes]:
    def said(finish: str | None = None, **delta: object) -> dict[str, object]:
        return chunk([{"index": 0, "delta": delta, "finish_reason": finish}])

    def chunk(choices: list[dict[str, object]], **members: object) -> dict[str, object]:
        known = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "up"}
        return {**known, "choices": choices, **members}

    begun = [
        {"index": at, "id": call, "type": "function", "function": {"name": name, "arguments": ""}}
        for at, (call, name, _) in enumerate(CALLS)
    ]
    pieces = [
        {"index": at, "function": {"arguments": pieces[turn]}}
        for turn in range(2)
        for at, (*_, pieces) in enumerate(CALLS)
    ]
    chunks: list[dict[str, object]] = [
        said(role="assistant", content=""),
        *(said(reasoning_content=piece) for piece in THOUGHT),
        *(said(content=piece) for piece in words),
        *(said(tool_calls=[call]) for call in (*begun, *pieces)),
        said("tool_calls"),
    ]
    if usage is not None:
        chunks.append(chunk([], usage=_openai(usage)))
    return [*map(chat, chunks), chat("[DONE]")]


def _message(usage: object) -> dict[str, object]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "up",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _messages_answer(words: Sequence[str], usage: Usage | None) -> list[bytes]:
    def start(index: int, **block: object) -> dict[str, object]:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def delta(index: int, **members: object) -> dict[str, object]:
        return {"type": "content_block_delta", "index": index, "delta": members}

    def stop(index: int) -> dict[str, object]:
        return {"type": "content_block_stop", "index": index}

    opening = Usage() if usage is None else Usage(usage.uncached_input, usage.cache_read, usage.cache_write, 1)
    ended = {"stop_reason": "tool_use", "stop_sequence": None}
    events: list[dict[str, object]] = [
        {"type": "message_start", "message": _message(_of_messages(opening, whole=True))},
        {"type": "ping"},
        start(0, type="thinking", thinking="", signature=""),
        *(delta(0, type="thinking_delta", thinking=piece) for piece in THOUGHT),
        delta(0, type="signature_delta", signature="SIG"),
        stop(0),
        start(1, type="text", text=""),
        *(delta(1, type="text_delta", text=piece) for piece in words),
        stop(1),
        *(start(at, type="tool_use", id=call, name=name, input={}) for at, (call, name, _) in enumerate(CALLS, 2)),
        *(
            delta(at, type="input_json_delta", partial_json=pieces[turn])
            for turn in range(2)
            for at, (*_, pieces) in enumerate(CALLS, 2)
        ),
        stop(2),
        stop(3),
        {"type": "message_delta", "delta": ended, "usage": _of_messages(usage, whole=False)},
        {"type": "message_stop"},
    ]
    return [named(event) for event in events]


def _response(status: str, output: Sequence[object], usage: object = None) -> dict[str, object]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 7,
        "model": "up",
        "status": status,
        "output": output,
        "usage": usage,
    }


def _items(text: str) -> list[dict[str, object]]:
    part = {"type": "output_text", "text": text, "annotations": []}
    thought = {"type": "summary_text", "text": "".join(THOUGHT)}
    items: list[dict[str, object]] = [
        {"type": "reasoning", "id": "rs_1", "summary": [thought]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]},
    ]
    for at, (call, name, pieces) in enumerate(CALLS):
        known = {"type": "function_call", "id": f"fc_{at}", "call_id": call, "name": name, "status": "completed"}
        items.append({**known, "arguments": "".join(pieces)})
    return items


def _responses_answer(words: Sequence[str], usage: Usage | None) -> list[bytes]:
    items = _items("".join(words))
    thought: dict[str, object] = {"item_id": "rs_1", "output_index": 0, "summary_index": 0}
    spoken: dict[str, object] = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
    whole: dict[str, object] = {"type": "summary_text", "text": "".join(THOUGHT)}
    said = "".join(words)
    part: dict[str, object] = {"type": "output_text", "text": said, "annotations": []}
    calls: list[dict[str, object]] = [{"item_id": f"fc_{at}", "output_index": at + 2} for at in range(2)]
    arguments = "response.function_call_arguments"

    def added(index: int, **empty: object) -> dict[str, object]:
        return {"type": "response.output_item.added", "output_index": index, "item": {**items[index], **empty}}

    def done(index: int) -> dict[str, object]:
        return {"type": "response.output_item.done", "output_index": index, "item": items[index]}

    events: list[dict[str, object]] = [
        {"type": "response.created", "response": _response("in_progress", [])},
        {"type": "response.in_progress", "response": _response("in_progress", [])},
        added(0, summary=[]),
        {"type": "response.reasoning_summary_part.added", **thought, "part": {**whole, "text": ""}},
        *({"type": "response.reasoning_summary_text.delta", **thought, "delta": piece} for piece in THOUGHT),
        {"type": "response.reasoning_summary_text.done", **thought, "text": whole["text"]},
        {"type": "response.reasoning_summary_part.done", **thought, "part": whole},
        done(0),
        added(1, content=[]),
        {"type": "response.content_part.added", **spoken, "part": {**part, "text": ""}},
        *({"type": "response.output_text.delta", **spoken, "delta": piece, "logprobs": []} for piece in words),
        {"type": "response.output_text.done", **spoken, "text": said, "logprobs": []},
        {"type": "response.content_part.done", **spoken, "part": part},
        done(1),
        added(2, arguments=""),
        added(3, arguments=""),
        *(
            {"type": f"{arguments}.delta", **calls[at], "delta": pieces[turn]}
            for turn in range(2)
            for at, (*_, pieces) in enumerate(CALLS)
        ),
        *({"type": f"{arguments}.done", **calls[at], "arguments": "".join(CALLS[at][2])} for at in range(2)),
        done(2),
        done(3),
        {"type": "response.completed", "response": _response("completed", items, _of_responses(usage))},
    ]
    return [named({**event, "sequence_number": number}) for number, event in enumerate(events)]
