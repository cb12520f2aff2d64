"""A running server and its config.json: good edits are taken within a second, bad ones change nothing and are seen."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import msgspec
import pytest
import trio
from attrs import frozen

from capi_core.audit import Action
from capi_trio.storage.audit_log import read_lines
from tests.capi_trio.storage.disks import small_disk
from tests.e2e.conftest import faultless
from tests.e2e.peers import RawUpstream, UpstreamRequest, answer, chunked, connect, post, sse_head
from tests.support.process import Capi, command, gateway

RELOADED_S: Final = 1.0
__all__ = ["small_disk"]

NUMBERS: Final = itertools.count(10)
DEMO: Final = {"demo": {"kind": "demo"}}
FINISH: Final = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def config_of(*aliases: str, upstreams: Mapping[str, object] = DEMO, **members: object) -> bytes:
    models = {alias: {"upstream": "demo-chat"} for alias in aliases}
    return msgspec.json.encode({"upstreams": upstreams, "models": models, **members})


@frozen
class Edited:
    """A gateway that is running, and its configuration file."""

    capi: Capi
    path: Path
    client: httpx.Client

    def aliases(self) -> list[str]:
        listed = self.client.get("/v1/models").json()["data"]
        return [model["id"] for model in listed if not model["id"].startswith("demo-")]

    def expect(self, change: Callable[[], None], *wanted: str) -> None:
        """Makes a change after which these aliases, and one more reload in the log, must be there in a second."""
        reloads, began = self.reloads, time.monotonic()
        change()
        while (found := self.aliases()) != list(wanted):
            assert time.monotonic() - began < RELOADED_S, found
        assert time.monotonic() - began < RELOADED_S
        self.capi.wait_for(lambda: self.reloads == reloads + 1)

    @property
    def reloads(self) -> int:
        """How many the log has."""
        return len(self.capi.events("config_reloaded"))

    def audited_reloads(self) -> int:
        lines = [msgspec.json.decode(line, type=dict[str, object]) for line in read_lines(self.path.parent)]
        return sum(line["action"] == Action.CONFIG_RELOAD.value for line in lines)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edited]:
    data_dir = tmp_path_factory.mktemp("reload")
    with (
        faultless(gateway(data_dir, {"upstreams": DEMO})) as capi,
        httpx.Client(base_url=capi.url, timeout=10) as client,
    ):
        yield Edited(capi, data_dir / "config.json", client)


@pytest.fixture
def edited(server: Edited) -> Edited:
    """With one alias, `start`, in its configuration."""
    text = config_of("start", limits={"keep_alive_s": next(NUMBERS)})
    server.expect(lambda: by_rename(server.path, text), "start")
    return server


def by_rename(path: Path, text: bytes) -> None:
    """As vi and most editors do: a new file takes the old one's name; here the old one is kept, too."""
    backup, new = path.with_name("config.json~"), path.with_name(".config.json.swp")
    new.write_bytes(text)
    new.chmod(0o600)
    if path.exists():
        path.replace(backup)
    new.rename(path)


def by_replacing(path: Path, text: bytes) -> None:
    new = path.with_name("config.json.new")
    new.write_bytes(text)
    new.chmod(0o600)
    new.replace(path)


def in_place(path: Path, text: bytes) -> None:
    path.write_bytes(text)


@pytest.mark.parametrize("edit", [by_rename, by_replacing, in_place])
def test_an_edit_is_taken_within_a_second(edited: Edited, edit: Callable[[Path, bytes], None]) -> None:
    for aliases in (("start", "second"), ("second",), ()):
        edited.expect(partial(edit, edited.path, config_of(*aliases)), *aliases)
    wait_until(lambda: edited.audited_reloads() == edited.reloads)


def test_a_hangup_looks_at_once_even_if_nothing_seems_to_have_changed(edited: Edited) -> None:
    def change() -> None:
        status = edited.path.stat()
        edited.path.write_bytes(edited.path.read_bytes().replace(b"start", b"other"))
        assert edited.path.stat().st_size == status.st_size
        os.utime(edited.path, ns=(status.st_atime_ns, status.st_mtime_ns))
        edited.capi.send_signal(signal.SIGHUP)

    edited.expect(change, "other")


BROKEN: Final = {
    "torn": (b'{"upstreams": {"demo": {"ki', "$"),
    "empty": (b"", "$"),
    "a wrong type": (config_of("lost", limits={"grace_s": "long"}), "$.limits.grace_s"),
    "a wrong type further down": (
        config_of("lost", upstreams={"demo": {"kind": "demo", "models": ["a", 7]}}),
        "$.upstreams.demo.models[1]",
    ),
    "a secret that is not there": (
        config_of(
            "lost",
            upstreams={"real": {"kind": "openai", "base_url": "https://h.test/v1", "api_key_env": "NO_SUCH_VARIABLE"}},
        ),
        "$.upstreams.real.api_key_env",
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_edit_changes_nothing_and_is_logged(edited: Edited, broken: tuple[bytes, str]) -> None:
    text, path = broken
    reloads, kept = edited.reloads, len(edited.capi.events("config_kept"))
    by_rename(edited.path, text)
    edited.capi.wait_for(lambda: len(edited.capi.events("config_kept")) > kept)
    problems = edited.capi.events("config_kept")[-1]["problems"]
    assert isinstance(problems, list)
    assert any(str(problem).startswith(f"{path}: ") for problem in problems), problems
    assert edited.aliases() == ["start"]
    assert edited.client.get("/readyz").status_code == 200
    assert edited.reloads == reloads
    edited.expect(lambda: by_rename(edited.path, config_of("start", "good")), "start", "good")
    wait_until(lambda: edited.audited_reloads() == edited.reloads == reloads + 1)


def test_a_change_that_waits_for_a_restart_is_taken_and_warned_of(edited: Edited) -> None:
    """Whether callers need a key is settled at the start: an edit alone never opens a gateway, nor closes one."""
    warned = len(edited.capi.events("config_waits_for_restart"))
    other = config_of("start", "other", features={"auth": False})
    edited.expect(lambda: by_rename(edited.path, other), "start", "other")
    edited.capi.wait_for(lambda: len(edited.capi.events("config_waits_for_restart")) > warned)
    assert "features.auth" in str(edited.capi.events("config_waits_for_restart")[-1]["members"])
    assert edited.client.get("/v1/models").status_code == 200


def test_an_edit_does_not_turn_auth_off(tmp_path: Path) -> None:
    with faultless(gateway(tmp_path / "capi", {"upstreams": DEMO}, auth=True)) as capi:
        by_rename(tmp_path / "capi" / "config.json", config_of(features={"auth": False}))
        assert capi.log_line("config_waits_for_restart")["members"] == ["features.auth"]
        assert httpx.get(f"{capi.url}/v1/models").status_code == 401


def test_a_file_that_is_gone_changes_nothing(edited: Edited) -> None:
    kept = len(edited.capi.events("config_kept"))
    edited.path.unlink()
    edited.capi.wait_for(lambda: len(edited.capi.events("config_kept")) > kept)
    assert edited.aliases() == ["start"]


def test_an_edit_that_cannot_be_audited_is_not_taken(small_disk: Path) -> None:
    """A disk that is full does not end the gateway, either. A hangup takes the edit when there is room again."""
    data_dir, filler = small_disk / "capi", small_disk / "filler"
    with (
        faultless(gateway(data_dir, {"upstreams": DEMO})) as capi,
        httpx.Client(base_url=capi.url, timeout=10) as client,
    ):
        edited = Edited(capi, data_dir / "config.json", client)
        disk = os.statvfs(small_disk)
        filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize - 100_000))
        in_place(edited.path, config_of("late"))
        problems = str(capi.log_line("config_kept")["problems"])
        assert "cannot be audited" in problems
        assert edited.aliases() == []
        filler.unlink()
        edited.expect(lambda: capi.send_signal(signal.SIGHUP), "late")


def test_an_edit_by_command_is_taken_and_audited_with_both_texts(edited: Edited) -> None:
    """`capi config edit`, with sed in the place of an editor. One that would break the file is refused."""
    options = ("config", "edit", "--data-dir", str(edited.path.parent))
    before = edited.path.read_bytes()
    broken = command(*options, env={"VISUAL": "sed -i s/start/+/"})
    assert broken.returncode == 2
    assert edited.path.read_bytes() == before
    done = command(*options, env={"VISUAL": "sed -i s/start/sedded/"})
    assert done.returncode == 0, done.stderr
    wait_until(lambda: edited.aliases() == ["sedded"], RELOADED_S)
    assert edited.path.stat().st_mode & 0o777 == 0o600
    lines = [msgspec.json.decode(line, type=dict[str, object]) for line in read_lines(edited.path.parent)]
    (line,) = [line for line in lines if line["action"] == Action.CONFIG_EDIT.value]
    assert "start" in str(line["before"])
    assert "sedded" in str(line["after"])


async def test_a_running_stream_keeps_what_it_started_with(tmp_path: Path) -> None:
    """Its alias and its upstream are gone for the next request; the stream goes on to its end."""
    reloaded = trio.Event()

    async def script(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        if b"stream" not in received.body:
            await stream.send_all(answer(b'{"choices":[]}'))
            return
        await stream.send_all(sse_head() + chunked(text(1), end=False))
        await reloaded.wait()
        await stream.send_all(chunked(text(2), FINISH))

    async with RawUpstream.serving(script) as upstream:
        raw = {"kind": "openai", "base_url": upstream.base_url, "models": ["real"]}
        models = {"old": {"upstream": "real"}}
        path = tmp_path / "capi" / "config.json"
        with faultless(gateway(path.parent, {"upstreams": {"raw": raw}, "models": models})) as capi:
            async with connect(capi.port) as streaming, connect(capi.port) as other:
                await other.send(post(b'{"model":"old","messages":[]}'))
                assert (await other.response()).status == 200
                await streaming.send(post(b'{"model":"old","messages":[],"stream":true}'))
                await streaming.wait_readable()
                by_rename(path, msgspec.json.encode({"upstreams": DEMO}))
                await trio.to_thread.run_sync(capi.log_line, "config_reloaded")
                await other.send(post(b'{"model":"old","messages":[]}'))
                assert (await other.response()).status == 404
                reloaded.set()
                response = await streaming.response()
    assert response.complete
    assert response.body.endswith(b"data: [DONE]\n\n")
    assert b"part 1" in response.body
    assert b"part 2" in response.body
    assert b'"model":"old"' in response.body
    assert len(upstream.requests) == 2


def text(number: int) -> bytes:
    return b'data: {"model":"real","choices":[{"index":0,"delta":{"content":"part %d"}}]}\n\n' % number


def wait_until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
