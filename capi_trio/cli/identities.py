"""`capi identities`: the GitHub seats behind the gateway, and who rides them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from capi_trio.cli.identity_tables import all_identities, all_usage, one_identity
from capi_trio.cli.operate import operate
from capi_trio.cli.options import data_dir_option, database_option, json_option, refuse, warn
from capi_trio.identity_operations import (
    AddIdentity,
    IdentitiesAnswer,
    IdentityAnswer,
    ListIdentities,
    PauseIdentity,
    RemoveIdentity,
    ResumeIdentity,
    SeatUsageAnswer,
    SetIdentity,
    ShareIdentity,
    ShowIdentity,
    ShowSeatUsage,
    StopIdentity,
    UnshareIdentity,
)

if TYPE_CHECKING:
    from pathlib import Path

    from capi_core.identities import IdentityDraft
    from capi_trio.identity_operations import IdentityCommand, IdentityStatus
    from capi_trio.upstream import Secret

__all__ = ["identities_commands", "store_identity", "usage_command"]

_reason_option = click.option("--reason", help="Is shown with the identity, and goes into the audit log.")


def store_identity(data_dir: Path, database: str | None, draft: IdentityDraft, token: Secret) -> IdentityStatus:
    """Adds an identity that was linked, or gives it its new token. Ends the process when that is refused."""
    command = AddIdentity(
        name=draft.name,
        token=token.reveal(),
        host=draft.host,
        login=draft.login,
        owner=draft.owner,
        max_in_flight=draft.max_in_flight,
    )
    answer = operate(data_dir, command, database=database)
    if not isinstance(answer, IdentityAnswer):
        raise AssertionError("an identity that was stored is answered")
    return answer.identity


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
    click.echo(msgspec.json.encode(found).decode() if as_json else all_identities(found))


@identities_commands.command()
@click.argument("name")
@data_dir_option
@database_option
@json_option
def show(name: str, data_dir: Path, database: str | None, as_json: bool) -> None:
    """Show one identity; while the server runs, also how its seat is and who used it in the last 24 hours."""
    _carry_out(ShowIdentity(name), data_dir, database, as_json=as_json)


@identities_commands.command("usage")
@click.argument("name", required=False)
@data_dir_option
@database_option
@json_option
def usage_command(name: str | None, data_dir: Path, database: str | None, as_json: bool) -> None:
    """Ask GitHub what is left of each identity's seat, or of one. Exit code 1 when it does not say for all."""
    answer = operate(data_dir, ShowSeatUsage(name), database=database)
    found = answer.identities if isinstance(answer, SeatUsageAnswer) else []
    click.echo(msgspec.json.encode(found).decode() if as_json else all_usage(found))
    for one in found:
        if one.problem is not None:
            warn(f"{one.identity}: {one.problem}")
    if any(one.problem is not None for one in found):
        raise click.exceptions.Exit(1)


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
    click.echo(one_identity(answer.identity))
