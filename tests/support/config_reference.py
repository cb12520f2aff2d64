"""The tables of docs/configuration.md, made from the schema: `python -m tests.support.config_reference` rewrites them.

Names, types, ranges and defaults come from the structs of `capi_core.config`, meanings from the docstrings beside the
members, which only the source has: so this reads the source, and is a tool of the developers, not part of capi.

A table stands between two comments, `<!-- table of LimitsConfig -->` and `<!-- end of table -->`.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import inspect as schema

from capi_core import config

__all__ = ["DOCUMENT", "STRUCTS", "meanings", "rewritten", "table"]

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "configuration.md"
STRUCTS: Final[Mapping[str, tuple[type[msgspec.Struct], str]]] = {
    "Config": (config.Config, ""),
    "UpstreamConfig": (config.UpstreamConfig, ""),
    "ModelConfig": (config.ModelConfig, "models.NAME."),
    "FallbackConfig": (config.FallbackConfig, "models.NAME.fallbacks[]."),
    "LimitsConfig": (config.LimitsConfig, ""),
    "FanoutConfig": (config.FanoutConfig, "fanout."),
    "FeaturesConfig": (config.FeaturesConfig, ""),
    "RetentionConfig": (config.RetentionConfig, ""),
}
"""By name: each struct, and what its members' names are preceded by in the document."""

_SECTIONS: Final = frozenset({"models", "upstreams", "limits", "features", "retention"})
"""Members that have a table of their own."""

# What a member means that has no docstring of its own, because its name and type say as much to readers of the code.
_PLAIN: Final[Mapping[str, str]] = {
    "Config.version": "the version of this format",
    "ModelConfig.enabled": "a disabled alias is refused like an unknown name",
    "UpstreamConfig.connect_timeout_s": "for a connection, its TLS handshake included",
    "UpstreamConfig.total_timeout_s": "for a whole exchange",
    "LimitsConfig.max_body_bytes": "a larger request gets 413; a declared length is refused without reading the body",
    "LimitsConfig.max_event_bytes": "one event of an upstream's stream",
    "LimitsConfig.max_answer_bytes": "a whole answer that is not a stream",
    "LimitsConfig.max_connections": "in total; more are dropped at once",
    "LimitsConfig.max_connections_per_address": "from one address",
    "LimitsConfig.min_body_rate": "the slowest that a request's body may come",
    "LimitsConfig.idle_connection_s": "a connection without a request",
    "RetentionConfig.audit_days": "how long audit files are kept",
}

_TABLE: Final = re.compile(r"(<!-- table of (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def meanings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """What the docstring beside each member says; members without one are left out."""
    tree = ast.parse(inspect.getsource(struct)).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for member, text in zip(tree.body, tree.body[1:], strict=False):
        match member, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                found[name] = " ".join(said.split())
            case _:
                continue
    return found


def table(struct: type[msgspec.Struct], prefix: str) -> str:
    """One row for each member: name, default, type with its range, meaning."""
    said = {name.partition(".")[2]: text for name, text in _PLAIN.items() if name.startswith(f"{struct.__name__}.")}
    said |= meanings(struct)
    rows = ["| member | default | type | |", "|---|---|---|---|"]
    for member in _members(struct):
        meaning = said.get(member.name, "").removesuffix(".")
        meaning = meaning[:1].lower() + meaning[1:] if not meaning.startswith("`") else meaning
        cells = (f"`{prefix}{member.name}`", _default(member), _type(member.type), meaning)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def rewritten(document: str) -> str:
    """The document with every table as it should be. Raises `KeyError` for a table of a struct that there is not."""
    return _TABLE.sub(lambda found: found[1] + table(*STRUCTS[found[2]]) + found[3], document)


def _members(struct: type[msgspec.Struct]) -> Iterator[schema.Field]:
    info = schema.type_info(struct)
    assert isinstance(info, schema.StructType)
    return (member for member in info.fields if struct is not config.Config or member.name not in _SECTIONS)


def _default(member: schema.Field) -> str:
    if member.required:
        return "required"
    value: object = member.default if member.default is not msgspec.NODEFAULT else ()
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return f"`{msgspec.json.encode(value).decode()}`"


def _type(kind: schema.Type) -> str:
    match kind:
        case schema.Metadata(type=inner, extra_json_schema=extra):
            unit = (extra or {}).get("description")
            return _type(inner) if unit is None else f"{_type(inner)}, {unit}"
        case schema.UnionType(types=types):
            return " or ".join(_type(inner) for inner in types if not isinstance(inner, schema.NoneType))
        case schema.LiteralType(values=values):
            return " or ".join(f"`{msgspec.json.encode(value).decode()}`" for value in values)
        case schema.EnumType(cls=cls):
            return " or ".join(f'`"{item.value}"`' for item in cls)
        case schema.VarTupleType(item_type=item) | schema.ListType(item_type=item):
            return f"list of {_type(item)}"
        case schema.IntType(ge=low, le=high):
            return f"integer{_range(None, low, high)}"
        case schema.FloatType(gt=above, ge=low, le=high):
            return f"number{_range(above, low, high)}"
        case schema.BoolType():
            return "boolean"
        case schema.StrType():
            return "string"
        case schema.StructType() | schema.DictType():
            return "object"
        case _:
            raise AssertionError(f"{kind} has no words yet")


def _range(above: float | None, low: float | None, high: float | None) -> str:
    words = [f"above {above:g}"] if above is not None else []
    words += [f"from {low}"] if low is not None else []
    words += [f"to {high}"] if high is not None else []
    return f" {' '.join(words)}" if words else ""


def main() -> None:
    """Rewrites the document."""
    before = DOCUMENT.read_text()
    after = rewritten(before)
    DOCUMENT.write_text(after)
    sys.stdout.write(f"{DOCUMENT.name}: {'unchanged' if after == before else 'rewritten'}\n")


if __name__ == "__main__":
    main()
