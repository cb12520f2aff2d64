"""The microbenchmarks compare what does the same work."""

import json

import pytest

from bench.core import admit, naive_body, naive_events, pieces, stream_bytes
from capi_core.keys import KeyRecord, Tier, format_key, key_hash
from capi_core.limits import Buckets
from capi_core.members import JSONObject
from capi_core.protocols.chat.passthrough import ChatStream, StreamState


def events(stream: bytes) -> list[object]:
    """The decoded data of all events but the end mark."""
    return [json.loads(event.removeprefix(b"data: ")) for event in stream.split(b"\n\n")[:-2]]


@pytest.mark.parametrize("size", [None, 1, 100, 1 << 20])
def test_pieces_are_the_whole_stream(size: int | None) -> None:
    stream = stream_bytes(5)
    assert b"".join(pieces(stream, size)) == stream


def test_the_stream_is_a_whole_answer() -> None:
    stream = ChatStream()
    assert stream.receive_data(stream_bytes(5)) == stream_bytes(5)
    assert (stream.state, stream.chunks) == (StreamState.DONE, 6)


def test_both_ways_to_rename_a_stream_give_the_same_events() -> None:
    chunks = pieces(stream_bytes(5), 100)
    stream = ChatStream(public_name="other")
    ours = events(b"".join(stream.receive_data(chunk) for chunk in chunks))
    assert ours == events(b"".join(naive_events(chunks, "other")))
    assert len(ours) == 6


def test_both_ways_to_edit_a_body_give_the_same_request() -> None:
    body = b'{"model": "a", "messages": [{"role": "user", "content": "\xc3\xa9"}]}'
    edited = JSONObject(body).edit({"model": b'"b"'})
    assert json.loads(edited) == json.loads(naive_body(body, "b"))


def test_what_is_timed_lets_the_key_in_and_nobody_else() -> None:
    text = format_key(bytes(32))
    record = KeyRecord(id="k", hash=key_hash(text), tier=Tier.CLIENT, label="a", created_at=0)
    keys = {record.hash: record}
    assert admit([(b"x-api-key", text.encode())], keys, Buckets(), 0)
    assert not admit([], keys, Buckets(), 0)
    assert not admit([(b"x-api-key", format_key(bytes(31) + b"\x01").encode())], keys, Buckets(), 0)
