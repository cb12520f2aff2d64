"""Responses streams for tests: events as a server writes them, one function per kind of item."""

import json
from collections.abc import Iterable, Mapping

__all__ = ["CREATED", "completed", "event", "numbered", "response", "text_item"]

Event = Mapping[str, object]


def event(kind: str, **members: object) -> dict[str, object]:
    """An event without its number."""
    return {"type": kind, **members}


def response(status: str = "in_progress", **members: object) -> dict[str, object]:
    """A response object, as upstreams put it into events."""
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 7,
        "model": "up",
        "status": status,
        "output": [],
        **members,
    }


CREATED = event("response.created", response=response())


def completed(*output: object, **members: object) -> dict[str, object]:
    """The last event of an answer that went well."""
    return event("response.completed", response=response("completed", output=list(output), **members))


def text_item(index: int, *texts: str, item_id: str = "msg_1") -> list[dict[str, object]]:
    """All events of a message with one part."""
    where: dict[str, object] = {"item_id": item_id, "output_index": index, "content_index": 0}
    whole = "".join(texts)
    part = {"type": "output_text", "text": whole, "annotations": []}
    message = {"type": "message", "id": item_id, "role": "assistant", "status": "completed", "content": [part]}
    return [
        event("response.output_item.added", output_index=index, item={**message, "content": []}),
        event("response.content_part.added", **where, part={**part, "text": ""}),
        *(event("response.output_text.delta", **where, delta=text, logprobs=[]) for text in texts),
        event("response.output_text.done", **where, text=whole, logprobs=[]),
        event("response.content_part.done", **where, part=part),
        event("response.output_item.done", output_index=index, item=message),
    ]


def numbered(events: Iterable[Event]) -> bytes:
    """The stream's bytes, with `event:` lines and numbers, as OpenAI writes them."""
    out = []
    for number, members in enumerate(events):
        data = json.dumps({**members, "sequence_number": number}, ensure_ascii=False)
        out.append(f"event: {members['type']}\ndata: {data}\n\n")
    return "".join(out).encode()
