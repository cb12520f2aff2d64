"""Token files: for their owner only, whole or not there, and never taken from where others could have put one."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from capi_core.errors import LocalError
from capi_trio.storage import files
from capi_trio.token_files import TokenFileError, TokenFiles, adopt, is_token
from capi_trio.upstream import Secret

TOKEN = "gho_" + "Ab1" * 12
OTHER = "ghu_" + "Zz9" * 12

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFiles:
    return TokenFiles(tmp_path / "identities")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def names(tokens: TokenFiles) -> list[str]:
    return sorted(path.name for path in tokens.directory.iterdir())


@pytest.mark.parametrize("prefix", ["gho_", "ghu_", "ghp_", "github_pat_"])
def test_a_token_has_one_of_githubs_prefixes_and_no_space(prefix: str) -> None:
    assert is_token(prefix + "a1_B.-")
    for text in ("", prefix, prefix + "a b", prefix + "a\n", "x" + prefix + "a", prefix + "ä", prefix + "a" * 1001):
        assert not is_token(text)
    assert not is_token("ghs_" + "a" * 36), "an installation's token has no seat"


# -- keeping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o077])
def test_a_token_is_kept_for_its_owner_only_under_any_umask(tokens: TokenFiles, umask: int) -> None:
    previous = os.umask(umask)
    try:
        tokens.put("a", Secret(TOKEN))
    finally:
        os.umask(previous)
    assert mode(tokens.directory) == 0o700
    assert mode(tokens.directory / "a.token") == 0o600
    assert names(tokens) == ["a.token"]
    assert tokens.read("a").reveal() == TOKEN
    assert tokens.problem("a") is None


def test_each_identity_has_its_own_and_a_new_one_takes_the_place_of_the_old(tokens: TokenFiles) -> None:
    tokens.put("a", Secret(TOKEN))
    tokens.put("b", Secret(TOKEN))
    tokens.put("a", Secret(OTHER))
    assert [tokens.read(name).reveal() for name in "ab"] == [OTHER, TOKEN]
    assert names(tokens) == ["a.token", "b.token"]


def test_a_deleted_token_is_gone_and_none_is_no_fault(tokens: TokenFiles) -> None:
    tokens.delete("a")
    tokens.put("a", Secret(TOKEN))
    tokens.delete("a")
    tokens.delete("a")
    assert names(tokens) == []
    assert tokens.problem("a") == f"{tokens.directory}/a.token cannot be read: No such file or directory"


def test_an_exchange_returns_the_old_token_if_it_could_be_used(tokens: TokenFiles) -> None:
    def exchanged(token: str | None) -> str | None:
        old = tokens.exchange("a", None if token is None else Secret(token))
        return None if old is None else old.reveal()

    assert exchanged(None) is None
    assert exchanged(TOKEN) is None
    assert exchanged(OTHER) == TOKEN
    assert exchanged(None) == OTHER
    assert exchanged(TOKEN) is None
    (tokens.directory / "a.token").chmod(0o644)
    assert exchanged(OTHER) is None
    assert tokens.read("a").reveal() == OTHER
    assert names(tokens) == ["a.token"]


@pytest.mark.parametrize("new", [None, OTHER])
@pytest.mark.parametrize("old", [None, TOKEN])
@pytest.mark.parametrize("call", ["unlink", "fsync"])
def test_an_exchange_that_fails_leaves_the_old_token_or_none(
    tokens: TokenFiles, call: str, old: str | None, new: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens.put("b", Secret(TOKEN))
    if old is not None:
        tokens.put("a", Secret(old))
    genuine = getattr(os, call)
    faults = [OSError(5, "Input/output error")]

    def once(*arguments: int) -> None:
        if faults:
            raise faults.pop()
        genuine(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, once)
        # With nothing to delete, nothing is called that could fail.
        if (call, old, new) != ("fsync", None, None):
            with pytest.raises(TokenFileError, match=r"a\.token cannot be \w+: Input/output error"):
                tokens.exchange("a", None if new is None else Secret(new))
    assert names(tokens) == ([] if old is None else ["a.token"]) + ["b.token"]
    assert old is None or tokens.read("a").reveal() == old


def test_what_a_killed_write_left_is_swept_away(tokens: TokenFiles) -> None:
    tokens.put("a", Secret(TOKEN))
    (tokens.directory / ".a.token.tmp").write_text("gho_ha")
    tokens.put("a", Secret(OTHER))
    assert names(tokens) == ["a.token"]
    assert tokens.read("a").reveal() == OTHER


def test_sweeping_takes_away_what_is_half_made_and_nothing_else(tokens: TokenFiles, tmp_path: Path) -> None:
    tokens.sweep()
    assert not tokens.directory.exists()
    tokens.put("a", Secret(TOKEN))
    for name in (".a.token.tmp", ".b.token.tmp", ".notes.tmp", "b.token.tmp"):
        (tokens.directory / name).touch()
    tokens.sweep()
    assert names(tokens) == [".notes.tmp", "a.token", "b.token.tmp"]
    (tokens.directory / ".c.token.tmp").mkdir()
    with pytest.raises(TokenFileError, match="identities cannot be swept: "):
        tokens.sweep()
    (tmp_path / "link").symlink_to(tokens.directory)
    TokenFiles(tmp_path / "link").sweep()


@pytest.mark.parametrize("call", ["fsync", "rename", "open"])
def test_a_write_that_fails_leaves_the_old_token(
    tokens: TokenFiles, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    tokens.put("a", Secret(TOKEN))
    with monkeypatch.context() as patched:
        if call == "rename":
            patched.setattr(Path, "replace", full)
        else:
            patched.setattr(os, call, full)
        with pytest.raises(TokenFileError, match=r"a\.token cannot be written: No space left on device") as caught:
            tokens.put("a", Secret(OTHER))
    assert OTHER not in str(caught.value)
    assert names(tokens) == ["a.token"]
    assert tokens.read("a").reveal() == TOKEN


@pytest.mark.parametrize("name", ["", "..", "../a", "a/b", "A", ".a", "a\0", "a.token"])
def test_no_name_leads_anywhere_else(tokens: TokenFiles, name: str) -> None:
    for act in (lambda: tokens.read(name), lambda: tokens.put(name, Secret(TOKEN)), lambda: tokens.delete(name)):
        with pytest.raises(LocalError):
            act()


# -- what is refused ----------------------------------------------------------------------------------------------


def test_a_file_that_others_can_read_is_refused_with_what_to_do(tokens: TokenFiles) -> None:
    """Not closed and used: whoever read it has the token."""
    tokens.put("a", Secret(TOKEN))
    path = tokens.directory / "a.token"
    path.chmod(0o640)
    with pytest.raises(TokenFileError, match=f"others can read {path} .mode 0640.. If nobody has, run: chmod 600"):
        tokens.read("a")
    assert mode(path) == 0o640


@pytest.mark.parametrize("plant", ["link", "directory", "pipe", "second name"])
def test_what_is_not_a_file_of_ours_is_refused(tokens: TokenFiles, plant: str) -> None:
    tokens.put("b", Secret(TOKEN))
    path = tokens.directory / "a.token"
    match plant:
        case "link":
            path.symlink_to(tokens.directory / "b.token")
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path, 0o600)
        case _:
            path.hardlink_to(tokens.directory / "b.token")
    with pytest.raises(TokenFileError, match=r"a\.token"):
        tokens.read("a")


def test_a_link_in_a_tokens_place_is_replaced_and_not_followed(tokens: TokenFiles, tmp_path: Path) -> None:
    tokens.put("b", Secret(TOKEN))
    (tmp_path / "outside").write_text("content")
    (tokens.directory / "a.token").symlink_to(tmp_path / "outside")
    tokens.put("a", Secret(OTHER))
    assert (tmp_path / "outside").read_text() == "content"
    assert tokens.read("a").reveal() == OTHER


@needs_root
def test_another_users_file_is_refused(tokens: TokenFiles) -> None:
    tokens.put("a", Secret(TOKEN))
    os.chown(tokens.directory / "a.token", 12345, -1)
    with pytest.raises(TokenFileError, match="belongs to user 12345"):
        tokens.read("a")


@pytest.mark.parametrize("plant", ["link", "file", "open"])
def test_a_directory_that_is_not_ours_alone_is_refused(tokens: TokenFiles, tmp_path: Path, plant: str) -> None:
    match plant:
        case "link":
            (tmp_path / "elsewhere").mkdir(mode=0o700)
            tokens.directory.symlink_to(tmp_path / "elsewhere")
        case "file":
            tokens.directory.touch()
        case _:
            tokens.directory.mkdir()
            tokens.directory.chmod(0o755)
    with pytest.raises(TokenFileError, match=f"{tokens.directory}"):
        tokens.put("a", Secret(TOKEN))
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"sk-cap-X", b"gho_a b", b"gho_a\ngho_b", b"gho_\xff\xff", b"gho_" + b"a" * 2000]
)
def test_what_is_no_token_is_refused_and_not_repeated(tokens: TokenFiles, tmp_path: Path, content: bytes) -> None:
    tokens.put("a", Secret(TOKEN))
    (tokens.directory / "a.token").write_bytes(content)
    files.create_file(tmp_path / "github_token", content)
    acts: list[Callable[[], Secret]] = [lambda: tokens.read("a"), lambda: adopt(tmp_path / "github_token")]
    for act in acts:
        with pytest.raises(TokenFileError, match="does not hold a GitHub token and nothing else") as caught:
            act()
        assert b"a b" not in str(caught.value).encode()


# -- adopting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_token_of_another_proxy_is_taken_over_and_its_file_left_alone(tmp_path: Path, end: str) -> None:
    path = tmp_path / "github_token"
    files.create_file(path, (TOKEN + end).encode())
    found = adopt(path)
    assert found.reveal() == TOKEN
    assert TOKEN not in repr(found)
    assert path.read_text() == (TOKEN + end).replace("\r\n", "\n")


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o604])
def test_a_file_that_others_could_read_is_not_adopted(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "github_token"
    path.write_text(TOKEN)
    path.chmod(bits)
    with pytest.raises(TokenFileError, match=f"others can read {path}; run: chmod 600 {path}"):
        adopt(path)


def test_a_file_that_is_not_there_or_could_be_waited_for_is_told(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="cannot be read: No such file"):
        adopt(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TokenFileError, match="cannot be read: it is not a regular file"):
        adopt(tmp_path / "pipe")
