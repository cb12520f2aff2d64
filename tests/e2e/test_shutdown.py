"""How a gateway ends: what runs may finish, what is new is refused, and it never takes longer than it was told."""

import signal
import socket
import time
from pathlib import Path
from typing import Final

import msgspec
import pytest
import trio

from tests.e2e.conftest import Start
from tests.e2e.peers import Response, connect, error_event, post, request
from tests.support.process import Capi
from tests.support.scale import FULL

STREAMS: Final = 50 if FULL else 20


def stream_request(events: int, pace_ms: int) -> bytes:
    """A request for a stream of a known length."""
    document = {
        "model": "demo-chat",
        "stream": True,
        "messages": [{"role": "user", "content": "hi"}],
        "demo": {"events": events, "pace_ms": pace_ms},
    }
    return post(msgspec.json.encode(document))


def config(grace_s: float) -> dict[str, object]:
    return {"upstreams": {"demo": {"kind": "demo"}}, "limits": {"grace_s": grace_s}}


class Streams:
    """Clients that read a stream each, side by side."""

    def __init__(self, capi: Capi, data: bytes) -> None:
        self.responses: list[Response] = []
        self.begun = 0
        self._capi = capi
        self._data = data
        self._all_begun = trio.Event()

    async def read_all(self) -> None:
        """All to their ends."""
        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS):
                nursery.start_soon(self._read)

    async def wait_begun(self) -> None:
        """Until something of each stream has come."""
        with trio.fail_after(10):
            await self._all_begun.wait()

    async def _read(self) -> None:
        async with connect(self._capi.port) as client:
            await client.send(self._data)
            await client.wait_readable()
            self.begun += 1
            if self.begun == STREAMS:
                self._all_begun.set()
            self.responses.append(await client.response())


async def exit_code(capi: Capi, within_s: float) -> int:
    """Raises `TimeoutExpired` when it takes longer."""
    return await trio.to_thread.run_sync(capi.wait, within_s)


async def test_running_streams_finish_and_nothing_new_is_taken(start: Start) -> None:
    with start(config(grace_s=20)) as capi:
        streams = Streams(capi, stream_request(events=20, pace_ms=60))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(streams.read_all)
            await streams.wait_begun()
            capi.terminate()
            await trio.to_thread.run_sync(capi.log_line, "shutdown")
            with pytest.raises(ConnectionRefusedError):
                async with connect(capi.port):
                    pass
            assert not streams.responses
        assert len(streams.responses) == STREAMS
        assert all(response.complete for response in streams.responses)
        assert all(response.body.endswith(b"data: [DONE]\n\n") for response in streams.responses)
        assert await exit_code(capi, 1) == 0
        assert len(capi.events("exchange", outcome="ok")) == STREAMS
        assert [line["cut"] for line in capi.events("stopped")] == [0]


async def test_streams_longer_than_the_grace_are_told_why_they_end(start: Start) -> None:
    with start(config(grace_s=0.5)) as capi:
        streams = Streams(capi, stream_request(events=1000, pace_ms=50))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(streams.read_all)
            await streams.wait_begun()
            began = time.monotonic()
            capi.terminate()
        assert await exit_code(capi, 3) == 1
        assert time.monotonic() - began < 0.5 + 3
        assert all(response.complete for response in streams.responses)
        assert {error_event(response.body).code for response in streams.responses} == {"shutting_down"}
        assert len(capi.events("exchange", outcome="shutdown")) == STREAMS
        assert [line["cut"] for line in capi.events("stopped")] == [STREAMS]


async def test_an_answer_that_comes_whole_is_waited_for_or_refused_with_a_status(start: Start) -> None:
    with start(config(grace_s=0.5)) as capi:
        hi = b'"messages":[{"role":"user","content":"hi"}]'
        slow = b'{"model":"demo-chat",%b,"demo":{"fault":"slow_head","delay_ms":60000}}' % hi
        async with connect(capi.port) as client:
            await client.send(post(slow))
            await trio.sleep(0.2)  # until it waits for its upstream: nothing shows that
            capi.terminate()
            response = await client.response()
        assert (response.status, response.error.code) == (503, "shutting_down")
        assert response.header(b"retry-after") is not None
        assert await exit_code(capi, 3) == 1
        assert [line["cut"] for line in capi.events("stopped")] == [1]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_is_the_end(start: Start, first: signal.Signals) -> None:
    with start(config(grace_s=20)) as capi:
        async with connect(capi.port) as client:
            await client.send(stream_request(events=1000, pace_ms=50))
            await client.wait_readable()
            capi.send_signal(first)
            await trio.to_thread.run_sync(capi.log_line, "shutdown")
            capi.send_signal(signal.SIGTERM)
            assert await exit_code(capi, 1) == 1


async def test_idle_connections_do_not_hold_it_up(start: Start) -> None:
    """Neither those that have had an answer nor those that never asked."""
    with start(config(grace_s=20)) as capi:
        async with connect(capi.port) as answered, connect(capi.port) as silent:
            await answered.send(request(b"GET", b"/readyz"))
            assert (await answered.response()).status == 200
            began = time.monotonic()
            capi.terminate()
            assert await exit_code(capi, 2) == 0
            assert time.monotonic() - began < 1
            assert await answered.ended() == await silent.ended() == b""


async def test_a_connection_closes_after_the_answer_that_was_running(start: Start) -> None:
    """It is told so, and a request that comes in behind it is not taken."""
    with start(config(grace_s=20)) as capi:
        async with connect(capi.port) as client:
            await client.send(stream_request(events=10, pace_ms=50))
            await client.wait_readable()
            capi.terminate()
            await trio.to_thread.run_sync(capi.log_line, "shutdown")
            assert (await client.response()).complete
            assert await client.ended() == b""
            assert await exit_code(capi, 2) == 0


@pytest.mark.parametrize("command", ["demo", "start"])
def test_a_port_in_use_is_said_plainly(tmp_path: Path, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        capi = Capi(command, "--port", port, "--data-dir", str(tmp_path))
        try:
            assert capi.wait() == 1
        finally:
            capi.close()
    line = capi.text[-1]
    assert f"cannot listen on 127.0.0.1 port {port}" in line
    assert "--port" in line
    assert capi.output == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "127.0.0.1.example.com"])  # noqa: S104 - it is refused
def test_a_demo_for_others_is_refused(tmp_path: Path, host: str) -> None:
    """On any address that is not this machine's alone."""
    capi = Capi("demo", "--host", host, "--port", "0", "--data-dir", str(tmp_path / "data"))
    try:
        assert capi.wait() == 2
    finally:
        capi.close()
    assert host in capi.text[0]
    assert "loopback" in capi.text[0]
    assert not (tmp_path / "data").exists()
