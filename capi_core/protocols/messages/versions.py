"""The two request headers that Anthropic's API is versioned by: `anthropic-version` and `anthropic-beta`.

Sources: Anthropic API reference, "Versioning" and "Beta headers"; wire.md 0, items 1 and 3. Version 2026-10-21 refuses
temperature, top_p and top_k even at their defaults, so a request that the gateway wrote itself is sent as 2023-06-01.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["TRANSLATED_VERSION", "merge_betas", "upstream_version"]

TRANSLATED_VERSION: Final = b"2023-06-01"
"""The version that translated requests are written in."""

_VERSION: Final = re.compile(rb"\d{4}-\d{2}-\d{2}\Z")
_BETA: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}\Z")
_MOST_BETAS: Final = 64


def upstream_version(client_version: bytes | None, *, translated: bool) -> bytes:
    """The value of `anthropic-version` for the upstream.

    A client's own passes with a client's own request, if it is a date; a translated request, and one without a usable
    version, goes as 2023-06-01.
    """
    if translated or client_version is None or not _VERSION.match(client_version):
        return TRANSLATED_VERSION
    return client_version


def merge_betas(*lists: bytes | None) -> bytes | None:
    """The value of `anthropic-beta` out of several comma-separated lists (RFC 9110, 5.6.1), each name once, in order.

    What is no token (RFC 9110, 5.6.2) of at most 128 characters is left out, as is what comes after 64 names. `None`
    when no name is left.
    """
    names: dict[bytes, None] = {}
    for one in lists:
        for part in (one or b"").split(b","):
            name = part.strip(b" \t")
            if len(names) < _MOST_BETAS and _BETA.match(name):
                names[name] = None
    return b",".join(names) or None
