"""`capi backup` and `capi restore`: everything in the data directory, as one file."""

from __future__ import annotations

from pathlib import Path

import click

from capi_trio.cli.operate import operate
from capi_trio.cli.options import data_dir_option, database_option, fail, prepare_data_dir
from capi_trio.operations import BackUp
from capi_trio.storage.backup import restore
from capi_trio.storage.errors import StorageError
from capi_trio.storage.lock import DirectoryLock

__all__ = ["backup_command", "restore_command"]


@click.command("backup")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@data_dir_option
@database_option
def backup_command(file: Path, data_dir: Path, database: str | None) -> None:
    """Write a consistent copy of keys, configuration and audit log to the new FILE, also while the server runs."""
    operate(data_dir, BackUp(str(file.absolute())), database=database)
    click.echo(f"wrote {file}; it holds the hashes of every key: keep it as safe as the data directory")


@click.command("restore")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@data_dir_option
def restore_command(file: Path, data_dir: Path) -> None:
    """Unpack a backup into an empty data directory."""
    prepare_data_dir(data_dir)
    try:
        with DirectoryLock.take(data_dir) as lock:
            manifest = restore(file, lock)
    except StorageError as error:
        fail(str(error))
    click.echo(f"restored {len(manifest.members)} files into {data_dir}")
