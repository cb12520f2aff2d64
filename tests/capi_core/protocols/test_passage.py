"""A stream that is passed on: what all protocols have in common, shown with one that has next to no rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from capi_core.errors import LocalError
from capi_core.protocols.passage import DONE_MARK, PassedStream, field_names, with_data
from capi_core.protocols.stream import StreamState
from capi_core.sse import Event


class Echo(PassedStream):
    """Passes events on; `{"end":1}` ends the stream, `{"bad":1}` breaks it. Runs that begin with `{"q"` are quiet."""

    def __init__(self, max_event_bytes: int = 64) -> None:
        super().__init__(max_event_bytes=max_event_bytes)
        self.runs: list[bytes] = []

    @override
    def _pass_quiet(self, run: bytes) -> bytes | None:
        if not run.startswith(b'data: {"q"'):
            return None
        self.runs.append(run)
        return run

    @override
    def _forward_data(self, event: Event, data: bytes) -> bytes:
        if data == b'{"end":1}':
            self.state = StreamState.DONE
        return self._garbage() if data == b'{"bad":1}' else event.raw

    @override
    def _garbage(self) -> bytes:
        return self._break("upstream_garbage", "no")


A, QUIET, END, BAD = (b'data: {"%b":1}\n\n' % name for name in (b"a", b"q", b"end", b"bad"))


def code_of(stream: PassedStream) -> str | None:
    assert (stream.failure is not None) == (stream.state is StreamState.BROKEN)
    return None if stream.failure is None else stream.failure.code


def test_events_pass_until_the_end_and_nothing_after_it() -> None:
    echo = Echo()
    assert echo.receive_data(A + b": c\n\n" + A[:5]) == A + b": c\n\n"
    assert echo.receive_data(A[5:] + END + A) == A + END
    assert echo.receive_data(A) == echo.receive_data(QUIET) == echo.finish() == b""
    assert echo.state is StreamState.DONE


class Listening(Echo):
    """Hears what comes after the end."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[bytes] = []

    @override
    def _late(self, event: Event) -> None:
        self.late.append(event.raw)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_what_comes_after_the_end_is_heard_until_it_is_too_large_and_never_passed(size: int) -> None:
    stream = END + A + QUIET + b"x" * 100 + A
    listening, echo = Listening(), Echo()
    for machine in (listening, echo):
        out = b"".join([machine.receive_data(stream[at : at + size]) for at in range(0, len(stream), size)])
        assert (out + machine.finish(), machine.state, code_of(machine)) == (END, StreamState.DONE, None)
    assert listening.late == [A, QUIET]


def test_after_a_failure_nothing_is_heard() -> None:
    listening = Listening()
    assert listening.receive_data(BAD + A) == b""
    listening.state = StreamState.ERRORED
    assert listening.receive_data(A) == b""
    assert listening.late == []


def test_a_run_that_is_quiet_passes_in_one_piece() -> None:
    """But for the first bytes of a stream, where a byte order mark may be."""
    echo = Echo()
    assert echo.receive_data(QUIET) == QUIET
    assert echo.runs == []
    assert echo.receive_data(QUIET * 2 + QUIET[:4]) == QUIET * 2
    assert echo.receive_data(QUIET[4:] + A + A[:1]) == QUIET + A
    assert echo.runs == [QUIET * 2, QUIET + A]
    assert echo.receive_data(A[1:] + QUIET) == A + QUIET
    assert len(echo.runs) == 2
    assert code_of(echo) is None


def test_after_the_answer_is_whole_events_still_pass() -> None:
    echo = Echo()
    echo.state = StreamState.FINISHED
    assert echo.receive_data(A) + echo.receive_data(QUIET) + echo.finish() == A + QUIET
    assert echo.state is StreamState.FINISHED


def test_a_stream_that_breaks_yields_what_came_before_and_takes_no_more() -> None:
    echo = Echo()
    assert echo.receive_data(A + BAD + A) == A
    assert code_of(echo) == "upstream_garbage"
    with pytest.raises(LocalError):
        echo.receive_data(A)
    with pytest.raises(LocalError):
        echo.finish()


def test_a_stream_that_is_cut_is_broken() -> None:
    echo = Echo()
    assert echo.receive_data(A) + echo.finish() == A
    assert code_of(echo) == "upstream_truncated"


@pytest.mark.parametrize("before", [b"", A])
def test_an_event_that_is_too_large_breaks_the_stream(before: bytes) -> None:
    echo = Echo()
    assert echo.receive_data(before + b"data: " + b"x" * 64) == before
    assert code_of(echo) == "upstream_event_too_large"


def test_what_is_too_large_after_the_end_breaks_nothing() -> None:
    echo = Echo()
    assert echo.receive_data(END + b"x" * 65) == END
    assert code_of(echo) is None


@pytest.mark.parametrize(
    ("tail", "passed"),
    [
        (b'data: {"a":1}', b'data: {"a":1}\n\n'),
        (b'data: {"a":1}\n', b'data: {"a":1}\n\n'),
        (b'data: {"a":', b""),
        (b"data: 1", b""),
        (b"data: [DONE]", b""),
        (b": c", b""),
        (b"\n\r", b"\n\r"),
    ],
)
def test_an_event_without_its_blank_line_counts_if_it_is_whole(tail: bytes, passed: bytes) -> None:
    echo = Echo()
    assert echo.receive_data(A + tail) + echo.finish() == A + passed
    assert code_of(echo) == "upstream_truncated"


def test_an_end_that_lacks_its_blank_line_is_an_end() -> None:
    echo = Echo()
    assert echo.receive_data(A + END[:-2]) + echo.finish() == A + END
    assert echo.state is StreamState.DONE


@pytest.mark.parametrize(
    ("block", "passed", "state"),
    [
        (b": c\n: d\r\n\r\n", b": c\n: d\r\n\r\n", StreamState.OPEN),
        (b"\n\n", b"\n\n", StreamState.OPEN),
        (b"event: x\nid: 1\nretry: 5\n: c\n\n", b"", StreamState.OPEN),
        (b"<html>\n\n", b"", StreamState.BROKEN),
    ],
)
def test_a_block_without_data_is_a_comment_or_dropped_or_garbage(
    block: bytes, passed: bytes, state: StreamState
) -> None:
    echo = Echo()
    assert (echo.receive_data(A + block), echo.state) == (A + passed, state)


@given(st.lists(st.sampled_from([A, QUIET, END, BAD, b": c\n\n", b"x", b"\n", b"\r"]), max_size=8), st.data())
def test_how_the_bytes_are_cut_does_not_matter(pieces: list[bytes], chosen: st.DataObject) -> None:
    stream = b"".join(pieces)
    whole, out, cut = Echo(), b"", Echo()
    expected = whole.receive_data(stream)
    while stream and cut.state is not StreamState.BROKEN:
        size = chosen.draw(st.integers(1, len(stream)))
        out += cut.receive_data(stream[:size])
        stream = stream[size:]
    for machine in (whole, cut):
        if machine.state is not StreamState.BROKEN:
            tail = machine.finish()
            expected, out = (expected + tail, out) if machine is whole else (expected, out + tail)
    assert (out, cut.state, code_of(cut)) == (expected, whole.state, code_of(whole))


@pytest.mark.parametrize(
    ("raw", "text", "expected"),
    [
        (b"data: 1\n\n", b"1", b"data: 1\n\n"),
        (b"id: 7\r\ndata:1\r\n\r\n", b"2", b"id: 7\r\ndata:2\r\n\r\n"),
        (b"event: a\0b\nid: 7\ndata: 1\ndata: 2\n\n", b"3", b"event: ab\nid: 7\ndata: 3\n\n"),
        (b": 1\ndata: 1\n\n", b"2", b"data: 2\n\n"),
    ],
)
def test_an_event_gets_other_data(raw: bytes, text: bytes, expected: bytes) -> None:
    event = Event(raw)
    assert with_data(event, event.data or b"", text) == expected


def test_the_names_of_the_fields_of_an_event() -> None:
    assert field_names(Event(b": c\nevent: x\rdata\r\ndata:1\n\n")) == {b"", b"event", b"data"}
    assert DONE_MARK == b"[DONE]"
