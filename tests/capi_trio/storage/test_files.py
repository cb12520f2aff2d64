"""The data directory and its files are ours alone."""

import os
import stat
from pathlib import Path

import pytest

from capi_trio.storage.errors import UnsafePath
from capi_trio.storage.files import (
    check_file,
    create_file,
    instance_id,
    open_private,
    prepare_directory,
    read_private,
    read_regular,
    replace_file,
    secret_directory,
    sync_directory,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_what_is_made_is_for_the_owner_only_under_any_umask(tmp_path: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        prepare_directory(tmp_path / "data")
        create_file(tmp_path / "data" / "file", b"content")
        os.close(open_private(tmp_path / "data" / "other", os.O_RDWR | os.O_CREAT))
    finally:
        os.umask(previous)
    assert mode(tmp_path / "data") == 0o700
    assert mode(tmp_path / "data" / "file") == mode(tmp_path / "data" / "other") == 0o600
    assert (tmp_path / "data" / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    "holds",
    [
        None,
        "capi.db",
        "capi.lock",
        "config.json",
        "audit-2026-01-02.jsonl",
        "demo/capi.lock",
        ".config.json.1.0123abcd.tmp",
    ],
)
def test_a_directory_of_ours_that_others_may_read_is_closed_with_a_warning(tmp_path: Path, holds: str | None) -> None:
    path = tmp_path / "data"
    path.mkdir(mode=0o755)
    if holds is not None:
        (path / holds).parent.mkdir(exist_ok=True)
        (path / holds).touch()
    assert prepare_directory(path) == f"{path} was open to others (mode 0755); it is closed to them now (0700)"
    assert mode(path) == 0o700
    assert prepare_directory(path) is None


@pytest.mark.parametrize("holds", ["notes.txt", "config.json.bak", "audit-x.jsonl", ".config.json.tmp", "demo"])
@pytest.mark.parametrize("bits", [0o700, 0o755, 0o1777])
def test_a_directory_that_is_not_ours_is_refused_and_left_as_it_is(tmp_path: Path, holds: str, bits: int) -> None:
    path = tmp_path / "data"
    path.mkdir()
    path.chmod(bits)
    (path / holds).touch()
    with pytest.raises(UnsafePath, match=f"is not a data directory of capi: it holds '{holds}'"):
        prepare_directory(path)
    assert mode(path) == bits
    assert [entry.name for entry in path.iterdir()] == [holds]


def test_a_fresh_file_system_is_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "data" / "lost+found").mkdir(parents=True)
    prepare_directory(tmp_path / "data")
    assert mode(tmp_path / "data") == 0o700


def test_missing_parents_are_made_for_their_owner_too(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        prepare_directory(tmp_path / "share" / "capi" / "demo")
    finally:
        os.umask(previous)
    assert {mode(tmp_path / "share"), mode(tmp_path / "share" / "capi"), mode(tmp_path / "share/capi/demo")} == {0o700}
    (tmp_path / "share/capi/demo/capi.lock").touch()
    assert prepare_directory(tmp_path / "share" / "capi") is None, "where the demo lies, capi starts"


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnsafePath, match="cannot be used as the data directory"):
        prepare_directory(tmp_path / "file" / "data")


@pytest.mark.parametrize("bits", [0o777, 0o770, 0o702, 0o1777])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, bits: int) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(bits)
    with pytest.raises(UnsafePath, match="chmod 700"):
        prepare_directory(tmp_path / "data")


def test_a_link_or_a_file_in_the_directorys_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UnsafePath, match=str(tmp_path / "real")):
        prepare_directory(tmp_path / "link")
    for name in ("dangling", "file"):
        with pytest.raises(UnsafePath, match=name):
            prepare_directory(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


@needs_root
def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path) -> None:
    for name, make in (("data", Path.mkdir), ("file", Path.touch)):
        make(tmp_path / name, 0o700)
        os.chown(tmp_path / name, 12345, -1)
    with pytest.raises(UnsafePath, match="12345"):
        prepare_directory(tmp_path / "data")
    with pytest.raises(UnsafePath, match="12345"):
        check_file(tmp_path / "file")
    with pytest.raises(UnsafePath, match="12345"):
        open_private(tmp_path / "file", os.O_RDWR)


@pytest.mark.parametrize("plant", ["link", "hard link", "fifo", "directory"])
def test_a_file_that_is_not_one_of_ours_is_refused(tmp_path: Path, plant: str) -> None:
    target, path = tmp_path / "precious", tmp_path / "file"
    target.write_text("content")
    match plant:
        case "link":
            path.symlink_to(target)
        case "hard link":
            path.hardlink_to(target)
        case "fifo":
            os.mkfifo(path)
        case _:
            path.mkdir()
    with pytest.raises(UnsafePath, match="file"):
        check_file(path)
    with pytest.raises((UnsafePath, OSError)):
        open_private(path, os.O_RDWR | os.O_APPEND)
    with pytest.raises(FileExistsError):
        create_file(path, b"mine")
    assert target.read_text() == "content"


def test_a_file_that_others_may_read_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    path.chmod(0o644)
    found = check_file(path)
    assert found is not None
    assert found.st_size == 7
    assert mode(path) == 0o600
    path.chmod(0o644)
    os.close(open_private(path, os.O_RDONLY))
    assert mode(path) == 0o600


def test_no_file_is_no_fault(tmp_path: Path) -> None:
    assert check_file(tmp_path / "file") is None
    with pytest.raises(UnsafePath, match="cannot be examined"):
        check_file(tmp_path / ("x" * 300))


def test_a_directory_is_named_by_a_random_id_that_stays(tmp_path: Path) -> None:
    first = instance_id(tmp_path)
    assert len(first) == 16
    assert instance_id(tmp_path) == first
    (tmp_path / "other").mkdir()
    assert instance_id(tmp_path / "other") != first
    (tmp_path / "instance-id").write_text("../../etc/passwd")
    with pytest.raises(UnsafePath, match="instance-id"):
        instance_id(tmp_path)


def test_a_file_that_cannot_be_made_whole_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        create_file(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_synced(tmp_path: Path) -> None:
    sync_directory(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        sync_directory(tmp_path / "nowhere")


def test_an_operators_file_is_read_up_to_a_limit_with_its_mode(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 4) == (0o640, b"cont")


@pytest.mark.parametrize("plant", ["fifo", "directory", "device"])
def test_what_reading_could_wait_for_is_refused_at_once(tmp_path: Path, plant: str) -> None:
    path = Path(os.devnull) if plant == "device" else tmp_path / "file"
    if plant == "fifo":
        os.mkfifo(path)
    elif plant == "directory":
        path.mkdir()
    with pytest.raises(OSError, match=r"regular file|directory"):
        read_regular(path, 10)


def test_a_file_is_replaced_whole_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    previous = os.umask(0)
    try:
        for content in (b"first", b"second"):
            replace_file(path, content)
            assert path.read_bytes() == content
            assert mode(path) == 0o600
    finally:
        os.umask(previous)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_that_cannot_be_replaced_stays_and_nothing_is_left_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    replace_file(path, b"first")

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="Input/output error"):
        replace_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_secret_is_read_up_to_a_limit_and_only_if_nobody_else_can(tmp_path: Path) -> None:
    path = tmp_path / "file"
    create_file(path, b"content")
    assert read_private(path, 4) == b"cont"
    for bits in (0o604, 0o640, 0o660):
        path.chmod(bits)
        with pytest.raises(UnsafePath, match=f"others can read {path} .mode {bits:04o}.. .* run: chmod 600 {path}"):
            read_private(path, 4)
        assert mode(path) == bits
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        read_private(tmp_path / "link", 4)


def test_a_directory_of_secrets_is_made_or_must_be_closed(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    previous = os.umask(0)
    try:
        secret_directory(path)
    finally:
        os.umask(previous)
    secret_directory(path)
    assert mode(path) == 0o700
    path.chmod(0o750)
    with pytest.raises(UnsafePath, match=f"others can read {path} .mode 0750.. .* run: chmod 700 {path}"):
        secret_directory(path)
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(UnsafePath, match="is not a directory, or a symbolic link to one"):
            secret_directory(tmp_path / name)


@needs_root
def test_a_directory_of_somebody_elses_secrets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir(mode=0o700)
    os.chown(tmp_path / "secrets", 12345, -1)
    with pytest.raises(UnsafePath, match="belongs to user 12345"):
        secret_directory(tmp_path / "secrets")
