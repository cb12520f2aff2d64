"""Chunks and answers of Chat Completions, for tests."""

import json

__all__ = ["DONE", "answer", "chunk", "say", "sse"]

DONE = b"data: [DONE]\n\n"


def chunk(*choices: dict[str, object], **members: object) -> dict[str, object]:
    """A chunk with these choices."""
    return {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "up", "choices": choices, **members}


def say(finish: str | None = None, **delta: object) -> dict[str, object]:
    """A chunk of the one choice."""
    return chunk({"index": 0, "delta": delta, "finish_reason": finish})


def sse(*chunks: dict[str, object], done: bool = True) -> bytes:
    """The stream of these chunks."""
    return b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in chunks) + (DONE if done else b"")


def answer(*messages: dict[str, object], finish: str | None = "stop", **members: object) -> bytes:
    """A whole answer with a choice for each message."""
    choices = [{"message": {"role": "assistant", **one}, "finish_reason": finish} for one in messages]
    return json.dumps({"id": "c1", "created": 7, "model": "up", "choices": choices, **members}).encode()
