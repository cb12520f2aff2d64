"""Where the configuration lives, and where the secrets live that it only names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from capi_core.config import Config, ConfigError, ConfigProblem, parse
from capi_trio.storage.files import read_regular
from capi_trio.upstream import Secret, UpstreamTarget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capi_core.config import UpstreamConfig

__all__ = ["CONFIG_NAME", "default_data_dir", "load", "upstream_targets"]

CONFIG_NAME = "config.json"

_MAX_KEY_BYTES = 8192


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """`$XDG_DATA_HOME/capi`, by default `~/.local/share/capi`. A relative XDG_DATA_HOME is ignored, as XDG asks."""
    base = environ.get("XDG_DATA_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share"
    return root / "capi"


def load(path: Path) -> tuple[Config, tuple[ConfigProblem, ...]]:
    """Reads and validates the configuration file; returns it and its warnings. Raises `ConfigError`."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            (ConfigProblem(str(path), "there is no such file; docs/configuration.md shows one"),)
        ) from None
    except OSError as error:
        raise ConfigError((ConfigProblem(str(path), f"cannot be read: {error.strerror}"),)) from error
    return parse(text)


def upstream_targets(
    config: Config, environ: Mapping[str, str], *, base_dir: Path, demo_urls: Mapping[str, str]
) -> dict[str, UpstreamTarget]:
    """Every configured upstream with its address and its key. Raises `ConfigError` that lists each missing key.

    A relative `api_key_file` is relative to `base_dir`, the directory of the configuration. `demo_urls` has the base
    URL of each upstream of kind `demo`.
    """
    targets: dict[str, UpstreamTarget] = {}
    problems: list[ConfigProblem] = []
    for name, upstream in config.upstreams.items():
        if upstream.kind == "copilot":  # each seat has an address and a credential of its own
            continue
        try:
            key = _read_key(f"$.upstreams.{name}", upstream, environ, base_dir)
        except ConfigError as error:
            problems += error.problems
            continue
        url = upstream.base_url or demo_urls.get(name, "")
        targets[name] = UpstreamTarget(
            name,
            url.rstrip("/"),
            key,
            upstream.connect_timeout_s,
            anthropic=upstream.kind == "anthropic",
            websocket=upstream.websocket,
        )
    if problems:
        raise ConfigError(tuple(problems))
    return targets


def _read_key(path: str, upstream: UpstreamConfig, environ: Mapping[str, str], base_dir: Path) -> Secret | None:
    if upstream.api_key_env is not None:
        where = f"{path}.api_key_env"
        text = environ.get(upstream.api_key_env)
        if text is None:
            raise _problem(where, f"the environment variable {upstream.api_key_env} is not set")
    elif upstream.api_key_file is not None:
        where = f"{path}.api_key_file"
        text = _read_key_file(where, base_dir / upstream.api_key_file)
    else:
        return None
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise _problem(where, "this does not hold a key: one line of visible ASCII characters")
    return Secret(key)


def _read_key_file(where: str, path: Path) -> str:
    try:
        mode, text = read_regular(path, _MAX_KEY_BYTES + 1)
    except OSError as error:
        raise _problem(where, f"{path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise _problem(where, f"others can read {path}; run: chmod 600 {path}")
    if len(text) > _MAX_KEY_BYTES:
        raise _problem(where, f"{path} holds more than a key: {_MAX_KEY_BYTES} bytes at most")
    return text.decode("utf-8", "replace")


def _problem(path: str, message: str) -> ConfigError:
    return ConfigError((ConfigProblem(path, message),))
