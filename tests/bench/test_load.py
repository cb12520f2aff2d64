"""The load generator's pure parts: reading answers, finding send times, adding up."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load import ResponseReader, StampFinder, Tally, quantile, request_bytes, summary

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
SIZED = b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
STREAM = b'data: {"content":" 1234567890123"}\n\ndata: {"content":" 1234567890456"}\n\ndata: [DONE]\n\n'


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces; the cuts are taken modulo its length."""
    places = sorted({0, len(data), *(place % len(data) for place in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(st.lists(st.integers(0, 1000), max_size=8))
def test_a_chunked_answer_is_read_however_it_is_cut(cuts: list[int]) -> None:
    reader = ResponseReader()
    assert b"".join(reader.feed(piece) for piece in cut(CHUNKED, cuts)) == b"hello world"
    assert (reader.status, reader.complete, reader.keeps_alive) == (200, True, True)


@given(st.lists(st.integers(0, 1000), max_size=8))
def test_an_answer_with_a_length_is_read_however_it_is_cut(cuts: list[int]) -> None:
    reader = ResponseReader()
    assert b"".join(reader.feed(piece) for piece in cut(SIZED, cuts)) == b"abc"
    assert (reader.status, reader.complete, reader.keeps_alive) == (404, True, False)


def test_an_answer_is_complete_only_with_its_last_byte() -> None:
    for answer in (CHUNKED, SIZED):
        reader = ResponseReader()
        reader.feed(answer[:-1])
        assert not reader.complete


def test_an_empty_answer_is_complete_with_its_head() -> None:
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") == b""
    assert reader.complete


def test_restart_reads_the_next_answer_of_a_connection() -> None:
    reader = ResponseReader()
    reader.feed(CHUNKED)
    reader.restart()
    assert reader.feed(SIZED) == b"abc"


def test_an_answer_without_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match="without a length"):
        ResponseReader().feed(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")


@given(st.lists(st.integers(0, 1000), max_size=8))
def test_send_times_are_found_however_a_stream_is_cut(cuts: list[int]) -> None:
    finder = StampFinder()
    stamps = [stamp for piece in cut(STREAM, cuts) for stamp in finder.feed(piece)]
    assert stamps == [1234567890123, 1234567890456]
    assert finder.done


def test_an_event_counts_only_when_it_is_whole() -> None:
    finder = StampFinder()
    assert finder.feed(STREAM.partition(b"\n\n")[0]) == []
    assert not finder.done


def test_quantiles() -> None:
    values = list(range(100))
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0), quantile([], 0.5)) == (50, 99, 99, 0)


def test_a_summary_divides_by_what_arrived() -> None:
    tally = Tally(requests=4, bad=1, events=400, lags=[3_000_000, 1_000_000, 2_000_000], ttfb=[5_000_000])
    load = summary(tally, k=2, seconds=2.0, cpu_s=0.1, rss_bytes=40_000_000, own_cpu_s=0.2)
    assert (load.rps, load.events_s, load.bad) == (2.0, 200.0, 1)
    assert (load.lag_ms_p50, load.lag_ms_p99, load.ttfb_ms_p50) == (2.0, 3.0, 5.0)
    assert load.cpu_us_per_event == pytest.approx(250)
    assert load.cpu_ms_per_request == pytest.approx(25)
    assert load.rss_mb == 40


def test_a_run_in_which_nothing_arrived_has_a_summary() -> None:
    load = summary(Tally(bad=3), k=1, seconds=1.0, cpu_s=0.0, rss_bytes=0, own_cpu_s=0.0)
    assert (load.events, load.lag_ms_p50, load.cpu_us_per_event) == (0, 0, 0)


def test_a_request_says_its_host_and_length() -> None:
    request = request_bytes("http://127.0.0.1:8080/v1/chat/completions", b"{}", ["x-api-key: k"])
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /v1/chat/completions HTTP/1.1"
    assert {b"host: 127.0.0.1:8080", b"content-length: 2", b"x-api-key: k"} <= set(head.split(b"\r\n"))
    assert body == b"{}"
