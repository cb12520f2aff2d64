"""A terminal to ask on: over a real pseudo-terminal, without ever holding the event loop up."""

from __future__ import annotations

import fcntl
import os
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from attrs import define

from capi_trio import terminal
from capi_trio.terminal import NoTerminalError, Tty, check_terminal, open_terminal


@define
class Pty:
    """A pseudo-terminal: the person's end, and the program's."""

    person: int
    program: int

    def type(self, data: bytes) -> None:
        os.write(self.person, data)

    def shown(self) -> bytes:
        return os.read(self.person, 4096)

    def hang_up(self) -> None:
        os.close(self.person)
        self.person = -1


@pytest.fixture
def pty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pty]:
    """Stands in for standard input and output, which pytest has for itself."""
    made = Pty(*os.openpty())
    attributes = termios.tcgetattr(made.program)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(made.program, termios.TCSANOW, attributes)
    monkeypatch.setattr(terminal, "_STDIN", made.program)
    monkeypatch.setattr(terminal, "_STDOUT", made.program)
    yield made
    for descriptor in (made.person, made.program):
        if descriptor >= 0:
            os.close(descriptor)


async def next_line(tty: Tty) -> str | None:
    with trio.fail_after(5):
        return await tty.read_line()


async def test_lines_come_whole_and_one_by_one(pty: Pty) -> None:
    async with open_terminal() as tty:
        pty.type(b"y\nno ")
        assert await next_line(tty) == "y"
        pty.type("ü\nall\n".encode())
        assert [await next_line(tty), await next_line(tty)] == ["no ü", "all"]


async def test_waiting_for_a_line_is_cancelled_and_loses_nothing(pty: Pty) -> None:
    async with open_terminal() as tty:
        with trio.move_on_after(0.01) as scope:
            await tty.read_line()
        assert scope.cancelled_caught
        pty.type(b"y\n")
        assert await next_line(tty) == "y"


async def test_what_is_written_is_shown(pty: Pty) -> None:
    async with open_terminal() as tty:
        await tty.write("allow? ü \udc80\n")
    assert pty.shown().decode() == "allow? ü ?\r\n"


async def test_ctrl_d_is_the_end(pty: Pty) -> None:
    async with open_terminal() as tty:
        pty.type(b"\x04")
        assert await next_line(tty) is None


async def test_a_terminal_that_is_closed_is_the_end(pty: Pty) -> None:
    async with open_terminal() as tty:
        pty.hang_up()
        await tty.write("is anybody there?")
        tty.discard_input()
        assert await next_line(tty) is None


async def test_a_terminal_that_cannot_be_read_any_more_is_the_end(tmp_path: Path) -> None:
    """The system has errors of its own for that; a directory has one, too."""
    tty = Tty(os.open(tmp_path, os.O_RDONLY))
    assert await next_line(tty) is None
    await tty.aclose()


async def test_input_is_forgotten_read_ahead_or_not(pty: Pty) -> None:
    async with open_terminal() as tty:
        pty.type(b"one\n")
        pty.type(b"two\n")
        assert await next_line(tty) == "one"
        pty.type(b"three\n")
        tty.discard_input()
        pty.type(b"four\n")
        assert await next_line(tty) == "four"


async def test_a_line_without_an_end_is_bounded(pty: Pty) -> None:
    attributes = termios.tcgetattr(pty.program)
    attributes[3] &= ~termios.ICANON
    termios.tcsetattr(pty.program, termios.TCSANOW, attributes)
    async with open_terminal() as tty:
        pty.type(b"x" * 2000)
        with trio.move_on_after(0.01):
            await tty.read_line()
        pty.type(b"x" * 2000)
        with trio.move_on_after(0.01):
            await tty.read_line()
        pty.type(b"x" * 1000)
        line = await next_line(tty)
    assert line is not None
    assert len(line) >= 4096


async def test_the_standard_streams_stay_as_the_shell_has_them(pty: Pty) -> None:
    """Non-blocking ones would break what else writes to that terminal."""
    async with open_terminal() as tty:
        await tty.write("x")
        assert not fcntl.fcntl(pty.program, fcntl.F_GETFL) & os.O_NONBLOCK


def test_a_terminal_is_good_enough(pty: Pty) -> None:
    check_terminal()


@pytest.mark.parametrize("stream", ["_STDIN", "_STDOUT"])
def test_a_stream_that_is_no_terminal_is_not(pty: Pty, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    try:
        monkeypatch.setattr(terminal, stream, reader)
        with pytest.raises(NoTerminalError, match="not both a terminal"):
            check_terminal()
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("foreground", [True, False])
def test_a_job_in_the_background_would_be_stopped_when_it_asks(
    pty: Pty, foreground: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda descriptor: os.getpgrp() if foreground else os.getpgrp() + 1)
    if foreground:
        check_terminal()
    else:
        with pytest.raises(NoTerminalError, match="in the background"):
            check_terminal()


async def test_a_device_of_somebody_else_is_opened_by_its_other_name_or_not_at_all(
    pty: Pty, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = os.ttyname(pty.program)
    monkeypatch.setattr(os, "ttyname", lambda descriptor: "/dev/there-is-no-such-terminal")
    monkeypatch.setattr(terminal, "_CONTROLLING", own)
    check_terminal()
    monkeypatch.setattr(terminal, "_CONTROLLING", "/dev/nor-this-one")
    with pytest.raises(NoTerminalError, match="cannot be opened"):
        check_terminal()
    with pytest.raises(NoTerminalError, match="cannot be opened"):
        async with open_terminal():
            pass
