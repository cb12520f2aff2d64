"""`capi identities`: the GitHub seats behind the gateway, and who rides them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from capi_trio.cli.operate import operate
from capi_trio.cli.options import data_dir_option, database_option, json_option, refuse
from capi_trio.cli.tables import columns, instant
from capi_trio.identity_operations import (
    AddIdentity,
    IdentitiesAnswer,
    IdentityAnswer,
    ListIdentities,
    PauseIdentity,
    RemoveIdentity,
    ResumeIdentity,
    SetIdentity,
    ShareIdentity,
    ShowIdentity,
    StopIdentity,
    UnshareIdentity,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from capi_core.identities import IdentityDraft
    from capi_trio.identity_operations import IdentityCommand, IdentityStatus
    from capi_trio.upstream import Secret

__all__ = ["identities_commands", "store_identity"]

_reason_option = click.option("--reason", help="Is shown with the identity, and goes into the audit log.")


def store_identity(data_dir: Path, database: str | None, draft: IdentityDraft, token: Secret) -> None:
    """Adds an identity that was linked. Ends the process with the reason when it is refused."""
    command = AddIdentity(
        name=draft.name,
        token=token.reveal(),
        host=draft.host,
        login=draft.login,
        owner=draft.owner,
        max_in_flight=draft.max_in_flight,
    )
    operate(data_dir, command, database=database)


@click.group("identities")
def identities_commands() -> None:
    """List, pause, stop, share, change and remove GitHub identities."""


@identities_commands.command("list")
@data_dir_option
@database_option
@json_option
def list_identities(data_dir: Path, database: str | None, as_json: bool) -> None:
    """List every identity, by name."""
    answer = operate(data_dir, ListIdentities(), database=database)
    found = answer.identities if isinstance(answer, IdentitiesAnswer) else []
    click.echo(msgspec.json.encode(found).decode() if as_json else _table(found))


@identities_commands.command()
@click.argument("name")
@data_dir_option
@database_option
@json_option
def show(name: str, data_dir: Path, database: str | None, as_json: bool) -> None:
    """Show one identity."""
    _carry_out(ShowIdentity(name), data_dir, database, as_json=as_json)


@identities_commands.command()
@click.argument("name")
@_reason_option
@data_dir_option
@database_option
@json_option
def pause(name: str, reason: str | None, data_dir: Path, database: str | None, as_json: bool) -> None:
    """Let an identity serve nothing for a while; others take its place where they may."""
    _carry_out(PauseIdentity(name, reason), data_dir, database, as_json=as_json)


@identities_commands.command()
@click.argument("name")
@_reason_option
@data_dir_option
@database_option
@json_option
def stop(name: str, reason: str | None, data_dir: Path, database: str | None, as_json: bool) -> None:
    """The kill switch: refuse everything that an identity would serve, until it is resumed."""
    _carry_out(StopIdentity(name, reason), data_dir, database, as_json=as_json)


@identities_commands.command()
@click.argument("name")
@data_dir_option
@database_option
@json_option
def resume(name: str, data_dir: Path, database: str | None, as_json: bool) -> None:
    """Let a paused or stopped identity serve again."""
    _carry_out(ResumeIdentity(name), data_dir, database, as_json=as_json)


@identities_commands.command()
@click.argument("name")
@click.option("--reason", required=True, help="Why others may ride this seat; goes into the audit log.")
@data_dir_option
@database_option
@json_option
def share(name: str, reason: str, data_dir: Path, database: str | None, as_json: bool) -> None:
    """Let keys whose owner has no identity ride this one."""
    _carry_out(ShareIdentity(name, reason), data_dir, database, as_json=as_json)


@identities_commands.command()
@click.argument("name")
@data_dir_option
@database_option
@json_option
def unshare(name: str, data_dir: Path, database: str | None, as_json: bool) -> None:
    """Keep an identity for its owner's keys again."""
    _carry_out(UnshareIdentity(name), data_dir, database, as_json=as_json)


@identities_commands.command("set")
@click.argument("name")
@click.option("--owner", help="Whose seat it is. What the owner before shared is shared no longer.")
@click.option("--no-owner", is_flag=True, help="Make it everybody's.")
@click.option("--max-in-flight", type=int, help="Requests at a time; 0 is the configured default.")
@data_dir_option
@database_option
@json_option
def set_identity(
    name: str,
    owner: str | None,
    no_owner: bool,
    max_in_flight: int | None,
    data_dir: Path,
    database: str | None,
    as_json: bool,
) -> None:
    """Change an identity's owner or its cap."""
    if owner is not None and no_owner:
        refuse("--owner and --no-owner contradict each other")
    command = SetIdentity(name=name)
    if owner is not None or no_owner:
        command.owner = owner
    if max_in_flight is not None:
        command.max_in_flight = max_in_flight or None
    if command == SetIdentity(name=name):
        refuse("nothing was asked to be changed; capi identities set --help shows what can be")
    _carry_out(command, data_dir, database, as_json=as_json)


@identities_commands.command()
@click.argument("name")
@click.option("--reason", help="Goes into the audit log.")
@data_dir_option
@database_option
@json_option
def remove(name: str, reason: str | None, data_dir: Path, database: str | None, as_json: bool) -> None:
    """End an identity for good and delete its token here. To end the token too, revoke it on GitHub."""
    _carry_out(RemoveIdentity(name, reason), data_dir, database, as_json=as_json)


def _carry_out(command: IdentityCommand, data_dir: Path, database: str | None, *, as_json: bool) -> None:
    answer = operate(data_dir, command, database=database)
    if not isinstance(answer, IdentityAnswer):
        raise AssertionError("only commands about one identity are answered here")
    if as_json:
        click.echo(msgspec.json.encode(answer.identity).decode())
        return
    for name, value in msgspec.structs.asdict(answer.identity).items():
        if value is not None:
            click.echo(f"{name:<20} {_shown(name, value)}")


def _table(found: Sequence[IdentityStatus]) -> str:
    if not found:
        return "There are no identities yet. Link one: capi auth"
    rows = [("NAME", "HOST", "LOGIN", "OWNER", "STATE", "MAX", "SERVES", "TOKEN")]
    rows += [
        (
            one.name,
            one.host,
            one.login or "-",
            one.owner or "-",
            one.state,
            "-" if one.max_in_flight is None else str(one.max_in_flight),
            "its owner" if one.owner is not None and not one.shared else "the pool",
            "ok" if one.token_problem is None else "cannot be used",
        )
        for one in found
    ]
    return columns(rows)


def _shown(name: str, value: object) -> str:
    if name.endswith("_at") and isinstance(value, int):
        return instant(value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
