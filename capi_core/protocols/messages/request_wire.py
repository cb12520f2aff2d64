"""What the modules for Messages requests share: the member `type`, errors with a path, and how much an effort is.

Source: Anthropic API reference, "Create a Message"; wire.md 1.3, 1.5.
"""

from __future__ import annotations

from typing import Final

import msgspec

from capi_core.conversation import Effort
from capi_core.errors import ProtocolError
from capi_core.protocols.reading import shown_path

__all__ = [
    "BILLING_MARK",
    "BUDGETS",
    "LEAST_BUDGET",
    "MOST_TYPE",
    "NULL",
    "TYPED",
    "CacheControl",
    "effort_of",
    "invalid",
    "is_one_of",
    "untranslatable",
]

NULL: Final = b"null"
MOST_TYPE: Final = 64
"""Characters of a block's or tool's type: types are kept in ledgers, which hold no texts."""
BILLING_MARK: Final = "x-anthropic-billing-header"
"""How the line starts that Claude Code puts before its system prompt, for Anthropic only. It changes with every version
and would cost other providers their prompt cache (wire.md 1.5)."""

LEAST_BUDGET: Final = 1024
"""The least `budget_tokens` that Anthropic takes."""
BUDGETS: Final = {
    Effort.MINIMAL: LEAST_BUDGET,
    Effort.LOW: LEAST_BUDGET,
    Effort.MEDIUM: 2048,
    Effort.HIGH: 4096,
    Effort.XHIGH: 8192,
    Effort.MAX: 16384,
}
"""The budget in tokens that stands for an effort, where a model takes no effort; the other way by `effort_of`."""

_SHORT: Final = 64


class Typed(msgspec.Struct):
    """The one member that all blocks and tools have."""

    type: str | None = None


class CacheControl(msgspec.Struct):
    """`cache_control`, wherever it stands."""

    type: str = "ephemeral"
    ttl: str | None = None


TYPED: Final = msgspec.json.Decoder(Typed)


def effort_of(budget_tokens: int) -> Effort:
    """The effort whose budget a budget reaches. LOW to HIGH: not every model takes more than that."""
    taken = [effort for effort in (Effort.LOW, Effort.MEDIUM, Effort.HIGH) if BUDGETS[effort] <= budget_tokens]
    return taken[-1] if taken else Effort.LOW


def is_one_of(raw: bytes, values: tuple[bytes, ...]) -> bool:
    """Whether a raw value is one of `values`, which are written without white space and are short."""
    return len(raw) <= _SHORT and b"".join(raw.split()) in values


def invalid(path: str, message: str) -> ProtocolError:
    """A client's mistake at the JSON path `path`."""
    shown = shown_path(path)
    return ProtocolError(f"{shown}: {message}", code="invalid_request", param=shown)


def untranslatable(path: str, message: str) -> ProtocolError:
    """What a client sends cannot be had from this upstream, and must not be left out unsaid."""
    return ProtocolError(message, code="untranslatable", param=shown_path(path))
