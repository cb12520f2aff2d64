"""`capi backup` and `capi restore`: there and back again."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import trio

from capi_trio.storage.lock import DirectoryLock
from tests.capi_trio.cli.helpers import Capi
from tests.capi_trio.helpers import Line, audit_lines, open_ring
from tests.capi_trio.test_control import open_control


@pytest.fixture
def capi(tmp_path: Path) -> Capi:
    return Capi(tmp_path / "data")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Capi:
    """The command line over a new data directory."""
    return Capi(tmp_path / "restored" / "data")


def test_what_was_backed_up_comes_back_whole(capi: Capi, elsewhere: Capi, tmp_path: Path) -> None:
    path = tmp_path / "capi.tar"
    capi.new_key("keys", "create", "a", "--owner", "someone")
    capi.new_key("keys", "create", "b", "--tier", "admin")
    capi.output("keys", "revoke", "a")
    (capi.directory / "config.json").write_text('{"version": 1}')
    shown = capi.output("backup", str(path))
    assert shown == f"wrote {path}; it holds the hashes of every key: keep it as safe as the data directory\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    restored = elsewhere.output("restore", str(path))
    assert restored == f"restored 3 files into {elsewhere.directory}\n"
    assert stat.S_IMODE(elsewhere.directory.stat().st_mode) == 0o700
    assert elsewhere.all_keys() == capi.all_keys()
    assert elsewhere.audited() == ["key.create", "key.create", "key.revoke"]
    assert capi.audited() == [*elsewhere.audited(), "backup.create"], "a backup is only audited once it is there"
    assert elsewhere.output("audit", "verify").endswith("verified up to number 3\n")
    assert (elsewhere.directory / "config.json").read_text() == '{"version": 1}'


def test_a_restored_key_still_opens(capi: Capi, elsewhere: Capi, tmp_path: Path) -> None:
    key, text = capi.new_key("keys", "create", "a")
    capi.output("backup", str(tmp_path / "capi.tar"))
    elsewhere.output("restore", str(tmp_path / "capi.tar"))

    async def opens() -> None:
        async with open_ring(elsewhere.directory) as ring:
            assert ring.who(text) == ring.keyring.find(key.id)

    trio.run(opens)


def test_life_goes_on_after_a_restore(capi: Capi, elsewhere: Capi, tmp_path: Path) -> None:
    capi.new_key("keys", "create", "a")
    capi.output("backup", str(tmp_path / "capi.tar"))
    elsewhere.output("restore", str(tmp_path / "capi.tar"))
    elsewhere.new_key("keys", "create", "b")
    assert elsewhere.audited() == ["key.create", "key.create"]
    assert elsewhere.output("audit", "verify").endswith("verified up to number 2\n")


def test_a_path_is_relative_to_where_the_command_runs(
    capi: Capi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert capi.output("backup", "capi.tar").startswith("wrote capi.tar;")
    assert (tmp_path / "capi.tar").is_file()


def test_a_running_server_makes_the_backup_where_the_command_runs(
    capi: Capi, elsewhere: Capi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def while_it_runs() -> list[Line]:
        async with open_control(capi.directory) as ring:
            await ring.make()
            await trio.to_thread.run_sync(capi.output, "backup", "capi.tar")
            return await audit_lines(ring.store)

    lines = trio.run(while_it_runs)
    assert [(line.action, line.target) for line in lines] == [
        ("key.create", lines[0].target),
        ("backup.create", str(tmp_path / "capi.tar")),
    ]
    elsewhere.output("restore", str(tmp_path / "capi.tar"))
    assert [key.label for key in elsewhere.all_keys()] == ["a"]


def test_no_file_is_replaced(capi: Capi, tmp_path: Path) -> None:
    path = tmp_path / "capi.tar"
    path.write_text("content")
    assert str(path) in capi.refused("backup", str(path))
    assert path.read_text() == "content"


def test_a_file_that_cannot_be_made_is_refused(capi: Capi, tmp_path: Path) -> None:
    assert "nowhere" in capi.refused("backup", str(tmp_path / "nowhere" / "capi.tar"))


def test_nothing_is_restored_over_something(capi: Capi, tmp_path: Path) -> None:
    capi.new_key("keys", "create", "a")
    capi.output("backup", str(tmp_path / "capi.tar"))
    keys = capi.all_keys()
    assert "is not empty" in capi.refused("restore", str(tmp_path / "capi.tar"), code=1)
    assert capi.all_keys() == keys


def test_nothing_is_restored_while_another_process_has_the_directory(
    capi: Capi, elsewhere: Capi, tmp_path: Path
) -> None:
    capi.output("backup", str(tmp_path / "capi.tar"))
    with DirectoryLock.take(elsewhere.directory):
        assert "is in use by process" in elsewhere.refused("restore", str(tmp_path / "capi.tar"), code=1)


@pytest.mark.parametrize("damage", ["cut off", "a changed byte", "no archive", "empty"])
def test_a_damaged_backup_is_refused_and_leaves_nothing(
    capi: Capi, elsewhere: Capi, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "capi.tar"
    capi.new_key("keys", "create", "a")
    capi.output("backup", str(path))
    data = path.read_bytes()
    middle = data.index(b"key.create")
    path.write_bytes(
        {
            "cut off": data[: len(data) // 2],
            "a changed byte": data[:middle] + b"K" + data[middle + 1 :],
            "no archive": b"hello" * 1000,
            "empty": b"",
        }[damage]
    )
    assert str(path) in elsewhere.refused("restore", str(path), code=1)
    assert [file.name for file in elsewhere.directory.iterdir() if file.name != "capi.lock"] == []


def test_a_backup_that_is_not_there_is_refused(elsewhere: Capi, tmp_path: Path) -> None:
    result = elsewhere.run("restore", str(tmp_path / "nothing"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert not elsewhere.directory.exists()
