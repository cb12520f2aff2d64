"""A whole gateway in this process: its parts together, over real sockets."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import httpx
import pytest
import trio
from attrs import evolve
from structlog.testing import capture_logs

from capi_core.config import Config, ConfigError, LimitsConfig, UpstreamConfig
from capi_core.keys import KeyDraft
from capi_trio.configstore import ConfigStore, write
from capi_trio.guarded_app import split_cancelled
from capi_trio.keyring import CLI, Keyring
from capi_trio.perimeter import Perimeter
from capi_trio.server import BindError, listen
from capi_trio.service import Options, Running, serve
from capi_trio.storage.audit_log import read_lines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

from contextlib import asynccontextmanager

DEMO = Config(upstreams={"demo": UpstreamConfig(kind="demo")}, limits=LimitsConfig(grace_s=1.0))


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(
        host="127.0.0.1",
        port=0,
        data_dir=tmp_path / "data",
        base_dir=tmp_path,
        environ={},
        auth=False,
        perimeter=Perimeter(),
        new_request_id=lambda: "req_test",
    )


@asynccontextmanager
async def running(
    config: Config, options: Options, *, store: ConfigStore | None = None
) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:  # noqa: TID251 - the test is the client
    send, receive = trio.open_memory_channel[Running](1)
    cut: list[int] = []

    async def serving() -> None:
        cut.append(await serve(config, options, send.send_nowait, store=store))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serving)
        with trio.fail_after(20):
            gateway = await receive.receive()
            async with httpx.AsyncClient(base_url=gateway.url) as client:  # noqa: TID251 - the test is the client
                yield gateway, client
            signal.raise_signal(signal.SIGTERM)
    assert cut == [0]


async def test_it_answers_when_it_says_so_and_a_signal_ends_it(options: Options) -> None:
    async with running(DEMO, options) as (gateway, client):
        assert gateway.auth_mode == "off"
        assert (await client.get("/readyz")).status_code == 200
        listed = (await client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == [model.name for model in gateway.catalog().listed()]
        assert (await client.get(f"{gateway.provider_urls['demo']}/models")).status_code == 200
    assert b"server.start_no_auth" in b"".join(read_lines(options.data_dir))


async def test_the_first_admin_key_seals_the_gateway_until_it_is_read_and_deleted(options: Options) -> None:
    async with running(DEMO, evolve(options, auth=True)) as (_, client):
        path = options.data_dir / "admin.key.txt"
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        sealed = await client.get("/v1/models")
        assert (sealed.status_code, sealed.json()["error"]["code"]) == (503, "admin_key_unread")
        key = path.read_text().strip()
        path.unlink()
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/v1/models", headers={"x-api-key": key})).status_code == 200


async def test_prepared_keys_open_the_door(options: Options) -> None:
    texts: list[str] = []

    async def prepare(keyring: Keyring) -> None:
        texts.append((await keyring.create(KeyDraft(label="a", allowed_models=("demo-chat",)), CLI)).text)

    shown: list[str] = []
    async with running(DEMO, evolve(options, auth=True, prepare=prepare, show_key=shown.append)) as (_, client):
        assert len(shown) == 1, "there is no active admin, so one is made, and shown here"
        listed = await client.get("/v1/models", headers={"authorization": f"Bearer {texts[0]}"})
        assert [model["id"] for model in listed.json()["data"]] == ["demo-chat"]


async def test_a_changed_configuration_is_served_within_a_second(options: Options, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write(path, b'{"upstreams": {"a": {"kind": "demo"}}}')
    store = ConfigStore(path)
    async with running(store.current.config, options, store=store) as (_, client):
        write(path, b'{"upstreams": {"b": {"kind": "demo"}}, "models": {"new": {"upstream": "demo-chat"}}}')
        began = trio.current_time()
        while "new" not in (await client.get("/v1/models")).text:  # noqa: ASYNC110 - the world outside has no event
            await trio.sleep(0.05)
        assert trio.current_time() - began < 2
        write(path, b'{"upstreams": {"b": {"kind": "openai", "base_url": "https://h/v1", "api_key_env": "NO_KEY"}}}')
        os.kill(os.getpid(), signal.SIGHUP)
        while store.problem is None:  # noqa: ASYNC110 - as above
            await trio.sleep(0.05)
        assert "new" in (await client.get("/v1/models")).text
        asked = await client.post(
            "/v1/chat/completions", json={"model": "new", "messages": [{"role": "user", "content": "x"}]}
        )
        assert asked.json()["model"] == "new"
    assert b"config.reload" in b"".join(read_lines(options.data_dir))


async def failure(config: Config, options: Options) -> BaseException | None:
    """What ends a gateway that cannot start, taken out of its nursery's group."""
    try:
        await serve(config, options, lambda running: None)
    except Exception as error:
        return split_cancelled(error)[1]
    return None


async def test_a_taken_port_is_told_before_anything_runs(options: Options) -> None:
    async with listen("127.0.0.1", 0, write_stall_s=1) as taken:
        error = await failure(DEMO, evolve(options, port=taken.socket.getsockname()[1]))
    assert isinstance(error, BindError)
    assert "--port" in str(error)


async def test_a_missing_key_is_told_before_anything_runs(options: Options) -> None:
    upstream = UpstreamConfig(kind="openai", base_url="https://h/v1", api_key_env="CAPI_TEST_MISSING")
    error = await failure(Config(upstreams={"a": upstream}), options)
    assert isinstance(error, ConfigError)
    assert "CAPI_TEST_MISSING" in str(error)


class Ended(BaseException):
    """Where the process would have ended."""


async def test_a_second_signal_ends_the_process(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is still under way."""
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr("capi_trio.service.os._exit", end)
    serving: list[Running] = []

    def twice(running: Running) -> None:
        serving.append(running)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)

    with trio.fail_after(20), pytest.raises(BaseExceptionGroup):
        await serve(DEMO, options, twice)
    assert len(serving) == 1
    assert codes == [1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_hard_stop_waits_behind_the_grace_until_the_gateway_has_ended(
    options: Options, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """It would end the process, and is called off: a process that goes on without the gateway lives."""
    timers: list[RecordedTimer] = []

    class RecordedTimer(threading.Timer):
        def __init__(self, interval: float, function: Callable[[int], object], arguments: list[int]) -> None:
            super().__init__(interval, function, arguments)
            timers.append(self)

    monkeypatch.setattr("capi_trio.service.threading.Timer", RecordedTimer)
    with trio.fail_after(20):
        assert await serve(DEMO, options, lambda _: signal.raise_signal(number)) == 0
    (timer,) = timers
    assert timer.interval == DEMO.limits.grace_s + 5
    assert (timer.function, timer.args) == (os._exit, [1])
    assert timer.daemon
    assert timer.finished.is_set()


async def test_a_hangup_has_every_upstream_asked_for_its_models(options: Options) -> None:
    """Also without a file to look at."""
    with capture_logs() as logs:
        async with running(DEMO, options) as (_, client):
            asked = sum(line["event"] == "model_list" for line in logs)
            signal.raise_signal(signal.SIGHUP)
            while sum(line["event"] == "model_list" for line in logs) == asked:  # noqa: ASYNC110 - as above
                await trio.sleep(0.01)
            assert (await client.get("/readyz")).status_code == 200
