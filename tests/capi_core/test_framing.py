from itertools import pairwise

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capi_core.errors import LocalError, ProtocolError
from capi_core.framing import FramingError, FramingFault, FramingLimits, FramingState, Head, RequestFraming
from tests.support.framing_cases import CASES, FramingCase, ReadBack, Transcript, drive, read_back

GET = b"GET / HTTP/1.1\r\nHost: h\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

# Small enough that generated requests fall on both sides of every limit.
TIGHT = FramingLimits(
    request_line=64, head=256, fields=8, chunk_line=12, chunk_excess=20, trailer=24, body=24, held=1024
)


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Split at the given places, taken modulo the length; pieces may be empty."""
    places = [0, *sorted(place % (len(data) + 1) for place in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def same_outcome(left: Transcript, right: Transcript) -> bool:
    """Equal but for how content was cut into chunks."""
    return (
        (left.code, left.state) == (right.code, right.state)
        and read_back(left.canonical) == read_back(right.canonical)
    )  # fmt: skip


def started(data: bytes, limits: FramingLimits | None = None) -> RequestFraming:
    """A machine that has received `data`."""
    framing = RequestFraming(limits or FramingLimits())
    framing.receive_data(data)
    return framing


def head_of(data: bytes, limits: FramingLimits | None = None) -> Head:
    head = started(data, limits).head
    assert head is not None
    return head


def code_of(data: bytes, limits: FramingLimits) -> str | None:
    """The refusal of `data`, which must be the same byte by byte."""
    whole, trickled = drive([data], limits), drive(bytewise(data), limits)
    assert whole.code == trickled.code
    return whole.code


class TestTable:
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_outcome(self, case: FramingCase) -> None:
        """Every case is accepted in its canonical form, or refused with its status and code."""
        transcript = drive([case.data])
        assert (transcript.status, transcript.code) == (case.status, case.code)
        if case.status is None:
            assert transcript.canonical == case.canonical

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_any_split_has_the_same_outcome(self, case: FramingCase) -> None:
        """Byte by byte (long ones in small pieces), and cut in two at up to 24 places."""
        data, whole = case.data, drive([case.data])
        size = 1 + len(data) // 2000
        assert same_outcome(drive([data[at : at + size] for at in range(0, len(data), size)]), whole)
        for place in range(0, len(data), 1 + len(data) // 24):
            assert same_outcome(drive(cut(data, [place])), whole)

    def test_cases_have_unique_names(self) -> None:
        assert len({case.name for case in CASES}) == len(CASES)

    def test_every_fault_has_a_case(self) -> None:
        assert {case.code for case in CASES} - {None} == {fault.name.lower() for fault in FramingFault}


class TestErrors:
    def test_a_refusal_is_a_protocol_error_that_quotes_nothing(self) -> None:
        with pytest.raises(FramingError) as caught:
            started(GET + b"Authorization: Bearer secret\r\nAuthorization: Bearer secret\r\n\r\n")
        error = caught.value
        assert isinstance(error, ProtocolError)
        assert (error.fault, error.code, error.status_hint) == (
            FramingFault.DUPLICATE_FIELD, "duplicate_field", 400,
        )  # fmt: skip
        assert "secret" not in str(error)

    def test_a_refusal_is_final(self) -> None:
        """After a fault every call is the embedder's error, and nothing is kept."""
        framing = RequestFraming()
        with pytest.raises(FramingError):
            framing.receive_data(b"\0" * 100)
        assert framing.state is FramingState.FAILED
        assert framing.held == 0
        with pytest.raises(LocalError):
            framing.receive_data(GET)
        with pytest.raises(LocalError):
            framing.next_request()

    def test_what_was_sound_before_the_fault_is_not_lost(self) -> None:
        """The same call may have completed content: it comes with the error, however the input was split."""
        framing = RequestFraming()
        with pytest.raises(FramingError) as caught:
            framing.receive_data(CHUNKED + b"5\r\nhello\r\nx\r\n")
        (request,) = read_back(caught.value.canonical)
        assert (request.content, request.whole) == (b"hello", False)

    def test_a_refused_head_hands_on_nothing(self) -> None:
        with pytest.raises(FramingError) as caught:
            started(GET + b"A : b\r\n\r\n")
        assert caught.value.canonical == b""

    @pytest.mark.parametrize(
        "data", [b"", GET, POST + b"Content-Length: 1\r\n\r\n", CHUNKED, POST + b"Content-Length: 99\r\n\r\n"]
    )
    def test_next_request_needs_a_complete_one(self, data: bytes) -> None:
        framing = started(data, TIGHT)
        with pytest.raises(LocalError):
            framing.next_request()


class TestHead:
    def test_fields(self) -> None:
        """The head says what was understood; its bytes are what was handed on."""
        framing = RequestFraming()
        data = b"POST /v1/chat?a=b HTTP/1.1\r\nHOST: h:1\r\nX-Api-Key:  k \r\nContent-Length: 02\r\n\r\n"
        canonical = framing.receive_data(data)
        assert framing.head == Head(
            method="POST",
            target="/v1/chat?a=b",
            version="1.1",
            headers=((b"host", b"h:1"), (b"x-api-key", b"k"), (b"content-length", b"2")),
            content_length=2,
            chunked=False,
            expects_continue=False,
            too_large=False,
            keep_alive=True,
        )
        assert bytes(framing.head) == canonical

    def test_repr_keeps_secrets(self) -> None:
        head = head_of(b"GET /?key=secret HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer secret\r\n\r\n")
        assert "secret" not in repr(head)

    def test_chunked_has_no_length(self) -> None:
        head = head_of(CHUNKED)
        assert (head.chunked, head.content_length) == (True, None)

    @pytest.mark.parametrize(
        ("data", "keep_alive"),
        [
            (GET + b"\r\n", True),
            (GET + b"Connection: keep-alive\r\n\r\n", True),
            (GET + b"Connection: close\r\n\r\n", False),
            (GET + b"Connection: Keep-Alive, Close\r\n\r\n", False),
            (b"GET / HTTP/1.0\r\n\r\n", False),
            (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
        ],
    )
    def test_keep_alive(self, data: bytes, keep_alive: bool) -> None:
        """1.1 stays open unless told to close (RFC 9112 9.3); we always close after 1.0."""
        head = head_of(data)
        assert head.keep_alive is keep_alive
        assert ((b"connection", b"close") in head.headers) is not keep_alive

    @pytest.mark.parametrize(
        ("data", "expects"),
        [
            (POST + b"Content-Length: 1\r\n\r\n", False),
            (POST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n", True),
            (POST + b"Expect: 100-CONTINUE\r\nTransfer-Encoding: chunked\r\n\r\n", True),
            # No content to wait for, and a version without interim responses (RFC 9110 10.1.1).
            (POST + b"Expect: 100-continue\r\n\r\n", False),
            (POST + b"Expect: 100-continue\r\nContent-Length: 0\r\n\r\n", False),
            (b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", False),
        ],
    )
    def test_expects_continue(self, data: bytes, expects: bool) -> None:
        """The expectation is for the caller to meet: the server behind does not hear of it."""
        head = head_of(data)
        assert head.expects_continue is expects
        assert b"expect" not in dict(head.headers)


class TestProgress:
    def test_states_of_a_request_with_content(self) -> None:
        framing = RequestFraming()
        assert (framing.state, framing.head) == (FramingState.HEAD, None)
        framing.receive_data(POST + b"Content-Length: 3\r\n\r\n")
        assert (framing.state, framing.body_received) == (FramingState.BODY_LENGTH, 0)
        assert framing.receive_data(b"ab") == b"ab"
        assert (framing.state, framing.body_received) == (FramingState.BODY_LENGTH, 2)
        assert framing.receive_data(b"c") == b"c"
        assert (framing.state, framing.body_received) == (FramingState.COMPLETE, 3)

    def test_states_of_a_chunked_request(self) -> None:
        """Content goes on as it comes, one canonical chunk a call; framing bytes count for nothing."""
        framing = RequestFraming()
        framing.receive_data(CHUNKED)
        assert framing.state is FramingState.BODY_CHUNKED
        assert framing.receive_data(b"5;x\r\nab") == b"2\r\nab\r\n"
        assert framing.receive_data(b"cde\r\n1\r\nf\r\n0") == b"4\r\ncdef\r\n"
        assert (framing.state, framing.body_received) == (FramingState.BODY_CHUNKED, 6)
        assert framing.receive_data(b"\r\nA: b\r\n\r\n") == b"0\r\n\r\n"
        assert (framing.state, framing.body_received) == (FramingState.COMPLETE, 6)

    def test_receiving_nothing_changes_nothing(self) -> None:
        framing = RequestFraming()
        assert framing.receive_data(b"") == b""
        assert (framing.state, framing.head_started) == (FramingState.HEAD, False)

    def test_head_started(self) -> None:
        """Empty lines before a request do not start it; its first byte does."""
        framing = RequestFraming()
        for piece in (b"\r", b"\n", b"\r", b"\n"):
            framing.receive_data(piece)
            assert not framing.head_started
        framing.receive_data(b"G")
        assert framing.head_started
        framing.receive_data(GET[1:])
        assert framing.head_started
        framing.receive_data(b"\r\n")
        assert framing.head_started
        assert framing.state is FramingState.COMPLETE
        framing.next_request()
        assert not framing.head_started

    def test_a_large_body_in_odd_pieces_arrives_whole(self) -> None:
        content = bytes(range(256)) * 4096
        framing = started(POST + b"Content-Length: %d\r\n\r\n" % len(content))
        received = b"".join(framing.receive_data(content[at : at + 10_007]) for at in range(0, len(content), 10_007))
        assert received == content
        assert framing.state is FramingState.COMPLETE


class TestPipelining:
    def test_the_next_request_is_held_back(self) -> None:
        """Nothing behind a request is handed on, or judged, before it has been answered."""
        framing = RequestFraming()
        first = framing.receive_data(GET + b"\r\n" + POST + b"Content-Length: 2\r\n\r\nh")
        assert len(read_back(first)) == 1
        assert framing.head is not None
        assert framing.head.method == "GET"
        assert framing.held == len(POST + b"Content-Length: 2\r\n\r\nh")
        assert framing.receive_data(b"i") == b""
        second = framing.next_request()
        (request,) = read_back(second)
        assert (request.method, request.content, request.whole) == (b"POST", b"hi", True)
        assert (framing.state, framing.held, framing.body_received) == (FramingState.COMPLETE, 0, 2)

    def test_garbage_is_refused_only_when_its_turn_comes(self) -> None:
        framing = started(GET + b"\r\n\0")
        assert (framing.state, framing.held) == (FramingState.COMPLETE, 1)
        with pytest.raises(FramingError):
            framing.next_request()
        assert (framing.state, framing.held) == (FramingState.FAILED, 0)

    def test_a_started_head_is_taken_up_again(self) -> None:
        framing = started(GET + b"\r\n" + GET)
        assert framing.next_request() == b""
        assert (framing.state, framing.head_started, framing.held) == (FramingState.HEAD, True, 0)
        assert len(read_back(framing.receive_data(b"\r\n"))) == 1

    def test_counters_begin_anew(self) -> None:
        """Limits are those of one request, not of the connection."""
        request = CHUNKED + b"18;aaaaaaaa\r\n" + b"x" * 24 + b"\r\n0;aaaaaaaaa\r\nA: 4567890123456789\r\n\r\n"
        assert len(read_back(drive([request * 5], TIGHT).canonical)) == 5

    def test_nothing_follows_a_request_that_closes(self) -> None:
        """RFC 9112 9.6: what comes behind it is dropped unseen, not held."""
        framing = started(GET + b"Connection: close\r\n\r\n" + GET + b"\r\n")
        assert (framing.state, framing.held) == (FramingState.COMPLETE, 0)
        assert framing.receive_data(b"\0" * 1_000_000) == b""
        assert framing.held == 0
        assert framing.next_request() == b""
        assert framing.state is FramingState.DISCARD
        assert framing.receive_data(GET) == b""


class TestLimits:
    @pytest.mark.parametrize("extra", [0, 1])
    def test_request_line(self, extra: int) -> None:
        line = b"GET /" + b"a" * (64 - 14 + extra) + b" HTTP/1.1"
        assert len(line) == 64 + extra
        expected = "request_line_too_long" if extra else None
        assert code_of(line + b"\r\nHost: h\r\n\r\n", TIGHT) == expected
        assert code_of(line, TIGHT) == expected  # no line end needed

    @pytest.mark.parametrize("extra", [0, 1])
    def test_head(self, extra: int) -> None:
        """From the request line's first byte to the end of the empty line; empty lines before it are free."""
        value = b"a" * (256 - len(GET) - len(b"A: \r\n\r\n") + extra)
        data = GET + b"A: " + value + b"\r\n\r\n"
        assert len(data) == 256 + extra
        expected = "head_too_large" if extra else None
        assert code_of(data, TIGHT) == expected
        assert code_of(b"\r\n\r\n" + data, TIGHT) == expected

    @pytest.mark.parametrize("size", range(250, 257))
    def test_head_leaves_room_for_its_end(self, size: int) -> None:
        """A head that cannot end within the limit is refused, wherever the last line ends."""
        data = GET + b"A: " + b"a" * (size - len(GET) - 5) + b"\r\n"
        expected = "head_too_large" if size > 254 else None
        assert code_of(data, TIGHT) == expected
        assert code_of(data + b"\r\n", TIGHT) == expected

    def test_fields(self) -> None:
        assert code_of(GET + b"A: b\r\n" * 7 + b"\r\n", TIGHT) is None
        assert code_of(GET + b"A: b\r\n" * 8 + b"\r\n", TIGHT) == "too_many_fields"

    def test_chunk_line(self) -> None:
        assert code_of(CHUNKED + b"1;" + b"a" * 10 + b"\r\nx\r\n0\r\n\r\n", TIGHT) is None
        assert code_of(CHUNKED + b"1;" + b"a" * 11 + b"\r\nx\r\n0\r\n\r\n", TIGHT) == "chunk_line_too_long"

    def test_chunk_excess(self) -> None:
        """Extensions are paid for by content: 16 bytes and twice its data a chunk, and a fixed sum for all."""
        limits = attrs.evolve(TIGHT, chunk_line=100)
        chunk = b"1;" + b"a" * 21 + b"\r\nx\r\n"  # 23 bytes of chunk line: five more than its share
        assert code_of(CHUNKED + chunk * 4 + b"0\r\n\r\n", limits) is None
        assert code_of(CHUNKED + chunk * 5 + b"0\r\n\r\n", limits) == "chunk_excess"
        assert code_of(CHUNKED + (chunk + b"3\r\nabc\r\n") * 5 + b"0\r\n\r\n", limits) is None

    def test_trailer(self) -> None:
        """Field lines with their ends, and the empty line."""
        assert code_of(CHUNKED + b"0\r\nA: " + b"a" * 17 + b"\r\n\r\n", TIGHT) is None
        assert code_of(CHUNKED + b"0\r\nA: " + b"a" * 18 + b"\r\n\r\n", TIGHT) == "trailer_too_large"

    def test_held(self) -> None:
        framing = started(GET + b"\r\n" + b"x" * 1024, TIGHT)
        assert framing.held == 1024
        with pytest.raises(FramingError) as caught:
            framing.receive_data(b"x")
        assert caught.value.code == "pipeline_too_long"

    def test_pipeline_too_long_does_not_lose_the_request_before_it(self) -> None:
        with pytest.raises(FramingError) as caught:
            started(GET + b"\r\n" + b"x" * 1025, TIGHT)
        assert len(read_back(caught.value.canonical)) == 1


class TestDiscard:
    def test_declared_length_at_the_limit(self) -> None:
        framing = started(POST + b"Content-Length: 24\r\n\r\n", TIGHT)
        assert (framing.state, framing.body_received) == (FramingState.BODY_LENGTH, 0)
        assert framing.receive_data(b"x" * 24) == b"x" * 24
        assert (framing.state, framing.body_received) == (FramingState.COMPLETE, 24)

    def test_declared_length_over_the_limit(self) -> None:
        """The head goes on, so that the answer has the caller's shape; nothing after it does, or is held."""
        framing = RequestFraming(TIGHT)
        canonical = framing.receive_data(POST + b"Content-Length: 25\r\n\r\n" + b"x" * 10)
        assert canonical == b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 25\r\nconnection: close\r\n\r\n"
        head = framing.head
        assert head is not None
        assert (head.too_large, head.keep_alive, head.content_length) == (True, False, 25)
        assert (framing.state, framing.body_received, framing.held) == (FramingState.DISCARD, 0, 0)
        assert framing.receive_data(b"x" * 15 + GET + b"\r\n\0") == b""
        assert (framing.state, framing.held) == (FramingState.DISCARD, 0)
        assert framing.head is head

    def test_chunks_up_to_the_limit(self) -> None:
        framing = started(CHUNKED + b"c\r\n" + b"x" * 12 + b"\r\nc\r\n" + b"x" * 12 + b"\r\n0\r\n\r\n", TIGHT)
        assert (framing.state, framing.body_received) == (FramingState.COMPLETE, 24)

    @pytest.mark.parametrize("size", [b"d", b"ff", b"ffffffffffff"])
    def test_chunks_over_the_limit(self, size: bytes) -> None:
        """The server behind gets one byte more than the limit, to see that it is passed, and no end."""
        data = CHUNKED + b"c\r\n" + b"x" * 12 + b"\r\n" + size + b"\r\n" + b"y" * 13 + b"\r\n0\r\n\r\n" + GET + b"\r\n"
        for pieces in ([data], bytewise(data)):
            transcript = drive(pieces, TIGHT)
            assert (transcript.state, transcript.code) == (FramingState.DISCARD, None)
            (request,) = read_back(transcript.canonical)
            assert (request.content, request.whole) == (b"x" * 12 + b"y" * 13, False)

    def test_a_large_declared_chunk_is_not_refused_before_its_data(self) -> None:
        framing = started(CHUNKED + b"ffffffffffff\r\nx", TIGHT)
        assert (framing.state, framing.body_received) == (FramingState.BODY_CHUNKED, 1)


TOKEN_TEXT = st.text("!#$%&'*+-.^_`|~09aAzZ", min_size=1, max_size=12)
FIELD_VALUE = st.text([chr(code) for code in (*range(0x20, 0x7F), 0x09, *range(0x80, 0x100))], max_size=30)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, ReadBack]:
    """One legal request with all the freedom that the grammar leaves, and what must be understood by it."""
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"M-SEARCH"]))
    target = b"/" + draw(st.text("az09%/?&=;.~\"'<>[]\\^`{|}!$()*+,-:@_", max_size=20)).encode()
    fields = [
        (b"X-" + name.encode(), value.encode("latin-1"))
        for name, value in draw(st.lists(st.tuples(TOKEN_TEXT, FIELD_VALUE), max_size=4))
    ]
    understood = [(b"host", b"h:1"), *((name.lower(), value.strip(b" \t")) for name, value in fields)]
    content = draw(st.binary(max_size=40))
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    body = b""
    if framing == "none":
        content = b""
    elif framing == "length":
        zeros = draw(st.integers(0, 3))
        fields.append((b"Content-Length", b"0" * zeros + b"%d" % len(content)))
        understood.append((b"content-length", b"%d" % len(content)))
        body = content
    else:
        fields.append((b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"Chunked", b"CHUNKED"]))))
        understood.append((b"transfer-encoding", b"chunked"))
        for piece in filter(None, cut(content, draw(st.lists(st.integers(0, 40), max_size=4)))):
            extension = draw(st.sampled_from([b"", b";a", b';a="b c"']))
            body += draw(st.sampled_from([b"%x", b"%X", b"0%x"])) % len(piece) + extension + b"\r\n" + piece + b"\r\n"
        body += b"0\r\n" + draw(st.sampled_from([b"", b"A: b\r\n", b"A:\r\nHost: x\r\n"])) + b"\r\n"
    fields += draw(st.sampled_from([[], [(b"TE", b"trailers")], [(b"Connection", b"keep-alive, x-hop")]]))
    data = method + b" " + target + b" HTTP/1.1\r\nHost: h:1\r\n"
    for name, value in fields:
        data += name + b":" + draw(st.sampled_from([b"", b" ", b"\t "])) + value + b"\r\n"
    return data + b"\r\n" + body, ReadBack(method, target, b"1.1", tuple(understood), content, True)


SPLICES = st.sampled_from(
    (
        *(b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b",", b";", b"\0", b"\xff", b"0", b"f", b"\r\n ", b"\r\n\r\n"),
        *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Host: x\r\n"),
    )
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Up to three legal requests with up to three small edits."""
    data = b"".join(data for data, _ in draw(st.lists(requests(), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        data = data[:place] + draw(st.one_of(st.just(b""), SPLICES)) + data[place + draw(st.integers(0, 2)) :]
    return data


CUTS = st.lists(st.integers(0, 2000), max_size=8)


class TestProperties:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.lists(requests(), min_size=1, max_size=3), CUTS)
    def test_h11_reads_what_was_meant(self, sent: list[tuple[bytes, ReadBack]], cuts: list[int]) -> None:
        """Legal requests, however written, split and pipelined, are those that the server behind sees."""
        transcript = drive(cut(b"".join(data for data, _ in sent), cuts))
        assert transcript.code is None
        assert read_back(transcript.canonical) == [meant for _, meant in sent]

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(mutated(), CUTS, st.sampled_from([FramingLimits(), TIGHT]))
    @example(GET + b"A: b" + b"\r", [1], TIGHT)
    def test_any_split_has_the_same_outcome(self, data: bytes, cuts: list[int], limits: FramingLimits) -> None:
        """Also for broken input, and with each request answered at once."""
        whole = drive([data], limits)
        assert same_outcome(drive(cut(data, cuts), limits), whole)
        assert same_outcome(drive(bytewise(data), limits), whole)
        eager = drive(cut(data, cuts), limits, eager=True)
        if whole.code != "pipeline_too_long":
            assert eager.code == whole.code
            assert read_back(eager.canonical) == read_back(whole.canonical)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(mutated())
    def test_the_canonical_form_is_its_own(self, data: bytes) -> None:
        """What was handed on, received again, is handed on unchanged."""
        canonical = drive([data]).canonical
        again = drive([canonical])
        assert (again.code, again.canonical) == (None, canonical)


HANDSHAKE_FIELDS = (
    b"Upgrade: websocket",
    b"Connection: keep-alive, Upgrade",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Extensions: permessage-deflate",
)
SOCKETS = FramingLimits(held=256, websockets=frozenset({"/ws"}))


def handshake(*fields: bytes, target: bytes = b"/ws", method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    lines = (method + b" " + target + b" HTTP/" + version, b"Host: h", *(fields or HANDSHAKE_FIELDS))
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n"


class TestWebSocket:
    @pytest.mark.parametrize("target", [b"/ws", b"/ws?a=b"])
    def test_a_handshake_is_handed_on_without_extensions(self, target: bytes) -> None:
        """What a client may compress it may inflate a thousandfold (RFC 7692): no extension is agreed on."""
        framing = RequestFraming(SOCKETS)
        canonical = framing.receive_data(handshake(target=target))
        assert canonical == (
            b"GET " + target + b" HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert framing.head is not None
        assert framing.head.upgrade
        assert RequestFraming(SOCKETS).receive_data(canonical) == canonical

    @pytest.mark.parametrize("at", range(8))
    def test_frames_pass_as_they_are_once_it_is_accepted(self, at: int) -> None:
        """Also those that came too early; until then they are held, within the limit of what is pipelined."""
        framing = RequestFraming(SOCKETS)
        frames = b"\x81\x85GET \r\n\r\n"
        framing.receive_data(handshake() + frames[:at])
        assert framing.held == at
        assert (
            framing.switch() + framing.receive_data(frames[at:]) + framing.receive_data(b"\x88\0") == frames + b"\x88\0"
        )
        assert framing.state is FramingState.SWITCHED
        with pytest.raises(LocalError):
            framing.switch()
        with pytest.raises(LocalError):
            framing.next_request()

    def test_too_much_before_it_is_accepted_is_refused(self) -> None:
        framing = started(handshake(), SOCKETS)
        with pytest.raises(FramingError) as refused:
            framing.receive_data(b"x" * 257)
        assert refused.value.fault is FramingFault.PIPELINE_TOO_LONG

    def test_a_handshake_that_is_declined_ends_the_connection(self) -> None:
        """What follows it could be frames: nobody may read them as a request."""
        framing = started(handshake() + GET + b"\r\n", SOCKETS)
        assert framing.next_request() == b""
        assert framing.state is FramingState.DISCARD

    @pytest.mark.parametrize(
        "data",
        [
            handshake(target=b"/other"),
            handshake(target=b"/ws/"),
            handshake(method=b"POST"),
            handshake(version=b"1.0"),
            handshake(*HANDSHAKE_FIELDS, b"Content-Length: 3"),
            handshake(*HANDSHAKE_FIELDS, b"Transfer-Encoding: chunked"),
            handshake(*HANDSHAKE_FIELDS, HANDSHAKE_FIELDS[0]),
            *(handshake(*HANDSHAKE_FIELDS[:left], *HANDSHAKE_FIELDS[left + 1 :]) for left in range(4)),
            handshake(b"Upgrade: h2c", *HANDSHAKE_FIELDS[1:]),
            handshake(*HANDSHAKE_FIELDS[:2], b"Sec-WebSocket-Version: 8", HANDSHAKE_FIELDS[3]),
            handshake(*HANDSHAKE_FIELDS[:3], b"Sec-WebSocket-Key: AAAA"),
            handshake(*HANDSHAKE_FIELDS[:3], b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR=="),
        ],
    )
    def test_what_is_no_whole_handshake_is_a_request_like_any_other(self, data: bytes) -> None:
        framing = started(data, SOCKETS)
        assert framing.head is not None
        assert not framing.head.upgrade
        names = {name for name, _ in framing.head.headers}
        assert not names & {b"upgrade", b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions"}
        with pytest.raises(LocalError):
            framing.switch()
