"""The paced upstream's pure parts: what it reads, what it sends."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bench.load import ResponseReader, StampFinder
from bench.upstream import RequestReader, StreamText
from capi_core.protocols.chat.passthrough import ChatStream, StreamState

FIRST = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 15\r\n\r\n" + b'{"stream":true}'
SECOND = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"


@given(st.lists(st.integers(0, len(FIRST + SECOND)), max_size=8))
def test_requests_are_read_however_they_are_cut(cuts: list[int]) -> None:
    data = FIRST + SECOND
    places = sorted({0, len(data), *cuts})
    reader = RequestReader()
    requests = [request for start, end in itertools.pairwise(places) for request in reader.feed(data[start:end])]
    assert requests == [
        (b"POST /v1/chat/completions HTTP/1.1", b'{"stream":true}'),
        (b"GET /v1/models HTTP/1.1", b""),
    ]


def test_a_stream_is_one_that_capi_takes_for_whole_and_carries_its_send_times() -> None:
    text = StreamText(2)
    response, stream, stamps = ResponseReader(), ChatStream(), StampFinder()
    found = []
    for part in (text.head, text.delta(1_000_000_000_001), text.delta(1_000_000_000_002), text.tail):
        found += stamps.feed(stream.receive_data(response.feed(part)))
    assert response.complete
    assert stream.state is StreamState.DONE
    assert stream.usage is not None
    assert stream.usage.output == 2
    assert found == [1_000_000_000_001, 1_000_000_000_002]
