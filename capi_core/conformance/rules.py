"""The vocabulary of conformance: rules, and what breaks them; and how untyped JSON is looked into."""

from __future__ import annotations

import enum
import hashlib
from typing import TYPE_CHECKING, TypeGuard

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Json", "Rule", "Running", "Severity", "Violation", "integer", "items", "members", "text"]

Json = dict[str, object]
"""A decoded JSON object."""


class Severity(enum.Enum):
    """How bad it is; see the package."""

    MUST = "must"
    SHOULD = "should"


@frozen
class Rule:
    """`id` is stable. `text` says what a legal stream does, `source` who says so."""

    id: str
    severity: Severity
    text: str
    source: str

    def __call__(self, path: str = "") -> Violation:
        """That it is broken, at a JSON path of the event."""
        return Violation(self.id, self.severity, self.text, path)


@frozen
class Violation:
    """`event`: which event of the stream, from 0; `None` when it is about the stream's end. Quotes nothing of it."""

    rule: str
    severity: Severity
    message: str
    path: str = ""
    event: int | None = None


class Running:
    """A text of which only the length and a digest are kept, to be compared with the whole."""

    __slots__ = ("_digest", "length")

    def __init__(self) -> None:
        self.length = 0
        self._digest = hashlib.sha256()

    def add(self, piece: str) -> None:
        self.length += len(piece)
        self._digest.update(piece.encode("utf-8", "surrogatepass"))

    def same(self, whole: str) -> bool:
        """Whether the pieces so far spell `whole`."""
        digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).digest()
        return len(whole) == self.length and digest == self._digest.digest()


def is_object(value: object) -> TypeGuard[Json]:
    return isinstance(value, dict)


def members(value: object) -> Json:
    """A JSON object's members; none for any other value."""
    return value if is_object(value) else {}


def items(value: object) -> list[object]:
    """A JSON array's items; none for any other value."""
    return list(value) if isinstance(value, list) else []


def text(parent: Mapping[str, object], name: str) -> str | None:
    """A member that is a string."""
    value = parent.get(name)
    return value if isinstance(value, str) else None


def integer(parent: Mapping[str, object], name: str) -> int | None:
    """A member that is an integer; `true` is none."""
    value = parent.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
