"""When two names mean the same model.

Clients and providers spell one model in several ways: with the date of its snapshot or without, Claude's version with a
full stop or a hyphen and before or after the family, with a vendor in front, with a client's own suffix. A name that an
upstream does not list is compared in this normal form with those that it lists.

Two names mean the same model when their normal forms are the same and their dates do not contradict: a name without a
date stands for every snapshot, one with a date for that snapshot only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ModelName", "find_same"]

_VENDORS: Final = frozenset({"anthropic", "openai", "google", "github", "copilot", "models"})
"""Prefixes before a slash that say who made or sells a model, not which it is."""
_SUFFIX: Final = re.compile(r"\[[a-z0-9]+\]$")
"""`claude-sonnet-4-5[1m]`: Claude Code marks its long context like that; it is asked for by a header."""
_DATE: Final = re.compile(r"[-@](20\d\d)-?([01]\d)-?([0-3]\d)$")
_LATEST: Final = "-latest"
_REVISION: Final = re.compile(r"-v\d+(?::\d+)?$")
"""`claude-sonnet-4-5-20250929-v1:0`: how Bedrock numbers snapshots."""
_CLAUDE_OLD: Final = re.compile(r"claude-(\d+)[.-]?(\d)?-([a-z]+)")
"""`claude-3-5-sonnet`, `claude-3.7-sonnet`, `claude-3-opus`: the version before the family."""
_CLAUDE_NEW: Final = re.compile(r"claude-([a-z]+)-(\d+)[.-](\d{1,2})(?=$|-)")
"""`claude-sonnet-4-5`, `claude-opus-4.6`."""


@frozen
class ModelName:
    """A name taken apart. `base` is its normal form, `date` the snapshot as `YYYYMMDD`, empty without one."""

    base: str
    date: str

    @classmethod
    def of(cls, name: str) -> ModelName:
        """The parts of a model's name, in any of its spellings."""
        text = name.strip().lower()
        vendor, slash, rest = text.partition("/")
        if slash and vendor in _VENDORS:
            text = rest
        text = _SUFFIX.sub("", text).removesuffix(_LATEST)
        text = _REVISION.sub("", text) if _DATE.search(_REVISION.sub("", text)) else text
        found = _DATE.search(text)
        date = "".join(found.groups()) if found else ""
        return cls(_claude(text[: found.start()] if found else text), date)

    def same(self, other: ModelName) -> bool:
        """Whether both may name one model."""
        return self.base == other.base and (not self.date or not other.date or self.date == other.date)


def find_same(name: str, listed: Iterable[str]) -> str | None:
    """The listed name that means the same model as `name`; `None` when none does.

    Of several the one with the same date comes first, then one without a date, then the latest.
    """
    wanted = ModelName.of(name)
    best: tuple[tuple[bool, bool, str], str] | None = None
    for candidate in listed:
        parts = ModelName.of(candidate)
        if wanted.same(parts):
            rank = (parts.date == wanted.date, not parts.date, parts.date)
            if best is None or rank > best[0]:
                best = (rank, candidate)
    return None if best is None else best[1]


def _claude(base: str) -> str:
    old = _CLAUDE_OLD.match(base)
    if old:
        major, minor, family = old.groups()
        version = major if minor is None else f"{major}.{minor}"
        return f"claude-{version}-{family}{base[old.end() :]}"
    return _CLAUDE_NEW.sub(r"claude-\1-\2.\3", base, count=1)
