"""Invariant: any bytes become the same blocks however they are split, and no byte is lost or made up.

Blocks, code of the error, state and residue of a whole run, a byte-by-byte run and a run in pieces agree. Without an
error, the blocks and the residue are the input less one byte order mark; a block cut off from its stream is the same
block; its data, encoded anew, are the same data. A failed decoder holds nothing and stays failed.
The first byte of an input chooses a tight or the default limit (lowest bit) and the size of the pieces (the rest).
"""

from attrs import frozen

from capi_core.errors import LocalError
from capi_core.sse import DecoderState, Event, SSEDecoder, SSEError, encode

__all__ = ["test_one_input"]

BOM = b"\xef\xbb\xbf"
TIGHT = 24  # bytes: mutated blocks fall on both sides of it
DEFAULT = 4 * 1024 * 1024


@frozen
class Run:
    events: list[Event]
    code: str | None
    state: DecoderState
    residue: bytes


def run(pieces: list[bytes], limit: int) -> Run:
    decoder = SSEDecoder(max_event_bytes=limit)
    events = []
    code = None
    try:
        for piece in pieces:
            events += decoder.feed(piece)
        events += decoder.finish()
    except SSEError as error:  # a block over the limit is the peer's fault
        code = error.code
    check_closed(decoder)
    return Run(events, code, decoder.state, decoder.residue)


def check_closed(decoder: SSEDecoder) -> None:
    try:
        decoder.feed(b"data: 1\n\n")
    except LocalError:  # what a decoder owes to a caller who goes on after the end
        return
    raise AssertionError("a decoder took bytes after its end")


def check_event(event: Event) -> None:
    alone = run([BOM + event.raw], DEFAULT)
    assert (alone.events, alone.residue) == ([event], b"")
    assert event.retry is None or event.retry >= 0
    if event.data is not None:
        kind = event.type.replace(b"\0", b"")
        (again,) = run([BOM + encode(event.data, type=kind, id=event.id)], DEFAULT).events
        assert (again.data, again.type, again.id) == (event.data, kind, event.id)


def test_one_input(data: bytes) -> None:
    if not data:
        return
    limit = TIGHT if data[0] & 1 else DEFAULT
    size, stream = 1 + (data[0] >> 1), data[1:]

    whole = run([stream], limit)
    assert run([stream[at : at + 1] for at in range(len(stream))], limit) == whole
    assert run([stream[at : at + size] for at in range(0, len(stream), size)], limit) == whole

    raws = b"".join(event.raw for event in whole.events)
    if whole.code is None:
        assert raws + whole.residue == stream.removeprefix(BOM)
        assert len(whole.residue) <= limit
    else:
        assert stream.removeprefix(BOM).startswith(raws)
        assert (whole.state, whole.residue) == (DecoderState.FAILED, b"")
    for event in whole.events:
        assert len(event.raw) <= limit
        check_event(event)
