"""How each client is pointed at a gateway: the text for its shell, and its own configuration file.

No key is ever part of that text. Clients are told where the key lies: a command that prints it, a reference to a file
or to an environment variable, whichever the client understands.
"""

from __future__ import annotations

import enum
import json
import shlex
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["NO_KEY", "Client", "Gateway", "SetupError", "Shell", "config_path", "merged_config", "shell_text"]

KEY_VARIABLE: Final = "CAPI_API_KEY"


class SetupError(Exception):
    """A client's configuration cannot be written; says what to do instead."""


class Client(enum.Enum):
    """The clients that are known. ENV: any SDK, by the environment variables that the official ones read."""

    CLAUDE_CODE = "claude-code"
    CODEX = "codex"
    OPENCODE = "opencode"
    ENV = "env"


class Shell(enum.Enum):
    """The shells whose quoting is known."""

    SH = "sh"
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"
    CMD = "cmd"


@frozen
class Gateway:
    """Where a client finds the gateway. `url` without `/v1`; `key_file` holds a client key, `None` when callers need
    none; `model` and `small_model` are names that the gateway knows."""

    url: str
    key_file: Path | None
    model: str | None = None
    small_model: str | None = None


@frozen
class _Key:
    """Stands for the key's text in a shell's line."""

    file: Path


NO_KEY: Final = "none"
"""Clients insist on a key; a gateway without auth ignores it."""


def shell_text(client: Client, gateway: Gateway, shell: Shell) -> str:
    """The lines that point `client` at `gateway` in the shell that reads them. Raises `SetupError`."""
    variables = _VARIABLES[client](gateway)
    return "".join(f"{_assignment(shell, name, value)}\n" for name, value in variables.items())


def config_path(client: Client, home: Path, environ: Mapping[str, str]) -> Path | None:
    """Where `client` keeps its configuration; `None` for ENV, which has none."""
    match client:
        case Client.CLAUDE_CODE:
            return _directory(environ.get("CLAUDE_CONFIG_DIR"), home / ".claude") / "settings.json"
        case Client.CODEX:
            return _directory(environ.get("CODEX_HOME"), home / ".codex") / "config.toml"
        case Client.OPENCODE:
            return _directory(environ.get("XDG_CONFIG_HOME"), home / ".config") / "opencode" / "opencode.json"
        case Client.ENV:
            return None


def merged_config(client: Client, gateway: Gateway, existing: str) -> str:
    """The client's configuration with the gateway in it and everything else as it was. `existing` empty: a new file.

    Raises `SetupError` when the file cannot be changed without harm.
    """
    match client:
        case Client.CLAUDE_CODE:
            return _merged_json(existing, _claude_settings(gateway))
        case Client.OPENCODE:
            return _merged_json(existing, _opencode_config(gateway))
        case Client.CODEX:
            return _merged_toml(existing, gateway)
        case Client.ENV:
            raise SetupError("environment variables live in no file; add the printed lines to your shell's own")


# -- what is set ------------------------------------------------------------------------------------------------


def _key(gateway: Gateway) -> str | _Key:
    return NO_KEY if gateway.key_file is None else _Key(gateway.key_file)


def _claude_models(gateway: Gateway) -> dict[str, str]:
    found: dict[str, str] = {}
    if gateway.model is not None:
        found |= {"ANTHROPIC_MODEL": gateway.model, "ANTHROPIC_DEFAULT_SONNET_MODEL": gateway.model}
    if gateway.small_model is not None:
        found["ANTHROPIC_DEFAULT_HAIKU_MODEL"] = gateway.small_model
    return found


def _claude_variables(gateway: Gateway) -> dict[str, str | _Key]:
    return {
        "ANTHROPIC_BASE_URL": gateway.url,
        "ANTHROPIC_AUTH_TOKEN": _key(gateway),
        **_claude_models(gateway),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def _codex_variables(gateway: Gateway) -> dict[str, str | _Key]:
    return {KEY_VARIABLE: _key(gateway)}


def _sdk_variables(gateway: Gateway) -> dict[str, str | _Key]:
    return {
        "OPENAI_BASE_URL": f"{gateway.url}/v1",
        "OPENAI_API_KEY": _key(gateway),
        "ANTHROPIC_BASE_URL": gateway.url,
        "ANTHROPIC_API_KEY": _key(gateway),
    }


_VARIABLES: Final = {
    Client.CLAUDE_CODE: _claude_variables,
    Client.CODEX: _codex_variables,
    Client.OPENCODE: _codex_variables,
    Client.ENV: _sdk_variables,
}

_Json = dict[str, object]


def _claude_settings(gateway: Gateway) -> _Json:
    env = {
        "ANTHROPIC_BASE_URL": gateway.url,
        **_claude_models(gateway),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    if gateway.key_file is None:
        return {"env": env | {"ANTHROPIC_AUTH_TOKEN": NO_KEY}}
    return {"apiKeyHelper": f"cat -- {shlex.quote(str(gateway.key_file))}", "env": env}


def _opencode_config(gateway: Gateway) -> _Json:
    key = NO_KEY if gateway.key_file is None else f"{{file:{gateway.key_file}}}"
    names = [name for name in (gateway.model, gateway.small_model) if name is not None]
    provider: _Json = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "capi",
        "options": {"baseURL": f"{gateway.url}/v1", "apiKey": key},
        "models": {name: {"name": name} for name in names},
    }
    config: _Json = {"$schema": "https://opencode.ai/config.json", "provider": {"capi": provider}}
    if gateway.model is not None:
        config["model"] = f"capi/{gateway.model}"
    if gateway.small_model is not None:
        config["small_model"] = f"capi/{gateway.small_model}"
    return config


# -- files ------------------------------------------------------------------------------------------------------


def _directory(named: str | None, default: Path) -> Path:
    return default if not named else type(default)(named)


def _merged_json(existing: str, changes: _Json) -> str:
    try:
        document = json.loads(existing) if existing.strip() else {}
    except ValueError as error:
        raise SetupError(
            "the file is not plain JSON (comments would be lost): add the printed part to it by hand"
        ) from error
    if not isinstance(document, dict):
        raise SetupError("the file does not hold a JSON object: add the printed part to it by hand")
    _merge(document, changes)
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _merge(document: _Json, changes: _Json) -> None:
    for name, value in changes.items():
        inner = document.get(name)
        if isinstance(value, dict) and isinstance(inner, dict):
            _merge(inner, value)
        else:
            document[name] = value


def _merged_toml(existing: str, gateway: Gateway) -> str:
    """tomlkit, because it keeps comments and layout. Imported here: nothing else needs it."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(existing)
        if gateway.model is not None:
            document["model"] = gateway.model
        document["model_provider"] = "capi"
        providers = document.setdefault("model_providers", tomlkit.table(is_super_table=True))
        providers["capi"] = {
            "name": "capi",
            "base_url": f"{gateway.url}/v1",
            "env_key": KEY_VARIABLE,
            "wire_api": "responses",
            "supports_websockets": True,
        }
        return tomlkit.dumps(document)
    except (TOMLKitError, TypeError) as error:
        raise SetupError("the file is not TOML that can be changed: add the printed part to it by hand") from error


# -- shells -----------------------------------------------------------------------------------------------------


def _assignment(shell: Shell, name: str, value: str | _Key) -> str:
    match shell:
        case Shell.FISH:
            text = f"(cat -- {_fish(str(value.file))})" if isinstance(value, _Key) else _fish(value)
            return f"set -gx {name} {text}"
        case Shell.POWERSHELL:
            if isinstance(value, _Key):
                return f"$env:{name} = (Get-Content -Raw -LiteralPath {_powershell(str(value.file))}).Trim()"
            return f"$env:{name} = {_powershell(value)}"
        case Shell.CMD:
            if isinstance(value, _Key):
                return f'set /p {name}=<"{_cmd(str(value.file))}"'
            return f'set "{name}={_cmd(value)}"'
        case Shell.SH | Shell.BASH | Shell.ZSH:
            if isinstance(value, _Key):
                return f'export {name}="$(cat -- {shlex.quote(str(value.file))})"'
            return f"export {name}={shlex.quote(value)}"


def _fish(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _powershell(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


def _cmd(text: str) -> str:
    """cmd.exe has no way to write these at its prompt."""
    if any(mark in text for mark in '"%\r\n!'):
        raise SetupError("cmd.exe cannot take a value with a quote, a percent or an exclamation mark; use powershell")
    return text
