"""`capi config`: look at the configuration without starting anything."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
import msgspec

from capi_core.config import ConfigError, json_schema
from capi_trio.cli.options import config_option, config_path, data_dir_option, load_config, refuse_config
from capi_trio.configfile import upstream_targets

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
    click.echo(f"{path} is fine: {len(loaded.upstreams)} upstreams, {len(loaded.models)} aliases")


@config_commands.command()
@data_dir_option
@config_option
def show(data_dir: Path, config_file: Path | None) -> None:
    """Print the configuration as capi understands it, defaults included."""
    loaded = load_config(config_path(data_dir, config_file))
    click.echo(msgspec.json.format(msgspec.json.encode(loaded), indent=2).decode())


@config_commands.command()
def schema() -> None:
    """Print the JSON Schema of config.json, for editors."""
    click.echo(json_schema().decode())
