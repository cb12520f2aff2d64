"""`capi start --manual` on a real pseudo-terminal, as a shell would start it; and the pace, over a real socket."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import trio

from tests.e2e.conftest import faultless
from tests.e2e.peers import Response, assert_refused, connect, post
from tests.support.process import FAULT_EVENTS, Capi, gateway

ROOT: Final = Path(__file__).parents[2]
QUESTION: Final = "allow? chat, model demo-chat, key auth is off, "
# What a login shell does: a session of its own, with the terminal as the one that Ctrl-C comes from.
LAUNCH: Final = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.executable, [sys.executable, '-m', 'capi_trio.cli', *sys.argv[1:]])"
)


class Console:
    """A gateway on a terminal, and whoever sits there. `port`: where it listens."""

    def __init__(self, process: subprocess.Popen[bytes], person: int, log: Path) -> None:
        self.process = process
        self.port = 0
        self._keyboard = trio.lowlevel.FdStream(person)
        self._log = log
        self._screen = ""

    @property
    def logged(self) -> list[dict[str, object]]:
        return [msgspec.json.decode(line) for line in self._log.read_bytes().splitlines() if line.startswith(b"{")]

    async def type(self, text: str) -> None:
        await self._keyboard.send_all(text.encode())

    async def shows(self, text: str) -> str:
        """Waits until this is on the screen, below what was waited for before; returns what is between the two."""
        with trio.fail_after(20):
            while text not in self._screen:
                self._screen += (await self._keyboard.receive_some()).decode()
        between, _, self._screen = self._screen.partition(text)
        return between

    async def end(self) -> int:
        """The exit code."""
        with trio.fail_after(20):
            return await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)

    async def aclose(self) -> None:
        await self._keyboard.aclose()


@asynccontextmanager
async def console(tmp_path: Path, grace_s: float = 5.0) -> AsyncIterator[Console]:
    data_dir = tmp_path / "capi"
    data_dir.mkdir(mode=0o700)
    config = {"upstreams": {"demo": {"kind": "demo"}}, "limits": {"grace_s": grace_s}}
    (data_dir / "config.json").write_bytes(msgspec.json.encode(config))
    (data_dir / "config.json").chmod(0o600)
    person, program = os.openpty()
    attributes = termios.tcgetattr(program)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(program, termios.TCSANOW, attributes)
    arguments = ["start", "--port", "0", "--data-dir", str(data_dir), "--no-auth", "--manual"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603, ASYNC220 - the program is our own; starting it takes no time
            [sys.executable, "-c", LAUNCH, *arguments], cwd=ROOT, stdin=program, stdout=program, stderr=log
        )
    os.close(program)
    desk = Console(process, person, tmp_path / "log")
    try:
        await desk.shows("listening on http://127.0.0.1:")
        desk.port = int(await desk.shows("  (auth: off; stop with Ctrl-C)"))
        yield desk
        assert [line for line in desk.logged if line["event"] in FAULT_EVENTS] == []
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        await desk.aclose()


def ask(text: str = "hi") -> bytes:
    return post(msgspec.json.encode({"model": "demo-chat", "messages": [{"role": "user", "content": text}]}))


async def answer(port: int, keep: Callable[[Response], None]) -> None:
    with trio.fail_after(20):
        async with connect(port) as client:
            await client.send(ask())
            keep(await client.response())


async def test_the_operator_says_yes_and_no(tmp_path: Path) -> None:
    heard: list[Response] = []
    async with console(tmp_path) as desk:
        for line in ("y", "n", "perhaps\n"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, desk.port, heard.append)
                await desk.shows(QUESTION)
                await desk.shows("from now on? ")
                await desk.type(f"{line}\n")
        await desk.type("\x03")
        assert await desk.end() == 0
    assert heard[0].status == 200
    for refused in heard[1:]:
        assert_refused(refused, 403, "request_denied")


async def test_what_is_shown_is_never_the_prompt(tmp_path: Path) -> None:
    request = ask("a very secret prompt")
    size = len(request.partition(b"\r\n\r\n")[2])
    async with console(tmp_path) as desk, connect(desk.port) as client:
        await client.send(request)
        await desk.shows(f"{QUESTION}{size} bytes")
        await desk.type("y\n")
        assert (await client.response()).status == 200
    assert b"secret" not in (tmp_path / "log").read_bytes()


async def test_a_client_that_leaves_withdraws_its_question(tmp_path: Path) -> None:
    async with console(tmp_path) as desk:
        async with connect(desk.port) as client:
            await client.send(ask())
            await desk.shows(QUESTION)
        await desk.shows("withdrawn")
        async with connect(desk.port) as client:
            await client.send(ask())
            await desk.shows(QUESTION)
            await desk.type("a\n")
            assert (await client.response()).status == 200
        async with connect(desk.port) as client:
            await client.send(ask())
            assert (await client.response()).status == 200, "all from now on"


async def test_ctrl_c_ends_it_with_a_question_on_the_screen(tmp_path: Path) -> None:
    async with console(tmp_path, grace_s=0.2) as desk, connect(desk.port) as client:
        await client.send(ask())
        await desk.shows(QUESTION)
        await desk.type("\x03")
        assert_refused(await client.response(), 503, "shutting_down")
        assert await desk.end() == 1


async def test_ctrl_d_refuses_who_waits_and_who_comes(tmp_path: Path) -> None:
    async with console(tmp_path) as desk:
        async with connect(desk.port) as client:
            await client.send(ask())
            await desk.shows("from now on? ")
            await desk.type("\x04")
            assert_refused(await client.response(), 403, "request_denied")
        async with connect(desk.port) as client:
            await client.send(ask())
            assert_refused(await client.response(), 403, "request_denied")
        await desk.type("\x03")
        assert await desk.end() == 0
    (line,) = (line for line in desk.logged if line["event"] == "approval_ended")
    assert "refused" in str(line["next"])


def test_without_a_terminal_it_refuses_instead_of_hanging(tmp_path: Path) -> None:
    capi = Capi("start", "--port", "0", "--data-dir", str(tmp_path / "capi"), "--manual")
    try:
        assert capi.wait() == 2
    finally:
        capi.close()
    assert "terminal" in capi.text[0]
    assert not (tmp_path / "capi").exists()


async def test_a_pace_holds_over_all_connections(tmp_path: Path) -> None:
    heard: list[tuple[float, Response]] = []

    def keep(response: Response) -> None:
        heard.append((trio.current_time(), response))

    config = {"upstreams": {"demo": {"kind": "demo"}}}
    with faultless(gateway(tmp_path / "capi", config, "--rate-limit", "1", "--wait")) as capi:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(answer, capi.port, keep)
    assert [response.status for _, response in heard] == [200, 200, 200]
    assert heard[2][0] - heard[0][0] >= 1.9
