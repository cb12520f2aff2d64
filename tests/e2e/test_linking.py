"""`capi auth` as an operator runs it: a process, a GitHub on a socket, and Ctrl-C."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import trio

from capi_trio.demo.github import CLIENT_ID, Call, Decision, DemoGitHub
from capi_trio.identity_operations import IdentityStatus
from capi_trio.token_files import TOKENS_NAME, TokenFiles
from tests.support.github_server import serving
from tests.support.process import Capi, command, gateway

DEMO = {"upstreams": {"demo": {"kind": "demo"}}}


def quick_github() -> DemoGitHub:
    """One with the shortest pauses that the protocol's client makes."""
    github = DemoGitHub()
    github.interval_s = 1
    return github


def linking(data_dir: Path, url: str, *arguments: str) -> tuple[str, ...]:
    return ("auth", "--host", url, "--client-id", CLIENT_ID, "--data-dir", str(data_dir), "--json", *arguments)


def identities(data_dir: Path) -> list[IdentityStatus]:
    done = command("identities", "list", "--data-dir", str(data_dir), "--json")
    return msgspec.json.decode(done.stdout, type=list[IdentityStatus])


async def in_thread(work: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(work)


async def test_an_identity_is_linked_beside_a_running_gateway(tmp_path: Path) -> None:
    data_dir, github = tmp_path / "capi", quick_github()
    async with serving(github) as url:

        def work() -> None:
            with gateway(data_dir, DEMO):
                done = command(*linking(data_dir, url, "--identity", "seat", "--owner", "alice"))
                assert (done.returncode, done.stderr) == (0, "")
                code, linked = map(msgspec.json.decode, done.stdout.splitlines())
                assert code["verification_uri"] == f"{url}/login/device"
                assert (linked["login"], linked["seat"]) == ("demo-octocat", "ok")
                (identity,) = identities(data_dir)
                assert (identity.name, identity.owner, identity.host) == ("seat", "alice", url)
                token = TokenFiles(data_dir / TOKENS_NAME).read("seat").reveal()
                assert token not in done.stdout

        await in_thread(work)
    assert github.early_polls == 0
    assert github.calls[Call.ACCESS_TOKEN] == 2


async def test_ctrl_c_ends_it_at_once_and_nothing_is_linked(tmp_path: Path) -> None:
    data_dir, github = tmp_path / "capi", quick_github()
    github.decision = Decision.IGNORE
    async with serving(github) as url:

        def work() -> None:
            capi = Capi(*linking(data_dir, url))
            try:
                capi.wait_for(partial(bool, capi.output), 20.0)
                capi.send_signal(signal.SIGINT)
                assert capi.wait(5.0) == 1
            finally:
                capi.close()
            assert [line for line in capi.text if line] == ["Aborted!"]
            assert identities(data_dir) == []

        await in_thread(work)
