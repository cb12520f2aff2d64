"""The configuration file of a running gateway: written whole, seen when it changes, kept when it is bad."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from capi_core.config import ConfigError, ConfigProblem, parse
from capi_trio.configstore import ConfigStore, Loaded, Swap, read, restart_members, seed, sweep, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GOOD = b'{"upstreams": {"a": {"kind": "demo"}}}'
OTHER = b'{"upstreams": {"b": {"kind": "demo"}}}'
BAD = b'{"upstreams": {"c": {"kind": "nonsense"}}}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    write(path, GOOD)
    return path


class Applied:
    """Takes each new configuration, as the service does; can refuse it."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.refuses = False

    async def __call__(self, loaded: Loaded) -> None:
        if self.refuses:
            raise ConfigError((ConfigProblem("$", "a key is missing"),))
        self.texts.append(loaded.text)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what a watcher with a real clock and real threads must make true."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - a thread makes it true: there is no event to wait for
            await trio.sleep(0.02)


def test_a_first_file_is_seeded_once_private_and_valid(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert seed(path)
    assert path.stat().st_mode & 0o777 == 0o600
    config, warnings = parse(path.read_bytes())
    assert (config.upstreams, warnings) == ({}, ())
    path.write_bytes(GOOD)
    assert not seed(path)
    assert path.read_bytes() == GOOD


def test_writing_is_atomic_private_and_leaves_nothing_behind(path: Path) -> None:
    os.umask(0)
    before = path.stat().st_ino
    write(path, OTHER)
    assert path.read_bytes() == OTHER
    assert path.stat().st_ino != before, "a new file takes the place of the old one"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["config.json"]


def test_a_write_that_fails_leaves_the_old_file(path: Path) -> None:
    target = path.parent / "directory"
    target.mkdir()
    (target / "full").touch()
    with pytest.raises(OSError, match=r"."):
        write(target, OTHER)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["config.json", "directory"]


def test_a_symbolic_link_stays_one(path: Path) -> None:
    link = path.with_name("link.json")
    link.symlink_to(path)
    write(link, OTHER)
    assert link.is_symlink()
    assert path.read_bytes() == OTHER


def test_reading_names_what_is_wrong(path: Path) -> None:
    assert read(path).text == GOOD
    path.chmod(0o644)
    assert "chmod 600" in read(path).warnings[-1].message
    with pytest.raises(ConfigError, match="no such file"):
        read(path.with_name("missing.json"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read(path.parent)
    fifo = path.with_name("device")
    fifo.symlink_to("/dev/null")
    with pytest.raises(ConfigError, match="not a regular file"):
        read(fifo)
    with path.open("r+b") as file:
        file.truncate(17 * 1024 * 1024)
    with pytest.raises(ConfigError, match="not a configuration file"):
        read(path)


@pytest.mark.parametrize("how", ["in place", "rename", "symlink swap"])
async def test_a_change_is_seen_however_it_is_made(path: Path, how: str) -> None:
    watched = path
    if how == "symlink swap":  # how Kubernetes updates a mounted file
        watched = path.with_name("config.link")
        watched.symlink_to(path)
    store, applied = ConfigStore(watched), Applied()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.watch, applied)
        before = trio.current_time()
        if how == "in place":
            path.write_bytes(OTHER)  # noqa: ASYNC240 - a small file
        elif how == "rename":
            write(path, OTHER)
        else:
            other = path.with_name("other.json")
            write(other, OTHER)
            swap = path.with_name("swap")
            swap.symlink_to(other)
            swap.rename(watched)
        await until(lambda: applied.texts == [OTHER])
        assert trio.current_time() - before < 1.0
        await until(lambda: "b" in store.current.config.upstreams)
        nursery.cancel_scope.cancel()


async def test_a_bad_edit_changes_nothing_and_is_told_until_it_is_mended(path: Path) -> None:
    store, applied = ConfigStore(path), Applied()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.watch, applied)
        write(path, BAD)
        await until(lambda: store.problem is not None)
        assert (store.current.text, applied.texts) == (GOOD, [])
        write(path, GOOD)
        await until(lambda: store.problem is None)
        nursery.cancel_scope.cancel()


async def test_a_configuration_that_cannot_be_applied_is_as_bad(path: Path) -> None:
    store, applied = ConfigStore(path), Applied()
    applied.refuses = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.watch, applied)
        write(path, OTHER)
        await until(lambda: store.problem is not None)
        assert store.current.text == GOOD
        applied.refuses = False
        store.look_now()  # a SIGHUP: whatever was missing is there now, the file is the same
        await until(lambda: store.current.text == OTHER)
        assert store.problem is None
        nursery.cancel_scope.cancel()


async def test_a_touched_file_is_not_applied_again(path: Path) -> None:
    store, applied = ConfigStore(path), Applied()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.watch, applied)
        os.utime(path, ns=(1, 1))
        store.look_now()
        write(path, OTHER)
        await until(lambda: applied.texts == [OTHER])
        path.unlink()  # noqa: ASYNC240 - a small file
        await until(lambda: store.problem is not None)
        assert store.current.text == OTHER
        nursery.cancel_scope.cancel()


# -- a change that can be taken back ------------------------------------------------------------------------------


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_a_swap_is_made_as_a_whole_and_leaves_nothing(path: Path) -> None:
    swap = Swap.stage(path, GOOD, OTHER)
    assert path.read_bytes() == GOOD
    assert {(path.parent / name).stat().st_mode & 0o777 for name in names(path)} == {0o600}
    swap.make()
    assert path.read_bytes() == OTHER
    swap.discard()
    assert names(path) == ["config.json"]


def test_a_swap_can_be_taken_back(path: Path) -> None:
    swap = Swap.stage(path, GOOD, OTHER)
    swap.make()
    swap.undo()
    swap.discard()
    assert (path.read_bytes(), names(path)) == (GOOD, ["config.json"])


def test_a_swap_goes_through_a_link_to_what_it_leads_to(path: Path) -> None:
    link = path.with_name("link.json")
    link.symlink_to(path.name)
    swap = Swap.stage(link, GOOD, OTHER)
    swap.make()
    swap.discard()
    assert link.is_symlink()
    assert path.read_bytes() == OTHER


def test_a_swap_of_a_text_that_is_no_longer_there_is_not_made(path: Path) -> None:
    swap = Swap.stage(path, GOOD, OTHER)
    path.write_bytes(BAD)
    with pytest.raises(ConfigError, match="somebody else has changed it meanwhile"):
        swap.make()
    swap.discard()
    assert (path.read_bytes(), names(path)) == (BAD, ["config.json"])


def test_a_swap_that_cannot_be_synced_is_taken_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swap = Swap.stage(path, GOOD, OTHER)
    outcomes = iter([OSError(28, "No space left on device"), None])

    def sync(_: Path) -> None:
        outcome = next(outcomes)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr("capi_trio.configstore.sync_directory", sync)
    with pytest.raises(OSError, match="No space"):
        swap.make()
    swap.discard()
    assert (path.read_bytes(), names(path)) == (GOOD, ["config.json"])


def test_a_swap_that_cannot_be_staged_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def create(file: Path, content: bytes) -> None:
        if made:
            raise OSError(28, "No space left on device")
        made.append(file)
        file.write_bytes(content)

    monkeypatch.setattr("capi_trio.configstore.create_file", create)
    with pytest.raises(OSError, match="No space"):
        Swap.stage(path, GOOD, OTHER)
    assert names(path) == ["config.json"]


# -- what killed writers leave ------------------------------------------------------------------------------------


def plant(path: Path, name: str, mode: int = 0o600) -> Path:
    left = path.with_name(name)
    left.write_bytes(OTHER)
    left.chmod(mode)
    return left


def dead_pid() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_what_a_killed_writer_left_is_removed_at_the_next_start(path: Path) -> None:
    plant(path, f".config.json.{dead_pid()}.0123abcd.tmp")
    plant(path, f".config.json.{os.getpid()}.0123abcd.tmp")  # of a process before this one, with the same number
    plant(path, f".config.json.{2**40 % 10**10}.0123abcd.tmp")  # no process can have that
    sweep(path)
    assert names(path) == ["config.json"]


def test_only_what_is_certainly_left_by_a_killed_writer_is_removed(path: Path) -> None:
    dead = dead_pid()
    keep = [
        plant(path, f".config.json.{os.getppid()}.0123abcd.tmp"),  # somebody is just writing it
        plant(path, ".config.json.1.0123abcd.tmp"),
        plant(path, f".config.json.{dead}.0123abcd.tmp", 0o644),
        plant(path, f".config.json.{dead}.0123abc.tmp"),
        plant(path, f".other.json.{dead}.0123abcd.tmp"),
        plant(path, f"config.json.{dead}.0123abcd.tmp"),
    ]
    link = path.with_name(f".config.json.{dead}.aaaaaaaa.tmp")
    link.symlink_to(path)
    folder = path.with_name(f".config.json.{dead}.bbbbbbbb.tmp")
    folder.mkdir(0o700)
    sweep(path)
    assert names(path) == sorted(["config.json", link.name, folder.name, *(left.name for left in keep)])


def test_a_folder_that_cannot_be_listed_is_left_alone(tmp_path: Path) -> None:
    sweep(tmp_path / "nowhere" / "config.json")


# -- what waits for a restart -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "waiting"),
    [
        (b"{}", ()),
        (b'{"strict": true, "limits": {"requests_per_minute": 7}, "upstreams": {"a": {"kind": "demo"}}}', ()),
        (b'{"features": {"auth": false}}', ("features.auth",)),
        (b'{"limits": {"max_body_bytes": 2048, "grace_s": 1}}', ("limits.max_body_bytes", "limits.grace_s")),
    ],
)
def test_members_that_wait_for_a_restart_are_named(now: bytes, waiting: tuple[str, ...]) -> None:
    assert restart_members(parse(b"{}")[0], parse(now)[0]) == waiting


def test_a_pipe_in_the_files_place_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="cannot be read: it is not a regular file"):
        read(tmp_path / "config.json")
