"""The first admin key: made when there is no active one, shown once, never in a log.

To a terminal the key is printed. Otherwise it goes into `admin.key.txt` (0600) in the data directory, and while that
file lies there the gateway serves nothing but its health: whoever runs it must read the file and delete it. A start
never fails because of it, so a container may restart in the meantime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core.audit import Action
from capi_core.keys import KeyDraft, Tier
from capi_trio.keyring import CLI, AdminExists
from capi_trio.storage.files import create_file, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capi_trio.keyring import IssuedKey, Keyring

__all__ = ["ADMIN_KEY_NAME", "bootstrap", "key_file_waits", "write_key_file"]

ADMIN_KEY_NAME: Final = "admin.key.txt"
_FIRST_ADMIN: Final = KeyDraft(label="first admin", tier=Tier.ADMIN)


def key_file_waits(directory: Path) -> bool:
    """Whether a bootstrap key still waits to be read and deleted."""
    return (directory / ADMIN_KEY_NAME).exists()


def write_key_file(path: Path, text: str) -> None:
    """Writes a key's text to a new file of mode 0600. Raises `FileExistsError`, `OSError`."""
    create_file(path, text.encode() + b"\n")
    sync_directory(path.parent)


async def bootstrap(keyring: Keyring, directory: Path, *, show: Callable[[str], None] | None) -> IssuedKey | None:
    """Makes the first admin key if no admin key is active; returns it if it was made.

    `show` prints the key's text to a terminal; without it the key goes to the file. The file is on disk before the key
    is valid; one that was left by a crash in between opens nothing, and is replaced. Of replicas that share a database
    and start at the same moment, one makes the key. Raises `StorageError`, `OSError`.
    """
    if keyring.has_active_admin():
        return None
    path = directory / ADMIN_KEY_NAME

    def deliver(text: str) -> None:
        path.unlink(missing_ok=True)
        write_key_file(path, text)

    try:
        issued = await keyring.create(
            _FIRST_ADMIN,
            CLI,
            action=Action.AUTH_BOOTSTRAP,
            deliver=None if show is not None else deliver,
            unless_admin=True,
        )
    except AdminExists:
        await keyring.load()
        return None
    if show is not None:
        show(issued.text)
    return issued
