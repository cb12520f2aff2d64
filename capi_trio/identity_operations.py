"""What an operator can do to a gateway's identities, as commands with answers; `capi_trio.operations` runs them.

Where a server runs, it also tells how their seats are. What is left of a seat GitHub is asked for by whoever runs the
command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio
from typing_extensions import override

from capi_core.github.copilot_token import TokenRefusal
from capi_core.identities import IdentityDraft, IdentityEdit, IdentityRecord, IdentityState
from capi_core.keys import UNCHANGED
from capi_trio.identities import IdentityView
from capi_trio.keyring import CLI
from capi_trio.quotas import SeatUsage
from capi_trio.seat_status import SeatStatus
from capi_trio.storage.errors import IdentityExists, StorageError
from capi_trio.upstream import Secret

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capi_trio.identities import IdentityBook
    from capi_trio.quotas import Quotas
    from capi_trio.seat_status import SeatStatuses

__all__ = [
    "AddIdentity",
    "IdentitiesAnswer",
    "IdentityAnswer",
    "IdentityCommand",
    "IdentityStatus",
    "IdentityUsage",
    "ListIdentities",
    "PauseIdentity",
    "RemoveIdentity",
    "ResumeIdentity",
    "SeatUsageAnswer",
    "SetIdentity",
    "ShareIdentity",
    "ShowIdentity",
    "ShowSeatUsage",
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


class ShowSeatUsage(msgspec.Struct, tag="identities.usage"):
    """What is left of one identity's seat, or of each."""

    name: str | None = None


_Change = SetIdentity | PauseIdentity | ResumeIdentity | StopIdentity | ShareIdentity | UnshareIdentity
_Look = ShowIdentity | ListIdentities | ShowSeatUsage
IdentityCommand = AddIdentity | _Change | RemoveIdentity | _Look
_ASKED_AT_ONCE: Final = 8


class IdentityStatus(IdentityView, kw_only=True):
    """An identity and, while it is there, why this gateway cannot use its token; `None` when it can.

    `seat`: how it is in the server that runs and uses it, for whoever looks; else `None`.
    """

    token_problem: str | None
    seat: SeatStatus | None = None


class IdentityAnswer(msgspec.Struct, tag="identity"):
    identity: IdentityStatus


class IdentitiesAnswer(msgspec.Struct, tag="identities"):
    identities: list[IdentityStatus]


class IdentityUsage(msgspec.Struct, kw_only=True):
    """What is left of an identity's seat, or (`problem`) why that is not known and what to do about it."""

    identity: str
    usage: SeatUsage | None
    problem: str | None


class SeatUsageAnswer(msgspec.Struct, tag="seat_usage"):
    identities: list[IdentityUsage]


async def run_identity_command(
    book: IdentityBook,
    command: IdentityCommand,
    *,
    seats: SeatStatuses | None = None,
    quotas: Quotas | None = None,
) -> IdentityAnswer | IdentitiesAnswer | SeatUsageAnswer:
    """Carries a command out. Raises what `IdentityBook` does."""
    match command:
        case ShowIdentity() | ListIdentities():
            return await _looked(book, command, seats)
        case ShowSeatUsage(name):
            if quotas is None:
                raise AssertionError("whoever runs this command can ask GitHub")
            records = book.live() if name is None else (book.find(name),)
            return SeatUsageAnswer(await _usages(quotas, records))
        case AddIdentity():
            record = await _linked(book, _draft_of(command), Secret(command.token))
        case RemoveIdentity(name, reason):
            gone = await book.remove(name, CLI, reason=reason)
            return IdentityAnswer(_status(gone, None))
        case _:
            record = await book.edit(command.name, _edit_of(command), CLI)
    [problem] = await book.token_problems([record])
    return IdentityAnswer(_status(record, problem))


async def _looked(
    book: IdentityBook, command: ShowIdentity | ListIdentities, seats: SeatStatuses | None
) -> IdentityAnswer | IdentitiesAnswer:
    if isinstance(command, ShowIdentity):
        record = book.find(command.name)
        [problem] = await book.token_problems([record])
        return IdentityAnswer(_status(record, problem, None if seats is None else seats.one(record.name)))
    records = book.live()
    problems = await book.token_problems(records)
    found = {} if seats is None else seats.all()
    return IdentitiesAnswer(
        [_status(record, why, found.get(record.name)) for record, why in zip(records, problems, strict=True)]
    )


async def _usages(quotas: Quotas, records: Sequence[IdentityRecord]) -> list[IdentityUsage]:
    """In the order of the records. Some are asked for at once: a GitHub that does not answer is waited for."""
    found: dict[str, IdentityUsage] = {}
    at_once = trio.CapacityLimiter(_ASKED_AT_ONCE)

    async def look(record: IdentityRecord) -> None:
        async with at_once:
            found[record.id] = await _usage(quotas, record)

    async with trio.open_nursery() as nursery:
        for record in records:
            nursery.start_soon(look, record)
    return [found[record.id] for record in records]


async def _usage(quotas: Quotas, record: IdentityRecord) -> IdentityUsage:
    try:
        report = await quotas.of(record)
    except StorageError as error:
        return IdentityUsage(identity=record.name, usage=None, problem=str(error))
    if isinstance(report, TokenRefusal):
        return IdentityUsage(identity=record.name, usage=None, problem=report.problem.next_step)
    return IdentityUsage(identity=record.name, usage=SeatUsage.of(record.name, report), problem=None)


async def _linked(book: IdentityBook, draft: IdentityDraft, token: Secret) -> IdentityRecord:
    try:
        return await book.add(draft, token, CLI)
    except IdentityExists:
        return await book.relink(draft, token, CLI)


def _status(record: IdentityRecord, token_problem: str | None, seat: SeatStatus | None = None) -> IdentityStatus:
    view = msgspec.structs.asdict(IdentityView.of(record))
    return IdentityStatus(**view, token_problem=token_problem, seat=seat)


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
