"""`python -m bench --core`: the protocol machines alone, without sockets, beside the plain way to do the same.

The plain way: each event is cut out, decoded with `json.loads`, changed, and encoded again with `json.dumps`; so is a
request body. Both run in turns in one process; the best of several turns counts, as whatever
disturbs a computation only ever makes it slower.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from attrs import frozen

from bench.protocols import PairFigure, measure_pairs, render_pairs
from bench.report import table
from bench.upstream import MODEL
from capi_core.aliases import Alias, Catalog, UpstreamModels
from capi_core.credentials import decide, find_credential
from capi_core.errors import Problem
from capi_core.exchange import Exchange, Operation, Settings
from capi_core.keys import KeyRecord, Tier, effective_rpm, format_key, key_hash, may_call
from capi_core.limits import Buckets, Granted
from capi_core.members import JSONObject
from capi_core.protocols.chat.passthrough import ChatStream
from capi_core.sse import SSEDecoder

__all__ = ["CoreFigures", "measure", "naive_body", "naive_events", "pieces", "stream_bytes"]

_ACCESSES: Final = 10_000
_EVENTS: Final = 20_000
_READ_BYTES: Final = 16 * 1024
_BODY_BYTES: Final = 10_000_000
_ALIAS: Final = "house-model"


class StreamFigure(msgspec.Struct, frozen=True):
    """One way to take a stream: per event, and in MB of stream per second."""

    name: str
    mb_per_s: float
    us_per_event: float


class BodyFigure(msgspec.Struct, frozen=True):
    """One way to edit a body. `extra`: peak of the memory taken beyond the body itself, over the body's size."""

    name: str
    ms: float
    mb_per_s: float
    extra: float


class CoreFigures(msgspec.Struct, frozen=True):
    """All figures: streams by how they were cut, bodies by what is in them."""

    streams: dict[str, list[StreamFigure]]
    bodies: dict[str, list[BodyFigure]]
    access_us: float
    """Finding, judging and counting a caller's key, once."""
    pairs: list[PairFigure]


@frozen
class _Way:
    name: str
    run: Callable[[], object]


def stream_bytes(events: int) -> bytes:
    """A Chat Completions stream of `events` content deltas, as OpenAI's servers send it."""
    chunk = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_764_000_000, "model": MODEL}
    deltas = []
    for number in range(events):
        choice = {"index": 0, "delta": {"content": f" token{number}"}, "logprobs": None, "finish_reason": None}
        deltas.append({**chunk, "system_fingerprint": "fp_bench", "choices": [choice]})
    end = {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return b"".join(b"data: %b\n\n" % msgspec.json.encode(part) for part in (*deltas, end)) + b"data: [DONE]\n\n"


def pieces(stream: bytes, size: int | None) -> list[bytes]:
    """`stream` in reads of `size` bytes; `None`: an event at a time, as it comes from a model that is slow to speak."""
    if size is None:
        return [event + b"\n\n" for event in stream.split(b"\n\n")[:-1]]
    return [stream[at : at + size] for at in range(0, len(stream), size)]


def naive_events(chunks: Sequence[bytes], model: str) -> list[bytes]:
    """Every event decoded, given another `model`, and encoded again. Returns what to send after each chunk."""
    held, sent = b"", []
    for chunk in chunks:
        *events, held = (held + chunk).split(b"\n\n")
        made = []
        for event in events:
            data = event.removeprefix(b"data: ")
            if data != b"[DONE]":
                decoded = json.loads(data)
                decoded["model"] = model
                data = json.dumps(decoded, ensure_ascii=False).encode()
            made.append(b"data: " + data + b"\n\n")
        sent.append(b"".join(made))
    return sent


def naive_body(body: bytes, model: str) -> bytes:
    """A request decoded, given another `model`, and encoded again."""
    decoded = json.loads(body)
    decoded["model"] = model
    return json.dumps(decoded, ensure_ascii=False).encode()


def _decode_and_join(chunks: Sequence[bytes]) -> list[bytes]:
    decoder = SSEDecoder()
    return [b"".join([event.raw for event in decoder.feed(chunk)]) for chunk in chunks]


def _chat_stream(chunks: Sequence[bytes], public_name: str | None) -> list[bytes]:
    stream = ChatStream(public_name=public_name, swallow_usage=True)
    return [stream.receive_data(chunk) for chunk in chunks]


def _exchange(body: bytes) -> object:
    """What a request costs before it goes to the upstream, all checks included."""
    catalog = Catalog(aliases={_ALIAS: Alias(_ALIAS, MODEL)}, upstreams=(UpstreamModels("bench", {MODEL: b"{}"}),))
    return Exchange(Operation.CHAT, Settings(catalog), request_id="req_bench").receive_request(body)


def _body(content: object) -> bytes:
    return json.dumps({"model": _ALIAS, "messages": content}, ensure_ascii=False).encode()


def _bodies(size: int) -> dict[str, bytes]:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0K" * (size // 8)}}
    turn = {"role": "user", "content": "Why does the parser skip a line here?\n\tfor (;;) {}\n"}
    accented = {"role": "user", "content": "Où est passé le “café” à 3 € ? 日本語も少し。\n"}

    def many(message: dict[str, str]) -> bytes:
        return _body([message] * (size // len(json.dumps(message, ensure_ascii=False).encode())))

    return {
        "one picture": _body([{"role": "user", "content": [image]}]),
        "many short messages": many(turn),
        "many short messages, not ASCII": many(accented),
    }


def _best_seconds(ways: Sequence[_Way], turns: int) -> list[float]:
    best = [float("inf")] * len(ways)
    for _ in range(turns):
        for index, way in enumerate(ways):
            began = time.perf_counter()
            way.run()
            best[index] = min(best[index], time.perf_counter() - began)
    return best


def _peak_bytes(way: _Way) -> int:
    """Its result included."""
    tracemalloc.start()
    try:
        way.run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _measure_stream(chunks: Sequence[bytes], events: int, turns: int) -> list[StreamFigure]:
    ways = [
        _Way("json.loads, json.dumps", lambda: naive_events(chunks, _ALIAS)),
        _Way("SSEDecoder, join", lambda: _decode_and_join(chunks)),
        _Way("ChatStream", lambda: _chat_stream(chunks, None)),
        _Way("ChatStream, alias", lambda: _chat_stream(chunks, _ALIAS)),
    ]
    size = sum(map(len, chunks))
    return [
        StreamFigure(way.name, size / seconds / 1e6, seconds / events * 1e6)
        for way, seconds in zip(ways, _best_seconds(ways, turns), strict=True)
    ]


def _measure_body(body: bytes, turns: int) -> list[BodyFigure]:
    model = json.dumps(MODEL).encode()
    ways = [
        _Way("json.loads, json.dumps", lambda: naive_body(body, MODEL)),
        _Way("JSONObject.edit", lambda: JSONObject(body).edit({"model": model})),
        _Way("Exchange.receive_request", lambda: _exchange(body)),
    ]
    return [
        BodyFigure(way.name, seconds * 1e3, len(body) / seconds / 1e6, _peak_bytes(way) / len(body))
        for way, seconds in zip(ways, _best_seconds(ways, turns), strict=True)
    ]


def admit(headers: list[tuple[bytes, bytes]], keys: dict[str, KeyRecord], buckets: Buckets, now: float) -> bool:
    """What a request's key goes through before its model is asked: found, looked up, judged, scoped, counted."""
    found = find_credential(headers)
    if isinstance(found, Problem):
        return False
    key = decide(found, keys.get(found.hash), 0)
    if isinstance(key, Problem) or not may_call(key, _ALIAS, ("*",)):
        return False
    return isinstance(buckets.take(key.id, effective_rpm(key, 1_000_000), now), Granted)


def _measure_access(turns: int) -> float:
    text = format_key(bytes(32))
    record = KeyRecord(id="key_bench", hash=key_hash(text), tier=Tier.CLIENT, label="bench", created_at=0)
    others = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"user-agent", b"OpenAI/Python")]
    headers, keys, buckets = [*others, (b"authorization", f"Bearer {text}".encode())], {record.hash: record}, Buckets()

    def run() -> None:
        assert all(admit(headers, keys, buckets, turn / 1000) for turn in range(_ACCESSES))

    (seconds,) = _best_seconds([_Way("access", run)], turns)
    return seconds / _ACCESSES * 1e6


def measure(*, quick: bool) -> tuple[str, bytes]:
    """The report, and its figures as JSON."""
    events, turns = (_EVENTS // 10, 3) if quick else (_EVENTS, 9)
    stream = stream_bytes(events)
    cuts = {"an event a read": None, f"{_READ_BYTES // 1024} KiB a read": _READ_BYTES}
    figures = CoreFigures(
        streams={name: _measure_stream(pieces(stream, size), events, turns) for name, size in cuts.items()},
        bodies={name: _measure_body(body, turns) for name, body in _bodies(_BODY_BYTES).items()},
        access_us=_measure_access(turns),
        pairs=measure_pairs(events, _READ_BYTES, turns),
    )
    return _render(figures), msgspec.json.encode(figures)


def _render(figures: CoreFigures) -> str:
    parts = []
    for cut, streams in figures.streams.items():
        plain = streams[0].us_per_event
        rows = [
            [way.name, f"{way.mb_per_s:.0f}", f"{way.us_per_event:.2f}", f"{plain / way.us_per_event:.1f}"]
            for way in streams
        ]
        parts.append(f"**stream, {cut}**\n\n" + table(["", "MB/s", "us / event", "times as fast"], rows))
    for content, bodies in figures.bodies.items():
        plain = bodies[0].ms
        rows = [
            [way.name, f"{way.ms:.1f}", f"{way.mb_per_s:.0f}", f"{plain / way.ms:.1f}", f"{way.extra:.1f}"]
            for way in bodies
        ]
        head = ["", "ms", "MB/s", "times as fast", "extra memory / body"]
        parts.append(f"**body of {_BODY_BYTES // 1_000_000} MB, {content}**\n\n" + table(head, rows))
    parts.append(render_pairs(figures.pairs))
    rows = [["find, look up, decide, scope, rate", f"{figures.access_us:.1f}"]]
    parts.append("**a caller's key**\n\n" + table(["", "us / request"], rows))
    return "\n\n".join(parts)
