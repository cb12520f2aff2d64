"""`capi debug`: what a person who helps you needs to know. No secret, nothing of a request."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import click
import msgspec

from capi_core import __version__
from capi_core.config import ConfigError
from capi_trio.cli.options import config_option, config_path, data_dir_option, json_option
from capi_trio.configfile import load

if TYPE_CHECKING:
    from pathlib import Path

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
    )
    click.echo(msgspec.json.encode(facts).decode() if as_json else _text(facts))


def _config_state(path: Path) -> str:
    try:
        config, warnings = load(path)
    except ConfigError as error:
        return f"unusable: {error}"
    return f"fine: {len(config.upstreams)} upstreams, {len(config.models)} aliases, {len(warnings)} warnings"


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
    ]
    return "\n".join(f"{name:<15} {value}" for name, value in rows)
