"""Values that fit a JSON Schema, made up from what the user said. Pure.

The shape is honoured: types, required members, enum, const, default, local `$ref`, the first branch of anyOf,
oneOf and allOf, array items and lengths, string lengths and the common formats, number bounds. `pattern`,
`multipleOf` and conditions are not. Where a schema is too deep or too large, or of no known type, null.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["subject_of", "synthesise"]

_MAX_DEPTH: Final = 12
_MAX_ITEMS: Final = 32
# Values in all: a schema that refers to itself twice would otherwise double at every level.
_MAX_VALUES: Final = 1000
# Bounds beyond what a JSON number holds everywhere are no bounds.
_MAX_NUMBER: Final = 2**53
_MAX_STRING: Final = 200

_QUOTED: Final = re.compile(r"[\"“`]([^\"”`]{1,200})[\"”`]")
# Capitalised words that do not open a sentence: "in New York" but not "What is".
_PROPER: Final = re.compile(r"(?<=[^\s.!?:] )[A-Z][\w'-]*(?: [A-Z][\w'-]*)*")
_NUMBER: Final = re.compile(r"(?<![\w.])-?\d{1,15}(?:\.\d{1,6})?(?![\w.]*\w)")

_FORMATS: Final[Mapping[str, str]] = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT1H",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def subject_of(text: str) -> str:
    """What a message is about: its first quotation, else a proper noun in it, else all of it, shortened."""
    if quoted := _QUOTED.search(text):
        return quoted[1]
    if proper := _PROPER.search(text):
        return proper[0]
    return text.strip()[:_MAX_STRING]


def synthesise(schema: Mapping[str, object], text: str) -> object:
    """A JSON value of `schema`'s shape; strings and numbers come from `text` where they fit."""
    return _Synthesis(schema, text).value(schema, 0)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _count(schema: Mapping[str, object], name: str) -> int | None:
    value = schema.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(schema: Mapping[str, object], name: str) -> float | None:
    value = schema.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MAX_NUMBER:
        return None
    return value


class _Synthesis:
    """One run: the root (for `$ref`) and the numbers of the text that are not used up yet."""

    def __init__(self, root: Mapping[str, object], text: str) -> None:
        self._root = root
        self._left = _MAX_VALUES
        self._subject = subject_of(text)
        self._numbers = [float(number) for number in _NUMBER.findall(text)]

    def value(self, schema: Mapping[str, object], depth: int) -> object:
        self._left -= 1
        if depth > _MAX_DEPTH or self._left < 0:
            return None
        if "$ref" in schema:
            return self.value(self._resolve(schema["$ref"]), depth + 1)
        for literal in ("const", "default"):
            if literal in schema:
                return schema[literal]
        if choices := _list(schema.get("enum")):
            return choices[0]
        if branch := self._branch(schema):
            return self.value(branch, depth + 1)
        return self._of_type(schema, depth)

    def _resolve(self, ref: object) -> Mapping[str, object]:
        """The local definition that `ref` points to (RFC 6901 in a fragment); empty when there is none."""
        found: object = self._root
        if not isinstance(ref, str) or not ref.startswith("#"):
            return {}
        for step in ref.split("/")[1:]:
            found = _mapping(found).get(step.replace("~1", "/").replace("~0", "~"))
        return _mapping(found)

    @staticmethod
    def _branch(schema: Mapping[str, object]) -> Mapping[str, object] | None:
        for keyword in ("anyOf", "oneOf", "allOf"):
            branches = [_mapping(branch) for branch in _list(schema.get(keyword))]
            for branch in branches:
                if branch.get("type") != "null":
                    return branch
        return None

    def _of_type(self, schema: Mapping[str, object], depth: int) -> object:
        match _type_of(schema):
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer":
                return int(self._number(schema))
            case "number":
                number = self._number(schema)
                return int(number) if number.is_integer() else number
            case "boolean":
                return True
            case _:
                return None

    def _object(self, schema: Mapping[str, object], depth: int) -> dict[str, object]:
        properties = _mapping(schema.get("properties"))
        required = [name for name in _list(schema.get("required")) if isinstance(name, str)]
        return {name: self.value(_mapping(properties.get(name)), depth + 1) for name in required or properties}

    def _array(self, schema: Mapping[str, object], depth: int) -> list[object]:
        if prefix := _list(schema.get("prefixItems")):
            return [self.value(_mapping(item), depth + 1) for item in prefix]
        most = _count(schema, "maxItems")
        count = max(1, _count(schema, "minItems") or 0)
        count = min(count, _MAX_ITEMS if most is None else most)
        item = _mapping(schema.get("items"))
        return [self.value(item, depth + 1) for _ in range(count)]

    def _string(self, schema: Mapping[str, object]) -> str:
        wanted = schema.get("format")
        if isinstance(wanted, str) and wanted in _FORMATS:
            return _FORMATS[wanted]
        shortest = min(_count(schema, "minLength") or 0, _MAX_STRING)
        return self._subject.ljust(shortest, ".")[: _count(schema, "maxLength")]

    def _number(self, schema: Mapping[str, object]) -> float:
        low, above = _number(schema, "minimum"), _number(schema, "exclusiveMinimum")
        high, below = _number(schema, "maximum"), _number(schema, "exclusiveMaximum")
        lows = [bound for bound in (low, None if above is None else above + 1) if bound is not None]
        highs = [bound for bound in (high, None if below is None else below - 1) if bound is not None]
        number = self._numbers.pop(0) if self._numbers else 1.0
        return float(min([max([number, *lows]), *highs]))


def _type_of(schema: Mapping[str, object]) -> object:
    kind = schema.get("type")
    kinds = [name for name in _list(kind) if name != "null"]
    if kinds:
        return kinds[0]
    if kind is None:
        # Hand-written schemas often leave the type out where the members tell it.
        return next((name for name, sign in _SIGNS.items() if sign in schema), "string")
    return kind


_SIGNS: Final[Mapping[str, str]] = {"object": "properties", "array": "items"}
