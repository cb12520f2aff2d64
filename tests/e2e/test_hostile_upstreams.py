"""Upstreams that mean harm, or that are broken as if they did: each has its own outcome, in bounded time and memory.

The same faults over an upstream with a key and a cap and over a Copilot seat, asked in each of the three protocols, of
a gateway in a process of its own.
"""

import gzip
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import pytest
import trio
from attrs import frozen

from capi_trio.control import ask
from capi_trio.demo.github import DemoGitHub
from capi_trio.identity_operations import AddIdentity, IdentityAnswer
from tests.e2e.conftest import faultless
from tests.e2e.peers import RawUpstream, UpstreamRequest, answer, chunked, connect, post, reset, sse_head
from tests.support.fakes import chat_answer
from tests.support.github_server import serving
from tests.support.process import Capi, eventually, gateway, peak_bytes, resident_bytes
from tests.support.scale import FULL, tell

HEAD_S: Final = 2.0 if FULL else 1.0
TOTAL_S: Final = 2.5 * HEAD_S
MOST_BYTES: Final = 4 * 1024 * 1024
CAP: Final = 8
TOKEN: Final = "ghu_theTokenOfTheOnlySeat0000"
LIMITS: Final = {
    "max_answer_bytes": MOST_BYTES,
    "max_event_bytes": 65_536,
    "max_in_flight_per_identity": CAP,
    "max_queued_per_identity": 100,
}
DOORS: Final = {
    "/v1/chat/completions": b'"messages":[{"role":"user","content":"%b"}]',
    "/v1/messages": b'"max_tokens":99,"messages":[{"role":"user","content":"%b"}]',
    "/v1/responses": b'"input":"%b","store":false',
}
CHUNK: Final = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
END: Final = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
WHOLE: Final = msgspec.json.encode(chat_answer("hi"))
LISTED: Final = b'{"data":[{"id":"real"}]}'


@frozen
class Say:
    """Pieces to send; the last one `again` and again for as long as they are taken; and what comes then."""

    pieces: tuple[bytes, ...]
    then: str = "close"
    again: bool = False
    pause_s: float = 0.0


def head(*fields: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"", b""])


def packed(body: bytes, layers: int = 1, content_type: bytes = b"application/json") -> bytes:
    for _ in range(layers):
        body = gzip.compress(body)
    coding = b", ".join([b"gzip"] * layers)
    return (
        head(b"content-type: " + content_type, b"content-encoding: " + coding, b"content-length: %d" % len(body)) + body
    )


JSON: Final = b"content-type: application/json"
STREAM: Final = b"content-type: text/event-stream"
CHUNKED: Final = b"transfer-encoding: chunked"
BROKE, TIMEOUT, OK = "upstream_broke", "timeout", "ok"

# What an upstream does to a request for a whole answer, and how that ends.
WHOLES: Final[Mapping[str, tuple[Say, str]]] = {
    "is_sound": (Say((answer(WHOLE),)), OK),
    # heads
    "head_of_a_megabyte": (Say((b"HTTP/1.1 200 OK\r\nx: " + b"x" * 1_000_000, b"\r\n\r\n"), "wait"), BROKE),
    "head_without_end": (Say((b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 1000), again=True), BROKE),
    "a_thousand_interim_heads": (Say((b"HTTP/1.1 103 x\r\nlink: y\r\n\r\n" * 1000, answer(WHOLE))), OK),
    "interim_heads_without_end": (Say((b"HTTP/1.1 103 x\r\n\r\n" * 100,), again=True, pause_s=0.01), TIMEOUT),
    "another_protocol": (Say((head(b"upgrade: x", b"connection: upgrade", status=b"101 x"),), "wait"), BROKE),
    "two_lengths": (Say((head(JSON, b"content-length: 2", b"content-length: 3") + b"{}",), "wait"), BROKE),
    "a_length_below_zero": (Say((head(JSON, b"content-length: -1"),), "wait"), BROKE),
    "no_http": (Say((b"\x16\x03\x01\x02\x00\x01" * 100,)), BROKE),
    # bodies
    "no_content": (Say((head(status=b"204 x"),)), BROKE),
    "a_body_without_end": (
        Say((head(JSON, CHUNKED) + b'6\r\n{"a":"\r\n', b"10000\r\n" + b"x" * 65536 + b"\r\n"), again=True),
        BROKE,
    ),
    "a_body_that_trickles": (Say((head(JSON, b"content-length: 9999"), b" "), again=True, pause_s=0.2), TIMEOUT),
    "a_length_nobody_sends": (Say((head(JSON, b"content-length: 99999999999999999999") + b"{",), "wait"), TIMEOUT),
    "a_chunk_size_without_end": (Say((head(JSON, CHUNKED), b"1" * 1000), again=True), BROKE),
    "trailers_without_end": (Say((head(JSON, CHUNKED) + b"2\r\n{}\r\n0\r\n", b"x: y\r\n" * 1000), again=True), BROKE),
    "a_bomb": (Say((packed(b'{"a":"' + bytes(96 * 1024 * 1024) + b'"}'),)), BROKE),
    "a_bomb_in_layers": (Say((packed(b'{"a":"' + bytes(96 * 1024 * 1024) + b'"}', 3),)), BROKE),
    "a_packed_answer": (Say((packed(WHOLE),)), OK),
    "packed_as_nobody_knows": (Say((head(JSON, b"content-encoding: br", b"content-length: 2") + b"{}",)), BROKE),
    "deep_json": (Say((answer(b"[" * 1_000_000),)), BROKE),
    "a_picture": (Say((answer(b"\x89PNG\r\n\x1a\n" + bytes(999), content_type=b"image/png"),)), BROKE),
    "a_page": (Say((answer(b"<html>", content_type=b"text/html"),)), BROKE),
    "no_type": (Say((head(b"content-length: 2") + b"\xff\xfe",)), BROKE),
    # resets, in each phase
    "reset_before_the_head": (Say((), "reset"), BROKE),
    "reset_in_the_head": (Say((b"HTTP/1.1 200 OK\r\nconte",), "reset"), BROKE),
    "reset_behind_the_head": (Say((head(JSON, b"content-length: 99"),), "reset"), BROKE),
    "reset_in_the_body": (Say((head(JSON, b"content-length: 99") + b'{"a":',), "reset"), BROKE),
    "closed_in_the_body": (Say((head(JSON, b"content-length: 99") + b'{"a":',)), BROKE),
    # silence, in each phase
    "silent_before_the_head": (Say((), "wait"), TIMEOUT),
    "silent_in_the_head": (Say((b"HTTP/1.1 200 OK\r\nconte",), "wait"), TIMEOUT),
    "silent_behind_the_head": (Say((head(JSON, b"content-length: 99"),), "wait"), TIMEOUT),
    "silent_in_the_body": (Say((head(JSON, CHUNKED) + b"5\r\n{}   \r\n",), "wait"), TIMEOUT),
    "silent_instead_of_a_close": (
        Say((head(JSON, b"connection: close", b"content-length: %d" % len(WHOLE)) + WHOLE,), "wait"),
        OK,
    ),
}
# The same of a stream.
STREAMS: Final[Mapping[str, tuple[Say, str]]] = {
    "is_sound": (Say((sse_head(), chunked(CHUNK, END))), OK),
    "head_without_end": WHOLES["head_without_end"],
    "interim_heads_without_end": WHOLES["interim_heads_without_end"],
    "no_content": (Say((head(status=b"204 x"),)), BROKE),
    "events_of_nothing": (Say((sse_head(), chunked(b": x\n\n" * 1000, end=False)), again=True, pause_s=0.05), TIMEOUT),
    "an_event_without_end": (Say((sse_head(), chunked(b"data: " + b"x" * 65530, end=False)), again=True), BROKE),
    "a_line_that_trickles": (Say((sse_head(), chunked(b"x", end=False)), again=True, pause_s=0.2), TIMEOUT),
    "a_bomb": (Say((packed(b"data: " + bytes(96 * 1024 * 1024), content_type=b"text/event-stream"),)), BROKE),
    "a_packed_stream": (Say((packed(CHUNK + END, content_type=b"text/event-stream"),)), OK),
    "a_chunk_size_without_end": (Say((sse_head() + chunked(CHUNK, end=False), b"1" * 1000), again=True), BROKE),
    "a_picture_as_a_stream": (Say((sse_head(), chunked(b"\x89PNG\r\n\x1a\n" + bytes(999)))), BROKE),
    "a_page": (Say((answer(b"<html>", content_type=b"text/html"),)), BROKE),
    "reset_before_the_head": (Say((), "reset"), BROKE),
    "reset_behind_the_head": (Say((sse_head(),), "reset"), BROKE),
    "reset_between_events": (Say((sse_head(), chunked(CHUNK, end=False)), "reset"), BROKE),
    "reset_in_an_event": (Say((sse_head(), chunked(CHUNK, CHUNK[:20], end=False)), "reset"), BROKE),
    "reset_behind_the_last_event": (Say((sse_head(), chunked(CHUNK, END, end=False)), "reset"), OK),
    "closed_between_events": (Say((sse_head(), chunked(CHUNK, end=False))), BROKE),
    "silent_before_the_head": (Say((), "wait"), TIMEOUT),
    "silent_behind_the_head": (Say((sse_head(),), "wait"), TIMEOUT),
    "silent_between_events": (Say((sse_head(), chunked(CHUNK, end=False)), "wait"), TIMEOUT),
    "silent_in_an_event": (Say((sse_head(), chunked(CHUNK, CHUNK[:20], end=False)), "wait"), TIMEOUT),
    "silent_behind_the_last_event": (Say((sse_head(), chunked(CHUNK, END, end=False)), "wait"), OK),
    "silent_instead_of_a_close": (Say((head(STREAM, CHUNKED, b"connection: close"), chunked(CHUNK, END)), "wait"), OK),
    "talks_behind_the_last_event": (
        Say((sse_head(), chunked(CHUNK, END, end=False), chunked(CHUNK * 99, end=False)), again=True),
        OK,
    ),
}


async def misbehave(stream: trio.SocketStream, received: UpstreamRequest) -> None:
    """As the request's text says: `case:NAME:` or `stream:NAME:`."""
    if received.head.startswith(b"GET"):
        await stream.send_all(answer(LISTED))
        return
    kind, name = received.body.partition(b"case:")[2].split(b":", 2)[:2]
    say, _ = (STREAMS if kind == b"stream" else WHOLES)[name.decode()]
    for piece in say.pieces:
        await stream.send_all(piece)
    while say.again:
        await trio.sleep(say.pause_s)
        await stream.send_all(say.pieces[-1])
    match say.then:
        case "wait":
            while await stream.receive_some(100):
                pass
        case "reset":
            await trio.sleep(0.05)  # else the reset overtakes what was sent
            await reset(stream)
        case _:
            await stream.aclose()


@frozen
class Case:
    door: str
    kind: str
    name: str

    @property
    def request(self) -> bytes:
        text = DOORS[self.door] % f"case:{self.kind}:{self.name}:".encode()
        flag = b"true" if self.kind == "stream" else b"false"
        return post(b'{"model":"real","stream":%b,%b}' % (flag, text), target=self.door.encode())

    @property
    def outcome(self) -> str:
        return (STREAMS if self.kind == "stream" else WHOLES)[self.name][1]


async def link(capi: Capi, data_dir: Path, url: str) -> None:
    def work() -> None:
        assert isinstance(ask(data_dir, AddIdentity(name="seat", host=url, token=TOKEN, login="me")), IdentityAnswer)
        capi.wait_for(lambda: bool(capi.events("model_list")))

    await trio.to_thread.run_sync(work)


class Trial:
    """All cases, some at a time, and what was seen of them."""

    def __init__(self, capi: Capi, cases: list[Case]) -> None:
        self._capi = capi
        self._cases = cases
        self.idle = resident_bytes(capi.pid)
        self.slowest = 0.0
        self.wrong: list[str] = []
        self.ids: dict[str, Case] = {}

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(CAP):
                nursery.start_soon(self._ask)
        await eventually(lambda: len(self._capi.events("exchange")) >= len(self.ids), 5)
        lines = {str(line["request_id"]): line for line in self._capi.events("exchange")}
        assert len(lines) == len(self._capi.events("exchange")) == len(self.ids)
        for request_id, case in self.ids.items():
            outcome = lines[request_id]["outcome"]
            if outcome != case.outcome:
                self.wrong.append(f"{case}: {outcome} ({lines[request_id]['upstream_failure']})")

    async def _ask(self) -> None:
        while self._cases:
            case = self._cases.pop()
            began = time.monotonic()
            async with connect(self._capi.port) as client:
                await client.send(case.request)
                response = await client.response()
                self.ids[(response.header(b"x-request-id") or b"").decode()] = case
            self.slowest = max(self.slowest, time.monotonic() - began)
            if not response.complete:
                self.wrong.append(f"{case}: the answer was cut")
            if (response.status == 200) != (case.outcome == OK) and case.kind == "whole":
                self.wrong.append(f"{case}: status {response.status}")
            if TOKEN.encode() in response.body or b"127.0.0.1" in response.body:
                self.wrong.append(f"{case}: tells too much")


@pytest.mark.parametrize("rider", ["key", "seat"])
async def test_each_hostile_answer_has_its_outcome(tmp_path: Path, rider: str) -> None:
    """Within the limits on time and size that the operator set, and with every slot free again."""
    doors = list(DOORS) * 4 if FULL else list(DOORS)[:1]
    cases = [
        Case(door, kind, name)
        for door in doors
        for kind, names in (("whole", WHOLES), ("stream", STREAMS))
        for name in names
    ]
    count = len(cases)
    patience = {"head_timeout_s": HEAD_S, "idle_timeout_s": HEAD_S, "total_timeout_s": TOTAL_S}
    async with RawUpstream.serving(misbehave) as upstream:
        github = DemoGitHub(base_url=f"http://127.0.0.1:{upstream.port}")
        github.link(TOKEN, "me")
        async with serving(github) as url:
            keyed = {"kind": "openai", "base_url": upstream.base_url, "max_in_flight": CAP, "models": ["real"]}
            seat = {"kind": "copilot", "protocols": ["chat"]}
            upstreams = {"up": {**(keyed if rider == "key" else seat), **patience}}
            with faultless(gateway(tmp_path, {"upstreams": upstreams, "limits": LIMITS})) as capi:
                if rider == "seat":
                    await link(capi, tmp_path, url)
                trial = Trial(capi, cases)
                await trial.run()
                assert not trial.wrong, "\n".join(trial.wrong)
                await eventually(lambda: upstream.open <= 20, 5)  # as many as are kept for later
                for kind in ("whole", "stream"):  # every slot is there
                    async with trio.open_nursery() as nursery:
                        for _ in range(CAP):
                            nursery.start_soon(Trial(capi, [Case(next(iter(DOORS)), kind, "is_sound")])._ask)
                more = (peak_bytes(capi.pid) - trial.idle) / 1e6
    tell(f"{count} hostile answers over a {rider}: the slowest took {trial.slowest:.2f} s, {more:.1f} MB more")
    assert trial.slowest < TOTAL_S + 1.5
    assert more < 30
