"""Looks for bytes that harm the connection server: `python -m fuzz.connections --count 100000 --seed 1`.

Each connection sends what `plan` makes of a seed and an index: mutated HTTP/1.1, h2c and websocket upgrades, HTTP/2
frames, a TLS hello or noise, cut anywhere, ended by FIN, RST or half-close. The process must survive, answer the normal
requests among them within a second, log no fault of its own, and give back every descriptor. A connection can be
repeated alone: `--seed S --first INDEX --count 1`.
"""

import contextlib
import enum
import itertools
import os
import random
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click
import trio
from attrs import define, field, frozen
from typing_extensions import override

from fuzz.__main__ import mutate
from tests.support.framing_cases import CASES
from tests.support.process import FAULT_EVENTS, Capi, demo, open_descriptors, resident_bytes, sockets_of

__all__ = ["End", "Plan", "Report", "fuzz", "main", "plan"]

PROBE_EVERY: Final = 6
"""Each client makes a normal request after so many others. It also keeps the queue of connections that wait to be
accepted short: clients that do not wait for an answer would fill it in no time."""
PATIENCE_S: Final = 1.0
"""Within which a normal request must be answered."""
_GIVE_UP_S: Final = 30.0
"""A late answer is still waited for: a client that went on instead would lengthen the queue that made it late."""
DESCRIPTORS: Final = 5
"""How far the number of descriptors may be from where it was."""
WORKERS: Final = 48
SETTLE_S: Final = 10.0
_LISTEN_S: Final = 0.03
"""How long a client waits for an answer that may never come."""


class End(enum.Enum):
    """How a client leaves."""

    FIN = enum.auto()
    RST = enum.auto()
    HALF_CLOSE = enum.auto()
    """It sends FIN, and listens to the end."""
    ANSWERED = enum.auto()
    """It waits for the first bytes of an answer, then sends FIN."""


@frozen
class Plan:
    """What one client does."""

    pieces: tuple[bytes, ...] = field(repr=False)
    end: End


# -- what is sent -----------------------------------------------------------------------------------------------


def _lines(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([*lines, b"", body])


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _websocket_frame(opcode: int, payload: bytes, *, last: bool = True) -> bytes:
    """A client's frame, masked with zeros (RFC 6455 5.2)."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack(">H", size)
    return bytes([opcode | (0x80 if last else 0)]) + length + bytes(4) + payload


_CHAT: Final = b'{"model":"demo-chat","messages":[{"role":"user","content":"hi"}],"demo":{"events":2,"pace_ms":0}}'
_STREAM: Final = _CHAT[:-1] + b',"stream":true}'
_POST: Final = (b"POST /v1/chat/completions HTTP/1.1", b"Host: localhost", b"Content-Type: application/json")
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS: Final = _frame(4, 0, 0)
_HEADERS: Final = _frame(1, 5, 1, b"\x82\x84\x86\x41\x09localhost")
_WEBSOCKET: Final = (
    b"Host: localhost",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def _h2c(settings: bytes) -> bytes:
    upgrade = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: " + settings)
    return _lines(b"GET /v1/models HTTP/1.1", b"Host: localhost", *upgrade)


_REQUESTS: Final = (
    *(_lines(b"GET " + target + b" HTTP/1.1", b"Host: localhost") for target in (b"/", b"/v1/models", b"/nowhere")),
    _lines(b"HEAD /healthz HTTP/1.1", b"Host: 127.0.0.1:4141", b"Connection: close"),
    _lines(b"GET /v1/models/demo-chat HTTP/1.0"),
    _lines(*_POST, b"Content-Length: 2", body=b"{}"),
    _lines(*_POST, b"Content-Length: 4000", b"Expect: 100-continue"),
    _lines(*_POST, b"Content-Length: 99999999999"),
    _lines(*_POST, b"Transfer-Encoding: chunked", body=b'5;a=b\r\n{"a":\r\n2\r\n1}\r\n0\r\nT: x\r\n\r\n'),
    _lines(b"DELETE /v1/files/%00 HTTP/1.1", b"Host: [::1]:80", b"Content-Length: 3", body=b"abc"),
)
# Rare: each of them costs as much as twenty others, since a model answers.
_ASKING: Final = (
    _lines(*_POST, b"Content-Length: %d" % len(_CHAT), body=_CHAT),
    _lines(*_POST, b"Content-Length: %d" % len(_STREAM), body=_STREAM),
    _lines(*_POST, b"Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(_STREAM), _STREAM)),
)
# What ended stock servers, each with one packet, and what else tries to leave HTTP/1.1.
_OTHER_PROTOCOLS: Final = (
    *(_h2c(settings) for settings in (b"AAA", b"AAAA", b"AAMAAABkAAQAoAAAAAIAAAAA", b"")),
    _lines(b"GET / HTTP/1.1", *_WEBSOCKET, body=b"x"),
    _lines(b"GET /\xc3\xa4 HTTP/1.1", *_WEBSOCKET),
    _lines(b"GET / HTTP/1.1", *_WEBSOCKET, body=b"\x81\x85\0\0\0\0hello"),
    _PREFACE + _SETTINGS + _HEADERS,
    _PREFACE + _SETTINGS + _HEADERS + _frame(3, 0, 1, b"\0\0\0\0") + _frame(0, 0, 1, b"late"),
    _PREFACE + _SETTINGS + _frame(1, 4, 1, b"\x82\x44\x01\xe4\x86\x41\x01h") + _frame(9, 4, 3, b"x"),
    _PREFACE + _frame(4, 0, 0, b"\0\4\xff\xff\xff\xff") + _frame(8, 0, 0, b"\0\0\0\0"),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
)
_CREATE: Final = b'{"type":"response.create","model":"demo-gpt","input":"hi","demo":{"events":2,"pace_ms":0}}'
_HANDSHAKE: Final = _lines(b"GET /v1/responses HTTP/1.1", *_WEBSOCKET)
# A WebSocket opens, and what should be frames comes with its handshake.
_SOCKETS: Final = tuple(
    _HANDSHAKE + frames
    for frames in (
        b"",
        _websocket_frame(1, _CREATE) + _websocket_frame(8, b"\x03\xe8"),
        _websocket_frame(1, b'{"type":"response.create","generate":false,"model":"demo-gpt"}') * 3,
        _websocket_frame(1, _CREATE[:20], last=False) + _websocket_frame(9, b"?") + _websocket_frame(0, _CREATE[20:]),
        _websocket_frame(2, b"\xff\xfe") + _websocket_frame(1, b"\xff") + _websocket_frame(10, b""),
        _websocket_frame(0, b"alone") + _websocket_frame(3, b"reserved"),
        _websocket_frame(8, b"\x03") + b"\x81\x02{}" + b"\xc1\x80\0\0\0\0",
        b"\x81\xff\x7f" + b"\xff" * 7 + bytes(64),
    )
)
_NORMAL: Final = _lines(b"GET /v1/models HTTP/1.1", b"Host: localhost", b"Connection: close")
_FRAMING: Final = tuple(case.data for case in CASES if len(case.data) < 16_384)
_CORPUS: Final = [*_REQUESTS, *_ASKING, *_OTHER_PROTOCOLS, *_SOCKETS, *_FRAMING]
_FIELDS: Final = (
    b"Content-Length: 5", b"Content-Length: 0", b"Transfer-Encoding: chunked", b"Connection: close",
    b"Connection: host", b"Expect: 100-continue", b"Upgrade: h2c", b"Host: evil.test", b"Origin: http://evil.test",
    b" folded", b"A: \xff\0", b"Content-Encoding: gzip", b"Trailer: A", b"TE: trailers",
    b"Connection: keep-alive, Upgrade", b"X: " + b"x" * 9000,
)  # fmt: skip


def plan(seed: int, index: int) -> Plan:
    """What client number `index` of a run does. The same numbers, the same plan."""
    rng = random.Random((seed << 32) + index)
    data = _payload(rng)
    ends = rng.choices((End.FIN, End.RST, End.HALF_CLOSE, End.ANSWERED), (3, 2, 2, 3))
    return Plan(tuple(_cut(rng, data)), ends[0])


def _payload(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.04:
        return rng.randbytes(rng.randint(0, 300))
    if kind < 0.08:
        return rng.choice(_ASKING)
    if kind < 0.25:
        return rng.choice(_OTHER_PROTOCOLS)
    if kind < 0.45:
        return mutate(rng, _CORPUS)
    if kind < 0.65:
        return _with_edited_lines(rng, rng.choice(_CORPUS))
    if kind < 0.8:  # pipelined
        return b"".join(rng.choices(_REQUESTS + _OTHER_PROTOCOLS, k=rng.randint(2, 5)))
    return rng.choice(_REQUESTS) + rng.choice((b"", b"G", b"\r\n", b"\0", rng.randbytes(20)))


def _with_edited_lines(rng: random.Random, data: bytes) -> bytes:
    """One to four edits of whole lines: what blind mutation of bytes rarely hits."""
    lines = data.split(b"\r\n")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        match rng.randrange(5):
            case 0:
                lines.insert(at, rng.choice(_FIELDS))
            case 1:
                lines.insert(at, lines[at])
            case 2:
                lines[at] = lines[at].swapcase()
            case 3:
                lines.insert(at, b"")
            case _ if len(lines) > 1:
                del lines[at]
    return rng.choice((b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r")).join(lines)


def _cut(rng: random.Random, data: bytes) -> Iterator[bytes]:
    """In one piece half the time, else in up to five; some clients leave before the last."""
    places = sorted(rng.randint(0, len(data)) for _ in range(rng.choice((0, 0, 0, 1, 2, 4))))
    if places and rng.random() < 0.3:
        data = data[: places[-1]]
    for start, end in itertools.pairwise([0, *places, len(data)]):
        if start < end:
            yield data[start:end]


# -- sending it -------------------------------------------------------------------------------------------------


@define
class Report:
    """What a run saw. `violations` says in words what must not be."""

    connections: int = 0
    seconds: float = 0.0
    probes: int = 0
    late: int = 0
    last_late: str = ""
    cores: float = 0.0
    """Processors that the gateway had on average: late answers with few of them tell of a busy machine."""
    slowest_probe_s: float = 0.0
    descriptors: tuple[int, int] = (0, 0)
    memory: tuple[int, int] = (0, 0)
    faults: int = 0
    violations: list[str] = field(factory=list)

    @override
    def __str__(self) -> str:
        rate = self.connections / self.seconds if self.seconds else 0.0
        before, after = (size / 1e6 for size in self.memory)
        return (
            f"{self.connections} connections in {self.seconds:.1f} s ({rate:.0f}/s, {self.cores:.2f} cores), "
            f"{self.probes} probes, slowest {self.slowest_probe_s * 1000:.0f} ms, {self.late} late, "
            f"{self.faults} faults logged, "
            f"descriptors {self.descriptors[0]} -> {self.descriptors[1]}, "
            f"memory {before:.1f} -> {after:.1f} MB ({after - before:+.1f})"
        )


class _Run:
    """Many clients at once, all with the same aim."""

    def __init__(self, address: tuple[str, int], seed: int, indices: range, patience_s: float, report: Report) -> None:
        self._address = address
        self._seed = seed
        self._patience_s = patience_s
        self._indices = iter(indices)
        self._report = report
        # One source address has too few ports for a long run: each rests for a minute after use.
        self._many_sources = sys.platform == "linux" and address[0] == "127.0.0.1"

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(WORKERS):
                    nursery.start_soon(self._work)
        except* OSError as error:
            self._report.violations.append(
                f"cannot connect any more, after connection {self._report.connections}: {error.exceptions[0]!r}"
            )

    async def warm_up(self) -> None:
        """One normal request that does not count: what the process opens at first use is open after it."""
        with await self._connect(0) as client:
            await client.send(_NORMAL)
            while await client.recv(65536):
                pass

    async def _work(self) -> None:
        for turn in itertools.count(1):
            index = next(self._indices, None)
            if index is None:
                return
            await self._play(plan(self._seed, index), index)
            self._report.connections += 1
            if turn % PROBE_EVERY == 0:
                await self.probe(index)

    async def _connect(self, index: int) -> trio.socket.SocketType:
        client = trio.socket.socket()
        try:
            if self._many_sources:
                await client.bind((f"127.0.0.{1 + index % 200}", 0))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await client.connect(self._address)
        except BaseException:
            client.close()
            raise
        return client

    async def _play(self, plan: Plan, index: int) -> None:
        client = await self._connect(index)
        with client, contextlib.suppress(OSError):  # it was refused and cut off while it still talked
            for piece in plan.pieces:
                with trio.move_on_after(1):  # it need not read what it will not serve
                    await client.send(piece)
            match plan.end:
                case End.HALF_CLOSE:
                    client.shutdown(socket.SHUT_WR)
                    with trio.move_on_after(_LISTEN_S):
                        while await client.recv(65536):
                            pass
                case End.ANSWERED:
                    with trio.move_on_after(_LISTEN_S):
                        await client.recv(65536)
                case End.RST:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                case End.FIN:
                    pass

    async def probe(self, index: int) -> None:
        """A normal request, among all the others."""
        began = time.monotonic()
        answer = b""
        with (
            trio.move_on_after(_GIVE_UP_S),
            contextlib.suppress(ConnectionError),
            await self._connect(index) as client,
        ):
            await client.send(_NORMAL)
            while piece := await client.recv(65536):
                answer += piece
        took = time.monotonic() - began
        self._report.probes += 1
        self._report.slowest_probe_s = max(self._report.slowest_probe_s, took)
        answered = answer.startswith(b"HTTP/1.1 200") and b"demo-chat" in answer
        if not answered or took > self._patience_s:
            self._report.late += 1
            self._report.last_late = f"at connection {index}, after {took:.2f} s: {answer[:60]!r}"


def fuzz(
    url: str,
    *,
    seed: int,
    count: int,
    first: int = 0,
    patience_s: float = PATIENCE_S,
    capi: Capi | None = None,
) -> Report:
    """Runs connections `first` up to `first + count`; with `capi`, the process behind `url`, looks into that too."""
    parts = urlsplit(url)
    address = (parts.hostname or "127.0.0.1", parts.port or 80)
    report = Report()
    run = _Run(address, seed, range(first, first + count), patience_s, report)
    with contextlib.suppress(OSError):  # then the run says that there is nobody
        trio.run(run.warm_up)
    before = _vitals(capi)
    used, began = _processor_s(capi), time.monotonic()
    trio.run(run.run)
    report.seconds = time.monotonic() - began
    report.cores = (_processor_s(capi) - used) / report.seconds
    trio.run(run.probe, first + count)
    if report.late:
        report.violations.append(
            f"{report.late} of {report.probes} normal requests were answered late or not at all, "
            f"the last one {report.last_late}"
        )
    if capi is not None:
        _examine(capi, before, report)
    return report


def _vitals(capi: Capi | None) -> tuple[int, int]:
    """Descriptors but for those of idle connections to the provider, which the gateway may keep; and memory."""
    if capi is None:
        return (0, 0)
    kept = sum(capi.provider_port in (peer.local_port, peer.remote_port) for peer in sockets_of(capi.pid))
    return open_descriptors(capi.pid) - kept, resident_bytes(capi.pid)


def _processor_s(capi: Capi | None) -> float:
    """Processor time that the process has used, in seconds; 0 when there is none to look at."""
    if capi is None or not capi.alive:
        return 0.0
    fields = Path(f"/proc/{capi.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _examine(capi: Capi, before: tuple[int, int], report: Report) -> None:
    if not capi.alive:
        report.violations.append(f"the process has ended: {capi.wait()} {capi.text[-10:]}")
        return
    after = _vitals(capi)
    end = time.monotonic() + SETTLE_S
    while after[0] != before[0] and time.monotonic() < end:  # the last connections are still being closed
        time.sleep(0.1)
        after = _vitals(capi)
    report.descriptors, report.memory = (before[0], after[0]), (before[1], after[1])
    report.faults = len(capi.faults)
    if abs(after[0] - before[0]) > DESCRIPTORS:
        report.violations.append(f"descriptors: {before[0]} before, {after[0]} after")
    report.violations += [f"logged: {line}" for line in capi.faults[:10]]


@click.command()
@click.option("--count", type=click.IntRange(1), default=100_000, show_default=True, help="How many connections.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Repeats a run that used it.")
@click.option("--first", type=click.IntRange(0), default=0, help="The index of the first connection.")
@click.option("--url", help="A running gateway, instead of a `capi demo` of its own.")
def main(count: int, seed: int, first: int, url: str | None) -> None:
    """Send COUNT hostile connections to a gateway."""
    if url is not None:
        report = fuzz(url, seed=seed, count=count, first=first)
    else:
        with tempfile.TemporaryDirectory() as folder, demo(Path(folder), keep=FAULT_EVENTS) as capi:
            report = fuzz(capi.url, seed=seed, count=count, first=first, capi=capi)
    for violation in report.violations:
        click.echo(f"seed {seed}: {violation}", err=True)
    click.echo(f"seed {seed}: {report}")
    sys.exit(1 if report.violations else 0)


if __name__ == "__main__":
    main()
