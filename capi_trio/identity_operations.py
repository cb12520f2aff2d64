"""What an operator can do to a gateway's identities, as commands with answers; `capi_trio.operations` runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from typing_extensions import override

from capi_core.identities import IdentityDraft, IdentityEdit, IdentityRecord, IdentityState
from capi_core.keys import UNCHANGED
from capi_trio.identities import IdentityView
from capi_trio.keyring import CLI
from capi_trio.storage.errors import IdentityExists
from capi_trio.upstream import Secret

if TYPE_CHECKING:
    from capi_trio.identities import IdentityBook

__all__ = [
    "AddIdentity",
    "IdentitiesAnswer",
    "IdentityAnswer",
    "IdentityCommand",
    "IdentityStatus",
    "ListIdentities",
    "PauseIdentity",
    "RemoveIdentity",
    "ResumeIdentity",
    "SetIdentity",
    "ShareIdentity",
    "ShowIdentity",
    "StopIdentity",
    "UnshareIdentity",
    "run_identity_command",
]


class AddIdentity(msgspec.Struct, tag="identities.add", kw_only=True):
    """Adds an identity; or gives one that is there another token, if it is the same account's and `login` says so.

    `token`: the GitHub token, which the socket carries and nothing shows.
    """

    name: str
    token: str
    host: str = "github.com"
    login: str | None = None
    owner: str | None = None
    max_in_flight: int | None = None

    @override
    def __repr__(self) -> str:
        return f"AddIdentity({self.name!r})"


class SetIdentity(msgspec.Struct, tag="identities.set", kw_only=True):
    """What is left out stays. The values that may be taken away are given as `null`."""

    name: str
    login: str | msgspec.UnsetType | None = msgspec.UNSET
    owner: str | msgspec.UnsetType | None = msgspec.UNSET
    max_in_flight: int | msgspec.UnsetType | None = msgspec.UNSET


class PauseIdentity(msgspec.Struct, tag="identities.pause"):
    name: str
    reason: str | None = None


class ResumeIdentity(msgspec.Struct, tag="identities.resume"):
    name: str


class StopIdentity(msgspec.Struct, tag="identities.stop"):
    name: str
    reason: str | None = None


class ShareIdentity(msgspec.Struct, tag="identities.share"):
    name: str
    reason: str


class UnshareIdentity(msgspec.Struct, tag="identities.unshare"):
    name: str


class RemoveIdentity(msgspec.Struct, tag="identities.remove"):
    name: str
    reason: str | None = None


class ShowIdentity(msgspec.Struct, tag="identities.show"):
    name: str


class ListIdentities(msgspec.Struct, tag="identities.list"):
    pass


_Change = SetIdentity | PauseIdentity | ResumeIdentity | StopIdentity | ShareIdentity | UnshareIdentity
IdentityCommand = AddIdentity | _Change | RemoveIdentity | ShowIdentity | ListIdentities


class IdentityStatus(IdentityView, kw_only=True):
    """An identity and, while it is there, why this gateway cannot use its token; `None` when it can."""

    token_problem: str | None


class IdentityAnswer(msgspec.Struct, tag="identity"):
    identity: IdentityStatus


class IdentitiesAnswer(msgspec.Struct, tag="identities"):
    identities: list[IdentityStatus]


async def run_identity_command(book: IdentityBook, command: IdentityCommand) -> IdentityAnswer | IdentitiesAnswer:
    """Carries a command out. Raises what `IdentityBook` does."""
    match command:
        case AddIdentity():
            record = await _linked(book, _draft_of(command), Secret(command.token))
        case RemoveIdentity(name, reason):
            gone = await book.remove(name, CLI, reason=reason)
            return IdentityAnswer(_status(gone, None))
        case ListIdentities():
            records = book.live()
            problems = await book.token_problems(records)
            return IdentitiesAnswer([_status(*pair) for pair in zip(records, problems, strict=True)])
        case ShowIdentity(name):
            record = book.find(name)
        case _:
            record = await book.edit(command.name, _edit_of(command), CLI)
    [problem] = await book.token_problems([record])
    return IdentityAnswer(_status(record, problem))


async def _linked(book: IdentityBook, draft: IdentityDraft, token: Secret) -> IdentityRecord:
    try:
        return await book.add(draft, token, CLI)
    except IdentityExists:
        return await book.relink(draft, token, CLI)


def _status(record: IdentityRecord, token_problem: str | None) -> IdentityStatus:
    view = msgspec.structs.asdict(IdentityView.of(record))
    return IdentityStatus(**view, token_problem=token_problem)


def _draft_of(command: AddIdentity) -> IdentityDraft:
    return IdentityDraft(
        name=command.name,
        host=command.host,
        login=command.login,
        owner=command.owner,
        max_in_flight=command.max_in_flight,
    )


def _edit_of(command: _Change) -> IdentityEdit:
    match command:
        case SetIdentity():
            return IdentityEdit(
                login=UNCHANGED if command.login is msgspec.UNSET else command.login,
                owner=UNCHANGED if command.owner is msgspec.UNSET else command.owner,
                max_in_flight=UNCHANGED if command.max_in_flight is msgspec.UNSET else command.max_in_flight,
            )
        case PauseIdentity():
            return IdentityEdit(state=IdentityState.PAUSED, reason=command.reason)
        case ResumeIdentity():
            return IdentityEdit(state=IdentityState.ACTIVE)
        case StopIdentity():
            return IdentityEdit(state=IdentityState.STOPPED, reason=command.reason)
        case ShareIdentity():
            return IdentityEdit(shared=True, reason=command.reason)
        case UnshareIdentity():
            return IdentityEdit(shared=False)
