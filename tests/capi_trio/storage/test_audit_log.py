"""The audit files: whole lines only, in one chain, never through anything that is not ours."""

import os
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from capi_core.audit import START, Action, AuditEntry, Fault, Link, verify
from capi_trio.storage.audit_log import AuditLog, audit_files, read_lines
from capi_trio.storage.errors import AuditDiverged, AuditUnavailable
from tests.capi_trio.storage.disks import small_disk
from tests.capi_trio.storage.helpers import NOW

__all__ = ["small_disk"]

DAY = 24 * 3600 * 1000


def entry(seq: int, ts: int = NOW) -> AuditEntry:
    return AuditEntry(
        seq=seq,
        ts=ts,
        actor_key_id="key_admin",
        actor_tier="admin",
        action=Action.KEY_CREATE,
        target=f"key_{seq}",
    )


def entries(first: int, last: int, ts: int = NOW) -> list[AuditEntry]:
    return [entry(seq, ts) for seq in range(first, last + 1)]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    """An open log without a line."""
    opened = AuditLog(tmp_path)
    yield opened
    opened.close()


def reopened(directory: Path) -> tuple[Link, int]:
    """What another process finds: the last line, and how much of an unfinished one it cut off."""
    opened = AuditLog(directory)
    opened.close()
    return opened.last, opened.repaired_bytes


def names(directory: Path) -> list[str]:
    return [path.name for path in audit_files(directory)]


def newest(directory: Path) -> Path:
    return audit_files(directory)[-1]


def assert_chain(directory: Path, seq: int) -> None:
    verdict = verify(read_lines(directory))
    assert verdict.ok, verdict
    assert verdict.last is not None
    assert verdict.last.seq == seq


def test_lines_make_one_chain_over_appends_and_processes(log: AuditLog, tmp_path: Path) -> None:
    log.append(entries(1, 3))
    log.append(entries(4, 4))
    assert log.last.seq == 4
    log.append([])
    assert_chain(tmp_path, 4)
    assert reopened(tmp_path) == (log.last, 0)
    second = AuditLog(tmp_path)
    second.append(entries(5, 6))
    second.close()
    assert_chain(tmp_path, 6)


def test_its_files_are_for_the_owner_only_under_any_umask(log: AuditLog, tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        log.append(entries(1, 1))
    finally:
        os.umask(previous)
    assert stat.S_IMODE(newest(tmp_path).stat().st_mode) == 0o600


def test_each_day_has_its_file_and_the_chain_goes_through_them(log: AuditLog, tmp_path: Path) -> None:
    log.append([entry(1), entry(2, NOW + DAY), entry(3, NOW + DAY), entry(4, NOW + 3 * DAY)])
    assert names(tmp_path) == ["audit-2026-09-21.jsonl", "audit-2026-09-22.jsonl", "audit-2026-09-24.jsonl"]
    assert_chain(tmp_path, 4)
    assert reopened(tmp_path)[0] == log.last


def test_a_clock_set_back_never_goes_back_to_an_older_file(log: AuditLog, tmp_path: Path) -> None:
    log.append(entries(1, 1, NOW + 5 * DAY))
    log.append(entries(2, 3, NOW))
    assert names(tmp_path) == ["audit-2026-09-26.jsonl"]
    second = AuditLog(tmp_path)
    second.append(entries(4, 4, NOW))
    second.close()
    assert names(tmp_path) == ["audit-2026-09-26.jsonl"]
    assert_chain(tmp_path, 4)


def test_a_new_file_without_a_line_is_used(log: AuditLog, tmp_path: Path) -> None:
    """What a kill between making a file and writing into it leaves behind."""
    log.append(entries(1, 2))
    (tmp_path / "audit-2026-09-23.jsonl").touch(0o600)
    second = AuditLog(tmp_path)
    assert second.last == log.last
    second.append(entries(3, 3, NOW + 2 * DAY))
    second.close()
    assert names(tmp_path) == ["audit-2026-09-21.jsonl", "audit-2026-09-23.jsonl"]
    assert_chain(tmp_path, 3)


def test_an_end_torn_anywhere_is_cut_off(log: AuditLog, tmp_path: Path) -> None:
    """D1: every place at which a write can have stopped."""
    log.append(entries(1, 2))
    whole = newest(tmp_path).read_bytes()
    kept = log.last
    log.append(entries(3, 3))
    data = newest(tmp_path).read_bytes()
    for cut in range(len(whole), len(data)):
        newest(tmp_path).write_bytes(data[:cut])
        assert reopened(tmp_path) == (kept, cut - len(whole))
        assert newest(tmp_path).read_bytes() == whole
    newest(tmp_path).write_bytes(data)
    assert reopened(tmp_path) == (log.last, 0)


@pytest.mark.parametrize("size", [100, 5000, 1_000_000])
def test_blocks_that_never_reached_the_disk_are_cut_off(log: AuditLog, tmp_path: Path, size: int) -> None:
    """A power cut can leave NUL bytes; also more of them than any line has."""
    log.append(entries(1, 2))
    whole = newest(tmp_path).read_bytes()
    for tail in (bytes(size), bytes(size) + b"\n", b'{"seq":3' + bytes(size)):
        newest(tmp_path).write_bytes(whole + tail)
        assert reopened(tmp_path) == (log.last, len(tail))
        assert newest(tmp_path).read_bytes() == whole
    newest(tmp_path).write_bytes(bytes(size))
    assert reopened(tmp_path) == (START, size)


def test_a_long_file_is_opened_by_its_end(log: AuditLog, tmp_path: Path) -> None:
    """Also where the part that is looked at begins within a line."""
    hostile = [evolve(entry(seq), user_agent="\u2028" * 10_000, reason="\x7f" * 10_000) for seq in range(1, 80)]
    log.append(hostile)
    assert newest(tmp_path).stat().st_size > 300_000
    assert reopened(tmp_path) == (log.last, 0)


def test_a_last_line_that_was_altered_is_not_built_upon(log: AuditLog, tmp_path: Path) -> None:
    log.append(entries(1, 2))
    newest(tmp_path).write_bytes(newest(tmp_path).read_bytes().replace(b"key_2", b"key_9"))
    with pytest.raises(AuditDiverged, match=r"audit-2026-09-21\.jsonl"):
        AuditLog(tmp_path)


def test_an_alteration_while_it_is_open_is_not_built_upon(log: AuditLog, tmp_path: Path) -> None:
    log.append(entries(1, 2))
    with newest(tmp_path).open("ab") as file:
        file.write(b"mine\n")
    with pytest.raises(AuditDiverged, match="another program"):
        log.append(entries(3, 3))
    newest(tmp_path).unlink()
    with pytest.raises(AuditDiverged, match="removed"):
        log.append(entries(3, 3))
    assert log.last.seq == 2


def test_a_number_that_is_not_the_next_is_refused(log: AuditLog) -> None:
    log.append(entries(1, 2))
    for wrong in (2, 4, 1):
        with pytest.raises(AuditDiverged, match=f"followed by {wrong}"):
            log.append([entry(wrong)])
    log.append(entries(3, 3))


def test_skipped_numbers_show(log: AuditLog, tmp_path: Path) -> None:
    log.append(entries(1, 2))
    log.skip_to(10)
    log.append(entries(11, 12))
    verdict = verify(read_lines(tmp_path))
    assert (verdict.fault, verdict.line) == (Fault.DROPPED, 3)


@pytest.mark.parametrize("plant", ["link", "hard link", "directory"])
def test_it_never_writes_through_what_is_not_its_own_file(log: AuditLog, tmp_path: Path, plant: str) -> None:
    target = tmp_path / "precious"
    target.write_text("content")
    path = tmp_path / "audit-2026-09-21.jsonl"
    match plant:
        case "link":
            path.symlink_to(target)
        case "hard link":
            path.hardlink_to(target)
        case _:
            path.mkdir()
    with pytest.raises(AuditUnavailable, match=str(tmp_path)):
        log.append(entries(1, 1))
    with pytest.raises(AuditUnavailable, match=r"audit-2026-09-21\.jsonl|cannot be written"):
        AuditLog(tmp_path)
    assert target.read_text() == "content"
    assert log.last == START


def test_other_files_are_none_of_its_business(log: AuditLog, tmp_path: Path) -> None:
    others = [
        "audit-2026-13-45.jsonl",
        "audit-2026-01-01.jsonl.gz",
        "xaudit-2026-01-01.jsonl",
        "audit-٢٠٢٦-01-01.jsonl",
    ]
    for name in others:
        (tmp_path / name).write_text("x")
    log.append(entries(1, 1))
    log.prune(NOW + 4000 * DAY, 1)
    assert names(tmp_path) == ["audit-2026-09-21.jsonl"]
    assert all((tmp_path / name).exists() for name in others)


def test_old_files_go_and_the_newest_stays(log: AuditLog, tmp_path: Path) -> None:
    for number in range(6):
        log.append([entry(number + 1, NOW + number * DAY)])
    removed = log.prune(NOW + 5 * DAY, 2)
    assert [path.name for path in removed] == [f"audit-2026-09-2{n}.jsonl" for n in (1, 2, 3)]
    assert log.prune(NOW + 5 * DAY, 2) == []
    log.prune(NOW + 4000 * DAY, 2)
    assert names(tmp_path) == ["audit-2026-09-26.jsonl"]
    log.append([entry(7, NOW + 5 * DAY)])
    verdict = verify(read_lines(tmp_path), after=None)
    assert verdict.ok
    assert reopened(tmp_path)[0].seq == 7


def test_extents_are_of_whole_lines(log: AuditLog, tmp_path: Path) -> None:
    assert log.extents() == []
    log.append([entry(1), entry(2, NOW + DAY)])
    sizes = [(extent.path.name, extent.size) for extent in log.extents()]
    assert sizes == [(path.name, path.stat().st_size) for path in audit_files(tmp_path)]


def test_what_a_failed_write_left_is_cut_off_before_the_next(
    log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D2: a write that fails after any number of bytes, or a sync that fails, at each of many appends."""
    dice = random.Random(5)
    write, sync = os.write, os.fsync

    def failing_write(descriptor: int, data: memoryview) -> int:
        if dice.random() < 0.5:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: dice.randint(1, len(data))])

    def failing_sync(descriptor: int) -> None:
        if dice.random() < 0.5:
            raise OSError(5, "Input/output error")
        sync(descriptor)

    failed, seq = set(), 1
    monkeypatch.setattr(os, "write", failing_write)
    monkeypatch.setattr(os, "fsync", failing_sync)
    while seq <= 50:
        try:
            log.append([entry(seq)])
        except AuditUnavailable as error:
            failed.add((log.last.seq - seq, str(error).rpartition(": ")[2]))
        else:
            seq += 1
    monkeypatch.undo()
    assert failed == {(-1, "No space left on device"), (-1, "Input/output error")}
    log.append([entry(51)])
    assert_chain(tmp_path, 51)


def test_a_full_disk_tears_no_line(small_disk: Path) -> None:
    log = AuditLog(small_disk)
    log.check()
    log.append(entries(1, 10))
    filler = small_disk / "filler"
    disk = os.statvfs(small_disk)
    filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize - 8192))
    with pytest.raises(AuditUnavailable, match="free bytes"):
        log.check()
    with pytest.raises(AuditUnavailable, match="No space"):
        log.append(entries(11, 500))
    assert log.last.seq == 10
    filler.unlink()
    log.check()
    log.append(entries(11, 500))
    log.close()
    assert_chain(small_disk, 500)


def test_a_directory_that_is_gone_or_closed_is_foreseen(log: AuditLog, tmp_path: Path) -> None:
    log.directory = tmp_path / "nowhere"
    with pytest.raises(AuditUnavailable, match="No such file"):
        log.check()
    with pytest.raises(AuditUnavailable, match="No such file"):
        AuditLog(tmp_path / "nowhere")
    log.directory = Path("/proc")
    with pytest.raises(AuditUnavailable, match=r"free bytes|read-only|no file"):
        log.check()


def test_a_read_only_disk_is_foreseen(log: AuditLog, small_disk: Path) -> None:
    log.directory = small_disk
    log.check()
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)  # noqa: S603
    with pytest.raises(AuditUnavailable, match="read-only"):
        log.check()
