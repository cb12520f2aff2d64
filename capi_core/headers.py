"""Which HTTP headers cross the gateway, in each direction.

Both directions are allow-lists. What the client sends to us (its key, its cookies, its proxy's notes, its tracing)
is none of the upstream's business; what the upstream sends us (its cookies, its account's rate limits, its own
request ids) is none of the client's. A list of what to strip would leak the next header somebody invents.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Headers", "client_response_headers", "find", "retry_after_s", "upstream_request_headers"]

Headers = tuple[tuple[bytes, bytes], ...]
"""Header fields in wire order: names in lower case, values without surrounding white space."""

RESPONSE_HEADERS: Final = frozenset({b"retry-after", b"retry-after-ms", b"x-should-retry"})
"""What an upstream may tell a client besides the body: how to retry, as the official SDKs read it (wire.md 1.4)."""

_MAX_VALUE: Final = 256
"""Bytes. No allowed header is ever longer; an upstream cannot use them to grow our response head."""


def find(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of the header `name` (lower case), or `None`."""
    for field, value in headers:
        if field.lower() == name:
            return value
    return None


# RFC 9110 5.6.7: the one form of a date that a sender may generate.
_DATE: Final = re.compile(rb"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT")
_MONTHS: Final = {name: at for at, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}
_SECONDS: Final = re.compile(rb"\d{1,18}(?:\.\d{1,9})?")
"""With a fraction, which the RFC has not and servers send."""


def retry_after_s(headers: Iterable[tuple[bytes, bytes]], now_s: float) -> float | None:
    """How long an upstream wants to be left alone, in seconds; `None` when it does not say. Never negative.

    `retry-after-ms`, which OpenAI's SDKs read first, or `retry-after` as seconds or as a date (RFC 9110 10.2.3).
    `now_s`: seconds since epoch.
    """
    headers = tuple(headers)
    milliseconds = (find(headers, b"retry-after-ms") or b"").strip()
    if _SECONDS.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    value = (find(headers, b"retry-after") or b"").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    date = _DATE.fullmatch(value)
    if date is None or date[2] not in _MONTHS:
        return None
    try:
        day, hour, minute, second = map(int, date.group(1, 4, 5, 6))
        moment = datetime(int(date[3]), _MONTHS[date[2]], day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - now_s)


def upstream_request_headers(*, stream: bool, request_id: str) -> Headers:
    """The complete head of an upstream request, less the upstream's own credential and host.

    Nothing is copied from the client. `accept-encoding: identity` because a compressed event stream cannot be
    relayed event by event. `request_id` must be our own: it is written to the wire as it is.
    """
    return (
        (b"accept", b"text/event-stream" if stream else b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"content-type", b"application/json"),
        (b"x-request-id", request_id.encode("ascii")),
    )


def client_response_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """What of an upstream's response head the client gets to see, apart from the content's own headers.

    A value that could not be written to the wire safely (control or non-ASCII bytes, too long) is left out, and so is
    each header after the first of its name.
    """
    shown: dict[bytes, bytes] = {}
    for name, value in headers:
        if name.lower() in RESPONSE_HEADERS and _is_safe(value):
            shown.setdefault(name.lower(), value)
    return tuple(shown.items())


def _is_safe(value: bytes) -> bool:
    return len(value) <= _MAX_VALUE and value.isascii() and value.decode().isprintable()
