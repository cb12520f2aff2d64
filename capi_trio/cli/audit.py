"""`capi audit`: read the audit log, and prove that nobody has changed it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import click

from capi_core.audit import verify
from capi_trio.cli.options import data_dir_option, fail
from capi_trio.storage.audit_log import audit_files, read_lines
from capi_trio.storage.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["audit_commands"]


@click.group("audit")
def audit_commands() -> None:
    """Read and verify the audit log."""


@audit_commands.command()
@click.option("--lines", "-n", type=click.IntRange(1, 100_000), default=20, show_default=True)
@data_dir_option
def tail(lines: int, data_dir: Path) -> None:
    """Print the newest lines, as they are in the files."""
    try:
        newest = deque(read_lines(data_dir), maxlen=lines)
    except (OSError, StorageError) as error:
        fail(f"the audit log cannot be read: {error}")
    for line in newest:
        click.echo(line.decode("utf-8", "replace").rstrip("\n"))


@audit_commands.command("verify")
@data_dir_option
def verify_log(data_dir: Path) -> None:
    """Check every line against the one before it. Exit code 1 when something was altered, dropped or reordered.

    The oldest file may follow on others that have been removed when they were past their time.
    """
    try:
        files = audit_files(data_dir)
        verdict = verify(read_lines(data_dir), after=None)
    except (OSError, StorageError) as error:
        fail(f"the audit log cannot be read: {error}")
    if not verdict.ok:
        fail(f"the audit log is damaged at line {verdict.line}: {verdict.fault.value if verdict.fault else ''}")
    last = "no lines" if verdict.last is None else f"verified up to number {verdict.last.seq}"
    click.echo(f"{len(files)} files, {last}")
