"""Structured logs that never hold up a request.

Lines go to standard error: JSON when it is a pipe or a file, readable text when it is a terminal. A reader that stops
reading would block whoever writes to it, so a thread of its own writes and the event loop only queues; when the queue
is full, lines are dropped and the next line that fits says how many.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from typing import TYPE_CHECKING, Final, TextIO

import msgspec
import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

__all__ = ["LineWriter", "configure", "describe", "get_logger"]

_QUEUED_LINES: Final = 10_000
_GATHER_S: Final = 0.05
_LEVELS: Final = {False: 20, True: 10}  # info, debug


class LineWriter:
    """Writes lines to a stream from a thread. `dropped` counts the lines that did not fit the queue."""

    def __init__(self, stream: TextIO, *, max_lines: int = _QUEUED_LINES) -> None:
        self.dropped = 0
        self._reported = 0
        self._stream = stream
        self._max_lines = max_lines
        self._lines: deque[str] = deque()
        self._waiting = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capi-log", daemon=True)
        self._thread.start()

    def msg(self, message: str) -> None:
        """Queues one line; never blocks. Called by structlog under any of the names below."""
        if len(self._lines) >= self._max_lines:
            self.dropped += 1
            return
        self._lines.append(message)
        if not self._waiting.is_set():
            self._waiting.set()

    log = debug = info = warn = warning = error = critical = exception = fatal = msg

    def close(self, timeout_s: float = 2.0) -> None:
        """Writes what is queued, for at most `timeout_s` seconds."""
        self._closing.set()
        self._waiting.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not (self._closing.is_set() and not self._lines):
            self._waiting.wait()
            # A wake-up per line would cost the event loop more than the lines do: each takes the interpreter from it.
            self._closing.wait(_GATHER_S)
            self._waiting.clear()
            try:
                self._write_all()
            except (OSError, ValueError):  # the reader is gone, or the stream is closed: there is nobody to tell
                return

    def _write_all(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        dropped, self._reported = self.dropped - self._reported, self.dropped
        if dropped:
            lines.append(f'{{"level": "warning", "event": "log_lines_dropped", "count": {dropped}}}')
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


def configure(*, verbose: bool = False, stream: TextIO | None = None) -> LineWriter:
    """Sets up logging for the process; returns the writer, to be closed at the end."""
    target = stream if stream is not None else sys.stderr
    writer = LineWriter(target)
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(pad_event_to=24, repr_native_str=True)  # a client's text must not command it
        if target.isatty()
        else structlog.processors.JSONRenderer(serializer=_to_json)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.UnicodeDecoder(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[verbose]),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    return writer


def _to_json(line: EventDict, **_: object) -> str:
    return msgspec.json.encode(line, enc_hook=repr).decode()


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines say which part of capi they come from."""
    logger: FilteringBoundLogger = structlog.get_logger(part=name)
    return logger


def describe(error: BaseException) -> dict[str, list[str]]:
    """What can be logged of an unexpected exception: its kinds and where it was raised.

    Never its text, nor any local: either may hold a prompt or a key.
    """
    leaves = _leaves(error)
    return {"errors": [type(leaf).__name__ for leaf in leaves], "where": [_where(leaf) for leaf in leaves]}


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " > ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames)
