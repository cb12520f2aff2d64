"""SSE: cut at any place, the blocks are the same, and they mean what WHATWG HTML 9.2.6 says."""

import re

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from capi_core import sse
from capi_core.errors import LocalError, ProtocolError
from capi_core.sse import KEEP_ALIVE, DecoderState, Event, SSEDecoder, SSEError, comment, encode
from tests.support.trickle import assert_split_invariant, pieces, run

BOM = b"\xef\xbb\xbf"

line_ends = [b"\n", b"\r", b"\r\n", b"\n\n"]
fields = [b":", b" ", b"data", b"data: ", b"event:", b"id", b"retry:", b"1", b"\0", b"x"]
text = ["\u2028\u0085\x0b\x0c\U0001f600".encode(), b"\xff", BOM, BOM[:1], BOM[:2]]
streams = st.lists(st.sampled_from(line_ends + fields + text), max_size=24).map(b"".join) | st.binary(max_size=24)


# --- an independent reader: one byte after another, line by line, nothing clever ---


@frozen
class Dispatched:
    data: bytes
    type: bytes


@frozen
class Reading:
    """What a browser would have made of a stream."""

    events: tuple[Dispatched, ...]
    last_id: bytes
    retry: int | None


def lines_of(stream: bytes) -> list[bytes]:
    """The complete lines; what follows the last line end is no line."""
    lines = []
    line = bytearray()
    previous = 0
    for byte in stream:
        if byte == 0x0A and previous == 0x0D:
            pass  # the second half of CRLF
        elif byte in (0x0A, 0x0D):
            lines.append(bytes(line))
            line.clear()
        else:
            line.append(byte)
        previous = byte
    return lines


def read_naively(stream: bytes) -> Reading:
    if stream[:3] == BOM:
        stream = stream[3:]
    events = []
    data, kind, last_id, retry = b"", b"", b"", None
    for line in lines_of(stream):
        if not line:
            if data:
                events.append(Dispatched(data[:-1], kind))
            data, kind = b"", b""
            continue
        name, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            data += value + b"\n"
        elif name == b"event":
            kind = value
        elif name == b"id" and b"\0" not in value:
            last_id = value
        elif name == b"retry" and value and all(digit in b"0123456789" for digit in value):
            retry = int(value)
    return Reading(tuple(events), last_id, retry)


def read_with_ours(stream: bytes, step: int | None = None) -> Reading:
    """The same through the decoder. Ids and retries of the unterminated block count too: they are set as soon
    as their line is read, before any blank line."""
    decoder = SSEDecoder()
    step = step or max(len(stream), 1)
    blocks = [event for at in range(0, len(stream), step) for event in decoder.feed(stream[at : at + step])]
    blocks += decoder.finish()
    events = [Dispatched(block.data, block.type) for block in blocks if block.data is not None]
    last_id, retry = b"", None
    complete_lines = re.match(rb"(?s)(.*[\r\n])?", decoder.residue)
    for block in [*blocks, Event(complete_lines[0] if complete_lines else b"")]:
        last_id = last_id if block.id is None else block.id
        retry = retry if block.retry is None else block.retry
    return Reading(tuple(events), last_id, retry)


@given(streams)
def test_reads_what_a_naive_reader_reads(stream: bytes) -> None:
    assert read_with_ours(stream) == read_with_ours(stream, 1) == read_naively(stream)


@given(streams, st.data())
def test_events_and_residue_do_not_depend_on_chunks_and_lose_no_byte(stream: bytes, chosen: st.DataObject) -> None:
    seen = assert_split_invariant(SSEDecoder, stream, chosen, lambda decoder: decoder.residue)
    raws = [event.raw for event in seen.outputs if isinstance(event, Event)]
    assert isinstance(seen.seen, bytes)
    assert b"".join(raws) + seen.seen == stream.removeprefix(BOM)
    assert seen.error is None


def events_of(stream: bytes) -> list[Event]:
    decoder = SSEDecoder()
    return decoder.feed(stream) + decoder.finish()


def dispatched(stream: bytes) -> list[tuple[bytes, bytes]]:
    """(type, data) of every dispatched event, the same for every chunking."""
    seen = assert_split_invariant(SSEDecoder, stream).outputs
    return [(e.type, e.data) for e in seen if isinstance(e, Event) and e.data is not None]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        # byte order marks
        (BOM + b"data:1\n\ndata:2\n\n", [b"1", b"2"]),
        (BOM + BOM + b"data:1\n\ndata:2\n\n", [b"2"]),
        (b"data:1\n\n" + BOM + b"data:2\n\ndata:3\n\n", [b"1", b"3"]),
        (BOM[:2] + b"data:1\n\ndata:2\n\n", [b"2"]),
        (BOM, []),
        # comments
        (b"data:1\n:\0\n:\r\ndata:2\n:" + b"x" * 100 + b"\rdata:3\n:data:no\ndata:4\n\n", [b"1\n2\n3\n4"]),
        (b": ping\n\n", []),
        (b": OPENROUTER PROCESSING\n\ndata: 1\n\n", [b"1"]),
        # field parsing
        (b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\n\n", [b"\0\n 2\n1"]),
        (b"da-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n", [b"3\n\n4"]),
        (b"data:test\n\ndata\ndata\n\ndata:test\n\n", [b"test", b"\n", b"test"]),
        (b"data\n\ndata:\n\ndata: \n\n", [b"", b"", b""]),
        (b"data\r\rdata\r\n\r\n", [b"", b""]),
        (b"data:\ttest\rdata: \ndata:test\n\n", [b"\ttest\n\ntest"]),
        (b"data: a: b\n\n", [b"a: b"]),
        (b"database: 1\ndata : 1\n\n", []),
        (b"event: only\n\nid: 1\n\nretry: 1\n\nunknown: 1\n\n", []),
        # line ends
        (b"data:test\r\ndata\ndata:test\r\n\r", [b"test\n\ntest"]),
        (b"data:a\n\r\ndata:b\r\n\ndata:c\n\rdata:d\r\r\ndata:e\n\r", [b"a", b"b", b"c", b"d", b"e"]),
        (b"\n\n\r\r\n\r\r\n\n\ndata:1\n\n\n\ndata:2\n\n", [b"1", b"2"]),
        (b"data: \xe2\x80\xa8\xc2\x85\x0b\x0c\x1c\x1d\x1e\n\n", [b"\xe2\x80\xa8\xc2\x85\x0b\x0c\x1c\x1d\x1e"]),
        # text
        ("data: ok…\U0001f600\n\n".encode(), ["ok…\U0001f600".encode()]),
        (b"data: \xff\xc3\n\n", [b"\xff\xc3"]),
        # ends without a blank line
        (b"data: 1\n\ndata: 2\n", [b"1"]),
        (b"data: 1\n\ndata: 2", [b"1"]),
        (b"data: 1\n\ndata: 2\r\n", [b"1"]),
        (b"", []),
        # what language models send
        (b'data: {"a":1}\n\ndata: [DONE]\n\n', [b'{"a":1}', b"[DONE]"]),
        (b'data:{"a":1}\r\n\r\ndata:[DONE]\r\n\r\n', [b'{"a":1}', b"[DONE]"]),
    ],
)  # fmt: skip
def test_data_vectors(stream: bytes, expected: list[bytes]) -> None:
    assert [data for _, data in dispatched(stream)] == expected
    assert [event.data for event in read_naively(stream).events] == expected


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"event:test\ndata:x\n\ndata:x\n\n", [(b"test", b"x"), (b"", b"x")]),
        (b"event: a\nevent: b\ndata: 1\n\n", [(b"b", b"1")]),
        (b"event: a\nevent\ndata: 1\n\n", [(b"", b"1")]),
        (b"event: a\n\ndata: 1\n\n", [(b"", b"1")]),
        (b"event: a\rdata: 0\ndata: 1\n\n", [(b"a", b"0\n1")]),
        (b"event: a\ndata: 1\nevent: b\n\n", [(b"b", b"1")]),
        (b"event: a\ndata: 1\ndata: 2\n\n", [(b"a", b"1\n2")]),
        (b"event: \ndata:\n\n", [(b"", b"")]),
        (b"event: ping\n\nevent: ping\ndata: {}\n\n", [(b"ping", b"{}")]),
    ],
)
def test_type_vectors(stream: bytes, expected: list[tuple[bytes, bytes]]) -> None:
    assert dispatched(stream) == expected


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"data: 1\n\n", None),
        (b"id: 1\ndata: 1\n\n", b"1"),
        (b"id: 1\nid: 2\n\n", b"2"),
        (b"id\n\n", b""),
        (b"id: 1\nid: a\0b\n\n", b"1"),
        (b"id: a\0b\n\n", None),
        (b"ID: 1\nidx: 2\n\n", None),
    ],
)
def test_id_is_the_last_one_without_nul(block: bytes, expected: bytes | None) -> None:
    assert Event(block).id == expected


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"retry: 3000\n\n", 3000),
        (b"retry:0\n\n", 0),
        (b"retry:03000\n\n", 3000),
        (b"retry: 1\nretry: 2\n\n", 2),
        (b"retry: 1\nretry: x\n\n", 1),
        (b"retry:" + b"0" * 5000 + b"7\n\n", 7),
        (b"retry:" + b"9" * 5000 + b"\n\n", None),
        ("retry: ٣\n\n".encode(), None),
        (b"retry: -1\nretry: +1\nretry: 1 \nretry:  1\nretry: 1_0\nretry\nretry:\nRetry: 1\n\n", None),
    ],
)
def test_retry_is_the_last_one_made_of_ascii_digits(block: bytes, expected: int | None) -> None:
    assert Event(block).retry == expected


def test_an_event_is_its_bytes_and_frozen() -> None:
    event = Event(b"data: 1\n\n")
    assert event == Event(b"data: 1\n\n")
    assert hash(event) == hash(Event(b"data: 1\n\n"))
    assert event != Event(b"data: 2\n\n")
    with pytest.raises(AttributeError):
        event.raw = b""  # type: ignore[misc]  # the promise under test


# --- when an event is delivered ---


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n"])
@pytest.mark.parametrize("before", [b"", b"data: 0\n\n", b"data: 0\r\r:"])
def test_an_event_comes_with_its_last_byte(end: bytes, before: bytes) -> None:
    whole = SSEDecoder()
    assert [e.data for e in whole.feed(before + b": 0\ndata: 1" + end)][-1] == b"1"
    trickled = SSEDecoder()
    trickled.feed(before)
    *head, last = [bytes([byte]) for byte in b": 0\ndata: 1" + end]
    assert [event for byte in head for event in trickled.feed(byte)] == []
    assert [e.data for e in trickled.feed(last)] == [b"1"]
    assert trickled.residue == whole.residue == b""


def test_lf_cr_waits_for_one_byte_as_the_cr_may_be_half_of_crlf() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: 1\n\r") == []
    assert decoder.feed(b"") == []
    assert decoder.feed(b"d") == [Event(b"data: 1\n\r")]
    assert decoder.feed(b"ata: 2\n\r") == []
    assert decoder.feed(b"\n") == [Event(b"data: 2\n\r\n")]


def test_lf_cr_is_a_blank_line_when_the_stream_ends_there() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: 1\n\r") == []
    assert decoder.residue == b"data: 1\n\r"
    assert decoder.finish() == [Event(b"data: 1\n\r")]
    assert decoder.residue == b""


def test_lf_after_cr_cr_opens_the_next_block_and_does_nothing_there() -> None:
    for chunks in ([b"data: 1\r\r", b"\ndata: 2\n\n"], [b"data: 1\r\r\ndata: 2\n\n"]):
        assert run(SSEDecoder, chunks).outputs == (Event(b"data: 1\r\r"), Event(b"\ndata: 2\n\n"))
    assert Event(b"\ndata: 2\n\n").data == b"2"


@pytest.mark.parametrize(
    ("stream", "raws"),
    [
        (b"1\n\r\r2", [b"1\n\r"]),
        (b"1\n\r\r\r2", [b"1\n\r", b"\r\r"]),
        (b"1\r\r\n\n2", [b"1\r\r", b"\n\n"]),
        (b"1\n\n\r\n2", [b"1\n\n"]),
        (b"1\r\n\n\r\n\r\n2", [b"1\r\n\n", b"\r\n\r\n"]),
        (b"1\r\n\r\n\r\n2\r\n\r\n", [b"1\r\n\r\n", b"\r\n2\r\n\r\n"]),
        (b"\n\n\n\n\n", [b"\n\n", b"\n\n"]),
    ],
)
def test_where_blocks_are_cut(stream: bytes, raws: list[bytes]) -> None:
    assert assert_split_invariant(SSEDecoder, stream).outputs == tuple(map(Event, raws))


class Run:
    """A decoder that takes what it can in runs, as `peek` and `take` give them, and cuts these afterwards."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.decoder = SSEDecoder(max_event_bytes=limit)
        self.runs = 0

    def feed(self, data: bytes) -> list[Event]:
        run = self.decoder.peek(data)
        if not run:
            return self.decoder.feed(data)
        cutter = SSEDecoder()
        events = cutter.feed(b": first\n\n" + run)[1:]
        if cutter.residue:  # it ends with a blank line of its own: such a run is for `feed`
            return self.decoder.feed(data)
        self.decoder.take(data)
        self.runs += 1
        return events

    def finish(self) -> list[Event]:
        return self.decoder.finish()


@given(streams, st.sampled_from([6, 24, 1 << 20]), st.data())
def test_what_is_taken_in_runs_is_what_is_fed(stream: bytes, limit: int, chosen: st.DataObject) -> None:
    cut = chosen.draw(pieces(stream))
    expected = run(lambda: SSEDecoder(max_event_bytes=limit), cut, lambda decoder: decoder.residue)
    assert run(lambda: Run(limit), cut, lambda machine: machine.decoder.residue) == expected


def test_a_run_is_all_blocks_that_the_bytes_complete_and_is_taken_or_fed() -> None:
    decoder = SSEDecoder()
    assert decoder.peek(b"data: 0\n\n") == b""  # its first bytes may be a byte order mark
    decoder.feed(b"data: 0\n\nda")
    data = b"ta: 1\n\ndata: 2\n\ndata: 3\n"
    assert decoder.peek(data) == decoder.peek(data) == b"data: 1\n\ndata: 2\n\n"
    decoder.take(data)
    assert decoder.residue == b"data: 3\n"
    assert decoder.peek(b"\n") == b""
    assert decoder.feed(b"\n") == [Event(b"data: 3\n\n")]
    assert decoder.peek(b"data: 4\n\n") == b"data: 4\n\n"
    assert decoder.feed(b"data: 4\n\n") == [Event(b"data: 4\n\n")]


@pytest.mark.parametrize("before", [b"", b"da", b"x\r"])
@pytest.mark.parametrize("data", [b"", b"data: 1", b"data: 1\r\n\n", b"data: 1\n\n\r", b"x" * 16 + b"\n\n"])
def test_what_is_not_plain_to_see_is_left_to_feed(before: bytes, data: bytes) -> None:
    decoder = SSEDecoder(max_event_bytes=16)
    decoder.feed(b"a\n\n" + before)
    assert decoder.peek(data) == b""
    assert decoder.peek(b"b\n\n") == (b"" if b"\r" in before else before + b"b\n\n")


def test_a_decoder_that_is_closed_shows_no_run() -> None:
    decoder = SSEDecoder()
    decoder.feed(b"a\n\n")
    decoder.finish()
    assert decoder.peek(b"b\n\n") == b""


def test_an_event_that_comes_alone_is_not_copied() -> None:
    block = b"data: 1\n\n"
    decoder = SSEDecoder()
    decoder.feed(block)
    assert decoder.feed(block)[0].raw is block


# --- the end of the stream ---


@pytest.mark.parametrize(
    ("residue", "completed"),
    [
        (b"data: 1", b"data: 1\n\n"),
        (b"data: 1\n", b"data: 1\n\n"),
        (b"data: 1\r\n", b"data: 1\r\n\n"),
        (b"data: 1\r", b"data: 1\r\n\n"),
        (b"event: a\ndata: 1", b"event: a\ndata: 1\n\n"),
    ],
)
def test_an_unterminated_block_is_discarded_or_leniently_completed(residue: bytes, completed: bytes) -> None:
    strict, lenient = SSEDecoder(), SSEDecoder()
    for decoder in (strict, lenient):
        assert decoder.feed(b"data: 0\n\n" + residue) == [Event(b"data: 0\n\n")]
        assert decoder.residue == residue
    assert strict.finish() == []
    assert lenient.finish(lenient=True) == [Event(completed)]
    assert Event(completed).data == b"1"
    assert strict.residue == lenient.residue == residue
    assert events_of(completed) == [Event(completed)]


@pytest.mark.parametrize("stream", [b"", BOM, b"data: 1\n\n", b"data: 1\n\r"])
def test_a_terminated_stream_ends_the_same_strict_or_lenient(stream: bytes) -> None:
    lenient = SSEDecoder()
    assert lenient.feed(stream) + lenient.finish(lenient=True) == events_of(stream)
    assert lenient.residue == b""


@given(streams)
def test_a_lenient_end_leaves_only_terminated_blocks(stream: bytes) -> None:
    decoder = SSEDecoder()
    seen = decoder.feed(stream) + decoder.finish(lenient=True)
    again = events_of(BOM + b"".join(event.raw for event in seen))
    assert again == seen


def test_half_a_byte_order_mark_is_residue() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(BOM[:1]) == decoder.feed(BOM[1:2]) == []
    assert decoder.residue == BOM[:2]
    assert decoder.finish(lenient=True) == [Event(BOM[:2] + b"\n\n")]


# --- the limit ---


@given(streams, st.integers(3, 12), st.data())
def test_the_limit_strikes_at_the_same_block_however_the_stream_is_cut(
    stream: bytes, limit: int, chosen: st.DataObject
) -> None:
    def make() -> SSEDecoder:
        return SSEDecoder(max_event_bytes=limit)

    seen = assert_split_invariant(make, stream, chosen, lambda decoder: (decoder.residue, decoder.state))
    free = SSEDecoder()
    blocks = free.feed(stream) + free.finish()
    sizes = [len(block.raw) for block in blocks] + [len(free.residue)]
    fit = next((index for index, size in enumerate(sizes) if size > limit), None)
    if fit is None:
        assert seen.error is None
        assert seen.outputs == tuple(blocks)
    else:
        assert seen.error == "sse_event_too_large"
        assert seen.outputs == tuple(blocks[:fit])
        assert seen.seen == (b"", DecoderState.FAILED)


def test_a_block_of_exactly_the_limit_passes_and_one_more_byte_does_not() -> None:
    assert SSEDecoder(max_event_bytes=9).feed(b"data: 1\n\n") == [Event(b"data: 1\n\n")]
    with pytest.raises(SSEError):
        SSEDecoder(max_event_bytes=8).feed(b"data: 1\n\n")


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\n\r"])
@pytest.mark.parametrize("excess", [-1, 0, 1, 2])
def test_the_limit_is_exact_wherever_the_chunks_end(end: bytes, excess: int) -> None:
    block = b":" * (16 + excess - len(end)) + end
    seen = assert_split_invariant(lambda: SSEDecoder(max_event_bytes=16), b"data\n\n" + block + b"data\n\n")
    assert seen.error == ("sse_event_too_large" if excess > 0 else None)
    assert len(seen.outputs) == (1 if excess > 0 else 3)


def test_events_before_the_too_large_one_come_first_and_the_error_with_the_next_call() -> None:
    decoder = SSEDecoder(max_event_bytes=10)
    assert decoder.feed(b"data: 1\n\ndata: 2\n\n" + b"x" * 11) == [Event(b"data: 1\n\n"), Event(b"data: 2\n\n")]
    assert decoder.failed
    assert decoder.residue == b""
    with pytest.raises(SSEError) as caught:
        decoder.finish()
    assert isinstance(caught.value, ProtocolError)
    assert (caught.value.code, caught.value.status_hint) == ("sse_event_too_large", 502)


def test_an_error_is_sticky() -> None:
    decoder = SSEDecoder(max_event_bytes=10)
    assert not decoder.failed
    with pytest.raises(SSEError, match="longer than 10 bytes"):
        decoder.feed(b"data: a secret that no error message may show")
    for _ in range(2):
        with pytest.raises(LocalError, match="FAILED"):
            decoder.feed(b"data: 1\n\n")
        with pytest.raises(LocalError, match="FAILED"):
            decoder.finish(lenient=True)
    assert decoder.state is DecoderState.FAILED


def test_nothing_is_taken_after_the_end() -> None:
    decoder = SSEDecoder()
    states = [decoder.state]
    decoder.finish()
    states.append(decoder.state)
    assert states == [DecoderState.OPEN, DecoderState.FINISHED]
    with pytest.raises(LocalError, match="FINISHED"):
        decoder.feed(b"")
    with pytest.raises(LocalError, match="FINISHED"):
        decoder.finish()


def test_a_limit_below_a_byte_order_mark_is_refused() -> None:
    with pytest.raises(LocalError):
        SSEDecoder(max_event_bytes=2)


@pytest.mark.parametrize(("size", "step"), [(1 << 16, 1), (2 << 20, 64)])
def test_trickling_a_large_event_looks_at_each_byte_once(size: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0

    def counted(data: bytes) -> int:
        nonlocal looked_at
        looked_at += len(data)
        return first_block_end(data)

    first_block_end = sse._first_block_end
    monkeypatch.setattr(sse, "_first_block_end", counted)
    decoder = SSEDecoder()
    block = b"data: " + b"x" * (size - 8) + b"\n\n"
    events = [event for at in range(0, size, step) for event in decoder.feed(block[at : at + step])]
    assert events == [Event(block)]
    overlap = 2 * (size // step)
    assert size - 8 <= looked_at <= size + overlap


# --- writing ---


@given(
    st.binary(max_size=20) | streams,
    st.binary(max_size=8).filter(lambda name: not re.search(rb"[\r\n\0]", name)),
    st.none() | st.binary(max_size=8).filter(lambda name: not re.search(rb"[\r\n\0]", name)),
)
def test_what_is_encoded_is_read_back_with_lf_for_line_ends(data: bytes, type: bytes, id: bytes | None) -> None:
    (event,) = events_of(encode(data, type=type, id=id))
    assert event.data == re.sub(rb"\r\n|\r", b"\n", data)
    assert (event.type, event.id) == (type, id)


def test_encoded_form() -> None:
    assert encode(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert encode(b"{}", type=b"ping") == b"event: ping\ndata: {}\n\n"
    assert encode(b"1\n2\r3\r\n", type=b"t", id=b"7") == b"event: t\nid: 7\ndata: 1\ndata: 2\ndata: 3\ndata: \n\n"
    assert encode(b"", id=b"") == b"id: \ndata: \n\n"


@pytest.mark.parametrize("bad", [b"a\nb", b"a\rb", b"a\0b", b"\n"])
def test_a_type_or_id_cannot_smuggle_a_line(bad: bytes) -> None:
    with pytest.raises(LocalError):
        encode(b"", type=bad)
    with pytest.raises(LocalError):
        encode(b"", id=bad)


@given(st.binary(max_size=20) | streams)
def test_a_comment_is_one_block_and_dispatches_nothing(text: bytes) -> None:
    (event,) = events_of(comment(text))
    assert (event.data, event.type, event.id, event.retry) == (None, b"", None, None)


def test_comment_form() -> None:
    assert comment() == b": \n\n"
    assert comment(b"keep-alive") == KEEP_ALIVE
    assert comment(b"a\ndata: b") == b": a\n: data: b\n\n"
