"""The GitHub tokens of identities, each in a file of its own: `identities/NAME.token` in the data directory.

The directory is 0700, a file 0600, and one that others can read is refused: its token is no longer a secret. A token
is in these files and, as `Secret`, in memory; never in the database, the audit log, a backup or a log line. Everything
here blocks, so it runs in worker threads.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

from attrs import frozen

from capi_core.errors import LocalError
from capi_core.identities import is_identity_name
from capi_trio.storage.errors import StorageError, UnsafePath
from capi_trio.storage.files import read_private, read_regular, replace_file, secret_directory, sync_directory
from capi_trio.upstream import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["TOKENS_NAME", "TokenFileError", "TokenFiles", "adopt", "is_token"]

TOKENS_NAME: Final = "identities"

_TOKEN: Final = re.compile(r"(?:gho_|ghu_|ghp_|github_pat_)[!-~]{1,1000}")
_MAX_BYTES: Final = 1200
_SUFFIX: Final = ".token"
_OTHERS: Final = 0o077


class TokenFileError(StorageError):
    """A token cannot be read, written or removed. The message never holds it."""


def is_token(text: str) -> bool:
    """Whether this looks like a user's token of GitHub's: its prefix, and no space in it.

    GitHub docs, "About authentication to GitHub", "GitHub's token formats": OAuth, GitHub App and personal ones.
    """
    return _TOKEN.fullmatch(text) is not None


def adopt(path: Path) -> Secret:
    """The token in a file of the operator's, such as the one that the base proxy keeps: text with nothing else in it.

    Raises `TokenFileError` when it cannot be read, others can read it, or it holds something else.
    """
    with _failing(path, "cannot be read"):
        mode, content = read_regular(path, _MAX_BYTES)
    if mode & _OTHERS:
        raise TokenFileError(f"others can read {path}; run: chmod 600 {path}")
    return _token(path, content)


@frozen
class TokenFiles:
    """The token files in `directory`, which need not exist yet. Names are identities' names, else `LocalError`."""

    directory: Path

    def read(self, name: str) -> Secret:
        """The identity's token. Raises `TokenFileError`: there is none here, or it cannot be trusted or used."""
        path = self._path(name)
        with _failing(path, "cannot be read"):
            return _token(path, read_private(path, _MAX_BYTES))

    def put(self, name: str, token: Secret) -> None:
        """Keeps the identity's token in the place of any before it, for good. Raises `TokenFileError`."""
        path = self._path(name)
        with _failing(path, "cannot be written"):
            secret_directory(self.directory)
            replace_file(path, token.reveal().encode() + b"\n")

    def delete(self, name: str) -> None:
        """Removes the identity's token for good; none is no fault. Raises `TokenFileError`."""
        path = self._path(name)
        with _failing(path, "cannot be removed"), contextlib.suppress(FileNotFoundError):
            path.unlink()
            sync_directory(self.directory)

    def exchange(self, name: str, token: Secret | None) -> Secret | None:
        """Puts a token in the place of the identity's, or removes that; returns the old one, `None` if it could not be
        used anyway. Raises `TokenFileError`, and then the old one is still there.
        """
        old = self._usable(name)
        try:
            self.keep(name, token)
        except TokenFileError:
            with contextlib.suppress(TokenFileError):
                self.keep(name, old)
            raise
        return old

    def keep(self, name: str, token: Secret | None) -> None:
        """`put`, or with `None` `delete`."""
        if token is None:
            self.delete(name)
        else:
            self.put(name, token)

    def sweep(self) -> None:
        """Removes what killed writes left half-made. Raises `TokenFileError`."""
        with _failing(self.directory, "cannot be swept"):
            if self.directory.is_dir() and not self.directory.is_symlink():
                for left in self.directory.glob(f".*{_SUFFIX}.tmp"):
                    left.unlink(missing_ok=True)

    def problem(self, name: str) -> str | None:
        """Why the identity's token cannot be used; `None` when it can."""
        try:
            self.read(name)
        except TokenFileError as error:
            return str(error)
        return None

    def _usable(self, name: str) -> Secret | None:
        try:
            return self.read(name)
        except TokenFileError:
            return None

    def _path(self, name: str) -> Path:
        if not is_identity_name(name):
            raise LocalError("this is no name of an identity")
        return self.directory / f"{name}{_SUFFIX}"


def _token(path: Path, content: bytes) -> Secret:
    text = content.decode("utf-8", "replace").strip()
    if not is_token(text):
        raise TokenFileError(f"{path} does not hold a GitHub token and nothing else: gho_..., ghu_..., ghp_...")
    return Secret(text)


@contextlib.contextmanager
def _failing(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TokenFileError(f"{path} {what}: {error.strerror}") from error
    except UnsafePath as error:
        raise TokenFileError(str(error)) from error
