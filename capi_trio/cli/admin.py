"""`capi admin`: for whoever may read the data directory, and has lost the admin key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from capi_trio.cli.keys import key_file_option, make_key, reveal_target
from capi_trio.cli.options import data_dir_option, database_option, json_option
from capi_trio.operations import RecoverAdmin

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["admin_commands"]


@click.group("admin")
def admin_commands() -> None:
    """Get back in."""


@admin_commands.command()
@key_file_option
@data_dir_option
@database_option
@json_option
def recover(key_file: Path | None, data_dir: Path, database: str | None, as_json: bool) -> None:
    """Make another admin key. Whoever can read the data directory may; it is audited."""
    target = reveal_target(key_file, as_json=as_json)
    make_key(data_dir, RecoverAdmin(), target, database=database, as_json=as_json)
