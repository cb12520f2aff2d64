"""The fidelity ledger: what a translation between two protocols did to a request or an answer.

Decoders and encoders write an entry for everything that does not arrive as it was sent. What has the same meaning in
another place or under another name needs none. A caller learns of it by `x-capi-fidelity`; with `strict_fidelity` on an
upstream a lossy translation is refused instead.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Change", "Entry", "Ledger"]

_MOST_ENTRIES: Final = 256
"""A hostile request can be made of things to drop: the count goes on, the list does not."""


class Change(enum.Enum):
    """What happened to a value."""

    DROPPED = "dropped"
    """It has no place in the other protocol, or its target does not take it."""
    ALTERED = "altered"
    """It arrives in a form that means something weaker or something near: an effort for a budget, text for a file."""
    RENAMED = "renamed"
    """It arrives whole, under a name that the target can take, and is named back in the answer."""
    DEFAULTED = "defaulted"
    """The other protocol requires a value and the sender gave none."""
    SYNTHESISED = "synthesised"
    """Something was made up so that the result is legal: an id, an empty argument object, a placeholder turn."""


_LOSSY: Final = frozenset({Change.DROPPED, Change.ALTERED})


@frozen
class Entry:
    """One thing that does not arrive as it was sent.

    `path` is the JSON path in the sender's document (`$.messages[3].content[0]`), `note` says what became of it and
    why. Neither holds a value of the document: entries are stored and shown.
    """

    change: Change
    path: str
    note: str

    @property
    def lossy(self) -> bool:
        """Whether the sender's meaning was weakened."""
        return self.change in _LOSSY


class Ledger:
    """The entries of one translation, in the order in which they were made."""

    __slots__ = ("_entries", "_seen", "losses", "total")

    def __init__(self) -> None:
        self.total = 0
        self.losses = 0
        """How many entries weaken the sender's meaning."""
        self._entries: list[Entry] = []
        self._seen: set[Entry] = set()

    def add(self, change: Change, path: str, note: str) -> None:
        """Notes a change. The same one twice is one entry: each event of a stream may lose the same member."""
        entry = Entry(change, path, note)
        if entry in self._seen:
            return
        self.total += 1
        self.losses += entry.lossy
        if len(self._entries) < _MOST_ENTRIES:
            self._entries.append(entry)
            self._seen.add(entry)

    def dropped(self, path: str, note: str) -> None:
        """Shorthand for the most frequent change."""
        self.add(Change.DROPPED, path, note)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The first 256 entries."""
        return tuple(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def header(self) -> str:
        """The value of `x-capi-fidelity`: `exact`, or `lossy; n=2`."""
        return f"lossy; n={self.losses}" if self.losses else "exact"
