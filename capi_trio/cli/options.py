"""What several commands share: options, the data directory, and how a refusal ends the process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

from capi_core.config import ConfigError
from capi_trio.configfile import CONFIG_NAME, default_data_dir, load
from capi_trio.storage.errors import UnsafePath
from capi_trio.storage.files import prepare_directory

if TYPE_CHECKING:
    from capi_core.config import Config

__all__ = [
    "config_option",
    "config_path",
    "data_dir_option",
    "database_option",
    "fail",
    "json_option",
    "load_config",
    "prepare_data_dir",
    "refuse",
    "refuse_config",
    "warn",
]

_FAILED: Final = 1
_REFUSED: Final = 2

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: default_data_dir(os.environ),
    help="Where capi keeps its files.  [default: $XDG_DATA_HOME/capi or ~/.local/share/capi]",
)
config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The configuration file.  [default: config.json in the data directory]",
)
database_option = click.option(
    "--database",
    envvar="CAPI_DATABASE",
    help="postgresql://... for a shared database.  [default: SQLite in the data directory]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def config_path(data_dir: Path, config_file: Path | None) -> Path:
    return config_file if config_file is not None else data_dir / CONFIG_NAME


def prepare_data_dir(data_dir: Path) -> None:
    """Makes the data directory, or judges the one that is there; ends the process when it must not be used."""
    try:
        warning = prepare_directory(data_dir)
    except UnsafePath as error:
        refuse(f"{error}; --data-dir names another directory")
    if warning is not None:
        warn(warning)


def warn(message: str) -> None:
    """Tells the operator on standard error, whatever the command prints."""
    click.echo(f"warning: {message}", err=True)


def load_config(path: Path) -> Config:
    """Reads the configuration; tells its warnings, and ends the process with what is wrong with it."""
    try:
        loaded, warnings = load(path)
    except ConfigError as error:
        refuse_config(path, error)
    for warning in warnings:
        warn(f"{path}: {warning}")
    return loaded


def refuse_config(path: Path, error: ConfigError) -> NoReturn:
    """Ends the process: this configuration cannot be used."""
    lines = "\n".join(f"  {problem}" for problem in error.problems)
    refuse(f"{path} cannot be used:\n{lines}\nSee docs/configuration.md, or run: capi config check")


def refuse(message: str) -> NoReturn:
    """Ends the process with exit code 2: what was asked for is not done, on purpose."""
    click.secho(f"capi: {message}", err=True, fg="red")
    raise click.exceptions.Exit(_REFUSED)


def fail(message: str) -> NoReturn:
    """Ends the process with exit code 1."""
    click.secho(f"capi: {message}", err=True, fg="red")
    raise click.exceptions.Exit(_FAILED)
