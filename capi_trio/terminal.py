"""The terminal that the process was started on, for questions to whoever sits there.

It is opened anew, as a file of its own: only that one is made non-blocking, and not the standard streams, which the
process shares with the shell. So reading never holds the event loop up, and is cancelled like any other wait.
"""

from __future__ import annotations

import os
import termios
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["NoTerminalError", "Terminal", "Tty", "check_terminal", "open_terminal", "printable"]

_STDIN: Final = 0
_STDOUT: Final = 1
_CONTROLLING: Final = "/dev/tty"
"""The name that every process may open its own terminal by, whoever owns the device. Not everywhere it can be polled,
so it comes second."""
_PIECE: Final = 1024
_LONGEST_LINE: Final = 4096
"""What a terminal's line discipline passes on at most; a longer one comes from something that is no keyboard."""


class NoTerminalError(Exception):
    """There is no terminal to ask on. The message says why, without a capital letter or a full stop."""


class Terminal(Protocol):
    """Where questions are asked."""

    async def write(self, text: str) -> None:
        """Shows the text. When nobody is there any more, that is told by `read_line`."""

    async def read_line(self) -> str | None:
        """The next line, without its end; `None`: there will be no more. Nothing is lost when it is cancelled."""

    def discard_input(self) -> None:
        """Forgets what was typed until now and not read."""


class Tty:
    """A terminal device, by a descriptor of its own. Closed by the block that opened it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._stream = trio.lowlevel.FdStream(descriptor)
        self._typed = b""

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def write(self, text: str) -> None:
        try:
            await self._stream.send_all(text.encode(errors="replace"))
        except trio.BrokenResourceError:
            await trio.lowlevel.checkpoint()

    async def read_line(self) -> str | None:
        while b"\n" not in self._typed and len(self._typed) < _LONGEST_LINE:
            try:
                piece = await self._stream.receive_some(_PIECE)
            except trio.BrokenResourceError:  # the terminal was closed
                return None
            if not piece:  # Ctrl-D
                return None
            self._typed += piece
        line, _, self._typed = self._typed.partition(b"\n")
        return line.decode(errors="replace")

    def discard_input(self) -> None:
        self._typed = b""
        try:
            termios.tcflush(self._descriptor, termios.TCIFLUSH)
        except termios.error:
            return  # the terminal was closed: reading will tell


def printable(text: str) -> str:
    """The text with a `?` for each character that would command a terminal instead of being seen."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def check_terminal() -> None:
    """Raises `NoTerminalError` when nobody could be asked: no terminal, or one that other processes have just now."""
    if not (os.isatty(_STDIN) and os.isatty(_STDOUT)):
        raise NoTerminalError("standard input and output are not both a terminal")
    try:
        foreground = os.tcgetpgrp(_STDIN)
    except OSError:
        foreground = os.getpgrp()  # a terminal that does no job control
    if foreground != os.getpgrp():
        raise NoTerminalError("this process runs in the background of its terminal")
    os.close(_opened())


@asynccontextmanager
async def open_terminal() -> AsyncIterator[Tty]:
    """The terminal of standard input. Raises `NoTerminalError`."""
    terminal = Tty(_opened())
    try:
        yield terminal
    finally:
        await terminal.aclose()


def _opened() -> int:
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(os.ttyname(_STDIN), flags)
    except OSError as error:  # as after `su`: the device belongs to somebody else
        try:
            return os.open(_CONTROLLING, flags)
        except OSError:
            raise NoTerminalError(f"the terminal of standard input cannot be opened: {error.strerror}") from error
