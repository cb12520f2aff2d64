"""One process at a time owns a data directory."""

import os
import signal
import stat
from pathlib import Path

import pytest

from capi_core.errors import LocalError
from capi_trio.storage.errors import DirectoryLocked, UnsafePath
from capi_trio.storage.lock import LOCK_NAME, DirectoryLock
from tests.capi_trio.storage.children import Forker, wait_for


def test_a_second_holder_is_told_who_has_it(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with DirectoryLock.take(directory) as lock, pytest.raises(DirectoryLocked, match=f"process {os.getpid()}"):
        DirectoryLock.take(directory)
    assert not lock.held
    DirectoryLock.take(directory).close()


def test_its_directory_and_file_are_for_the_owner_only(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "data"
    previous = os.umask(0)
    try:
        with DirectoryLock.take(directory):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            assert stat.S_IMODE((directory / LOCK_NAME).stat().st_mode) == 0o600
    finally:
        os.umask(previous)


def test_it_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    """No lock is left behind by a kill -9 that somebody would have to remove by hand."""
    directory = tmp_path / "data"
    with Forker() as forker:
        pid = forker.start("hold", directory, acks=str(tmp_path / "acks"))
        wait_for(tmp_path / "acks")
        with pytest.raises(DirectoryLocked, match=f"process {pid}"):
            DirectoryLock.take(directory, timeout_s=0.05)
        os.kill(pid, signal.SIGKILL)
        with DirectoryLock.take(directory, timeout_s=10):
            pass
        assert forker.wait() == {pid: -signal.SIGKILL}


@pytest.mark.parametrize("plant", ["link", "fifo", "directory"])
def test_what_is_no_lock_file_is_refused(tmp_path: Path, plant: str) -> None:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    target = tmp_path / "precious"
    target.write_text("content")
    match plant:
        case "link":
            (directory / LOCK_NAME).symlink_to(target)
        case "fifo":
            os.mkfifo(directory / LOCK_NAME)
        case _:
            (directory / LOCK_NAME).mkdir()
    with pytest.raises(UnsafePath, match=LOCK_NAME):
        DirectoryLock.take(directory)
    assert target.read_text() == "content"


def test_each_part_has_one_user_within_the_process(tmp_path: Path) -> None:
    with DirectoryLock.take(tmp_path / "data") as lock:
        with (
            lock.claim("database"),
            lock.claim("audit log"),
            pytest.raises(LocalError, match="open already"),
            lock.claim("database"),
        ):
            pass
        with lock.claim("database"):
            pass
    with pytest.raises(LocalError, match="not held"), lock.claim("database"):
        pass
