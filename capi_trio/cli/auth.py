"""`capi auth`: links a GitHub account with a Copilot seat to the gateway, as an identity."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec
import trio
from attrs import evolve, field, frozen

from capi_core.github import Denied, DeviceFlow, Expired, Failed, GitHubHost, TokenProblem, TokenRefusal
from capi_core.identities import IdentityDraft, canonical_host, validate
from capi_trio import logs
from capi_trio.cli.identities import store_identity
from capi_trio.cli.operate import operate
from capi_trio.cli.options import data_dir_option, database_option, fail, json_option, refuse, warn
from capi_trio.clock import now_ms
from capi_trio.github.client import GitHubClient, GitHubFailedError, own_traits
from capi_trio.github.linking import CLIENT_ID, LinkedAccount, account_of, link
from capi_trio.identity_operations import IdentitiesAnswer, ListIdentities
from capi_trio.token_files import TokenFileError, adopt
from capi_trio.upstream import UpstreamClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from capi_core.github import CopilotToken, ShowCode
    from capi_trio.identity_operations import IdentityStatus
    from capi_trio.upstream import Secret

__all__ = ["auth_command"]

_NO_NAME: Final = re.compile(r"[^a-z0-9-]+")
_MOST_NAME: Final = 64
_ANY_NAME: Final = "any"


class _Code(msgspec.Struct, tag="code", tag_field="event"):
    """A line for programs: what the user has to enter, and where."""

    user_code: str
    verification_uri: str
    expires_in_s: int


class _Linked(msgspec.Struct, tag="linked", tag_field="event"):
    """A line for programs: the end. `seat` is `ok`, or the name of what is wrong with it."""

    identity: str
    login: str
    host: str
    owner: str | None
    seat: str
    next_step: str | None


@frozen
class _Wish:
    """What is to be linked, and how: by a token that is there, or by the device flow."""

    host: GitHubHost
    client_id: str
    adopted: Secret | None = field(repr=False)
    show: Callable[[ShowCode], None]


@frozen
class _Outcome:
    linked: LinkedAccount
    seat: CopilotToken | TokenRefusal


@click.command("auth")
@click.option("--identity", help="The identity's name.  [default: made of the account's login]")
@click.option("--host", default="github.com", show_default=True, help="The GitHub host, such as octo.ghe.com.")
@click.option("--owner", help="Whose seat it is: it serves this owner's keys.  [default: everybody's]")
@click.option(
    "--adopt",
    "token_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Take the GitHub token in this file, such as another proxy's, in place of a new one.",
)
@click.option("--client-id", default=CLIENT_ID, show_default=True, help="The OAuth app to authorize.")
@data_dir_option
@database_option
@json_option
def auth_command(
    identity: str | None,
    host: str,
    owner: str | None,
    token_file: Path | None,
    client_id: str,
    data_dir: Path,
    database: str | None,
    as_json: bool,
) -> None:
    """Link a GitHub account with a Copilot seat: shows a code, and waits until you have entered it on GitHub.

    With --json, one line for the code and one for the end.
    """
    draft = IdentityDraft(name=_ANY_NAME if identity is None else identity, host=host, owner=owner)
    # All that can be refused is, before anybody goes to a page for it.
    _refuse_faulty(draft)
    _refuse_taken(draft, data_dir, database)
    if not client_id.strip():
        refuse("--client-id must not be empty")
    adopted = None if token_file is None else _adopted(token_file)
    show = _print_code if as_json else _tell_code
    outcome = _carried_out(_Wish(GitHubHost.of(host), client_id, adopted, show))
    login = outcome.linked.account.login
    draft = evolve(draft, name=identity or _name_for(login), host=canonical_host(host), login=login)
    stored = store_identity(data_dir, database, draft, outcome.linked.token)
    _tell_end(stored, outcome.seat, as_json=as_json)


def _refuse_faulty(draft: IdentityDraft) -> None:
    problems = validate(draft)
    if problems:
        refuse("; ".join(f"--{'identity' if one.field == 'name' else one.field} {one.message}" for one in problems))


def _refuse_taken(draft: IdentityDraft, data_dir: Path, database: str | None) -> None:
    """Of a name that is given already, the same account may be linked again; which one it is shows when it is."""
    answer = operate(data_dir, ListIdentities(), database=database)
    if not isinstance(answer, IdentitiesAnswer):
        raise AssertionError("a list is answered with a list")
    for one in answer.identities:
        mismatch = evolve(draft, login=one.login or _ANY_NAME).mismatch(one) if one.name == draft.name else None
        if mismatch is not None:
            refuse(f"the identity {draft.name!r} {mismatch}")


def _adopted(path: Path) -> Secret:
    try:
        return adopt(path)
    except TokenFileError as error:
        refuse(str(error))


def _name_for(login: str) -> str:
    """An identity's name out of a login, which has more characters to choose from."""
    return _NO_NAME.sub("-", login.lower()).strip("-")[:_MOST_NAME] or _ANY_NAME


def _carried_out(wish: _Wish) -> _Outcome:
    """What came of it. Ends the process when nothing did."""
    with closing(logs.configure()):
        found = trio.run(_link, wish)
    match found:
        case _Outcome():
            return found
        case TokenProblem():
            fail(f"{found.next_step}. Nothing was linked")
        case Denied():
            fail("the request was denied on GitHub; nothing was linked")
        case Expired():
            fail("the code was not entered in time; nothing was linked. Run the command again for a new code")
        case _:
            fail(f"{found.reason.next_step}. Nothing was linked")


async def _link(wish: _Wish) -> _Outcome | Denied | Expired | Failed | TokenProblem:
    async with UpstreamClient({}) as fetcher:
        client = GitHubClient(fetcher, wish.host, own_traits(), now=lambda: now_ms() / 1000)
        try:
            linked = await _account(client, wish)
        except GitHubFailedError as error:
            return error.problem
        if not isinstance(linked, LinkedAccount):
            return linked
        return _Outcome(linked, await client.copilot_token(linked.token))


async def _account(client: GitHubClient, wish: _Wish) -> LinkedAccount | Denied | Expired | Failed:
    if wish.adopted is not None:
        return await account_of(client, wish.adopted)
    flow = DeviceFlow(wish.client_id, user_agent=client.traits.user_agent, host=wish.host)
    return await link(client, flow, wish.show)


def _tell_code(code: ShowCode) -> None:
    click.echo(f"Open {code.verification_uri} and enter this code: {click.style(code.user_code, bold=True)}")
    click.echo(f"It is good for {_life_s(code) // 60} minutes. Waiting for you to enter it ...")


def _print_code(code: ShowCode) -> None:
    _print_line(_Code(code.user_code, code.verification_uri, _life_s(code)))


def _life_s(code: ShowCode) -> int:
    return round(code.expires_at - trio.current_time())


def _tell_end(stored: IdentityStatus, seat: CopilotToken | TokenRefusal, *, as_json: bool) -> None:
    problem = seat.problem if isinstance(seat, TokenRefusal) else None
    if as_json:
        said, step = ("ok", None) if problem is None else (problem.value, problem.next_step)
        _print_line(_Linked(stored.name, stored.login or "", stored.host, stored.owner, said, step))
        return
    click.echo(f"Linked {stored.login} at {stored.host} as the identity {stored.name}.")
    if problem is not None:
        warn(f"no Copilot token yet: {problem.next_step}")


def _print_line(line: _Code | _Linked) -> None:
    click.echo(msgspec.json.encode(line).decode())
