"""`capi keys`: who may call the gateway.

A key's text is shown once: on a terminal, or in a new file of mode 0600 that the caller names. Never in a pipe, where a
log would keep it.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from capi_core.keys import BudgetPeriod, BudgetUnit, Tier
from capi_trio.bootstrap import write_key_file
from capi_trio.cli.operate import operate
from capi_trio.cli.options import data_dir_option, database_option, fail, json_option, refuse
from capi_trio.cli.tables import columns, instant
from capi_trio.clock import now_ms
from capi_trio.operations import (
    BudgetChoice,
    CreateKey,
    EditKey,
    KeyAnswer,
    KeysAnswer,
    ListKeys,
    RevokeKey,
    RotateKey,
    ShowKey,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capi_trio.keyring import KeyView
    from capi_trio.operations import Answer, Command

__all__ = ["key_file_option", "keys_commands", "make_key", "reveal_target"]

_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = re.compile(r"([0-9]{1,6})([smhd])")
_BUDGET: Final = re.compile(r"([0-9]{1,15})\s*(tokens|money)/(day|month)")

key_file_option = click.option(
    "--key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the key's text to this new file (0600) instead of the terminal.",
)
_models_option = click.option("--model", "models", multiple=True, help="A model it may call; repeat. [default: all]")
_owner_option = click.option("--owner", help="Who answers for it.")
_identity_option = click.option("--identity", help="The one GitHub identity that it may ride.")
_rpm_option = click.option("--rpm", type=int, help="Requests per minute; 0 is the configured default.")
_budget_option = click.option("--budget", help="Such as '2000000 tokens/month' or '5000000 money/day' (millionths).")
_expires_option = click.option("--expires-in", help="Such as 12h or 90d.")


@click.group("keys")
def keys_commands() -> None:
    """Create, list, change, rotate and revoke client keys."""


@keys_commands.command()
@click.argument("label")
@click.option("--tier", type=click.Choice([tier.value for tier in Tier]), default="client", show_default=True)
@_models_option
@_owner_option
@_identity_option
@_rpm_option
@_budget_option
@_expires_option
@key_file_option
@data_dir_option
@database_option
@json_option
def create(
    label: str,
    tier: str,
    models: Sequence[str],
    owner: str | None,
    identity: str | None,
    rpm: int | None,
    budget: str | None,
    expires_in: str | None,
    key_file: Path | None,
    data_dir: Path,
    database: str | None,
    as_json: bool,
) -> None:
    """Make a key called LABEL and show its text once."""
    target = reveal_target(key_file, as_json=as_json)
    command = CreateKey(
        label=label,
        tier=Tier(tier),
        owner=owner,
        identity=identity,
        allowed_models=tuple(models) or ("*",),
        rate_limit_override=rpm,
        budget=None if budget is None else _budget(budget),
        expires_at=None if expires_in is None else now_ms() + _duration_ms(expires_in),
    )
    make_key(data_dir, command, target, database=database, as_json=as_json)


@keys_commands.command("list")
@data_dir_option
@database_option
@json_option
def list_keys(data_dir: Path, database: str | None, as_json: bool) -> None:
    """List every key, newest first."""
    answer = operate(data_dir, ListKeys(), database=database)
    views = answer.keys if isinstance(answer, KeysAnswer) else []
    click.echo(msgspec.json.encode(views).decode() if as_json else _table(views))


@keys_commands.command()
@click.argument("key")
@data_dir_option
@database_option
@json_option
def show(key: str, data_dir: Path, database: str | None, as_json: bool) -> None:
    """Show one key: KEY is its id, its label or its hash prefix."""
    _print_key(operate(data_dir, ShowKey(key), database=database), as_json=as_json)


@keys_commands.command()
@click.argument("key")
@click.option("--label")
@_models_option
@_owner_option
@_identity_option
@_rpm_option
@_budget_option
@_expires_option
@click.option("--no-owner", is_flag=True, help="Take the owner away.")
@click.option("--no-identity", is_flag=True, help="Let it ride whatever its owner's keys may.")
@click.option("--no-budget", is_flag=True, help="Take the budget away.")
@click.option("--no-expiry", is_flag=True, help="Let it never expire.")
@data_dir_option
@database_option
@json_option
def edit(
    key: str,
    label: str | None,
    models: Sequence[str],
    owner: str | None,
    identity: str | None,
    rpm: int | None,
    budget: str | None,
    expires_in: str | None,
    no_owner: bool,
    no_identity: bool,
    no_budget: bool,
    no_expiry: bool,
    data_dir: Path,
    database: str | None,
    as_json: bool,
) -> None:
    """Change a key. Its tier never changes."""
    _refuse_both(
        ("--owner", owner, no_owner),
        ("--identity", identity, no_identity),
        ("--budget", budget, no_budget),
        ("--expires-in", expires_in, no_expiry),
    )
    command = EditKey(key=key)
    if label is not None:
        command.label = label
    if models:
        command.allowed_models = tuple(models)
    if owner is not None or no_owner:
        command.owner = owner
    if identity is not None or no_identity:
        command.identity = identity
    if rpm is not None:
        command.rate_limit_override = rpm
    if budget is not None or no_budget:
        command.budget = None if budget is None else _budget(budget)
    if expires_in is not None or no_expiry:
        command.expires_at = None if expires_in is None else now_ms() + _duration_ms(expires_in)
    if command == EditKey(key=key):
        refuse("nothing was asked to be changed; capi keys edit --help shows what can be")
    _print_key(operate(data_dir, command, database=database), as_json=as_json)


@keys_commands.command()
@click.argument("key")
@click.option("--grace", default="1h", show_default=True, help="How long the old key still works, such as 0s or 7d.")
@key_file_option
@data_dir_option
@database_option
@json_option
def rotate(key: str, grace: str, key_file: Path | None, data_dir: Path, database: str | None, as_json: bool) -> None:
    """Make a new key in the place of KEY, and show its text once."""
    target = reveal_target(key_file, as_json=as_json)
    make_key(data_dir, RotateKey(key, _duration_ms(grace)), target, database=database, as_json=as_json)


@keys_commands.command()
@click.argument("key")
@click.option("--reason", help="Goes into the audit log.")
@data_dir_option
@database_option
@json_option
def revoke(key: str, reason: str | None, data_dir: Path, database: str | None, as_json: bool) -> None:
    """End a key at once, for good."""
    command: Command = RevokeKey(key, reason)
    _print_key(operate(data_dir, command, database=database), as_json=as_json)


def _refuse_both(*choices: tuple[str, str | None, bool]) -> None:
    for option, value, taken_away in choices:
        if value is not None and taken_away:
            away = "--no-expiry" if option == "--expires-in" else option.replace("--", "--no-")
            refuse(f"{option} and {away} contradict each other")


def reveal_target(key_file: Path | None, *, as_json: bool) -> Path | None:
    """Where a key's text may go, checked before the key is made: the named file, or `None` for the terminal."""
    if key_file is not None:
        if os.path.lexists(key_file):
            refuse(f"{key_file} is there already; a key is only written to a new file")
        directory = key_file.absolute().parent
        if not directory.is_dir():
            refuse(f"there is no directory {directory}")
        if not os.access(directory, os.W_OK | os.X_OK):
            refuse(f"no file can be made in {directory}")
    elif as_json or not sys.stdout.isatty():
        refuse("a key's text is only shown on a terminal; name a new file for it with --key-file")
    return key_file


def make_key(data_dir: Path, command: Command, target: Path | None, *, database: str | None, as_json: bool) -> None:
    """Has a key made and shows its text, the only time that anybody can. One that nobody could read is revoked."""
    answer = operate(data_dir, command, database=database)
    if not isinstance(answer, KeyAnswer) or answer.text is None:
        raise AssertionError("only a command that makes a key is answered here")
    if target is None:
        click.echo(f"{answer.text}\nThis is the only time that the key is shown. It is {answer.key.id}.")
        return
    try:
        write_key_file(target, answer.text)
    except OSError as error:
        if not isinstance(error, FileExistsError):  # what is half written; never somebody else's file
            target.unlink(missing_ok=True)
        operate(data_dir, RevokeKey(answer.key.id, "its text could not be written down"), database=database)
        fail(f"{target} cannot be written: {error.strerror}. The new key {answer.key.id} was revoked again")
    _print_key(answer, as_json=as_json)
    if not as_json:
        click.echo(f"its text is in {target}")


def _print_key(answer: Answer, *, as_json: bool) -> None:
    if not isinstance(answer, KeyAnswer):
        raise AssertionError("only commands about one key are answered here")
    view = answer.key
    if as_json:
        click.echo(msgspec.json.encode(view).decode())
        return
    for name, value in msgspec.structs.asdict(view).items():
        if value is not None:
            click.echo(f"{name:<20} {_shown(name, value)}")


def _table(views: Sequence[KeyView]) -> str:
    if not views:
        return "There are no keys yet. Make one: capi keys create LABEL"
    rows = [("ID", "HASH", "TIER", "STATE", "MODELS", "LABEL")]
    rows += [
        (view.id, view.hash_prefix, view.tier, _state(view), " ".join(view.allowed_models), view.label)
        for view in views
    ]
    return columns(rows)


def _state(view: KeyView) -> str:
    if view.revoked_at is not None:
        return "revoked"
    if view.expires_at is not None:
        return "expired" if view.expires_at <= now_ms() else f"until {_shown('expires_at', view.expires_at)}"
    return "active"


def _shown(name: str, value: object) -> str:
    if name.endswith("_at") and isinstance(value, int):
        return instant(value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _duration_ms(text: str) -> int:
    found = _DURATION.fullmatch(text)
    if found is None:
        refuse(f"{text!r} is not a duration such as 30m, 12h or 90d")
    return int(found[1]) * _UNITS_MS[found[2]]


def _budget(text: str) -> BudgetChoice:
    found = _BUDGET.fullmatch(text)
    if found is None:
        refuse(f"{text!r} is not a budget such as '2000000 tokens/month'")
    return BudgetChoice(int(found[1]), BudgetUnit(found[2]), BudgetPeriod(found[3]))
