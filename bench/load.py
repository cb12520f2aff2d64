"""The load generator: K clients, each asking again as soon as it is answered, for so many seconds.

`python -m bench.load URL K SECONDS [--stream] [--model NAME] [--header 'name: value'] [--pid PID]` prints one line of
JSON, a `Load`. Figures per event count the content events that arrived whole. The lag of an event is the time from its
sending by `bench.upstream` to its arrival here; the time to the first byte (TTFB) ends with the response's head.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

import click
import msgspec
import uvloop
from attrs import define, field, frozen
from typing_extensions import override

from bench.procfs import cpu_seconds, resident_bytes
from bench.upstream import MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Load", "ResponseReader", "StampFinder", "Tally", "main", "quantile", "request_bytes", "summary"]

_STAMP: Final = re.compile(rb'" (\d{10,})"')
_DONE: Final = b"data: [DONE]\n\n"
_PAUSE_S: Final = 0.05
"""After a connection that failed."""


class Load(msgspec.Struct, frozen=True):
    """What a run gave. Per event: CPU of the process under test over the content events that reached the clients."""

    k: int
    seconds: float
    requests: int
    bad: int
    rps: float
    events: int
    events_s: float
    lag_ms_p50: float
    lag_ms_p99: float
    ttfb_ms_p50: float
    ttfb_ms_p99: float
    cpu_s: float
    cpu_us_per_event: float
    cpu_ms_per_request: float
    rss_mb: float
    own_cpu_s: float
    """The load generator's own."""


class ResponseReader:
    """Reads HTTP/1.1 responses as servers under test send them: with a length, or chunked.

    Feed it bytes; `status` is 0 until the head is there, `complete` says that a response is whole. `restart` takes the
    next one. Raises `ValueError` for what is not such a response.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.status = 0
        self.keeps_alive = True
        self.complete = False
        self._held = b""
        self._chunked = False
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """Takes the next bytes, returns those of the body among them."""
        self._held += data
        if not self.status and not self._take_head():
            return b""
        return self._take_chunks() if self._chunked else self._take(len(self._held))

    def _take_head(self) -> bool:
        head, end, rest = self._held.partition(b"\r\n\r\n")
        if not end:
            return False
        line, *fields = head.lower().split(b"\r\n")
        values = {name: value.strip() for name, _, value in (field.partition(b":") for field in fields)}
        self._chunked = values.get(b"transfer-encoding") == b"chunked"
        if not self._chunked:
            self._left = int(values[b"content-length"]) if b"content-length" in values else -1
        if self._left < 0:
            raise ValueError("a response without a length")
        self.complete = not self._chunked and not self._left
        self.keeps_alive = values.get(b"connection") != b"close"
        self.status = int(line.split()[1])
        self._held = rest
        return True

    def _take(self, most: int) -> bytes:
        body, self._held = self._held[: min(most, self._left)], self._held[min(most, self._left) :]
        self._left -= len(body)
        self.complete = not self._left
        return body

    def _take_chunks(self) -> bytes:
        """The chunks that are whole; a cut one waits for its end."""
        body = []
        at = 0
        while not self.complete:
            line_end = self._held.find(b"\r\n", at)
            if line_end < 0:
                break
            size = int(self._held[at:line_end], 16)
            end = line_end + 2 + size
            if len(self._held) < end + 2:
                break
            body.append(self._held[line_end + 2 : end])
            at = end + 2
            self.complete = not size
        self._held = self._held[at:]
        return b"".join(body)


class StampFinder:
    """Finds the send times in a stream's body, once the event that holds one is whole, however it was cut."""

    def __init__(self) -> None:
        self._held = b""
        self.done = False

    def feed(self, body: bytes) -> list[int]:
        self._held += body
        whole, end, rest = self._held.rpartition(b"\n\n")
        if not end:
            return []
        self._held = rest
        self.done = self.done or _DONE in whole + end
        return [int(stamp) for stamp in _STAMP.findall(whole)]


@define
class Tally:
    """What all clients of a run counted. Lags and times to the first byte in ns."""

    requests: int = 0
    bad: int = 0
    events: int = 0
    lags: list[int] = field(factory=list)
    ttfb: list[int] = field(factory=list)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the sorted `values` lie below; 0 when there are none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def summary(tally: Tally, *, k: int, seconds: float, cpu_s: float, rss_bytes: int, own_cpu_s: float) -> Load:
    lags, ttfb = sorted(tally.lags), sorted(tally.ttfb)
    return Load(
        k=k,
        seconds=seconds,
        requests=tally.requests,
        bad=tally.bad,
        rps=tally.requests / seconds,
        events=tally.events,
        events_s=tally.events / seconds,
        lag_ms_p50=quantile(lags, 0.5) / 1e6,
        lag_ms_p99=quantile(lags, 0.99) / 1e6,
        ttfb_ms_p50=quantile(ttfb, 0.5) / 1e6,
        ttfb_ms_p99=quantile(ttfb, 0.99) / 1e6,
        cpu_s=cpu_s,
        cpu_us_per_event=cpu_s / max(1, tally.events) * 1e6,
        cpu_ms_per_request=cpu_s / max(1, tally.requests) * 1e3,
        rss_mb=rss_bytes / 1e6,
        own_cpu_s=own_cpu_s,
    )


def request_bytes(url: str, body: bytes, headers: Sequence[str]) -> bytes:
    """A whole POST request."""
    parts = urlsplit(url)
    lines = [
        f"POST {parts.path} HTTP/1.1",
        f"host: {parts.netloc}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@frozen
class _Plan:
    host: str
    port: int
    request: bytes
    stream: bool
    stop_ns: int


class _Client(asyncio.Protocol):
    """One connection: asks, reads the whole answer, asks again. `over` is done when the connection is."""

    def __init__(self, plan: _Plan, tally: Tally) -> None:
        self._plan = plan
        self._tally = tally
        self._response = ResponseReader()
        self._stamps = StampFinder()
        self._asked_ns = 0
        self._transport: asyncio.WriteTransport | None = None
        self.over = asyncio.get_running_loop().create_future()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are not its subclasses
        self._ask(self._transport)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._asked_ns:
            self._tally.bad += 1
        if not self.over.done():
            self.over.set_result(None)

    @override
    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        assert self._transport is not None
        try:
            head_missing = not self._response.status
            body = self._response.feed(data)
        except ValueError:
            self._transport.abort()
            return
        if head_missing and self._response.status:
            self._tally.ttfb.append(now - self._asked_ns)
        if self._plan.stream:
            stamps = self._stamps.feed(body)
            self._tally.events += len(stamps)
            self._tally.lags += [now - stamp for stamp in stamps]
        if self._response.complete:
            self._answered(self._transport, now)

    def _ask(self, transport: asyncio.WriteTransport) -> None:
        self._response.restart()
        self._stamps = StampFinder()
        self._asked_ns = time.monotonic_ns()
        transport.write(self._plan.request)

    def _answered(self, transport: asyncio.WriteTransport, now: int) -> None:
        self._asked_ns = 0
        self._tally.requests += 1
        if self._response.status != 200 or (self._plan.stream and not self._stamps.done):
            self._tally.bad += 1
        if self._response.keeps_alive and now < self._plan.stop_ns:
            self._ask(transport)
        else:
            transport.close()


async def _keep_asking(plan: _Plan, tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    while time.monotonic_ns() < plan.stop_ns:
        bad_before = tally.bad
        try:
            _, client = await loop.create_connection(lambda: _Client(plan, tally), plan.host, plan.port)
            await client.over
        except OSError:
            tally.bad += 1
        if tally.bad > bad_before:
            await asyncio.sleep(_PAUSE_S)


async def _run(url: str, k: int, seconds: float, request: bytes, stream: bool, pid: int | None) -> Load:
    parts = urlsplit(url)
    tally = Tally()
    cpu_before = cpu_seconds(pid) if pid else 0.0
    began = time.monotonic_ns()
    plan = _Plan(parts.hostname or "", parts.port or 80, request, stream, began + int(seconds * 1e9))
    await asyncio.gather(*(_keep_asking(plan, tally) for _ in range(k)))
    return summary(
        tally,
        k=k,
        seconds=(time.monotonic_ns() - began) / 1e9,
        cpu_s=cpu_seconds(pid) - cpu_before if pid else 0.0,
        rss_bytes=resident_bytes(pid) if pid else 0,
        own_cpu_s=time.process_time(),
    )


@click.command()
@click.argument("url")
@click.argument("k", type=int)
@click.argument("seconds", type=float)
@click.option("--stream", is_flag=True, help="Ask for streams.")
@click.option("--model", default=MODEL, show_default=True)
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Sent with each request.")
@click.option("--pid", type=int, help="The process under test, whose CPU and memory are counted.")
def main(url: str, k: int, seconds: float, stream: bool, model: str, headers: tuple[str, ...], pid: int | None) -> None:
    """Ask URL with K clients for SECONDS; requests that run then are finished."""
    asked = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    body = msgspec.json.encode({**asked, "stream": True} if stream else asked)
    load = uvloop.run(_run(url, k, seconds, request_bytes(url, body, headers), stream, pid))
    click.echo(msgspec.json.encode(load))


if __name__ == "__main__":
    main()
