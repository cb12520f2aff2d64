"""`capi audit`: what was written is shown as it is, and no change to it goes unseen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from capi_core.audit import GENESIS, Action, AuditEntry, encode_line, file_name, line_hash
from tests.capi_trio.cli.helpers import Capi
from tests.capi_trio.storage.helpers import NOW

DAY = 86_400_000
Lines = list[bytes]


def written(directory: Path, days: int = 2, lines_a_day: int = 3) -> list[Path]:
    """Audit files as the server writes them: one for each day, one chain over all of them."""
    directory.mkdir(mode=0o700)
    paths, previous, seq = [], GENESIS, 0
    for day in range(days):
        path = directory / file_name(NOW + day * DAY)
        for _ in range(lines_a_day):
            seq += 1
            entry = AuditEntry(seq=seq, ts=NOW + day * DAY, action=Action.KEY_CREATE, target=f"key_{seq}")
            line = encode_line(entry, previous)
            previous = line_hash(line)
            with path.open("ab") as file:
                file.write(line)
        path.chmod(0o600)
        paths.append(path)
    return paths


@pytest.fixture
def capi(tmp_path: Path) -> Capi:
    return Capi(tmp_path / "data")


# -- tail ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "count"), [([], 20), (["-n", "1"], 1), (["--lines", "5"], 5), (["-n", "99"], 24)])
def test_the_newest_lines_are_shown_as_they_stand_in_the_files(capi: Capi, options: list[str], count: int) -> None:
    paths = written(capi.directory, days=2, lines_a_day=12)
    everything = "".join(path.read_text() for path in paths).splitlines(keepends=True)
    assert capi.output("audit", "tail", *options) == "".join(everything[-count:])


def test_an_empty_log_is_no_error(capi: Capi) -> None:
    capi.directory.mkdir(mode=0o700)
    assert capi.output("audit", "tail") == ""
    assert capi.output("audit", "verify") == "0 files, no lines\n"


@pytest.mark.parametrize("count", ["0", "-1", "100001", "x"])
def test_a_number_of_lines_that_cannot_be_is_refused(capi: Capi, count: str) -> None:
    result = capi.run("audit", "tail", "-n", count)
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_damaged_log_can_still_be_read(capi: Capi) -> None:
    """What cannot be decoded is shown as such; a line without its end is shown, too."""
    [path] = written(capi.directory, days=1, lines_a_day=1)
    with path.open("ab") as file:
        file.write(b'\xff\n{"torn')
    first, second, third = capi.output("audit", "tail").splitlines()
    assert first + "\n" == path.read_bytes().splitlines(keepends=True)[0].decode()
    assert (second, third) == ("\ufffd", '{"torn')


# -- verify -------------------------------------------------------------------------------------------------------


def test_a_whole_log_is_verified_over_all_its_files(capi: Capi) -> None:
    written(capi.directory)
    assert capi.output("audit", "verify") == "2 files, verified up to number 6\n"


def test_what_the_commands_themselves_write_is_verified(capi: Capi) -> None:
    for label in "abc":
        capi.new_key("keys", "create", label)
    capi.output("keys", "revoke", "b")
    assert capi.output("audit", "verify").endswith(" files, verified up to number 4\n")
    assert capi.audited() == ["key.create"] * 3 + ["key.revoke"]


def test_files_that_are_past_their_time_are_not_missed(capi: Capi) -> None:
    oldest, *_ = written(capi.directory, days=3)
    oldest.unlink()
    assert capi.output("audit", "verify") == "2 files, verified up to number 9\n"


def altered(lines: Lines) -> Lines:
    return [lines[0], lines[1].replace(b"key_2", b"key_9"), *lines[2:]]


def forged(lines: Lines) -> Lines:
    """With a hash that fits the line, but the next line does not know it."""
    entry = AuditEntry(seq=2, ts=NOW, action=Action.KEY_CREATE, target="key_9")
    return [lines[0], encode_line(entry, line_hash(lines[0])), *lines[2:]]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (altered, "at line 2: altered"),
        (forged, "at line 3: altered"),
        (lambda lines: [lines[0], *lines[2:]], "at line 2: dropped"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "at line 2: reordered"),
        (lambda lines: [lines[0], lines[0], *lines[1:]], "at line 2: reordered"),
        (lambda lines: [lines[0], b"\n", *lines[1:]], "at line 2: altered"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], "at line 6: torn tail"),
    ],
)
def test_damage_is_named_with_its_line(capi: Capi, damage: Callable[[Lines], Lines], why: str) -> None:
    [path] = written(capi.directory, days=1, lines_a_day=6)
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    assert capi.refused("audit", "verify", code=1) == f"the audit log is damaged {why}"


def test_a_file_that_is_missing_in_the_middle_is_damage(capi: Capi) -> None:
    _, middle, _ = written(capi.directory, days=3)
    middle.unlink()
    assert capi.refused("audit", "verify", code=1) == "the audit log is damaged at line 4: dropped"


def test_verifying_changes_nothing(capi: Capi) -> None:
    [path] = written(capi.directory, days=1)
    path.write_bytes(path.read_bytes()[:-5])
    before = path.read_bytes()
    capi.refused("audit", "verify", code=1)
    assert path.read_bytes() == before
    assert [file.name for file in capi.directory.iterdir()] == [path.name]


@pytest.mark.parametrize("command", ["tail", "verify"])
def test_a_log_that_cannot_be_read_is_an_error_in_words(capi: Capi, command: str, tmp_path: Path) -> None:
    assert "the audit log cannot be read: " in capi.refused("audit", command, code=1)
    [path] = written(capi.directory, days=1)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    message = capi.refused("audit", command, code=1)
    assert message.startswith("the audit log cannot be read: ")
    assert path.name in message
