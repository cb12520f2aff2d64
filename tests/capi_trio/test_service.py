"""A whole gateway in this process: its parts together, over real sockets. The signals are tested in tests/e2e."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from capi_core.config import Config, ConfigError, LimitsConfig, UpstreamConfig
from capi_trio.server import BindError, listen
from capi_trio.service import Running, serve

if TYPE_CHECKING:
    from pathlib import Path

DEMO = Config(upstreams={"demo": UpstreamConfig(kind="demo")}, limits=LimitsConfig(grace_s=1.0))


async def run(config: Config, tmp_path: Path, on_ready: trio.MemorySendChannel[Running], *, port: int = 0) -> bool:
    return await serve(
        config,
        host="127.0.0.1",
        port=port,
        environ={},
        base_dir=tmp_path,
        new_request_id=lambda: "req_test",
        on_ready=on_ready.send_nowait,
    )


async def test_it_answers_when_it_says_so_and_a_signal_ends_it(tmp_path: Path) -> None:
    send, receive = trio.open_memory_channel[Running](1)
    drained: list[bool] = []

    async def serving() -> None:
        drained.append(await run(DEMO, tmp_path, send))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serving)
        running = await receive.receive()
        async with httpx.AsyncClient() as client:  # noqa: TID251 - the test is the client
            assert (await client.get(f"{running.url}/readyz")).status_code == 200
            listed = (await client.get(f"{running.url}/v1/models")).json()["data"]
            assert [model["id"] for model in listed] == [model.name for model in running.catalog().listed()]
            assert (await client.get(f"{running.provider_urls['demo']}/models")).status_code == 200
        signal.raise_signal(signal.SIGTERM)
    assert drained == [True]


async def test_a_taken_port_is_told_before_anything_runs(tmp_path: Path) -> None:
    taken = listen("127.0.0.1", 0, write_stall_s=1)
    send, _ = trio.open_memory_channel[Running](1)
    async with taken:
        with pytest.raises(BindError, match="--port"):
            await run(DEMO, tmp_path, send, port=taken.socket.getsockname()[1])


async def test_a_missing_key_is_told_before_anything_runs(tmp_path: Path) -> None:
    send, _ = trio.open_memory_channel[Running](1)
    upstream = UpstreamConfig(kind="openai", base_url="https://h/v1", api_key_env="CAPI_TEST_MISSING")
    with pytest.raises(ConfigError, match="CAPI_TEST_MISSING"):
        await run(Config(upstreams={"a": upstream}), tmp_path, send)
