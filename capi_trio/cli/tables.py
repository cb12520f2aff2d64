"""How commands print records for people: in columns, with times that can be read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from capi_trio.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["columns", "instant"]


def columns(rows: Sequence[Sequence[str]]) -> str:
    """The rows in columns as wide as they must be. All have as many cells as the first; there is at least one row.

    What an upstream calls its models, or a login, cannot command the terminal.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def instant(ms: int) -> str:
    """A time in ms since the epoch, in UTC, to the second."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
