"""Event streams written event by event, for tests that need one of each protocol."""

import json
from collections.abc import Iterable, Mapping

__all__ = ["chat", "named", "responses"]


def chat(*chunks: Mapping[str, object] | str) -> bytes:
    """Data-only events; a text stands for itself."""
    return b"".join(b"data: %b\n\n" % (c if isinstance(c, str) else json.dumps(dict(c))).encode() for c in chunks)


def named(*events: Mapping[str, object]) -> bytes:
    """Events whose name is their type."""
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(dict(event))}\n\n".encode() for event in events)


def responses(events: Iterable[Mapping[str, object]]) -> bytes:
    """The same, numbered."""
    return named(*({**event, "sequence_number": number} for number, event in enumerate(events)))
