"""S1 to S4: event streams read as WHATWG HTML 9.2.6 says, whatever is in them and however they are cut.

The reference below is the standard's own algorithm, character by character over decoded text: it shares no idea with
the decoder, which works on bytes, looks for blank lines only and never decodes.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import compress, pairwise, product
from typing import Final

import msgspec
import pytest
from attrs import frozen

from capi_core.fidelity import Ledger
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_core.sse import SSEDecoder, encode
from tests.e2e.door import asked, exchange, fed
from tests.support.playbook import Data, Eof, Head
from tests.support.scale import FULL, scaled, tell
from tests.support.streams import answer_events, answer_stream

SEED: Final = 20260
CHUNKINGS: Final = 8
PAIRS: Final = list(product(Protocol, Protocol))


# -- the reference ------------------------------------------------------------------------------------------------


@frozen
class Message:
    """A dispatched event, as a browser's listener gets it."""

    type: str
    data: str
    last_event_id: str


@frozen
class Reading:
    """What a stream says. `last_id` and `retry`: as they are at its last blank line, where a proxy has its blocks; for
    the standard, which has a reconnection to prepare, they count from their own line on."""

    messages: tuple[Message, ...]
    last_id: str
    retry: int | None


class Reference:
    """The parser of the standard, as an automaton over characters."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._data = ""
        self._type = ""
        self._last_id = ""
        self._retry: int | None = None
        self._at_blank_line: tuple[str, int | None] = "", None

    def read(self, stream: bytes) -> Reading:
        """Decodes as the standard does (one byte order mark dropped, malformed bytes replaced), then line by line."""
        text = stream.decode("utf-8", errors="replace").removeprefix("\ufeff")
        for line in _lines(text):
            self._take(line)
        return Reading(tuple(self._messages), *self._at_blank_line)

    def _take(self, line: str) -> None:
        if line == "":
            self._dispatch()
        elif not line.startswith(":"):
            name, colon, value = line.partition(":")
            self._field(name, value[1:] if colon and value.startswith(" ") else value)

    def _field(self, name: str, value: str) -> None:
        match name:
            case "event":
                self._type = value
            case "data":
                self._data += value + "\n"
            case "id" if "\0" not in value:
                self._last_id = value
            case "retry" if value and set(value) <= set("0123456789"):
                self._retry = int(value)
            case _:
                pass

    def _dispatch(self) -> None:
        if self._data:
            self._messages.append(Message(self._type or "message", self._data[:-1], self._last_id))
        self._data = self._type = ""
        self._at_blank_line = self._last_id, self._retry


def _lines(text: str) -> Iterator[str]:
    """The complete lines. What follows the last line end is discarded."""
    line = ""
    after_cr = False
    for character in text:
        if character == "\n" and after_cr:
            after_cr = False
            continue
        after_cr = character == "\r"
        if character in "\r\n":
            yield line
            line = ""
        else:
            line += character


def read_with_ours(chunks: Sequence[bytes]) -> Reading:
    """The same through the decoder, plus what the standard keeps from block to block."""
    decoder = SSEDecoder()
    events = [event for chunk in chunks for event in decoder.feed(chunk)] + decoder.finish()
    messages = []
    last_id, retry = "", None
    for event in events:
        if event.id is not None:
            last_id = event.id.decode(errors="replace")
        retry = retry if event.retry is None else event.retry
        if event.data is not None:
            kind = event.type.decode(errors="replace") or "message"
            messages.append(Message(kind, event.data.decode(errors="replace"), last_id))
    return Reading(tuple(messages), last_id, retry)


def cut(dice: random.Random, stream: bytes, pieces: int) -> list[bytes]:
    """The stream in so many pieces, some of them empty."""
    bounds = [0, *sorted(dice.choices(range(len(stream) + 1), k=pieces - 1)), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


# -- S1 -----------------------------------------------------------------------------------------------------------

WHOLE: Final = [answer_stream(protocol) for protocol in Protocol] + [
    "\ufeffdata: 1\n\n\ufeffdata: 2\n\n".encode(),
    b": comment\r\revent: add\r\ndata: x\r\n\r\nid: 7\nretry: 007\n\ndata\n\n",
    "event: \u00fc\u2028\ndata:  two\ndata:\u0085\n\nid\ndata: \U0001f600\n\nid: a\0b\ndata:\n\n".encode(),
]
SALT: Final = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\r\r",
    b"\n\r",
    b":",
    b" ",
    b"\0",
    b"data",
    b"data:",
    b"event:",
    b"id:",
]
SALT_MORE: Final = [
    b"retry: 12\n",
    b"\xff",
    b"\xe2\x80",
    b"\xef\xbb\xbf",
    b"\xf0\x9f\x98",
    b"\xed\xa0\x80",
    b"\xc2\x85",
]


def mutated(dice: random.Random) -> bytes:
    """A piece of a legal stream with bytes put in, taken out, doubled and overwritten."""
    stream = dice.choice(WHOLE)
    start = dice.randrange(len(stream)) if dice.random() < 0.5 else 0
    data = bytearray(stream[start : start + dice.randrange(1, 600)])
    for _ in range(dice.randrange(1, 9)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(4):
            case 0 | 1:
                data[at:at] = dice.choice(SALT + SALT_MORE)
            case 2:
                del data[at : at + dice.randrange(1, 6)]
            case _:
                data[at:at] = data[at : at + dice.randrange(1, 30)]
    return bytes(data)


def test_s1_mutated_streams_read_as_the_standard_says_however_they_are_cut() -> None:
    dice = random.Random(SEED)
    count = scaled(10_000)
    messages = 0
    for number in range(count):
        stream = mutated(dice)
        wanted = Reference().read(stream)
        ways = [[stream], [stream[at : at + 1] for at in range(len(stream))]]
        ways += [cut(dice, stream, dice.randrange(2, 10)) for _ in range(CHUNKINGS)]
        for way in ways:
            assert read_with_ours(way) == wanted, (SEED, number, way)
        messages += len(wanted.messages)
    assert messages > count // 2
    tell(f"S1: {count} streams, {messages} messages, {CHUNKINGS} cuttings of each and byte by byte: all alike")


# -- S2 -----------------------------------------------------------------------------------------------------------

LONG: Final = b"x" * 2048
# The cases of the Web Platform Tests' eventsource/format-* files, each in bytes of our own.
FORMATS: Final[dict[str, tuple[bytes, list[Message]]]] = {
    "bom": ("\ufeffdata:a\n\n\ufeffdata:b\n\ndata:c\n\n".encode(), [Message("message", x, "") for x in "ac"]),
    "bom-2": ("\ufeff\ufeffdata:a\n\ndata:b\n\ndata:c\n\n".encode(), [Message("message", x, "") for x in "bc"]),
    "comments": (
        b"data:a\r:\0\n:\r\ndata:b\n:" + LONG + b"\rdata:c\n:data:no\r:" + LONG + b"\ndata:d\n\n",
        [Message("message", "a\nb\nc\nd", "")],
    ),
    "data-before-final-empty-line": (b"retry:900\ndata:a\n\nid:z\ndata:b", [Message("message", "a", "")]),
    "field-data": (b"data:\n\ndata\ndata\n\ndata:a", [Message("message", "", ""), Message("message", "\n", "")]),
    "field-event": (b"event:add\ndata:a\n\ndata:b\n\n", [Message("add", "a", ""), Message("message", "b", "")]),
    "field-event-empty": (b"event: \ndata:a\n\n", [Message("message", "a", "")]),
    "field-id": ("id:\u2026 7\ndata:a\n\ndata:b\n\n".encode(), [Message("message", x, "\u2026 7") for x in "ab"]),
    "field-id-2": (
        b"id: 1\ndata:a\n\nid\ndata:b\n\nid:2\n\ndata:c\n\n",
        [Message("message", "a", "1"), Message("message", "b", ""), Message("message", "c", "2")],
    ),
    "field-id-3": (
        b"id\ndata:a\n\nid: 1\n\nid:3\ndata:b\nid:4\n\n",
        [Message("message", "a", ""), Message("message", "b", "4")],
    ),
    "field-id-null": (
        b"id:1\ndata:a\n\nid:\0 2\ndata:b\n\n",
        [Message("message", "a", "1"), Message("message", "b", "1")],
    ),
    "field-parsing": (
        b"data:\0\ndata:  q\rData:A\ndata\0:B\ndata:r\r\0data:C\nda-ta:D\rdata_E\ndata:s\rdata:\r\n data:F\ndata:t\n\n",
        [Message("message", "\0\n q\nr\ns\n\nt", "")],
    ),
    "field-unknown": (
        b"data:a\n data\ndata\nother:x\nnothing\n:a comment\ndata:b\n\n",
        [Message("message", "a\n\nb", "")],
    ),
    "leading-space": (b"data:\ta\rdata: \ndata:b\n\n", [Message("message", "\ta\n\nb", "")]),
    "newlines": (b"data:a\r\ndata\ndata:b\r\n\r\n", [Message("message", "a\n\nb", "")]),
    "null-character": (b"data:\0\n\n\n\n", [Message("message", "\0", "")]),
    "utf-8": ("data:a\u2026\n\n".encode(), [Message("message", "a\u2026", "")]),
}
RETRIES: Final[dict[str, tuple[bytes, int | None]]] = {
    "field-retry": (b"retry:03000\ndata:x\n\n", 3000),
    "field-retry-bogus": (b"retry:3000\nretry:1000x\ndata:x\n\n", 3000),
    "field-retry-empty": (b"retry\ndata:x\n\n", None),
}


@pytest.mark.parametrize("name", FORMATS)
def test_s2_the_formats_of_the_web_platform_tests(name: str) -> None:
    stream, messages = FORMATS[name]
    for reading in (Reference().read(stream), read_with_ours([stream])):
        assert list(reading.messages) == messages
    assert read_with_ours([stream[at : at + 1] for at in range(len(stream))]) == read_with_ours([stream])


@pytest.mark.parametrize("name", RETRIES)
def test_s2_the_reconnection_times_of_the_web_platform_tests(name: str) -> None:
    stream, retry = RETRIES[name]
    assert (Reference().read(stream).retry, read_with_ours([stream]).retry) == (retry, retry)


# -- S3 -----------------------------------------------------------------------------------------------------------

SEPARATORS: Final = "\u2028 \u2029 \u0085 \x0b \x0c \x1c \x1d \x1e"
"""What `str.splitlines` takes for line ends, and an event stream does not."""


def test_s3_what_ends_a_line_elsewhere_is_data_here() -> None:
    data = f"a{SEPARATORS}z".encode()
    (event,) = SSEDecoder().feed(encode(data, type=SEPARATORS.encode(), id=SEPARATORS.encode()))
    assert (event.data, event.type, event.id) == (data, SEPARATORS.encode(), SEPARATORS.encode())


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_s3_an_answer_with_such_characters_arrives_as_it_was(client: Protocol, upstream: Protocol) -> None:
    """Written as they are where JSON lets them stand, else escaped. The words are everything the answer says."""
    words = ("one ", SEPARATORS, "two")
    stream = b"".join(answer_events(upstream, words=words))
    for raw in "\u2028\u2029\u0085":
        stream = stream.replace(msgspec.json.encode(raw)[1:-1], raw.encode())
        stream = stream.replace(b"\\u%04x" % ord(raw), raw.encode())
    assert "\u2028 \u2029 \u0085".encode() in stream
    got = fed(exchange(client, upstream), asked(client), Head(), Data(stream), Eof())
    decoder = CODECS[client].stream_decoder(Ledger(), max_event_bytes=1 << 20)
    texts = [getattr(delta, "text", "") for delta in [*decoder.receive_data(got.body), *decoder.finish()]]
    assert f"one {SEPARATORS}two" in "".join(texts)
    if client is upstream:
        assert "\u2028 \u2029 \u0085".encode() in got.body, "passed on as it came"


# -- S4 -----------------------------------------------------------------------------------------------------------

# Twelve bytes: malformed in every way that the Unicode standard names, among whole characters and line ends.
WINDOWS: Final = {
    "cut_characters": b"\xf0\x9f\x98\xe2\x80\xc3a\xe2\x80\xa8\xf0\x9f",
    "surrogates_and_overlong": b"\xed\xa0\xbd\xed\xb8\x80\xc0\xaf\xe0\x80\xaf\xff",
    "around_line_ends": b"\xe2\x80\ndata: \xa8\xf0\x9f",
    "around_blank_lines": b"\xe2\r\n\r\nid:\xff\r\r\x80",
    "whole": "é\U0001f600\u2028\u2029".encode(),
}


def splits(window: bytes, *, every: int = 1) -> Iterator[list[bytes]]:
    """All 2^(n-1) ways to cut n bytes into pieces; with `every`, each so manieth."""
    for number in range(0, 1 << (len(window) - 1), every):
        bounds = [
            0,
            *compress(range(1, len(window)), (number >> bit & 1 for bit in range(len(window) - 1))),
            len(window),
        ]
        yield [window[start:end] for start, end in pairwise(bounds)]


@pytest.mark.parametrize("name", WINDOWS)
def test_s4_invalid_utf8_reads_the_same_in_every_split(name: str) -> None:
    window = WINDOWS[name]
    assert len(window) == 12
    before, after = b"data: a", b"z\n\ndata: next\n\n"
    wanted = Reference().read(before + window + after)
    ways = list(splits(window))
    assert len(ways) == 2048
    for pieces in ways:
        assert read_with_ours([before, *pieces, after]) == wanted, pieces


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_s4_a_client_gets_the_same_in_every_split(client: Protocol, upstream: Protocol, name: str) -> None:
    """In the middle of an answer's words."""
    head, mark, tail = answer_stream(upstream, words=("Hello", "@@@", "there")).partition(b"@@@")
    assert mark
    window = WINDOWS[name]
    whole = fed(exchange(client, upstream), asked(client), Head(), Data(head + window + tail), Eof())
    for pieces in splits(window, every=1 if FULL else 97):
        parts = [head + pieces[0], *pieces[1:-1], pieces[-1] + tail] if len(pieces) > 1 else [head + window + tail]
        got = fed(exchange(client, upstream), asked(client), Head(), *map(Data, parts), Eof())
        assert (got.status, got.body) == (whole.status, whole.body), pieces
