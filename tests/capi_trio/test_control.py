"""The control socket: one line asks, one line answers, and nobody but the owner can ask."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from capi_trio import control as module
from capi_trio.control import SOCKET_NAME, ask, serve_control
from capi_trio.operations import Answer, Command, CreateKey, KeyAnswer, KeysAnswer, ListKeys, Refused, ShowKey
from tests.capi_trio.helpers import Ring, open_ring

LONG_S = 10


async def asked(directory: Path, command: Command) -> Answer | None:
    return await trio.to_thread.run_sync(ask, directory, command)


@asynccontextmanager
async def open_control(directory: Path) -> AsyncIterator[Ring]:
    """A keyring whose operations are served."""
    async with open_ring(directory) as ring, trio.open_nursery() as nursery:
        await nursery.start(serve_control, directory, ring.operations)
        yield ring
        nursery.cancel_scope.cancel()


async def line_of(directory: Path, *parts: bytes) -> bytes:
    """What the server answers to these bytes, up to where it closes the connection."""
    with trio.fail_after(LONG_S):
        stream = await trio.open_unix_socket(directory / SOCKET_NAME)
        async with stream:
            for part in parts:
                await stream.send_all(part)
                await trio.testing.wait_all_tasks_blocked()
            answer = b""
            async for received in stream:
                answer += received
            return answer


async def test_a_command_goes_there_and_its_answer_comes_back(tmp_path: Path) -> None:
    async with open_control(tmp_path / "data") as ring:
        made = await asked(ring.store.directory, CreateKey(label="ünïcödé"))
        assert isinstance(made, KeyAnswer)
        assert made.text is not None
        assert made.key.label == "ünïcödé"
        assert await asked(ring.store.directory, ListKeys()) == KeysAnswer([made.key])
        [record] = ring.keyring.all()
        assert ring.who(made.text) == record


async def test_a_refusal_comes_back_too(tmp_path: Path) -> None:
    async with open_control(tmp_path / "data") as ring:
        answer = await asked(ring.store.directory, ShowKey("nobody"))
        assert isinstance(answer, Refused)
        assert "nobody" in answer.message


async def test_many_ask_at_the_same_time(tmp_path: Path) -> None:
    answers: list[Answer | None] = []

    async def one(number: int) -> None:
        answers.append(await asked(tmp_path / "data", CreateKey(label=f"key {number}")))

    async with open_control(tmp_path / "data") as ring:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(one, number)
        ids = {answer.key.id for answer in answers if isinstance(answer, KeyAnswer)}
        assert ids == {record.id for record in ring.keyring.all()}
        assert len(ids) == 10


async def test_a_long_answer_is_read_to_its_end(tmp_path: Path) -> None:
    models = tuple(f"model-{number:0100}" for number in range(250))
    async with open_control(tmp_path / "data") as ring:
        for label in "abcde":
            await asked(ring.store.directory, CreateKey(label=label, allowed_models=models))
        answer = await asked(ring.store.directory, ListKeys())
        assert isinstance(answer, KeysAnswer)
        assert [tuple(key.allowed_models) for key in answer.keys] == [models] * 5


@pytest.mark.parametrize(
    "line",
    [b"\n", b"hello\n", b"\xff\xfe\n", b"{}\n", b"[" * 100_000 + b"\n", b'{"type":"keys.destroy"}\n',
     b'{"type":"keys.create","label":"\xff"}\n', b'{"type":"keys.create","label":7}\n', b"GET / HTTP/1.1\r\n\r\n"],
    ids=lambda line: line[:34].decode("latin-1").strip(),
)  # fmt: skip
async def test_a_line_that_is_no_command_is_refused_and_the_server_goes_on(tmp_path: Path, line: bytes) -> None:
    with capture_logs() as logs:
        async with open_control(tmp_path / "data") as ring:
            answer = msgspec.json.decode(await line_of(ring.store.directory, line), type=Answer)
            assert isinstance(answer, Refused)
            assert "does not understand this command" in answer.message
            assert await asked(ring.store.directory, ListKeys()) == KeysAnswer([])
    assert logs == []


async def test_a_command_may_come_in_pieces(tmp_path: Path) -> None:
    async with open_control(tmp_path / "data") as ring:
        answer = await line_of(ring.store.directory, b'{"type":', b'"keys.list"', b"}\n")
        assert msgspec.json.decode(answer, type=Answer) == KeysAnswer([])


async def test_who_leaves_before_the_end_of_a_line_changes_nothing(tmp_path: Path) -> None:
    async with open_control(tmp_path / "data") as ring:
        stream = await trio.open_unix_socket(ring.store.directory / SOCKET_NAME)
        async with stream:
            await stream.send_all(b'{"type":"keys.create","label":"a"}')
        assert await asked(ring.store.directory, ListKeys()) == KeysAnswer([])


async def test_who_does_not_wait_for_the_answer_ends_nothing(tmp_path: Path) -> None:
    async with open_control(tmp_path / "data") as ring:
        stream = await trio.open_unix_socket(ring.store.directory / SOCKET_NAME)
        async with stream:
            await stream.send_all(b'{"type":"keys.list"}\n')
        assert await asked(ring.store.directory, ListKeys()) == KeysAnswer([])


async def test_a_line_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_LINE", 1000)
    async with open_control(tmp_path / "data") as ring:
        assert await line_of(ring.store.directory, b"x" * 1001, b"x") == b""
        assert await asked(ring.store.directory, ListKeys()) == KeysAnswer([])


async def test_who_sends_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PEER_S", 0.01)
    async with open_control(tmp_path / "data") as ring:
        assert await line_of(ring.store.directory) == b""


async def test_a_command_may_take_longer_than_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asked for a change, or for a large backup, learns how it ended."""
    limit = 0.3
    monkeypatch.setattr(module, "_PEER_S", limit)
    async with open_control(tmp_path / "data") as ring:
        genuine = ring.store.database.mutate

        async def slow(change: object) -> object:
            await trio.sleep(1.2 * limit)
            return await genuine(change)  # type: ignore[arg-type]  # any change, passed on as it is

        monkeypatch.setattr(ring.store.database, "mutate", slow)
        answer = await asked(ring.store.directory, CreateKey(label="a"))
        assert isinstance(answer, KeyAnswer)
        assert [record.id for record in ring.keyring.all()] == [answer.key.id]


async def test_a_fault_ends_the_one_command_and_its_text_is_in_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capture_logs() as logs:
        async with open_control(tmp_path / "data") as ring:

            async def broken(_: object) -> None:
                raise RuntimeError("sk-cap-secret")

            with monkeypatch.context() as patched:
                patched.setattr(ring.store.database, "mutate", broken)
                with pytest.raises(OSError, match="its log says why"):
                    await asked(ring.store.directory, CreateKey(label="a"))
            assert await asked(ring.store.directory, ListKeys()) == KeysAnswer([])
    assert [(line["event"], line["errors"]) for line in logs] == [("control_failed", ["RuntimeError"])]
    assert "sk-cap-" not in str(logs)


async def test_another_user_is_not_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_peer_uid", lambda _: os.geteuid() + 1)
    with capture_logs() as logs:
        async with open_control(tmp_path / "data") as ring:
            with pytest.raises(OSError, match=r"broke off its answer|Broken pipe|reset by peer"):
                await asked(ring.store.directory, CreateKey(label="a"))
            assert ring.keyring.all() == []
    assert [line["event"] for line in logs] == ["control_refused"]


# -- the socket itself --------------------------------------------------------------------------------------------


async def test_only_the_owner_can_reach_it_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        async with open_control(tmp_path / "data") as ring:
            found = (ring.store.directory / SOCKET_NAME).stat()
            assert stat.S_ISSOCK(found.st_mode)
            assert stat.S_IMODE(found.st_mode) == 0o600
            assert stat.S_IMODE(ring.store.directory.stat().st_mode) == 0o700
            (made := tmp_path / "other").touch()
            assert stat.S_IMODE(made.stat().st_mode) == 0o666, "the umask is put back"
    finally:
        os.umask(previous)


async def test_it_goes_with_the_server(tmp_path: Path) -> None:
    async with open_control(tmp_path / "data"):
        pass
    assert not (tmp_path / "data" / SOCKET_NAME).exists()
    assert ask(tmp_path / "data", ListKeys()) is None


async def test_a_dead_servers_socket_answers_nobody_and_is_replaced(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead, pytest.MonkeyPatch.context() as patched:
        patched.chdir(directory)
        dead.bind(SOCKET_NAME)
    assert ask(directory, ListKeys()) is None
    async with open_control(directory):
        assert await asked(directory, ListKeys()) == KeysAnswer([])


def test_where_there_is_no_server_there_is_no_answer(tmp_path: Path) -> None:
    assert ask(tmp_path, ListKeys()) is None
    assert ask(tmp_path / "nothing" / "here", ListKeys()) is None


def test_bytes_that_are_no_text_are_refused_whether_or_not_a_server_runs(tmp_path: Path) -> None:
    label = os.fsdecode(b"caf\xe9")  # as the command line has it
    assert ask(tmp_path, CreateKey(label=label)) == Refused("the command holds bytes that are no UTF-8 text")


def test_a_directory_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        ask(tmp_path / "file", ListKeys())


async def test_a_path_may_be_longer_than_a_sockets_address(tmp_path: Path) -> None:
    directory = tmp_path.joinpath(*["deep" * 20] * 5)
    assert len(bytes(directory)) > 108
    async with open_control(directory):
        assert (directory / SOCKET_NAME).exists()
        assert await asked(directory, ListKeys()) == KeysAnswer([])


async def test_other_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Linux's /proc and peer credentials, the path is what it is, and the socket's mode alone keeps it."""
    monkeypatch.setattr(module, "sys", SimpleNamespace(platform="darwin"))
    async with open_control(tmp_path / "data"):
        assert await asked(tmp_path / "data", ListKeys()) == KeysAnswer([])


@pytest.mark.parametrize("answer", [b"", b'{"type":"keys"', b"hello\n", b'{"type":"from tomorrow"}\n'])
def test_an_answer_that_is_none_is_an_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    """A server that died while it answered, and one of another version."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(SOCKET_NAME)
        server.listen()

        async def one() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, partial(_serve_once, server, answer))
                with pytest.raises(OSError, match="the server"):
                    await asked(tmp_path, ListKeys())

        trio.run(one)


def _serve_once(server: socket.socket, answer: bytes) -> None:
    peer, _ = server.accept()
    with peer:
        peer.recv(65536)
        peer.sendall(answer)
