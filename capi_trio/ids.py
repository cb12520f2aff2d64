"""Random ids. The one place where request ids come from; everything else gets the maker handed in."""

from __future__ import annotations

import secrets

__all__ = ["new_request_id"]


def new_request_id() -> str:
    """`req_` and 24 hex digits: 96 random bits, enough never to meet again in anybody's logs."""
    return f"req_{secrets.token_hex(12)}"
