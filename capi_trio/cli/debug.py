"""`capi debug`: what a person who helps you needs to know. No secret, nothing of a request."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import click
import msgspec

from capi_core import __version__
from capi_core.config import Config, ConfigError
from capi_trio.cli.operate import server_status
from capi_trio.cli.options import config_option, config_path, data_dir_option, json_option
from capi_trio.configfile import load
from capi_trio.configstore import restart_members

if TYPE_CHECKING:
    from pathlib import Path

    from capi_trio.operations import ServerStatus

__all__ = ["debug_command"]

_LIBRARIES: Final = ("trio", "hypercorn", "h11", "httpx", "httpcore", "msgspec")


class _Facts(msgspec.Struct):
    version: str
    python: str
    platform: str
    libraries: dict[str, str]
    data_dir: str
    config_file: str
    config: str
    server: str


@click.command("debug")
@data_dir_option
@config_option
@json_option
def debug_command(data_dir: Path, config_file: Path | None, as_json: bool) -> None:
    """Print versions, paths and the state of the configuration."""
    path = config_path(data_dir, config_file)
    facts = _Facts(
        version=__version__,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        libraries={name: version(name) for name in _LIBRARIES},
        data_dir=str(data_dir),
        config_file=str(path),
        config=_config_state(path),
        server=_server_state(data_dir, path),
    )
    click.echo(msgspec.json.encode(facts).decode() if as_json else _text(facts))


def _config_state(path: Path) -> str:
    try:
        config, warnings = load(path)
    except ConfigError as error:
        return f"unusable: {error}"
    return f"fine: {len(config.upstreams)} upstreams, {len(config.models)} aliases, {len(warnings)} warnings"


def _server_state(data_dir: Path, path: Path) -> str:
    status = server_status(data_dir)
    if status is None:
        return "none runs on this data directory"
    said = [f"process {status.pid}", f"auth {status.auth_mode}"]
    if status.config_problem is not None:
        said.append(f"keeps its last good configuration: {status.config_problem}")
    waiting = _waiting(status, path)
    if waiting:
        said.append(f"waits for a restart: {', '.join(waiting)}")
    return "; ".join(said)


def _waiting(status: ServerStatus, path: Path) -> tuple[str, ...]:
    if status.config_file != str(path.resolve()):
        return ()
    try:
        config, _ = load(path)
    except ConfigError:
        return ()
    return restart_members(msgspec.json.decode(status.started_with, type=Config), config)


def _text(facts: _Facts) -> str:
    libraries = ", ".join(f"{name} {number}" for name, number in facts.libraries.items())
    rows = [
        ("capi", facts.version),
        ("python", facts.python),
        ("platform", facts.platform),
        ("libraries", libraries),
        ("data directory", facts.data_dir),
        ("config file", facts.config_file),
        ("config", facts.config),
        ("server", facts.server),
    ]
    return "\n".join(f"{name:<15} {value}" for name, value in rows)
