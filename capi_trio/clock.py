"""The clock and the dice of the process: the one place where they come from. Everything else gets them handed in."""

from __future__ import annotations

import secrets
import time

__all__ = ["now_ms", "random_bytes"]


def now_ms() -> int:
    """Wall-clock time in ms since the epoch, UTC."""
    return time.time_ns() // 1_000_000


def random_bytes(count: int) -> bytes:
    """`count` bytes from the system's cryptographic source."""
    return secrets.token_bytes(count)
