"""Replaces or adds top-level members of a JSON object and leaves every other byte alone.

What a gateway does not have to change it passes on as it came: white space, the order of members, `1e999`,
integers of 4,301 digits, escapes, duplicate names deeper down. So a text is never decoded and encoded again:
msgspec checks it and yields the raw text of the values, from whose lengths the places to splice are found.

Two readings of "the member called `model`" are told apart on purpose. A request with two of them is refused
(`JSONObject`): the upstream might obey the one that was not authorised. An answer with two of them has both
replaced (`MemberRewriter`): neither may leak.

Beyond what msgspec takes for JSON, an unpaired surrogate escape (`"\\ud83d"`) is accepted: RFC 8259 (section 8.2)
allows it, and clients that cut strings in the middle of an emoji do send it. Nesting is limited by the
interpreter's recursion limit, about 1,000 levels, less what the caller's stack has used.
"""

import codecs
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

import msgspec

from capi_core.errors import LocalError, ProtocolError

__all__ = ["JSONObject", "MemberRewriter", "MembersError", "decode", "is_crowded"]

_T = TypeVar("_T")

_RAW_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)

_MOST_MEMBERS: Final = 1_000
_MOST_COMMAS: Final = 1_000_000
_UTF8_WINDOW: Final = 1 << 16
"""Bytes decoded at a time: the text of a large body never exists a second time as `str`."""

# The patterns below run on text that is known to be JSON; possessive, so that they take linear time and memory.
_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_NAME: Final = re.compile(rb"[{,\s]*+(%b)\s*+:\s*+" % _STRING, re.DOTALL)
_SCALAR: Final = re.compile(rb"%b|[^\s,\]}]++" % _STRING, re.DOTALL)
_BRACKET: Final = re.compile(rb'[^"\[\]{}]*+(?:%b[^"\[\]{}]*+)*+([\[\]{}])' % _STRING, re.DOTALL)
_SIMPLE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_BACKSLASH: Final = 0x5C  # as a number: `in` is then a bare memchr
_AFTER_VALUE: Final = b",} \t\n\r"

_HIGH: Final = rb"\\u[Dd][89ABab][0-9A-Fa-f]{2}"
_LOW: Final = rb"\\u[Dd][C-Fc-f][0-9A-Fa-f]{2}"
# Both start with a literal, which lets `re` skip ahead to the next escape.
_UNPAIRED: Final = re.compile(rb"%b(?!%b)|%b(?<!%b%b)" % (_HIGH, _LOW, _LOW, _HIGH, _LOW))


class MembersError(ProtocolError):
    """A text is not a JSON object that can be edited safely. Status hint 400.

    Codes: `invalid_json`, `not_an_object`, `duplicate_member` and `too_many_members` (both at the top level),
    `json_too_deep`.
    """


class JSONObject:
    """A JSON object as text, with the places of its top-level members.

    The cost is one validating pass at msgspec's speed, and Python work per top-level member only, of which there may be
    1,000: no request needs a tenth of that, and a large body of tiny members would hold up everybody for seconds.
    """

    __slots__ = ("_spans", "text")

    def __init__(self, text: bytes) -> None:
        """Validates that `text` is one JSON object (RFC 8259) in UTF-8, without a byte order mark.

        Raises `MembersError`, for any other input whatever.
        """
        values, readable = _load(text)
        self.text: Final = text
        self._spans: Final = _locate(readable, values)

    @property
    def names(self) -> tuple[str, ...]:
        """The decoded names of the members, in document order."""
        return tuple(self._spans)

    def get(self, name: str) -> bytes | None:
        """The raw JSON text of the member's value, or None if there is no such member."""
        span = self._spans.get(name)
        return None if span is None else self.text[span[0] : span[1]]

    def edit(self, changes: Mapping[str, bytes]) -> bytes:
        """The object's text with `changes`, a map from names to raw JSON text, made to it.

        The values of members that exist are replaced where they stand; other members are added after the last
        one, in the order of `changes`. Every other byte stays. Raises `LocalError` if a value is not JSON text
        or a name cannot be written in UTF-8.
        """
        parts = []
        at = 0
        for name, (start, end) in self._spans.items():
            if name in changes:
                parts += [self.text[at:start], _checked(changes[name])]
                at = end
        added = [_encoded(*change) for change in changes.items() if change[0] not in self._spans]
        if added:
            last = next(reversed(self._spans.values()), None)
            end = last[1] if last else self.text.index(b"{") + 1
            parts += [self.text[at:end], b"," if last else b"", b",".join(added)]
            at = end
        parts.append(self.text[at:])
        return b"".join(parts)


class MemberRewriter:
    """Replaces the value of one top-level member in text after text: the hot path for stream events."""

    __slots__ = ("_decoder", "_escapes", "_name", "_needle", "_value")

    def __init__(self, name: str, value: bytes) -> None:
        """`value` is raw JSON text; `name` is made of ASCII letters, digits, `_`, `.` and `-`.

        Raises `LocalError` if they are not.
        """
        if not _SIMPLE_NAME.fullmatch(name):
            raise LocalError("a member to rewrite has a name of ASCII letters, digits, '_', '.' and '-'")
        self._name: Final = name
        self._value: Final = _checked(value)
        self._needle: Final = b'"%b"' % name.encode()
        self._decoder: Final = msgspec.json.Decoder(_struct_that_finds(name))
        # How each letter of the name starts when it is spelled as an escape; 0x6d is "m", 0x4d is "M".
        self._escapes: Final = tuple({b"\\u00%x" % (ord(letter) >> 4) for letter in name})

    def rewrite(self, text: bytes) -> bytes:
        """`text` with the member's value replaced, every other byte the same.

        If `text` is not a JSON object, or has no such member at its top level, it is returned as it is; if it
        has several, each is replaced. Never raises. Invalid UTF-8 is passed over.
        """
        try:
            found, readable = decode(self._decoder, text)
        except (msgspec.DecodeError, RecursionError):
            return text
        if not found.value:
            return text
        # The object has the member. If its name stands in the text once, and none of its letters may be hidden
        # in an escape, that is the place: only white space and the colon come between it and the value.
        at = readable.find(self._needle)
        after = at + len(self._needle)
        if at < 0 or readable.find(self._needle, after) >= 0 or self._may_be_escaped(readable):
            return self._rewrite_walking(text, readable)
        start = readable.find(found.value, after)
        return b"%b%b%b" % (text[:start], self._value, text[start + len(found.value) :])

    def _may_be_escaped(self, text: bytes) -> bool:
        return _BACKSLASH in text and any(escape in text for escape in self._escapes)

    def _rewrite_walking(self, text: bytes, readable: bytes) -> bytes:
        """The general way: passes over every value, so that each member of the name is found for certain."""
        parts = []
        at = 0
        for name, start, end in _walk(readable, lambda start, _: _value_end(readable, start)):
            if name == self._name:
                parts += [text[at:start], self._value]
                at = end
        parts.append(text[at:])
        return b"".join(parts)


class _Found(msgspec.Struct, gc=False):
    """What a rewriter decodes of an object: one member, the last of its name; empty if there is none."""

    value: msgspec.Raw = msgspec.Raw()


def _struct_that_finds(name: str) -> type[_Found]:
    class Found(_Found, gc=False, rename={"value": name}):
        value: msgspec.Raw = msgspec.Raw()

    return Found


def _load(text: bytes) -> tuple[dict[str, msgspec.Raw], bytes]:
    try:
        _check_utf8(text)
        return decode(_RAW_MEMBERS, text)
    except UnicodeDecodeError:
        # Not `from error`: that one holds the bytes.
        raise MembersError("not valid JSON: not valid UTF-8", code="invalid_json") from None
    except msgspec.ValidationError as error:
        raise MembersError("not a JSON object", code="not_an_object") from error
    except msgspec.DecodeError as error:  # its message has an offset, and none of the offending bytes
        raise MembersError(f"not valid JSON: {error}", code="invalid_json") from error
    except RecursionError as error:
        raise MembersError("the JSON is nested too deeply", code="json_too_deep") from error


def _check_utf8(text: bytes) -> None:
    """msgspec checks the names at the top level only; later readers of the values rely on all of it."""
    if text.isascii():
        return
    decode = codecs.getincrementaldecoder("utf-8")().decode
    view = memoryview(text)
    for at in range(0, len(view), _UTF8_WINDOW):
        decode(view[at : at + _UTF8_WINDOW])
    # A character cut off at the very end is left to msgspec: no JSON object ends in one.


def is_crowded(value: bytes) -> bool:
    """Whether a raw value may have a million elements or more, which no client sends: to read each would cost hundreds
    of megabytes and hold up everybody. One search of the text tells."""
    return value.count(b",") > _MOST_COMMAS


def decode(decoder: msgspec.json.Decoder[_T], text: bytes) -> tuple[_T, bytes]:
    """What `decoder` makes of `text`, and the text to look for members in.

    The latter is `text`, or, if that holds unpaired surrogate escapes, a copy of the same length in which they
    are U+FFFD, as msgspec takes no others. Raises what `decoder` raises.
    """
    try:
        return decoder.decode(text), text
    except msgspec.DecodeError:
        readable = _pair_surrogates(text)
        if readable == text:
            raise
    return decoder.decode(readable), readable


def _pair_surrogates(text: bytes) -> bytes:
    """`text`, a copy of the same length, with U+FFFD for each surrogate escape that is not one of a pair.

    With the escaped backslashes out of the way, each backslash starts an escape. NUL stands in for them, as JSON holds
    none (a text that does is no JSON, and must not become any here). These are passes at C speed, however many escapes
    a hostile text is made of.
    """
    if b"\0" in text:
        return text
    return _UNPAIRED.sub(rb"\\ufffd", text.replace(b"\\\\", b"\0\0")).replace(b"\0\0", b"\\\\")


def _locate(text: bytes, values: Mapping[str, msgspec.Raw]) -> dict[str, tuple[int, int]]:
    """Where the value of each member of `text` stands. Raises `MembersError` if two have the same name.

    Values are stepped over by their length. That is sound although `values` holds only the last one of a name:
    each is compared with what stands in the text. Of two different JSON values one is a prefix of the other
    only if both are numbers, and then what follows gives it away.
    """

    def end_of(start: int, name: str) -> int:
        value = values[name]
        end = start + len(value)
        if not text.startswith(bytes(value), start) or text[end] not in _AFTER_VALUE:
            raise _duplicate()
        return end

    if len(values) > _MOST_MEMBERS:
        raise MembersError(f"more than {_MOST_MEMBERS} members in the JSON object", code="too_many_members")
    spans: dict[str, tuple[int, int]] = {}
    for name, start, end in _walk(text, end_of):
        if name in spans:
            raise _duplicate()
        spans[name] = (start, end)
    return spans


def _duplicate() -> MembersError:
    return MembersError("two members of the JSON object have the same name", code="duplicate_member")


def _walk(text: bytes, end_of: Callable[[int, str], int]) -> Iterator[tuple[str, int, int]]:
    """Name, and start and end of the value, of each top-level member of `text`, a JSON object.

    `end_of` tells where the value of that name that starts at an offset ends.
    """
    end = 0
    while found := _NAME.match(text, end):
        name, start = _unquoted(found[1]), found.end()
        end = end_of(start, name)
        yield name, start, end


def _value_end(text: bytes, start: int) -> int:
    """Where the JSON value at `start` ends, whatever it is: for when its length is not known."""
    if text[start] not in b"[{":
        return next(_SCALAR.finditer(text, start)).end()
    depth = 0
    for bracket in _BRACKET.finditer(text, start):
        depth += 1 if bracket[1] in b"[{" else -1
        if not depth:
            return bracket.end()
    raise AssertionError("brackets match in valid JSON")


def _unquoted(token: bytes) -> str:
    text = token.decode("utf-8", "replace")
    return msgspec.json.decode(text, type=str) if "\\" in text else text[1:-1]


def _checked(value: bytes) -> bytes:
    try:
        decode(_RAW, value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise LocalError("a member's new value is not JSON text") from error
    return value


def _encoded(name: str, value: bytes) -> bytes:
    try:
        return b"%b:%b" % (msgspec.json.encode(name), _checked(value))
    except UnicodeEncodeError as error:
        raise LocalError("a member's name cannot be written in UTF-8") from error
