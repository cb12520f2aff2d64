"""`capi setup CLIENT`: how a client is pointed at this gateway, to read or to have done."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import NoReturn

import click

from capi_trio.cli.options import fail, refuse
from capi_trio.client_setup import Client, Gateway, SetupError, Shell, config_path, merged_config, shell_text

__all__ = ["setup_command"]


@click.command("setup")
@click.argument("client", type=click.Choice([client.value for client in Client]))
@click.option("--url", default="http://127.0.0.1:4141", show_default=True, help="Where the gateway is, without /v1.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False, resolve_path=True),
    help="File with a client key (capi keys create --key-file). Without it: for a gateway without auth.",
)
@click.option("--model", help="The model or alias to use.")
@click.option("--small-model", help="The one for small tasks: titles, summaries.")
@click.option("--shell", type=click.Choice([shell.value for shell in Shell]), help="Default: yours.")
@click.option("--write", is_flag=True, help="Merge it into the client's own configuration file.")
def setup_command(
    client: str,
    url: str,
    key_file: Path | None,
    model: str | None,
    small_model: str | None,
    shell: str | None,
    write: bool,
) -> None:
    """Print how CLIENT is pointed at this gateway, or write it with --write. The key itself is never printed."""
    gateway = Gateway(url.rstrip("/").removesuffix("/v1"), key_file, model, small_model)
    wanted = Client(client)
    path = config_path(wanted, Path.home(), os.environ)
    try:
        if write:
            _write(wanted, gateway, path)
        else:
            click.echo(_printed(wanted, gateway, path, _shell(shell)), nl=False)
    except SetupError as error:
        where = "" if path is None else f"{path}: "
        refuse(f"{where}{error}")


def _printed(client: Client, gateway: Gateway, path: Path | None, shell: Shell) -> str:
    mark = "REM" if shell is Shell.CMD else "#"
    parts = []
    if client in (Client.CODEX, Client.OPENCODE) and path is not None:
        parts.append(f"{mark} In {path} (--write does it):\n")
        parts += [f"{mark} {line}\n" for line in merged_config(client, gateway, "").splitlines()]
    if client is not Client.OPENCODE:
        parts.append(shell_text(client, gateway, shell))
    return "".join(parts)


def _shell(name: str | None) -> Shell:
    """The one that was named, else the caller's own."""
    if name is not None:
        return Shell(name)
    own = os.path.basename(os.environ.get("SHELL", ""))
    return next((shell for shell in Shell if shell.value == own), Shell.SH)


def _write(client: Client, gateway: Gateway, path: Path | None) -> None:
    if path is None:
        merged_config(client, gateway, "")  # says why there is no file
        return
    target = path.resolve()  # dotfiles are often links into a repository: the file changes, the link stays
    try:
        existing = target.read_text(encoding="utf-8") if target.exists() else ""
    except (OSError, UnicodeError) as error:
        _cannot(path, error)
    text = merged_config(client, gateway, existing)
    if text == existing:
        click.echo(f"{path} is up to date.")
        return
    try:
        _replace(target, text)
    except OSError as error:
        _cannot(path, error)
    click.echo(f"Wrote {path}.")
    if client is Client.CODEX and gateway.key_file is not None:
        click.echo("Codex reads the key from its environment; add this to your shell:")
        click.echo(shell_text(client, gateway, _shell(None)), nl=False)


def _replace(path: Path, text: str) -> None:
    """Writes beside the file and renames: it is whole at every moment. Keeps the mode; a new file is 0600."""
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, mode)
            file.write(text)
            file.flush()
            os.fsync(handle)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _cannot(path: Path, error: Exception) -> NoReturn:
    reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
    fail(f"{path} cannot be used: {reason}")
