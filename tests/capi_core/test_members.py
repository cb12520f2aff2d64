"""Members: the one that is meant changes, and not a byte besides."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import LocalError, ProtocolError
from capi_core.members import JSONObject, MemberRewriter, MembersError, is_crowded

NEW = b'"a new value"'
REWRITER = MemberRewriter("model", NEW)

Pairs = list[tuple[str, object]]


def pairs_of(text: bytes) -> Pairs:
    """All members in order, duplicates and all, as the standard library reads them; numbers stay text."""
    value = json.loads(text, object_pairs_hook=tuple, parse_int=str, parse_float=str)
    assert isinstance(value, tuple)
    return list(value)


# --- generated objects: as text, with free white space and free spelling of names and strings ---

space = st.sampled_from([b"", b"", b"", b" ", b"\n", b"\t\r\n "])


@st.composite
def strings(draw: st.DrawFn, words: st.SearchStrategy[str]) -> bytes:
    """A JSON string, some of its characters spelled as escapes."""
    spelled = []
    for letter in draw(words):
        escaped = json.dumps(letter, ensure_ascii=True)[1:-1].encode()
        if letter in '"\\' or letter < " " or "\ud800" <= letter <= "\udfff":
            spelled.append(escaped)
        else:
            longhand = b"\\u%04X" % ord(letter) if letter < "\uffff" else escaped
            spelled.append(draw(st.sampled_from([letter.encode()] * 6 + [longhand])))
    return b'"' + b"".join(spelled) + b'"'


words = st.sampled_from(["model", '{"model":"x"}', "a", "", "id", "\ud83d", "\ude00", "\\", '"', "\U0001f600"])
texts = strings(words | st.text(max_size=6) | st.lists(words, max_size=3).map("".join))
names = strings(st.sampled_from(["model", "model", "Model", "models", "id", "", "a\\", 'q"', "é", "\ud83d"]))
numbers = st.sampled_from(
    [b"0", b"-0", b"1e999", b"1E+2", b"12", b"123", b"0.10", b"18446744073709551617", b"7" * 4301]
)
scalars = st.one_of(st.sampled_from([b"true", b"false", b"null"]), numbers, texts)


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[bytes]) -> bytes:
    members = [
        b"".join([draw(space), draw(names), draw(space), b":", draw(space), draw(values), draw(space)])
        for _ in range(draw(st.integers(0, 4)))
    ]
    return b"{" + (b",".join(members) or draw(space)) + b"}"


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[bytes]) -> bytes:
    members = [draw(space) + draw(values) + draw(space) for _ in range(draw(st.integers(0, 3)))]
    return b"[" + (b",".join(members) or draw(space)) + b"]"


values = st.recursive(scalars, lambda inner: objects(inner) | arrays(inner), max_leaves=8)
documents = st.builds(lambda before, text, after: before + text + after, space, objects(values), space)


def as_read(name: str) -> str:
    """Our reading of a name: an unpaired surrogate cannot be written, and reads as U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", name)


# --- JSONObject ---


@given(documents)
def test_an_object_is_read_as_the_standard_library_reads_it_or_has_duplicates(text: bytes) -> None:
    pairs = [(as_read(name), value) for name, value in pairs_of(text)]
    if len({name for name, _ in pairs}) < len(pairs):
        assert refusal(text) == "duplicate_member"
        return
    found = JSONObject(text)
    assert found.text == text
    assert found.names == tuple(name for name, _ in pairs)
    for name, value in pairs:
        raw = found.get(name)
        assert raw is not None
        assert raw in text
        assert pairs_of(b'{"v":%b}' % raw) == [("v", value)]


@given(documents, st.dictionaries(st.sampled_from(["model", "id", "new", "é", 'q"']), values, max_size=4))
def test_an_edit_changes_the_members_named_and_no_other_byte(text: bytes, changes: dict[str, bytes]) -> None:
    try:
        found = JSONObject(text)
    except MembersError:
        return
    edited = found.edit(changes)
    again = JSONObject(edited)
    added = [name for name in changes if name not in found.names]
    assert again.names == (*found.names, *added)
    assert {name: again.get(name) for name in changes} == changes
    for name in found.names:
        assert name in changes or again.get(name) == found.get(name)
    # Taking the changes back gives the old bytes, so nothing outside of the values has changed.
    restored = again.edit({name: found.get(name) or b"" for name in found.names})
    if added:
        tail = b",".join(b"%b:%b" % (json.dumps(name, ensure_ascii=False).encode(), changes[name]) for name in added)
        restored = b"".join(restored.rsplit(b"," + tail if found.names else tail, 1))
    assert restored == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"{}", b'{"a":1,"b":2}'),
        (b" {\n} ", b' {"a":1,"b":2\n} '),
        (b'{"x":0}', b'{"x":0,"a":1,"b":2}'),
        (b'{"x": 0\n}\n', b'{"x": 0,"a":1,"b":2\n}\n'),
        (b'{"a":0}', b'{"a":1,"b":2}'),
        (b'{ "b" : [ 0 ] , "x" : { "a" : 0 } }', b'{ "b" : 2 , "x" : { "a" : 0 },"a":1 }'),
        (b'{"\\u0061":0,"b":{"a":{"b":"}"}}}', b'{"\\u0061":1,"b":2}'),
        (b'{"x":"}","a":"\\"}","b":""}', b'{"x":"}","a":1,"b":2}'),
        (b'{"x":1e999,"y":-0,"z":{"k":1,"k":2},"a":null}', b'{"x":1e999,"y":-0,"z":{"k":1,"k":2},"a":1,"b":2}'),
        (b'{"x":"\\ud83d","a":"\\ude00\\\\"}', b'{"x":"\\ud83d","a":1,"b":2}'),
    ],
)
def test_edited_form(text: bytes, expected: bytes) -> None:
    assert JSONObject(text).edit({"a": b"1", "b": b"2"}) == expected


@pytest.mark.parametrize("text", [b"{}", b'{"a":1}', b' { "a" : [1 , 2] } '])
def test_an_edit_without_changes_is_the_same_text(text: bytes) -> None:
    assert JSONObject(text).edit({}) == text


def test_an_added_name_is_escaped() -> None:
    edited = JSONObject(b"{}").edit({'a"\\\n\u2028é': b"1"})
    assert json.loads(edited) == {'a"\\\n\u2028é': 1}


@pytest.mark.parametrize(
    "value", [b"", b"x", b"1 2", b'"a', b"NaN", b'1,"admin":true', b"[" * 100_000, b"\xef\xbb\xbf1"]
)
@pytest.mark.parametrize("name", ["a", "new"])
def test_a_value_that_is_no_json_is_a_local_error(name: str, value: bytes) -> None:
    with pytest.raises(LocalError):
        JSONObject(b'{"a":1}').edit({name: value})


def test_a_name_that_cannot_be_written_is_a_local_error() -> None:
    with pytest.raises(LocalError):
        JSONObject(b"{}").edit({"\ud83d": b"1"})


def test_a_value_copied_from_another_object_is_taken_even_with_an_unpaired_surrogate() -> None:
    value = JSONObject(b'{"a":"\\ud83d"}').get("a")
    assert value is not None
    assert JSONObject(b"{}").edit({"b": value}) == b'{"b":"\\ud83d"}'


def refusal(text: bytes) -> str:
    with pytest.raises(MembersError) as caught:
        JSONObject(text)
    assert isinstance(caught.value, ProtocolError)
    assert caught.value.status_hint == 400
    return caught.value.code


@pytest.mark.parametrize(
    "text",
    [
        # not objects, or more than one
        b"", b" ", b"{", b"}", b"{}}", b"{}{}", b"{} x", b"{}\0", b"\0{}", b"\x0b{}", b"\xc2\xa0{}", b"tru", b"//\n{}",
        # members
        b"{,}", b'{"a"}', b'{"a":}', b'{"a" 1}', b'{"a":1,}', b'{"a":1,,"b":2}', b'{"a":1 "b":2}', b'{"a"::1}',
        b"{a:1}", b"{'a':1}", b"{1:1}", b'{"a":1;"b":2}', b'{"a":/**/1}', b'{null:1}', b'{"a":{"b":1,}}',
        b'{"a":{b:1}}',
        # numbers
        b'{"a":01}', b'{"a":+1}', b'{"a":.5}', b'{"a":1.}', b'{"a":1e}', b'{"a":1e+}', b'{"a":-}', b'{"a":0x1}',
        b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":[1_0]}', b'{"a":[--1]}', b'{"a":[1.2.3]}',
        # literals and arrays
        b'{"a":True}', b'{"a":nul}', b'{"a":truee}', b'{"a":[1,]}', b'{"a":[,1]}', b'{"a":[1 2]}', b'{"a":[}',
        b'{"a":]}', b'{"a":[1}]', b'{"a":undefined}',
        # strings
        b'{"a":"}', b'{"a":"\\"}', b'{"a":"\\x"}', b'{"a":"\\u12"}', b'{"a":"\\u12g4"}', b'{"a":"\\U0041"}',
        b'{"a":"\n"}', b'{"a":"\t"}', b'{"a":"\x1f"}', b'{"a":"\0"}', b'{"\n":1}', b'{"a":["\x01"]}', b"{\"a\":'b'}",
        b'{"a":"\\ud83', b'{"a":"\\ud83g"}', b'{"a":"\\ud83d" x}', b'{"a":"\\ud83d\0\0"}', b'{"a":\\ud83d}',
        # encodings
        b'\xef\xbb\xbf{"a":1}', '{"a":1}'.encode("utf-16"), '{"a":1}'.encode("utf-16-be"), '{"a":1}'.encode("utf-32"),
        b'{"\xff":1}', b'{"a":"\xff"}', b'{"a":["\xc3"]}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\xc0\xaf"}',
        b'{"a":1}\xe2\x82',
        b'{"a":"\xf4\x90\x80\x80"}', b'{"\\u0061\xff":1}',
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused_and_rewritten_by_nobody(text: bytes) -> None:
    assert refusal(text) == "invalid_json"
    if text.isascii():
        with_model = text.replace(b'"a"', b'"model"')
        assert REWRITER.rewrite(with_model) == with_model


@pytest.mark.parametrize("text", [b"[]", b"null", b"true", b"1", b'"a"', b' [{"model":1}]', b"[" * 100_000])
def test_other_json_is_not_an_object(text: bytes) -> None:
    assert refusal(text) == "not_an_object"
    assert REWRITER.rewrite(text) == text


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"b":2,"a":3}',
        b'{"a":1,"\\u0061":2}',
        b'{"a":12,"a":1}',
        b'{"a":1,"a":12}',
        b'{"a":1.5,"a":1}',
        b'{"a":"","a":"x"}',
        b'{"a":[1],"a":[1,2]}',
        b'{"":1,"":2}',
        b'{"\xc3\xa9":1,"\\u00e9":2}',
        # Stepping over the first "a" by the length of the last one would land on what looks like other members.
        b'{"a":",\\"b\\":1","model":2,"a":"x"}',
        b'{"a":0,"model":"denied","a":[0,0,0,0,0,0,0]}',
        # What cannot be told apart once it is read is not told apart.
        b'{"\\ud800":1,"\\ud801":2}',
    ],
)
def test_a_name_that_occurs_twice_is_refused(text: bytes) -> None:
    assert refusal(text) == "duplicate_member"


@pytest.mark.parametrize("names", [("a", "A"), ("a", "a "), ("é", "e\u0301"), ("a", "")])
def test_names_that_differ_are_no_duplicates(names: tuple[str, str]) -> None:
    assert JSONObject(json.dumps(dict.fromkeys(names, 1)).encode()).names == names


def test_duplicates_deeper_down_are_none_of_our_business() -> None:
    text = b'{"x":{"a":1,"a":2},"y":[{"a":1,"a":2}],"a":3}'
    assert JSONObject(text).edit({"a": b"4"}) == text.replace(b'"a":3', b'"a":4')


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [3_000, 100_000])
@pytest.mark.parametrize("closed", [True, False])
def test_a_depth_bomb_is_refused_and_kills_nobody(opening: bytes, depth: int, closed: bool) -> None:
    closing = {b"[": b"]", b'{"a":': b"}"}[opening] if closed else b""
    bomb = b'{"model":1,"x":' + opening * depth + b"1" + closing * depth + b"}"
    assert refusal(bomb) == "json_too_deep"
    assert REWRITER.rewrite(bomb) == bomb


def test_a_depth_of_a_few_hundred_passes() -> None:
    text = b'{"x":' + b"[" * 400 + b"]" * 400 + b',"model":1,"y":"model"}'
    assert JSONObject(text).get("model") == b"1"
    assert REWRITER.rewrite(text) == text.replace(b"1", NEW)


def test_a_thousand_members_pass_and_one_more_is_refused() -> None:
    members = [b'"%d":0' % number for number in range(1001)]
    assert len(JSONObject(b"{" + b",".join(members[:-1]) + b"}").names) == 1000
    assert refusal(b"{" + b",".join(members) + b"}") == "too_many_members"


def test_a_refusal_quotes_nothing_of_the_text() -> None:
    for text in (b'{"secret":"hunter2"', b'{"secret":"hunter2\xff"}', b'{"hunter2":1,"hunter2":2}', b'["hunter2"]'):
        with pytest.raises(MembersError) as caught:
            JSONObject(text)
        assert not re.search("secret|hunter2", str(caught.value))


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_utf8_is_checked_across_windows(cut: int) -> None:
    padding = b" " * ((1 << 16) - 6 - cut)
    good = b'{"a":%b"%b"}' % (padding, "\U0001f600é".encode())
    assert JSONObject(good).get("a") == '"\U0001f600é"'.encode()
    assert refusal(good.replace(b"\x80", b"\x20")) == "invalid_json"


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        (b'{"a":"\\ud83d"}', "a", b'"\\ud83d"'),
        (b'{"a":["\\uDE00\\uD83D"],"b":1}', "b", b"1"),
        (b'{"a":"\\\\ud83d","b":"\\ud83d"}', "a", b'"\\\\ud83d"'),
        (b'{"a":"\\\\\\ud83d"}', "a", b'"\\\\\\ud83d"'),
        (b'{"a":"\\ud83d\\ud83d\\ude00\\ude00"}', "a", b'"\\ud83d\\ud83d\\ude00\\ude00"'),
        (b'{"a":"\\\\ud83d\\ude00"}', "a", b'"\\\\ud83d\\ude00"'),
        (b'{"a\\ud83d":1}', "a\ufffd", b"1"),
        (b'{"a\\\\ud83d":1,"b":"\\ud83d"}', "a\\ud83d", b"1"),
        (b'{"a\\\\\\ud83d\\\\":1}', "a\\\ufffd\\", b"1"),
        (b'{"\\ud83d\\ude00":1,"b":"\\ud83d"}', "\U0001f600", b"1"),
    ],
)
def test_unpaired_surrogate_escapes_pass_unchanged(text: bytes, name: str, value: bytes) -> None:
    found = JSONObject(text)
    assert found.get(name) == value
    assert found.edit({name: b"0"}) == text.replace(value, b"0")


# --- MemberRewriter ---


@given(documents)
def test_a_rewrite_changes_all_members_of_that_name_at_the_top_level_and_nothing_else(text: bytes) -> None:
    rewritten = REWRITER.rewrite(text)
    pairs = pairs_of(text)
    assert pairs_of(rewritten) == [(name, "a new value" if name == "model" else value) for name, value in pairs]
    if all(name != "model" for name, _ in pairs):
        assert rewritten == text
    # Byte for byte: between the new values stands what stood between the old ones.
    pattern = b"(?s:.+)".join(re.escape(part) for part in rewritten.split(NEW))
    assert re.fullmatch(pattern, text)


@given(documents)
def test_the_fast_way_and_the_general_way_agree(text: bytes) -> None:
    """A name like the member's, in a string behind the object's last member, makes the fast way give up."""
    slow = REWRITER.rewrite(re.sub(rb"\}(\s*)\Z", rb',"z":"model"}\1', text))
    fast = REWRITER.rewrite(re.sub(rb"\}(\s*)\Z", rb',"z":"modem"}\1', text))
    if pairs_of(text):
        assert slow.replace(b'"z":"model"', b"") == fast.replace(b'"z":"modem"', b"")


@given(documents)
def test_where_an_object_is_taken_an_edit_and_a_rewrite_are_the_same(text: bytes) -> None:
    try:
        found = JSONObject(text)
    except MembersError:
        return
    expected = found.edit({"model": NEW}) if "model" in found.names else text
    assert REWRITER.rewrite(text) == expected


@given(st.binary() | documents.flatmap(lambda text: st.integers(0, len(text)).map(lambda at: text[:at])))
def test_a_rewrite_takes_anything_and_leaves_what_is_no_object(text: bytes) -> None:
    rewritten = REWRITER.rewrite(text)
    assert REWRITER.rewrite(rewritten) == rewritten
    try:
        json.loads(text.decode())
    except (ValueError, RecursionError):
        assert rewritten == text


CHUNK = b'{"id":"c","object":"chat.completion.chunk","model":%b,"choices":[{"index":0,"delta":%b}]}'
ARGUMENTS = b'{"tool_calls":[{"function":{"arguments":"{\\"model\\":\\"x\\",\\"a\\":[\\"model\\"]}"}}]}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CHUNK % (b'"gpt"', b'{"content":"hi"}'), CHUNK % (NEW, b'{"content":"hi"}')),
        (CHUNK % (b'"gpt"', ARGUMENTS), CHUNK % (NEW, ARGUMENTS)),
        (CHUNK % (b'"gpt"', b'{"input":{"model":"x"}}'), CHUNK % (NEW, b'{"input":{"model":"x"}}')),
        (CHUNK % (b'"gpt"', b'{"content":"model"}'), CHUNK % (NEW, b'{"content":"model"}')),
        (CHUNK % (b'"gpt"', b'{"content":"\\u006d \\u00e9"}'), CHUNK % (NEW, b'{"content":"\\u006d \\u00e9"}')),
        (CHUNK % (b'"gpt"', b'{"content":"\\ud83d"}'), CHUNK % (NEW, b'{"content":"\\ud83d"}')),
        (CHUNK % (b'"gpt"', b'{"content":"\\ud83d model"}'), CHUNK % (NEW, b'{"content":"\\ud83d model"}')),
        (CHUNK % (b'"\\ud83d"', b'{}'), CHUNK % (NEW, b"{}")),
        (CHUNK % (b'"\\"model\\":1"', b'{}'), CHUNK % (NEW, b"{}")),
        (CHUNK % (b'"model"', b'{}'), CHUNK % (NEW, b"{}")),
        (CHUNK % (b"null", b'{}'), CHUNK % (NEW, b"{}")),
        (CHUNK % (b'{"model":["]}"]}', b'{"a":{}}'), CHUNK % (NEW, b'{"a":{}}')),
        (b'{"message":{"model":"a"},"model":"b"}', b'{"message":{"model":"a"},"model":%b}' % NEW),
        (b'{"m":[{"model":[{}]},"model"],"model":[[],{}]}', b'{"m":[{"model":[{}]},"model"],"model":%b}' % NEW),
        (b' { "model" \n:\t"a" , "b" : 1 } ', b' { "model" \n:\t%b , "b" : 1 } ' % NEW),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":%b}' % NEW),
        (b'{"model":1,"b":"model","model":22}', b'{"model":%b,"b":"model","model":%b}' % (NEW, NEW)),
        (b'{"model":1,"\\u006Dodel":{"model":2},"n":3}', b'{"model":%b,"\\u006Dodel":%b,"n":3}' % (NEW, NEW)),
        (b'{"model":"\xff","t":"\xff"}', b'{"model":%b,"t":"\xff"}' % NEW),
        (b'{"model":1,"\xff":"model","\\n\xff":2}', b'{"model":%b,"\xff":"model","\\n\xff":2}' % NEW),
    ],
)  # fmt: skip
def test_rewritten_form(text: bytes, expected: bytes) -> None:
    assert REWRITER.rewrite(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"[DONE]",
        b"",
        b"{}",
        b'{"type":"message_start","message":{"model":"a"}}',
        b'{"type":"response.created","response":{"model":"a"}}',
        b'{"choices":[{"delta":{"content":"{\\"model\\":\\"x\\"}"}}]}',
        b'{"a":"model"}',
        b'{"Model":1,"models":2,"model ":3,"\\u004dodel":4}',
    ],
)
def test_without_such_a_member_the_very_same_text_comes_back(text: bytes) -> None:
    assert REWRITER.rewrite(text) is text


@pytest.mark.parametrize("name", ["model", "a_b-c.d", "X1"])
def test_a_name_may_hold_letters_digits_and_three_signs(name: str) -> None:
    plain = b'{"%b":1}' % name.encode()
    assert MemberRewriter(name, b"2").rewrite(plain) == plain.replace(b":1", b":2")
    for at, letter in enumerate(name):
        spelled = b'{"%b\\u%04x%b":1}' % (name[:at].encode(), ord(letter), name[at + 1 :].encode())
        assert MemberRewriter(name, b"2").rewrite(spelled) == spelled.replace(b":1", b":2")


@pytest.mark.parametrize("name", ["", 'a"', "a\\", "é", "a/b", "a\n", "a b"])
def test_other_names_are_a_local_error(name: str) -> None:
    with pytest.raises(LocalError):
        MemberRewriter(name, b"1")


@pytest.mark.parametrize("value", [b"", b"gpt-4o", b'"a', b'"a","b":1', b"[" * 100_000])
def test_a_rewriter_takes_json_text_only(value: bytes) -> None:
    with pytest.raises(LocalError):
        MemberRewriter("model", value)


@pytest.mark.parametrize(("elements", "crowded"), [(1, False), (1_000_001, False), (1_000_002, True)])
def test_more_elements_than_any_client_sends_are_a_crowd(elements: int, crowded: bool) -> None:
    assert is_crowded(b"[%b]" % b",".join([b"0"] * elements)) is crowded
