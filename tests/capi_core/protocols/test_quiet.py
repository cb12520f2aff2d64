"""A run of events is judged at once, and exactly as if each event had been looked at alone."""

from typing import Literal

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capi_core.protocols.quiet import Quiet, QuietReader
from capi_core.sse import SSEDecoder


class Said(Quiet, kw_only=True):
    text: str
    also: tuple[int, ...] = ()
    bad: msgspec.UnsetType = msgspec.UNSET


class Alone(msgspec.Struct):
    """As `Said`, for one event's data."""

    text: str
    also: tuple[int, ...] = ()
    bad: msgspec.UnsetType = msgspec.UNSET


class Named(Quiet, kw_only=True):
    type: Literal["said"]


READER = QuietReader(Said)
NAMED = QuietReader(Named, event=b"said")


def run(*data: bytes) -> bytes:
    return b"".join(b"data: %b\n\n" % text for text in data)


def test_each_event_is_read() -> None:
    found = READER.read(run(b'{"text":"a"}', b'{"new":{"x":[{}]},"text":"b","also":[1]}', b'{ "text" : "c" } '))
    assert found is not None
    assert [(said.text, said.also) for said in found] == [("a", ()), ("b", (1,)), ("c", ())]


def test_events_have_the_type_of_the_reader() -> None:
    said = b'event: said\ndata: {"type":"said"}\n\n'
    found = NAMED.read(said * 3)
    assert found is not None
    assert len(found) == 3
    for other in (b'data: {"type":"said"}\n\n', b'event: new\ndata: {"type":"said"}\n\n'):
        assert NAMED.read(said + other + said) is NAMED.read(other + said) is None
    assert NAMED.read(said.replace(b'"said"', b'"new"')) is None


GOOD = b'{"text":"a"}'


@pytest.mark.parametrize(
    "other",
    [
        b"data: [DONE]\n\n",
        b"data: {}\n\n",
        b"data: \n\n",
        b'data: {"text":5}\n\n',
        b'data: {"text":"a","bad":null}\n\n',
        b'data: {"text":"a"\n\n',
        b'data: {"text":"a"} {"text":"a"}\n\n',
        b'data: {"text":"\xff"}\n\n',
        b'data: {"text":"a","deep":' + b"[" * 100_000 + b"}\n\n",
        b'data: {"text":\ndata: "a"}\n\n',
        b'data: {"text":"a"}\nid: 1\n\n',
        b'data:{"text":"a"}\n\n',
        b': c\ndata: {"text":"a"}\n\n',
        b": c\n\n",
        b"\n",
        # what could be taken for the reader's mark
        b'data: {"text":"a","\x7f":0}\n\n',
        b'data: {"text":"a","\\u007f":0}\n\n',
    ],
)
def test_any_other_event_is_left_to_be_looked_at_alone(other: bytes) -> None:
    good = run(GOOD)
    for mixed in (other, good + other, other + good, good + other + good):
        assert READER.read(mixed) is None


@pytest.mark.parametrize(
    "events",
    [
        # Together they are as many objects as there are events, but none is one of the events.
        (b'{"text":"a","x":[{"y":1}', b'{"text":"b"}]},{"text":"c"}'),
        (b'{"text":"a","x":[{"y":1}', b'{"text":"b"}]}{"text":"c"}'),
        (b'{"text":"a","x":[{"y":1},', b'{"text":"b"}]} {"text":"c"}'),
        (b'{"text":"a","x":', b'{"text":"b"}}{"text":"c"}'),
        (b'{"text":"a', b'{", "text":"b"}{"text":"c"}'),
    ],
)
def test_events_that_only_together_are_json_are_none(events: tuple[bytes, ...]) -> None:
    assert READER.read(run(*events)) is None
    assert READER.read(run(GOOD, *events, GOOD)) is None


tokens = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b'"text":', b'"text":"a"', GOOD, GOOD, GOOD, b'"x":[', b"]}", b"{}", b" ",
    b"\\", b"\\u007f", b'"\x7f":0,', b"\n", b"\n\n", b"data: ", b"0", b"event: said\n", b'"type":"said"',
]  # fmt: skip
data = st.lists(st.sampled_from(tokens), max_size=8).map(b"".join)


@given(st.lists(data | st.just(GOOD), min_size=1, max_size=5))
@example([GOOD, GOOD])
def test_whatever_is_read_is_what_each_event_alone_says(texts: list[bytes]) -> None:
    stream = run(*texts)
    found = READER.read(stream)
    plain = all(
        text.startswith(b"{") and not any(odd in text for odd in (b"\n", b"\x7f", b"\\u007", b"\r")) for text in texts
    )
    try:
        alone = [msgspec.json.decode(event.data or b"", type=Alone) for event in SSEDecoder().feed(stream)]
    except (msgspec.DecodeError, UnicodeError):
        assert found is None
        return
    if found is None:
        assert not plain
    else:
        assert [(said.text, said.also) for said in found] == [(said.text, said.also) for said in alone]
