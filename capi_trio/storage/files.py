"""The data directory and the files in it: ours alone, and exactly the ones we think they are.

Everything is opened relative to a path whose last component is never followed as a link, and judged by what was
opened or by `lstat`. Nobody but the owner can write into a directory of mode 0700, so what was checked stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

from capi_trio.storage.errors import UnsafePath

__all__ = [
    "FILE_MODE",
    "check_file",
    "create_file",
    "instance_id",
    "open_private",
    "prepare_directory",
    "read_private",
    "read_regular",
    "replace_file",
    "secret_directory",
    "sync_directory",
]

FILE_MODE: Final = 0o600

_DIRECTORY_MODE: Final = 0o700
_INSTANCE_NAME: Final = "instance-id"
_OURS: Final = re.compile(
    r"capi\.(db|lock)|config\.json|control\.sock|admin\.key\.txt|instance-id|audit-[0-9-]{10}\.jsonl"
    r"|\.config\.json\.[0-9]+\.[0-9a-f]{8}\.tmp"
)
"""Names of which one in a directory tells that it is capi's."""
_DEMO_LOCK: Final = Path("demo", "capi.lock")  # `capi demo` has its own directory, by default within this one
_NOBODYS: Final = "lost+found"  # what a fresh file system has in its root
_OTHERS: Final = 0o077
_OTHERS_WRITE: Final = 0o022


def prepare_directory(path: Path) -> str | None:
    """Makes `path` a directory of mode 0700 that belongs to this user, or refuses it; returns a warning if one is due.

    One that is there must be empty or hold something of capi's: nothing else is ever closed to its other users. One
    that others may read is closed to them, and the warning says so. One that others may write is refused: what lies in
    it may be theirs. Raises `UnsafePath`; then nothing was changed.
    """
    try:
        _make_directory(path)
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise UnsafePath(f"{path} is a symbolic link. Name the directory itself: {path.resolve()}")
        _check_owner(path, found)
        _check_ours(path)
        if found.st_mode & _OTHERS_WRITE:
            raise UnsafePath(f"others can write into {path}. Look for what is not yours, then run: chmod 700 {path}")
        mode = stat.S_IMODE(found.st_mode)
        if mode == _DIRECTORY_MODE:
            return None
        path.chmod(_DIRECTORY_MODE)
    except OSError as error:
        raise UnsafePath(f"{path} cannot be used as the data directory: {error.strerror}") from error
    return f"{path} was open to others (mode {mode:04o}); it is closed to them now (0700)"


def check_file(path: Path) -> os.stat_result | None:
    """The file's status when it is a regular file with one name that belongs to this user; `None` when there is none.

    Closes it to others when it is not. It is never opened: to close any descriptor of a database file drops the locks
    that SQLite holds on it in this process. Raises `UnsafePath`.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnsafePath(f"{path} cannot be examined: {error.strerror}") from error
    _check_regular(path, found)
    if found.st_mode & _OTHERS:
        try:
            path.chmod(FILE_MODE)
        except OSError as error:
            raise UnsafePath(f"others can read {path} and that cannot be changed: {error.strerror}") from error
    return found


def create_file(path: Path, content: bytes = b"") -> None:
    """Makes a new file of mode 0600, whatever the umask, and syncs it. Never replaces a file.

    Raises `OSError`; then there is no file, or the one that was there.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def replace_file(path: Path, content: bytes) -> None:
    """Puts a file of mode 0600 in the place of another or of none, whole and for good.

    Whoever calls this holds the directory's lock: what a killed process left half-made is taken away. Raises `OSError`;
    then the old one is still there, or the new one is and might not outlive a power cut.
    """
    staged = path.with_name(f".{path.name}.tmp")
    staged.unlink(missing_ok=True)
    create_file(staged, content)
    try:
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def open_private(path: Path, flags: int) -> int:
    """Opens one of our own files, mode 0600, never through a link. Raises `UnsafePath` or `OSError`."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE)
    try:
        found = os.fstat(descriptor)
        _check_regular(path, found)
        if stat.S_IMODE(found.st_mode) != FILE_MODE:
            os.fchmod(descriptor, FILE_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, limit: int) -> tuple[int, bytes]:
    """Mode and at most `limit` bytes of a file of the operator's, which may be a link. Raises `OSError`.

    A pipe or a device in its place is refused at once, where opening or reading one could last for ever.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return stat.S_IMODE(mode), file.read(limit)


def read_private(path: Path, limit: int) -> bytes:
    """At most `limit` bytes of one of our own files that holds a secret, never through a link.

    Unlike `open_private` this refuses a file that others can read: its secret is no longer one. Raises `UnsafePath` or
    `OSError`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        _check_regular(path, found)
        _check_closed(path, found, FILE_MODE)
        return file.read(limit)


def secret_directory(path: Path) -> None:
    """Makes `path`, within a data directory, a directory of mode 0700; one that is there must be one, and this user's.

    Raises `UnsafePath` or `OSError`.
    """
    try:
        path.mkdir(mode=_DIRECTORY_MODE)
        sync_directory(path.parent)
    except FileExistsError:
        pass
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafePath(f"{path} is not a directory, or a symbolic link to one")
    _check_owner(path, found)
    _check_closed(path, found, _DIRECTORY_MODE)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory last through a power cut. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def instance_id(directory: Path) -> str:
    """The random name of this data directory, made at the first call: 16 hex digits. Raises `UnsafePath`, `OSError`.

    Replicas that share one database each keep the audit files of their own changes; this tells them apart.
    """
    path = directory / _INSTANCE_NAME
    try:
        create_file(path, secrets.token_hex(8).encode())
        sync_directory(directory)
    except FileExistsError:
        pass
    with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
        name = file.read(64).decode("ascii", "replace").strip()
    if len(name) != 16 or not set(name) <= set("0123456789abcdef"):
        raise UnsafePath(f"{path} does not hold the 16 hex digits that it was made with. Restore it from a backup")
    return name


def _make_directory(path: Path) -> None:
    """With the parents that are missing, each for its owner only, as the XDG base directory specification asks."""
    try:
        path.mkdir(mode=_DIRECTORY_MODE)
    except FileNotFoundError:
        _make_directory(path.parent)
        path.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
    except FileExistsError:
        pass


def _check_ours(path: Path) -> None:
    names = [name for name in os.listdir(path) if name != _NOBODYS]
    if names and not any(_OURS.fullmatch(name) for name in names) and not (path / _DEMO_LOCK).exists():
        raise UnsafePath(
            f"{path} is not a data directory of capi: it holds {min(names)!r}, and nothing of capi's. "
            "Name a new or an empty directory"
        )


def _check_regular(path: Path, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise UnsafePath(f"{path} is a symbolic link. Put the file itself there")
    if not stat.S_ISREG(found.st_mode):
        raise UnsafePath(f"{path} is not a regular file")
    if found.st_nlink > 1:
        raise UnsafePath(f"{path} has a second name (a hard link) under which others may reach it")
    _check_owner(path, found)


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise UnsafePath(f"{path} belongs to user {found.st_uid}, and capi runs as user {os.geteuid()}")


def _check_closed(path: Path, found: os.stat_result, mode: int) -> None:
    if found.st_mode & _OTHERS:
        is_open = f"others can read {path} (mode {stat.S_IMODE(found.st_mode):04o})"
        raise UnsafePath(f"{is_open}. If nobody has, run: chmod {mode:o} {path}")
