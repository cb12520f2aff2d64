"""What a stream costs from each protocol to each: passed through, or translated. Part of `python -m bench --core`.

The upstream's stream is the same answer in each protocol: small text deltas, as a model speaks. A figure is in MB of
the upstream's stream per second, and per event of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from bench.report import table
from capi_core.deltas import BlockKind, BlockStart, BlockStop, Delta, End, Finish, FinishReason, Start, UsageReport
from capi_core.fidelity import Ledger
from capi_core.members import JSONObject
from capi_core.protocols.codec import ClientRequest, Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_core.tool_names import ToolNames
from capi_core.translation import Translation
from capi_core.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capi_core.deltas import AnswerDelta
    from capi_core.protocols.stream import StreamMachine

__all__ = ["PairFigure", "machine", "measure_pairs", "render_pairs", "upstream_stream"]

_MODEL: Final = "bench-model"
_MAX_EVENT_BYTES: Final = 1 << 20
_REQUESTS: Final = {
    Protocol.CHAT: b'{"model":"bench-model","stream":true,"messages":[{"role":"user","content":"x"}],'
    b'"stream_options":{"include_usage":true}}',
    Protocol.RESPONSES: b'{"model":"bench-model","stream":true,"input":"x"}',
    Protocol.MESSAGES: b'{"model":"bench-model","stream":true,"max_tokens":9,'
    b'"messages":[{"role":"user","content":"x"}]}',
}


class PairFigure(msgspec.Struct, frozen=True):
    """One client protocol over one upstream protocol."""

    client: str
    upstream: str
    mb_per_s: float
    us_per_event: float


def _envelope() -> Envelope:
    return Envelope(request_id="req_bench", model=_MODEL, now_s=1_764_000_000)


def upstream_stream(protocol: Protocol, events: int) -> bytes:
    """An answer of `events` text deltas."""
    deltas: list[AnswerDelta] = [Start("answer", _MODEL, 1_764_000_000), BlockStart(0, BlockKind.TEXT)]
    deltas += [Delta(0, f" token{number}") for number in range(events)]
    usage = UsageReport(Usage(uncached_input=10, output=events))
    deltas += [BlockStop(0), Finish(FinishReason.STOP), usage, End()]
    return CODECS[protocol].stream_encoder(_envelope(), Ledger()).encode(deltas)


def machine(client: Protocol, upstream: Protocol) -> StreamMachine:
    """What the exchange would drive for one stream."""
    if client is not upstream:
        translation = Translation(CODECS[upstream], CODECS[client], _envelope(), Ledger(), ToolNames())
        return translation.stream(max_event_bytes=_MAX_EVENT_BYTES)
    request: ClientRequest = CODECS[client].read(JSONObject(_REQUESTS[client]).text)
    passage = CODECS[client].pass_through(
        request, upstream_model=_MODEL, public_name=_MODEL, ask_usage=False, max_event_bytes=_MAX_EVENT_BYTES
    )
    if passage.machine is None:
        raise AssertionError("the request asks for a stream")
    return passage.machine


def measure_pairs(events: int, read_bytes: int, turns: int) -> list[PairFigure]:
    """All nine, each the best of `turns`."""
    figures = []
    for upstream in Protocol:
        stream = upstream_stream(upstream, events)
        chunks = [stream[at : at + read_bytes] for at in range(0, len(stream), read_bytes)]
        for client in Protocol:
            seconds = min(_seconds(client, upstream, chunks) for _ in range(turns))
            figures.append(
                PairFigure(client.value, upstream.value, len(stream) / seconds / 1e6, seconds / events * 1e6)
            )
    return figures


def _seconds(client: Protocol, upstream: Protocol, chunks: Sequence[bytes]) -> float:
    stream = machine(client, upstream)
    began = time.perf_counter()
    for chunk in chunks:
        stream.receive_data(chunk)
    return time.perf_counter() - began


def render_pairs(figures: Sequence[PairFigure]) -> str:
    """The table of the report."""
    rows = [
        [
            figure.client,
            figure.upstream,
            "passed" if figure.client == figure.upstream else "translated",
            f"{figure.mb_per_s:.0f}",
            f"{figure.us_per_event:.2f}",
        ]
        for figure in figures
    ]
    return "**stream, from each protocol to each**\n\n" + table(["client", "upstream", "", "MB/s", "us / event"], rows)
