"""Log lines: what they look like, that they never hold anybody up, and what never gets into one."""

import io
import threading
import time
from collections.abc import Iterator
from typing import Final

import msgspec
import pytest
import structlog
from typing_extensions import override

from capi_trio.logs import LineWriter, configure, describe, get_logger

SECRET: Final = "sk-in-the-text-of-an-exception"
LONG_S: Final = 10.0


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    yield
    structlog.reset_defaults()


class Stuck(io.StringIO):
    """A stream whose reader has stopped reading, until `release`."""

    def __init__(self) -> None:
        super().__init__()
        self.writing = threading.Event()
        self.release = threading.Event()
        self.flushed = 0

    @override
    def write(self, text: str) -> int:
        self.writing.set()
        assert self.release.wait(LONG_S)
        return super().write(text)

    @override
    def flush(self) -> None:
        self.flushed += 1


class Gone(io.StringIO):
    """A stream whose reader has gone: found out when something is written, or when it is flushed."""

    def __init__(self, *, at_flush: bool) -> None:
        super().__init__()
        self.tried = threading.Event()
        self._at_flush = at_flush

    @override
    def write(self, text: str) -> int:
        if not self._at_flush:
            self.tried.set()
            raise BrokenPipeError
        return len(text)

    @override
    def flush(self) -> None:
        self.tried.set()
        raise BrokenPipeError


class Terminal(io.StringIO):
    @override
    def isatty(self) -> bool:
        return True


class _Odd:
    """Nothing that JSON knows."""

    @override
    def __repr__(self) -> str:
        return "{1}"


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [msgspec.json.decode(line, type=dict[str, object]) for line in stream.getvalue().splitlines()]


# -- what a line looks like ----------------------------------------------------------------------------------------


def test_a_pipe_gets_json_lines() -> None:
    stream = io.StringIO()
    writer = configure(stream=stream)
    get_logger("relay").info("exchange", model="a\nb", count=3, text=b"bytes", nothing=None, odd=_Odd())
    get_logger("app").warning("odd")
    get_logger("app").debug("not told")
    writer.close()
    first, second = lines(stream)
    assert first.pop("timestamp")
    assert first == {
        "part": "relay",
        "event": "exchange",
        "level": "info",
        "model": "a\nb",
        "count": 3,
        "text": "bytes",
        "nothing": None,
        "odd": "{1}",
    }
    assert (second["event"], second["level"], second["part"]) == ("odd", "warning", "app")


def test_verbose_tells_more() -> None:
    stream = io.StringIO()
    writer = configure(verbose=True, stream=stream)
    get_logger("app").debug("told")
    writer.close()
    assert [line["event"] for line in lines(stream)] == ["told"]


def test_standard_error_is_where_lines_go(capsys: pytest.CaptureFixture[str]) -> None:
    writer = configure()
    get_logger("app").info("here")
    writer.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert msgspec.json.decode(line, type=dict[str, object])["event"] == "here"


def test_a_terminal_gets_text_that_cannot_command_it() -> None:
    """The model's name is the client's choice; the terminal is the operator's."""
    stream = Terminal()
    writer = configure(stream=stream)
    get_logger("app").info("exchange", model="\x1b]0;owned\x07\x1b[2J\u202e")
    writer.close()
    text = stream.getvalue()
    assert "exchange" in text
    assert "owned" in text
    for command in ("\x1b]0", "\x07", "\x1b[2J", "\u202e"):
        assert command not in text


# -- a reader that is slow, stuck or gone --------------------------------------------------------------------------


def test_a_stuck_reader_holds_up_nobody_and_what_it_lost_is_counted() -> None:
    stream = Stuck()
    writer = LineWriter(stream, max_lines=3)
    writer.msg("first")
    assert stream.writing.wait(LONG_S)
    began = time.monotonic()
    for number in range(8):  # three fit
        writer.info(f"line {number}")
    assert time.monotonic() - began < 1
    assert writer.dropped == 5
    stream.release.set()
    writer.close(LONG_S)
    written = stream.getvalue().splitlines()
    assert [line for line in written if not line.startswith("{")] == ["first", "line 0", "line 1", "line 2"]
    (note,) = (msgspec.json.decode(line, type=dict[str, object]) for line in written if line.startswith("{"))
    assert note == {"level": "warning", "event": "log_lines_dropped", "count": 5}


def test_closing_writes_what_is_queued() -> None:
    stream = Stuck()
    writer = LineWriter(stream)
    for number in range(100):
        writer.msg(str(number))
    stream.release.set()
    writer.close(LONG_S)
    assert stream.getvalue().splitlines() == [str(number) for number in range(100)]
    assert stream.flushed >= 1
    writer.close(LONG_S)  # again, to no effect


@pytest.mark.parametrize("max_lines", [1, 10])
def test_closing_does_not_wait_for_a_stuck_reader(max_lines: int) -> None:
    """Whether or not there is room in the queue for the word that it is over."""
    stream = Stuck()
    writer = LineWriter(stream, max_lines=max_lines)
    writer.msg("first")
    assert stream.writing.wait(LONG_S)
    writer.msg("second")
    began = time.monotonic()
    writer.close(0.05)
    assert time.monotonic() - began < 1
    stream.release.set()


@pytest.mark.parametrize("at_flush", [False, True])
def test_a_reader_that_has_gone_is_no_fault(at_flush: bool) -> None:
    """There is nobody left to tell. (A failing thread would fail this test.)"""
    stream = Gone(at_flush=at_flush)
    writer = LineWriter(stream)
    writer.msg("first")
    assert stream.tried.wait(LONG_S)
    writer.msg("second")
    writer.close(LONG_S)
    writer.close(LONG_S)


# -- exceptions ----------------------------------------------------------------------------------------------------


def fail(error: Exception) -> None:
    secret = SECRET
    assert secret
    raise error


def raised(error: Exception) -> Exception:
    try:
        fail(error)
    except Exception as caught:
        return caught
    raise AssertionError


def test_an_exception_is_described_by_its_kind_and_place_only() -> None:
    told = describe(raised(ValueError(SECRET)))
    assert told["errors"] == ["ValueError"]
    (where,) = told["where"]
    assert where.split(" > ")[-1].startswith("test_logs.py:")
    assert where.endswith(" fail")
    assert SECRET not in str(told)


def test_a_group_is_described_leaf_by_leaf() -> None:
    group = ExceptionGroup(SECRET, [raised(KeyError(SECRET)), ExceptionGroup("", [raised(OSError(SECRET))])])
    told = describe(group)
    assert told["errors"] == ["KeyError", "OSError"]
    assert len(told["where"]) == 2
    assert SECRET not in str(told)


def test_an_exception_that_was_never_raised_has_no_place() -> None:
    assert describe(ValueError()) == {"errors": ["ValueError"], "where": [""]}


def test_a_deep_place_is_told_by_its_last_frames() -> None:
    def deep(levels: int) -> None:
        if not levels:
            raise ValueError("deep")
        deep(levels - 1)

    with pytest.raises(ValueError, match="deep") as raised:
        deep(20)
    assert describe(raised.value)["where"][0].count(" > ") == 2
