"""The law of what is judged a run at a time: it comes out as if each event had been looked at alone."""

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from capi_core.protocols.passage import PassedStream
from capi_core.protocols.stream import StreamState

__all__ = ["assert_quiet_is_only_faster", "mutated"]


def _seen(machine: PassedStream, chunks: Sequence[bytes]) -> tuple[object, ...]:
    out = b""
    for chunk in chunks:
        if machine.state is not StreamState.BROKEN:
            out += machine.receive_data(chunk)
    if machine.state is not StreamState.BROKEN:
        out += machine.finish()
    failure = None if machine.failure is None else machine.failure.code
    return out, machine.state, failure, machine.usage, machine.chunks, machine.error


def assert_quiet_is_only_faster(
    fast: Callable[[], PassedStream], slow: Callable[[], PassedStream], stream: bytes, chosen: st.DataObject
) -> None:
    """`slow` makes the same machine without its way to pass a run. Each chunking shows the same in both."""
    whole = _seen(slow(), [stream])
    size = chosen.draw(st.integers(1, 400), label="bytes a read")
    # The first bytes of a stream, where a byte order mark may be, are never judged as a run.
    for chunks in ([stream], [stream[:1], stream[1:]], [stream[at : at + size] for at in range(0, len(stream), size)]):
        assert _seen(fast(), chunks) == whole


@st.composite
def mutated(draw: st.DrawFn, events: Sequence[bytes]) -> bytes:
    """A stream of some of the events, many times the first ones, in which up to three places may be damaged."""
    often = st.sampled_from(events[:3])
    picked = draw(st.lists(often | often | st.sampled_from(events), min_size=1, max_size=8))
    stream = b"".join(picked)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(stream)))
        end = at + draw(st.integers(0, 3))
        filler = st.sampled_from([b"", b"{", b"}", b'"', b",", b"\n", b"\r", b"\\", b"\x7f", b"null", b"{}", b"\n\n"])
        stream = stream[:at] + draw(filler) + stream[end:]
    return stream
