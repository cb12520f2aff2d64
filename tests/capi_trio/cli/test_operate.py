"""Who carries a command out: the server that runs, or else this process, and never both."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
import trio

from capi_core.config import Config
from capi_trio.cli import operate as module
from capi_trio.cli.operate import operate
from capi_trio.keyring import KeyView
from capi_trio.operations import Answer, Command, CreateKey, KeyAnswer, KeysAnswer, ListKeys, ShowKey
from capi_trio.storage.lock import DirectoryLock
from tests.capi_trio.helpers import audit_lines
from tests.capi_trio.test_control import open_control

BUILT_IN = 10 * Config().limits.requests_per_minute


def ended(capsys: pytest.CaptureFixture[str], directory: Path, command: Command, *, code: int) -> str:
    """The reason that a command ends the process with this exit code for."""
    with pytest.raises(click.exceptions.Exit) as caught:
        operate(directory, command)
    captured = capsys.readouterr()
    assert (caught.value.exit_code, captured.out) == (code, "")
    return captured.err.removeprefix("capi: ").rstrip("\n")


def all_keys(directory: Path) -> list[KeyView]:
    answer = operate(directory, ListKeys())
    assert isinstance(answer, KeysAnswer)
    return answer.keys


def made(directory: Path, label: str, rpm: int | None = None) -> KeyAnswer:
    answer = operate(directory, CreateKey(label=label, rate_limit_override=rpm))
    assert isinstance(answer, KeyAnswer)
    assert answer.text is not None
    return answer


async def test_a_running_server_carries_the_command_out(tmp_path: Path) -> None:
    """It alone may write, and its memory must follow: a lock that is taken is no obstacle to the command."""
    async with open_control(tmp_path / "data") as ring:
        answer = await trio.to_thread.run_sync(operate, tmp_path / "data", CreateKey(label="a"))
        assert isinstance(answer, KeyAnswer)
        assert answer.text is not None
        assert [record.id for record in ring.keyring.all()] == [answer.key.id]
        assert ring.who(answer.text) == ring.keyring.find("a")
        assert [line.action for line in await audit_lines(ring.store)] == ["key.create"]


def test_without_a_server_this_process_does_it_and_leaves_nothing_locked(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    first, second = made(directory, "a"), made(directory, "b")
    assert {first.key.id, second.key.id} == {key.id for key in all_keys(directory)}
    assert first.text != second.text
    DirectoryLock.take(directory).close()
    assert len(list(directory.glob("audit-*.jsonl"))) == 1, "what was audited is in the file when the command ends"


def test_what_is_refused_ends_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no key 'nobody'" in ended(capsys, tmp_path / "data", ShowKey("nobody"), code=2)


async def test_what_the_server_refuses_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with open_control(tmp_path / "data"):

        def refused() -> str:
            return ended(capsys, tmp_path / "data", ShowKey("nobody"), code=2)

        assert "no key 'nobody'" in await trio.to_thread.run_sync(refused)


def test_a_lock_whose_holder_does_not_answer_ends_with_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOCK_S", 0.01)
    with DirectoryLock.take(tmp_path / "data"):
        message = ended(capsys, tmp_path / "data", CreateKey(label="a"), code=1)
    assert message == (
        f"{tmp_path}/data is in use by process {os.getpid()}, which does not answer; is it starting or stopping?"
    )
    assert all_keys(tmp_path / "data") == []


def test_a_server_that_has_started_in_the_meantime_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOCK_S", 0.01)
    answers: list[Answer | None] = [None, KeysAnswer([])]
    monkeypatch.setattr(module, "ask", lambda *_: answers.pop(0))
    with DirectoryLock.take(tmp_path / "data"):
        assert operate(tmp_path / "data", ListKeys()) == KeysAnswer([])
    assert answers == []


def test_a_server_that_breaks_off_ends_with_exit_code_1_and_nothing_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change may have been made: to make it once more is not for a program to decide."""

    def broken(*_: object) -> None:
        raise OSError("the server broke off its answer; its log says why")

    monkeypatch.setattr(module, "ask", broken)
    message = ended(capsys, tmp_path / "data", CreateKey(label="a"), code=1)
    assert message == "the server broke off its answer; its log says why"
    assert not (tmp_path / "data").exists()


def test_a_damaged_database_ends_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "data", "a")
    (tmp_path / "data" / "capi.db").write_bytes(b"no database" * 1000)
    assert "capi.db: is damaged" in ended(capsys, tmp_path / "data", ListKeys(), code=1)


def test_a_directory_that_others_can_write_to_is_refused_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o777)
    assert "others can write into" in ended(capsys, tmp_path / "data", ListKeys(), code=2)


def test_an_address_that_is_none_ends_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit) as caught:
        operate(tmp_path / "data", ListKeys(), database="mysql://user:secret@host/db")
    assert caught.value.exit_code == 1
    error = capsys.readouterr().err
    assert error.startswith("capi: ")
    assert "secret" not in error


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (None, BUILT_IN),
        ('{"limits": {"requests_per_minute": 5}}', 50),
        ("no json", BUILT_IN),
        ('{"limits": {"requests_per_minute": "x"}}', BUILT_IN),
    ],
)
def test_a_rate_is_judged_by_the_configured_one_or_the_built_in_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str | None, most: int
) -> None:
    """A configuration that cannot be used must not keep anybody from revoking a key."""
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    if config is not None:
        (directory / "config.json").write_text(config)
    assert made(directory, "a", rpm=most).key.rate_limit_override == most
    message = ended(capsys, directory, CreateKey(label="b", rate_limit_override=most + 1), code=2)
    assert message.endswith(f"at most {most} requests per minute")
