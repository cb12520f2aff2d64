"""Invariant: any bytes are an object that is edited exactly, or a refusal; a rewriter never raises.

The standard library's `json` is the second opinion: what it reads, `JSONObject` reads alike or refuses for duplicates
or depth; and it sees the wanted change in the member named, and no other. Bytes outside of the values replaced are the
same. What `JSONObject` takes, a rewriter changes in the same places.
"""

import json
import re

from capi_core.members import JSONObject, MemberRewriter, MembersError

__all__ = ["test_one_input"]

NAME = "model"
VALUE = b'"\\u0000new"'
REWRITER = MemberRewriter(NAME, VALUE)
MOST_MEMBERS = 1_000
CODES = {"invalid_json", "not_an_object", "duplicate_member", "too_many_members", "json_too_deep"}

UNPAIRED = re.compile("[\ud800-\udfff]")  # what is left of surrogates in a decoded name; we read U+FFFD there

Pairs = list[tuple[str, object]]


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def pairs_of(text: bytes) -> Pairs | None:
    """The top-level members in order, duplicates and all; None if `json` refuses the text or it is no object.

    Numbers stay text, as Python refuses integers of more than 4,300 digits and rounds others.
    """
    try:
        # The hook makes tuples of pairs, so that the outermost object is told from an array.
        value = json.loads(
            text.decode(), object_pairs_hook=tuple, parse_int=str, parse_float=str, parse_constant=refuse
        )
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or deeper than this stack allows
        return None
    return list(value) if text.lstrip(b" \t\n\r")[:1] == b"{" else None


def changed(pairs: Pairs) -> Pairs:
    return [(name, json.loads(VALUE) if name == NAME else value) for name, value in pairs]


def check_object(found: JSONObject) -> None:
    text = found.text
    assert found.edit({}) == text
    assert found.edit({name: found.get(name) or b"" for name in found.names}) == text
    edited = found.edit({NAME: VALUE})
    if len(found.names) == MOST_MEMBERS and NAME not in found.names:
        assert read(edited) == "too_many_members"
        return
    again = JSONObject(edited)
    assert again.get(NAME) == VALUE
    assert again.names == (found.names if NAME in found.names else (*found.names, NAME))
    for name in found.names:
        assert name == NAME or again.get(name) == found.get(name)
    old = found.get(NAME)
    if old is None:
        assert len(edited) == len(text) + len(b'"%b":%b' % (NAME.encode(), VALUE)) + bool(found.names)
        assert REWRITER.rewrite(text) == text
    else:
        assert again.edit({NAME: old}) == text
        assert REWRITER.rewrite(text) == edited


def read(text: bytes) -> JSONObject | str:
    """The object, or the code of its refusal."""
    try:
        return JSONObject(text)
    except MembersError as error:  # the text is the peer's
        return error.code


def test_one_input(data: bytes) -> None:
    rewritten = REWRITER.rewrite(data)
    assert REWRITER.rewrite(rewritten) == rewritten
    pairs = pairs_of(data)
    found = read(data)
    if isinstance(found, JSONObject):
        check_object(found)
    elif pairs is None:
        assert found in CODES
    else:
        assert found in ("duplicate_member", "too_many_members", "json_too_deep")
    if pairs is not None and found not in ("too_many_members", "json_too_deep"):
        assert pairs_of(rewritten) == changed(pairs)
        names = tuple(UNPAIRED.sub("\ufffd", name) for name, _ in pairs)
        if isinstance(found, JSONObject):
            assert found.names == names
        else:
            assert len(set(names)) < len(names)
