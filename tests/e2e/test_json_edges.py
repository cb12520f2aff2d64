"""JSON that is odd, malformed or hostile, wherever JSON stands in a request, from clients of every protocol.

A table in the manner of JSONTestSuite, which sorts texts by what RFC 8259 says of them: `y_` must be taken, `n_` must
be refused, `i_` may be either. None of them may end in a fault of our own. What is taken is asked of the upstream, so
each text goes to upstreams of every protocol too: passed on as it is, or translated.
"""

import json
from collections.abc import Mapping
from itertools import product
from typing import Final, NoReturn

import msgspec
import pytest

from capi_core.commands import Outcome
from capi_core.protocols.kinds import Protocol
from tests.e2e.door import ALIAS, exchange, fed
from tests.support.playbook import Client, Request

CHAT, RESPONSES, MESSAGES = Protocol.CHAT, Protocol.RESPONSES, Protocol.MESSAGES
PAIRS: Final = list(product(Protocol, Protocol))
BOM: Final = b"\xef\xbb\xbf"

VALUES: Final[Mapping[str, bytes]] = {
    # Values that any reader must take.
    "y_array_empty": b"[]",
    "y_array_of_everything": b'[null, 1, "1", {}, [[]], true]',
    "y_array_with_white_space": b"[ \t\r\n 1 \n]",
    "y_literal_false": b"false",
    "y_literal_null": b"null",
    "y_number_exponent": b"1E+2",
    "y_number_minus_zero": b"-0",
    "y_number_negative": b"-123.456e-3",
    "y_number_of_20_digits": b"12345678901234567890",
    "y_object_empty": b"{}",
    "y_object_empty_name": b'{"":0}',
    "y_object_escaped_name": b'{"\\u0061\\n":[]}',
    "y_string_ascii": b'"asd"',
    "y_string_delete_character": b'"a\x7fa"',
    "y_string_empty": b'""',
    "y_string_escapes": b'"\\"\\\\\\/\\b\\f\\n\\r\\t"',
    "y_string_escaped_nul": b'"\\u0000"',
    "y_string_escaped_noncharacter": b'"\\uFFFE\\uFDD0\\uD83F\\uDFFE"',
    "y_string_looks_like_a_comment": b'"a/*b*/c//d#e"',
    "y_string_pair_of_surrogates": b'"\\uD801\\udc37"',
    "y_string_raw_noncharacter": '"\uffff\U0010ffff"'.encode(),
    "y_string_raw_separators": '"a\u2028\u2029\u0085z"'.encode(),
    "y_string_raw_utf8": '"\u20ac\U0001d11e"'.encode(),
    "y_string_byte_order_mark_inside": b'"' + BOM + b'"',
    # No JSON.
    "n_array_comma_first": b"[,1]",
    "n_array_comma_last": b"[1,]",
    "n_array_unclosed": b"[1",
    "n_array_colon": b'["":1]',
    "n_array_two_closed": b"[1]]",
    "n_literal_capital": b"[True]",
    "n_literal_incomplete": b"[nul]",
    "n_literal_infinity": b"Infinity",
    "n_literal_minus_infinity": b"-Infinity",
    "n_literal_nan": b"NaN",
    "n_literal_minus_nan": b"-NaN",
    "n_number_dot_first": b".5",
    "n_number_dot_last": b"1.",
    "n_number_exponent_empty": b"1e+",
    "n_number_hexadecimal": b"0x42",
    "n_number_leading_zero": b"012",
    "n_number_minus_alone": b"-",
    "n_number_plus": b"+1",
    "n_number_underscore": b"1_000",
    "n_number_full_width": "\uff11".encode(),
    "n_number_with_letter": b"1a",
    "n_object_bare_name": b"{a:1}",
    "n_object_comment": b'{"a":/*c*/1}',
    "n_object_no_value": b'{"a":}',
    "n_object_single_quotes": b"{'a':1}",
    "n_object_trailing_comma": b'{"a":1,}',
    "n_object_two_colons": b'{"a"::1}',
    "n_string_bad_escape": b'"\\x00"',
    "n_string_escape_cut": b'"\\u00A"',
    "n_string_escape_not_hex": b'"\\u00zz"',
    "n_string_half_an_escape": b'"\\',
    "n_string_invalid_utf8": b'"\xff"',
    "n_string_latin_1": b'"\xe9"',
    "n_string_overlong_utf8": b'"\xc0\xaf"',
    "n_string_raw_surrogate": b'"\xed\xa0\x80"',
    "n_string_truncated_utf8": b'"\xe2\x82"',
    "n_string_beyond_unicode": b'"\xf4\xbf\xbf\xbf"',
    "n_string_raw_newline": b'"a\nb"',
    "n_string_raw_nul": b'"a\0b"',
    "n_string_raw_tab": b'"\t"',
    "n_string_single_quotes": b"'a'",
    "n_string_unclosed": b'"a',
    "n_structure_byte_order_mark": BOM + b"1",
    "n_structure_form_feed": b"\x0c1",
    "n_structure_no_break_space": b"\xc2\xa01",
    "n_structure_nothing": b"",
    "n_structure_nul": b"\0",
    "n_structure_nul_after": b"1\0",
    "n_structure_trailing_garbage": b"1 x",
    "n_structure_two_values": b"1 2",
    "n_structure_depth_bomb": b"[" * 100_000 + b"]" * 100_000,
    "n_structure_depth_bomb_of_objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "n_structure_depth_bomb_unclosed": b'[{"":' * 50_000,
    # Readers differ.
    "i_number_huge_exponent": b"1e999",
    "i_number_huge_negative_exponent": b"-1e9999",
    "i_number_tiny": b"1e-9999",
    "i_number_4301_digits": b"7" * 4301,
    "i_number_exponent_of_30_digits": b"1e" + b"9" * 30,
    "i_number_many_decimals": b"0." + b"1" * 5000,
    "i_object_duplicate_names": b'{"a":1,"a":2}',
    "i_object_duplicate_names_by_escape": b'{"a":1,"\\u0061":2}',
    "i_string_high_surrogate_alone": b'"\\ud83d"',
    "i_string_high_surrogate_twice": b'"\\ud83d\\ud83d\\ude00"',
    "i_string_low_surrogate_first": b'"\\ude00\\ud83d x"',
    "i_string_surrogate_then_text": b'"\\uD800\\n \\\\ud800"',
    "i_object_surrogate_in_name": b'{"\\ud800":1}',
    "i_structure_depth_300": b"[" * 300 + b"]" * 300,
}

# -- whole bodies -------------------------------------------------------------------------------------------------

SAID: Final = {
    CHAT: b'"messages":[{"role":"user","content":"hi"}]',
    RESPONSES: b'"input":"hi"',
    MESSAGES: b'"max_tokens":9,"messages":[{"role":"user","content":"hi"}]',
}


def around(client: Protocol, *members: bytes) -> bytes:
    """The shortest request, and `members`."""
    return b"{%b}" % b",".join([b'"model":"%b"' % ALIAS.encode(), SAID[client], *members])


def bodies(client: Protocol) -> dict[str, bytes]:
    """Bodies that are odd as a whole; the values above too, of which none is a request."""
    body = around(client)
    found = {f"n_{name[2:]}": value for name, value in VALUES.items()}
    found |= {
        "y_white_space_around": b" \t\r\n" + body + b"\r\n\t ",
        "y_white_space_inside": body.replace(b",", b" ,\n").replace(b":", b"\t: "),
        "n_byte_order_mark": BOM + body,
        "n_byte_order_mark_alone": BOM,
        "n_utf_16": body.decode().encode("utf-16"),
        "n_utf_16_without_mark": body.decode().encode("utf-16-le"),
        "n_utf_32": body.decode().encode("utf-32-be"),
        "n_cut": body[:-1],
        "n_two": body + body,
        "n_lines": body + b"\n" + body,
        "n_trailing_comma": body + b",",
        "n_trailing_garbage": body + b"x",
        "n_trailing_nul": body + b"\0",
        "n_trailing_comment": body + b"// end",
        "n_leading_nul": b"\0" + body,
        "n_in_an_array": b"[%b]" % body,
        "n_in_a_string": msgspec.json.encode(body.decode()),
        "n_form": b"model=fast&input=hi",
        "n_two_models": body.replace(b"{", b'{"model":"off",', 1),
        "n_two_models_by_escape": body.replace(b"{", b'{"\\u006dodel":"off",', 1),
        "n_many_members": around(client, *(b'"x%d":1' % number for number in range(1001))),
    }
    return found


# -- values in their places ---------------------------------------------------------------------------------------


def said_content(client: Protocol, value: bytes) -> bytes:
    """As what a user says."""
    return around(client).replace(b'"hi"', value)


def call_arguments(client: Protocol, value: bytes) -> bytes:
    """In the arguments of an earlier call: an object in Messages, a text elsewhere."""
    inner = b'{"x":%b}' % value
    text = json.dumps(inner.decode("utf-8", "surrogateescape"), ensure_ascii=False).encode("utf-8", "surrogateescape")
    match client:
        case Protocol.CHAT:
            call = b'{"id":"c1","type":"function","function":{"name":"f","arguments":%b}}' % text
            turns = b'{"role":"assistant","tool_calls":[%b]},{"role":"tool","tool_call_id":"c1","content":"ok"}' % call
        case Protocol.RESPONSES:
            turns = b'{"type":"function_call","call_id":"c1","name":"f","arguments":%b},' % text
            turns += b'{"type":"function_call_output","call_id":"c1","output":"ok"}'
        case _:
            use = b'{"type":"tool_use","id":"c1","name":"f","input":%b}' % inner
            turns = b'{"role":"assistant","content":[%b]},' % use
            turns += b'{"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":"ok"}]}'
    first = b'{"role":"user","content":"hi"}'
    if client is RESPONSES:
        return around(client).replace(b'"hi"', b"[%b,%b]" % (first, turns))
    return around(client).replace(first, b"%b,%b" % (first, turns))


def tool_schema(client: Protocol, value: bytes) -> bytes:
    """Inside the schema of a tool."""
    schema = b'{"type":"object","properties":{"x":{"default":%b}}}' % value
    match client:
        case Protocol.CHAT:
            tool = b'{"type":"function","function":{"name":"f","parameters":%b}}' % schema
        case Protocol.RESPONSES:
            tool = b'{"type":"function","name":"f","parameters":%b}' % schema
        case _:
            tool = b'{"name":"f","input_schema":%b}' % schema
    return around(client, b'"tools":[%b]' % tool)


def unknown_member(client: Protocol, value: bytes) -> bytes:
    """As a member that no protocol knows."""
    return around(client, b'"x_odd":%b' % value)


def known_number(client: Protocol, value: bytes) -> bytes:
    """Where a number belongs."""
    return around(client, b'"temperature":%b' % value)


PLACES: Final = {
    "content": said_content,
    "arguments": call_arguments,
    "schema": tool_schema,
    "unknown_member": unknown_member,
    "number": known_number,
}
ANYTHING: Final = frozenset({"schema", "unknown_member"})
"""Places where any JSON value may stand."""


def wanted(place: str, client: Protocol, name: str) -> str:
    """`y`, `n` or `i`: what must come of the value of that name at that place."""
    kind = name[0]
    if place == "arguments" and client is not MESSAGES and is_utf8(VALUES[name]):
        return "i" if kind == "n" else kind  # a text: the model's own words, which it may get wrong
    if kind != "y" or place in ANYTHING or place == "arguments":
        return kind
    return "y" if place == "content" and name.startswith("y_string") and VALUES[name] != b'""' else "i"


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


# -- judging ------------------------------------------------------------------------------------------------------


class Told(msgspec.Struct):
    type: str
    message: str


class Refusal(msgspec.Struct):
    """An error in either family's shape."""

    error: Told
    type: str | None = None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def is_strict_json(text: bytes) -> bool:
    try:
        json.loads(text.decode(), parse_constant=_no_constant, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True


def fault_of(want: str, client: Protocol, upstream: Protocol, body: bytes) -> str | None:
    """What is wrong about the answer to `body`; `None` when nothing is."""
    machine = exchange(client, upstream)
    try:
        got = fed(machine, Request(body))
    except Exception as error:  # whatever it is, it must not happen
        return f"raised {error!r:.200}"
    if got.requests:
        if want == "n":
            return "taken"
        return None if is_strict_json(got.requests[0].body) else "sent on as something that is no JSON"
    if want == "y":
        return f"refused: {got.body!r:.200}"
    return _fault_of_refusal(client, got, machine.outcome)


def _fault_of_refusal(client: Protocol, got: Client, outcome: Outcome | None) -> str | None:
    if (got.status, outcome) != (400, Outcome.REFUSED_INVALID):
        return f"{got.status}, {outcome}: {got.body!r:.200}"
    refusal = msgspec.json.decode(got.body, type=Refusal)
    if refusal.type != ("error" if client is MESSAGES else None):
        return f"in another protocol's shape: {got.body!r:.200}"
    if refusal.error.type != "invalid_request_error" or not refusal.error.message:
        return f"says too little: {got.body!r:.200}"
    return None if len(got.body) < 1000 else "echoes too much"


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_a_body_is_taken_or_refused_as_the_standard_says(client: Protocol, upstream: Protocol) -> None:
    found = {name: fault_of(name[0], client, upstream, body) for name, body in bodies(client).items()}
    assert {name: fault for name, fault in found.items() if fault} == {}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_a_value_is_taken_or_refused_as_the_standard_says(client: Protocol, upstream: Protocol, place: str) -> None:
    found = {
        name: fault_of(wanted(place, client, name), client, upstream, PLACES[place](client, value))
        for name, value in VALUES.items()
    }
    assert {name: fault for name, fault in found.items() if fault} == {}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_no_depth_of_nesting_is_a_fault(client: Protocol, upstream: Protocol, place: str) -> None:
    """The interpreter's limit is met at one depth by the first reader and at another by the next, who calls from
    further inside."""
    depths = [10, 100, *range(880, 1010), 2000, 10_000]
    found = {}
    for depth, (opening, closing) in product(depths, [(b"[", b"]"), (b'{"a":', b"}")]):
        value = opening * depth + b"1" + closing * depth
        want = "y" if depth <= 100 and wanted(place, client, "y_array_empty") == "y" else "i"
        fault = fault_of(want, client, upstream, PLACES[place](client, value))
        if fault and not (fault.startswith("sent on") and depth > 100):  # the test's own reader gives up earlier
            found[depth, opening] = fault
    assert found == {}


SPELLINGS: Final = ("i_number_huge_exponent", "i_number_4301_digits", "y_number_minus_zero", "y_number_exponent")


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_a_number_is_sent_on_as_it_was_spelled(client: Protocol, upstream: Protocol, name: str) -> None:
    """In a schema and in arguments, which are the client's and the model's own."""
    for place in ("schema", "arguments"):
        (request,) = fed(exchange(client, upstream), Request(PLACES[place](client, VALUES[name]))).requests
        assert VALUES[name] in request.body, place
