"""A capi process as a user starts it, and what /proc tells about one.

    with demo(tmp_path) as capi:            # `capi demo`; capi.url answers
        ...
        capi.terminate()
        assert capi.wait() == 0

`demo` and `gateway` let everybody in unless told `auth=True`: then `capi.admin_key` is a key. `command` runs one
command to its end, `issue_key` has a running server make a client key.

Threads of their own read standard output and standard error all the time, so that no pipe ever fills.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import msgspec
import trio
from attrs import field, frozen

from capi_trio.bootstrap import ADMIN_KEY_NAME
from capi_trio.control import ask
from capi_trio.operations import CreateKey, KeyAnswer

__all__ = [
    "FAULT_EVENTS",
    "Capi",
    "IssuedKey",
    "LogLine",
    "TcpSocket",
    "command",
    "demo",
    "eventually",
    "gateway",
    "issue_key",
    "open_descriptors",
    "peak_bytes",
    "resident_bytes",
    "sockets_of",
]

LogLine = Mapping[str, object]

START_S: Final = 20.0
_COMMAND_S: Final = 60.0
_LOOK_S: Final = 0.1
FAULT_EVENTS: Final = frozenset({"app_failed", "connection_failed", "exchange_failed", "failed"})
"""What capi logs when an exception got as far as its last guard."""

_ROOT: Final = Path(__file__).parents[2]
_TCP_STATES: Final = {"01": "established", "06": "time_wait", "08": "close_wait", "0A": "listen"}


class _Ready(msgspec.Struct):
    """The line that `capi demo --json` prints."""

    url: str
    provider_url: str
    models: list[str]
    api_key: str | None
    admin_key: str | None


class Capi:
    """One process of `python -m capi_trio.cli ARGUMENTS`. Use `demo` or `gateway` for one that serves."""

    def __init__(
        self, *arguments: str, env: Mapping[str, str] | None = None, keep: Collection[str] | None = None
    ) -> None:
        """`keep`: of the log, only lines that hold one of these strings; a long run writes more than is read."""
        self._keep = keep
        self.logs: list[LogLine] = []
        self.text: list[str] = []
        """Lines of standard error that are no log lines."""
        self.output: list[str] = []
        """Lines of standard output."""
        self.url = ""
        self.provider_url = ""
        self.api_key: str | None = None
        """The client key that a demo made."""
        self.admin_key: str | None = None
        self._news = threading.Condition()
        self._process = subprocess.Popen(  # noqa: S603 - the program is our own
            [sys.executable, "-m", "capi_trio.cli", *arguments],
            cwd=_ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        pipes = ((self._process.stdout, self._take_output), (self._process.stderr, self._take_error))
        self._readers = [threading.Thread(target=self._read, args=pipe, daemon=True) for pipe in pipes]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def provider_port(self) -> int:
        """The port of the demo provider in this process."""
        return int(self.provider_url.removesuffix("/v1").rpartition(":")[2])

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def faults(self) -> list[LogLine]:
        """Log lines that tell of an exception nobody expected."""
        return [line for line in self.logs if line["event"] in FAULT_EVENTS]

    def events(self, event: str, **members: object) -> list[LogLine]:
        """The log lines of that event whose members are as given."""
        return [
            line
            for line in self.logs
            if line["event"] == event and all(line.get(name) == value for name, value in members.items())
        ]

    def wait_for(self, condition: Callable[[], bool], within_s: float = 5.0) -> None:
        """Waits until `condition` holds; it is asked again at each line that comes. Raises `TimeoutError`."""
        end = time.monotonic() + within_s
        with self._news:
            while not condition() and self.alive and time.monotonic() < end:
                self._news.wait(_LOOK_S)  # of its end there is no news: it comes after the last line
            if not condition():
                state = "runs" if self.alive else f"ended with {self._process.returncode}"
                raise TimeoutError(f"capi {state}; it said: {self.text} {list(self.logs[-5:])}")

    def log_line(self, event: str, **members: object) -> LogLine:
        """Waits for the first log line of that event whose members are as given. Raises `TimeoutError`."""
        self.wait_for(lambda: bool(self.events(event, **members)))
        return self.events(event, **members)[0]

    def wait_ready(self) -> None:
        """Waits until it serves, and learns its address."""
        self.wait_for(lambda: bool(self.events("listening")), START_S)
        self.url = str(self.events("listening")[0]["url"])

    def wait_ready_demo(self) -> None:
        """The same for `capi demo --json`, which tells more."""
        self.wait_for(lambda: bool(self.output), START_S)
        ready = msgspec.json.decode(self.output[0], type=_Ready)
        self.url, self.provider_url = ready.url, ready.provider_url
        self.api_key, self.admin_key = ready.api_key, ready.admin_key

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self, within_s: float = 10.0) -> int:
        """The exit code. Raises `subprocess.TimeoutExpired`."""
        code = self._process.wait(within_s)
        for reader in self._readers:
            reader.join(within_s)
        return code

    def close(self) -> None:
        """Ends it if it still runs, and its pipes."""
        if self.alive:
            self._process.kill()
        self.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _read(self, pipe: IO[str], take: Callable[[str], None]) -> None:
        for line in pipe:
            with self._news:
                take(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def _take_output(self, line: str) -> None:
        self.output.append(line)

    def _take_error(self, line: str) -> None:
        if self._keep is not None and line.startswith("{") and not any(text in line for text in self._keep):
            return
        try:
            self.logs.append(msgspec.json.decode(line, type=dict[str, object]))
        except msgspec.DecodeError:
            self.text.append(line)


@contextmanager
def demo(data_dir: Path, *, auth: bool = False, keep: Collection[str] | None = None) -> Iterator[Capi]:
    """`capi demo` on a free port, ready."""
    door = () if auth else ("--no-auth",)
    capi = Capi("demo", "--port", "0", "--json", "--data-dir", str(data_dir), *door, keep=keep)
    with _served(capi, capi.wait_ready_demo):
        yield capi


@contextmanager
def gateway(
    data_dir: Path,
    config: Mapping[str, object] | None,
    *arguments: str,
    auth: bool = False,
    env: Mapping[str, str] | None = None,
) -> Iterator[Capi]:
    """`capi start ARGUMENTS` on a free port, ready. `config` becomes its config.json, `None` leaves what is there.

    With auth on, the first admin key is taken out of its file, so that the gateway serves.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    data_dir.chmod(0o700)
    if config is not None:
        file = data_dir / "config.json"
        file.write_bytes(msgspec.json.encode(config))
        file.chmod(0o600)
    door = () if auth else ("--no-auth",)
    capi = Capi("start", "--port", "0", "--data-dir", str(data_dir), *door, *arguments, env=env)
    with _served(capi, capi.wait_ready):
        key_file = data_dir / ADMIN_KEY_NAME
        if key_file.exists():
            capi.admin_key = key_file.read_text().strip()
            key_file.unlink()
        yield capi


# -- commands ---------------------------------------------------------------------------------------------------


@frozen
class IssuedKey:
    """A client key that a command made."""

    id: str
    text: str = field(repr=False)


def command(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `capi ARGUMENTS`, without a terminal, to its end."""
    return subprocess.run(  # noqa: S603 - the program is our own
        [sys.executable, "-m", "capi_trio.cli", *arguments],
        cwd=_ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
        check=False,
    )


def issue_key(data_dir: Path, asked: CreateKey) -> IssuedKey:
    """What `capi keys create` has the running server do, without the start of a process."""
    answer = ask(data_dir, asked)
    assert isinstance(answer, KeyAnswer), answer
    assert answer.text is not None
    return IssuedKey(answer.key.id, answer.text)


@contextmanager
def _served(capi: Capi, wait_ready: Callable[[], None]) -> Iterator[None]:
    try:
        wait_ready()
        yield
    finally:
        capi.close()


async def eventually(condition: Callable[[], bool], within_s: float) -> float:
    """Polls another process until `condition` holds; returns how long that took. Raises `trio.TooSlowError`."""
    began = time.monotonic()
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - another process has no event to wait for
            await trio.sleep(0.002)
    return time.monotonic() - began


# -- /proc ------------------------------------------------------------------------------------------------------


@frozen
class TcpSocket:
    """One TCP socket over IPv4, as its process has it. `remote_port` is 0 for a listener."""

    local_port: int
    remote_port: int
    state: str


def open_descriptors(pid: int) -> int:
    """How many descriptors the process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid: int) -> int:
    """Memory that the process has in RAM, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(pid: int) -> int:
    """The most memory that the process ever had in RAM, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def sockets_of(pid: int) -> list[TcpSocket]:
    """The process's own TCP sockets over IPv4, listeners included."""
    own = {link for name in os.listdir(f"/proc/{pid}/fd") if (link := _link(f"/proc/{pid}/fd/{name}"))}
    found = []
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in own:
            local, remote = (int(address.partition(":")[2], 16) for address in fields[1:3])
            found.append(TcpSocket(local, remote, _TCP_STATES.get(fields[3], fields[3])))
    return found


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except FileNotFoundError:  # closed since it was listed
        return None
