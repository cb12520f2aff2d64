"""The configuration of a running gateway: seeded once, written atomically, reloaded when its file changes.

    seed()     a first file with the defaults, if there is none
    write()    a temporary file in the same directory, fsync, rename, fsync of the directory: never half a file
    Swap       the same as a step of a transaction, which can be taken back
    sweep()    removes the temporary files of writers that were killed
    watch()    looks every half second at time, size and inode of what the path leads to, which also sees an editor's
               rename, a bind mount and a swapped symbolic link; a SIGHUP looks at once

A file that cannot be used changes nothing: the last good configuration stays, and `problem` says what is wrong. A
request keeps the configuration that it started with, because a `Config` is never changed, only replaced.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from attrs import frozen

from capi_core.config import Config, ConfigError, ConfigProblem, parse
from capi_trio.logs import get_logger
from capi_trio.storage.files import create_file, read_regular, sync_directory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

__all__ = ["ConfigStore", "Loaded", "Swap", "read", "restart_members", "seed", "sweep", "write"]

_POLL_S: Final = 0.5
_MAX_BYTES: Final = 16 * 1024 * 1024
_OTHERS: Final = 0o077
_TEMPORARY: Final = re.compile(r"\.(?P<name>.+)\.(?P<pid>[0-9]{1,10})\.[0-9a-f]{8}\.tmp")

_RESTART_LIMITS: Final = (
    "max_body_bytes",
    "max_connections",
    "max_connections_per_address",
    "head_timeout_s",
    "body_timeout_s",
    "min_body_rate",
    "idle_connection_s",
    "write_stall_s",
    "grace_s",
)
"""The server has these from its start on."""


@frozen
class Loaded:
    """A file that can be used. `text` is what it says, word for word; `warnings` what it says in vain."""

    config: Config
    text: bytes
    warnings: tuple[ConfigProblem, ...]


def read(path: Path) -> Loaded:
    """Reads and validates a configuration file. Raises `ConfigError`."""
    try:
        mode, text = read_regular(path, _MAX_BYTES + 1)
    except FileNotFoundError:
        raise _unusable(path, "there is no such file; docs/configuration.md shows one") from None
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from error
    if len(text) > _MAX_BYTES:
        raise _unusable(path, "this is not a configuration file")
    config, warnings = parse(text)
    if mode & _OTHERS:
        warnings = (*warnings, ConfigProblem(str(path), f"others can read it; run: chmod 600 {path}"))
    return Loaded(config, text, warnings)


def seed(path: Path) -> bool:
    """Writes a first configuration with the defaults; returns whether it had to. Raises `OSError`."""
    if path.exists():
        return False
    write(path, msgspec.json.format(msgspec.json.encode(Config()), indent=2) + b"\n")
    return True


def write(path: Path, text: bytes) -> None:
    """Replaces the file as a whole, with mode 0600; whoever reads meets the old text or the new. Raises `OSError`.

    A symbolic link stays one: what it leads to is replaced.
    """
    path = path.resolve()
    temporary = _temporary(path)
    try:
        create_file(temporary, text)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@frozen
class Swap:
    """A new text in the place of a known one, with the way back at hand. `path` leads through no link.

    `stage` writes both texts beside the file, `make` renames, `undo` renames back, and `discard` removes what is left.
    """

    path: Path
    _before: bytes
    _old: Path
    _new: Path

    @classmethod
    def stage(cls, path: Path, before: bytes, after: bytes) -> Swap:
        """Raises `OSError`; then nothing is left."""
        path = path.resolve()
        swap = cls(path, before, _temporary(path), _temporary(path))
        try:
            create_file(swap._old, before)
            create_file(swap._new, after)
        except BaseException:
            swap.discard()
            raise
        return swap

    def make(self) -> None:
        """Raises `OSError`, and `ConfigError` when the file does not say what it said: somebody else was faster."""
        if self.path.read_bytes() != self._before:
            raise _unusable(self.path, "somebody else has changed it meanwhile; edit it again")
        self._new.replace(self.path)
        try:
            sync_directory(self.path.parent)
        except OSError:
            self.undo()
            raise

    def undo(self) -> None:
        """Raises `OSError`."""
        self._old.replace(self.path)
        sync_directory(self.path.parent)

    def discard(self) -> None:
        """Never raises: what cannot be removed now, `sweep` does at the next start."""
        for path in (self._old, self._new):
            with contextlib.suppress(OSError):
                path.unlink()


def sweep(path: Path) -> None:
    """Removes temporary files of this configuration that a killed writer has left. Does what it can; never raises.

    Only what is certainly ours: a regular file of this user, mode 0600, named by a process that is gone.
    """
    path = path.resolve()
    try:
        names = os.listdir(path.parent)
    except OSError:
        return
    for name in names:
        found = _TEMPORARY.fullmatch(name)
        if found is None or found["name"] != path.name or _runs(int(found["pid"])):
            continue
        with contextlib.suppress(OSError):
            status = path.with_name(name).lstat()
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & _OTHERS:
                path.with_name(name).unlink()


def restart_members(started: Config, now: Config) -> tuple[str, ...]:
    """The members that say something else than at the start, but only take effect at the next one."""
    pairs = [("features.auth", started.features.auth, now.features.auth)]
    pairs += [(f"limits.{name}", getattr(started.limits, name), getattr(now.limits, name)) for name in _RESTART_LIMITS]
    return tuple(name for name, before, after in pairs if before != after)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _runs(pid: int) -> bool:
    """Whether another process has this number. This one has only begun: what bears its number is older."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _unusable(path: Path, message: str) -> ConfigError:
    return ConfigError((ConfigProblem(str(path), message),))


_Stamp = tuple[int, int, int]


def _stamp(path: Path) -> _Stamp | None:
    """What tells one state of the file from another; `None` when it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class ConfigStore:
    """The configuration in use. `current` is replaced on a good reload; `problem` tells of a bad one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = get_logger("config")
        self._stamp = _stamp(path)
        self._look = trio.Event()
        self.current = read(path)
        self.problem: ConfigError | None = None

    @property
    def path(self) -> Path:
        return self._path

    def look_now(self) -> None:
        """Reloads at once, changed or not (SIGHUP)."""
        self._stamp = None
        self._look.set()

    async def watch(self, apply: Callable[[Loaded], Awaitable[None]]) -> None:
        """Reloads for ever. `apply` gets each new configuration before it becomes `current`.

        `apply` may raise `ConfigError`: then the new one is as bad as one that cannot be read.
        """
        while True:
            with trio.move_on_after(_POLL_S):
                await self._look.wait()
            self._look = trio.Event()
            stamp = await trio.to_thread.run_sync(_stamp, self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                await self._reload(apply)

    async def _reload(self, apply: Callable[[Loaded], Awaitable[None]]) -> None:
        try:
            loaded = await trio.to_thread.run_sync(read, self._path)
            if loaded.text == self.current.text and self.problem is None:
                return
            await apply(loaded)
        except ConfigError as error:
            self.problem = error
            self._log.error(
                "config_kept", reason="the new one cannot be used", problems=[str(p) for p in error.problems]
            )
            return
        self.current, self.problem = loaded, None
        self._log.info("config_reloaded", warnings=[str(warning) for warning in loaded.warnings])
