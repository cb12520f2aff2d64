"""The configuration of a running gateway: seeded once, written atomically, reloaded when its file changes.

    seed()     a first file with the defaults, if there is none
    write()    a temporary file in the same directory, fsync, rename, fsync of the directory: never half a file
    watch()    looks every half second at time, size and inode of what the path leads to, which also sees an editor's
               rename, a bind mount and a swapped symbolic link; a SIGHUP looks at once

A file that cannot be used changes nothing: the last good configuration stays, and `problem` says what is wrong. A
request keeps the configuration that it started with, because a `Config` is never changed, only replaced.
"""

from __future__ import annotations

import os
import secrets
import stat
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from attrs import frozen

from capi_core.config import Config, ConfigError, ConfigProblem, parse
from capi_trio.logs import get_logger
from capi_trio.storage.files import create_file, sync_directory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

__all__ = ["ConfigStore", "Loaded", "read", "seed", "write"]

_POLL_S: Final = 0.5
_MAX_BYTES: Final = 16 * 1024 * 1024
_OTHERS: Final = 0o077


@frozen
class Loaded:
    """A file that can be used. `text` is what it says, word for word; `warnings` what it says in vain."""

    config: Config
    text: bytes
    warnings: tuple[ConfigProblem, ...]


def read(path: Path) -> Loaded:
    """Reads and validates a configuration file. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise _unusable(path, "there is no such file; docs/configuration.md shows one") from None
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode) or len(text) > _MAX_BYTES:
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        create_file(temporary, text)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


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
