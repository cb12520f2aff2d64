"""The states of a stream."""

from capi_core.protocols.stream import ENDED, StreamState


def test_a_stream_without_its_end_mark_has_not_ended() -> None:
    assert set(StreamState) - ENDED == {StreamState.OPEN, StreamState.FINISHED}
