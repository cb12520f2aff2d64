"""The points of a request up to which Anthropic shall cache it.

Source: Anthropic documentation, "Prompt caching": at most four marks, that live for 5 minutes or 1 hour; wire.md 1.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core.fidelity import Change, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.conversation import CacheMark

__all__ = ["MOST_MARKS", "CacheMarks", "trim"]

MOST_MARKS: Final = 4
_TTLS: Final = ("5m", "1h")
_MEMBER: Final = "cache_control"


class CacheMarks:
    """Sets the marks of one part of a request, in the order of the prompt."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._marked: list[tuple[dict[str, object], str]] = []

    def put(self, part: dict[str, object], cache: CacheMark | None, at: str) -> dict[str, object]:
        """Marks `part` if the sender did, and returns it."""
        if cache is not None:
            part[_MEMBER] = self._control(cache, at)
            self._marked.append((part, at))
        return part

    @property
    def marked(self) -> list[tuple[dict[str, object], str]]:
        """What was marked, with the JSON path that it has at the sender's."""
        return self._marked

    def _control(self, cache: CacheMark, at: str) -> dict[str, object]:
        if cache.ttl in _TTLS:
            return {"type": "ephemeral", "ttl": cache.ttl}
        if cache.ttl is not None:
            self._ledger.add(Change.ALTERED, at, f"a cache lives for {' or '.join(_TTLS)} only: the default is taken")
        return {"type": "ephemeral"}


def trim(parts: Iterable[CacheMarks], ledger: Ledger) -> None:
    """Leaves the last four marks of a request: they cover the most of the prompt. `parts`: in the prompt's order, which
    is tools, system, messages."""
    marked = [one for marks in parts for one in marks.marked]
    for part, at in marked[:-MOST_MARKS]:
        del part[_MEMBER]
        ledger.dropped(at, f"Anthropic takes {MOST_MARKS} cache marks; this is one of the first")
