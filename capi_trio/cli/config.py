"""`capi config`: look at the configuration without starting anything."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
import msgspec

from capi_core.config import Config, ConfigError, json_schema, parse
from capi_trio.cli.operate import operate, server_status
from capi_trio.cli.options import (
    config_option,
    config_path,
    data_dir_option,
    database_option,
    fail,
    load_config,
    prepare_data_dir,
    refuse_config,
    warn,
)
from capi_trio.configfile import upstream_targets
from capi_trio.configstore import restart_members, seed
from capi_trio.operations import EditConfig

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["config_commands"]


@click.group("config")
def config_commands() -> None:
    """Check, show or describe the configuration."""


@config_commands.command()
@data_dir_option
@config_option
def check(data_dir: Path, config_file: Path | None) -> None:
    """Say what is wrong with the configuration; exit code 2 if anything is.

    Checks the keys that the file names as well: each must be there and readable.
    """
    path = config_path(data_dir, config_file)
    loaded = load_config(path)
    try:
        upstream_targets(loaded, os.environ, base_dir=path.parent, demo_urls={})
    except ConfigError as error:
        refuse_config(path, error)
    _tell_of_the_server(data_dir, path, loaded)
    click.echo(f"{path} is fine: {len(loaded.upstreams)} upstreams, {len(loaded.models)} aliases")


@config_commands.command()
@data_dir_option
@config_option
def show(data_dir: Path, config_file: Path | None) -> None:
    """Print the configuration as capi understands it, defaults included."""
    loaded = load_config(config_path(data_dir, config_file))
    click.echo(msgspec.json.format(msgspec.json.encode(loaded), indent=2).decode())


@config_commands.command()
@data_dir_option
@config_option
@database_option
def edit(data_dir: Path, config_file: Path | None, database: str | None) -> None:
    """Change the configuration in your editor ($VISUAL or $EDITOR).

    What you save is checked before it takes the place of the old file, as a whole; the change is audited. A running
    gateway takes it within a second.
    """
    path = config_path(data_dir, config_file)
    prepare_data_dir(data_dir)
    try:
        seed(path)
        before = path.read_text(encoding="utf-8")
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        fail(f"{path} is not UTF-8 text")
    after = click.edit(before, extension=".json", require_save=True)
    if after is None or after == before:
        click.echo("nothing was changed")
        return
    try:
        parse(after.encode())
    except ConfigError as error:
        refuse_config(path, error)
    operate(data_dir, EditConfig(str(path.absolute()), before, after), database=database)
    click.echo(f"{path} was changed")
    _tell_of_the_server(data_dir, path, load_config(path))


def _tell_of_the_server(data_dir: Path, path: Path, loaded: Config) -> None:
    """Warns when this file says what the running server will only do after its next start."""
    status = server_status(data_dir)
    if status is None or status.config_file != str(path.resolve()):
        return
    for member in restart_members(msgspec.json.decode(status.started_with, type=Config), loaded):
        warn(f"{path}: {member} waits for a restart of the running server (process {status.pid})")


@config_commands.command()
def schema() -> None:
    """Print the JSON Schema of config.json, for editors."""
    click.echo(json_schema().decode())
