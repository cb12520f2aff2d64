"""What an operator can do to a gateway's keys, identities and files, as commands with answers.

The same commands run in two places: inside the running server, reached over its control socket, or in a command-line
process of its own that holds the data directory's lock. Either way there is one writer.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from attrs import frozen
from typing_extensions import override

from capi_core.audit import Action, AuditDraft
from capi_core.config import ConfigError, parse
from capi_core.keys import UNCHANGED, Budget, BudgetPeriod, BudgetUnit, KeyDraft, KeyEdit, Tier
from capi_trio.configstore import Swap
from capi_trio.identities import IdentityBook, IdentityChoiceError
from capi_trio.identity_operations import (
    IdentitiesAnswer,
    IdentityAnswer,
    IdentityCommand,
    SeatUsageAnswer,
    run_identity_command,
)
from capi_trio.keyring import CLI, KeyChoiceError, Keyring, KeyView
from capi_trio.storage.backup import back_up
from capi_trio.storage.database import Mutation
from capi_trio.storage.errors import CommitUnknown, IdentityNotFound, KeyNotFound, StorageError
from capi_trio.usage_reports import ShowUsage, SinceError, UsageAnswer, UsageReports

if TYPE_CHECKING:
    from collections.abc import Callable

    import sqlalchemy as sa

    from capi_trio.quotas import Quotas
    from capi_trio.seat_status import SeatStatuses
    from capi_trio.storage.audit_writer import AuditWriter
    from capi_trio.storage.database import Database
    from capi_trio.storage.lock import DirectoryLock

__all__ = [
    "Answer",
    "BackUp",
    "BudgetChoice",
    "Command",
    "CreateKey",
    "Done",
    "EditConfig",
    "EditKey",
    "KeyAnswer",
    "KeysAnswer",
    "ListKeys",
    "Operations",
    "RecoverAdmin",
    "Refused",
    "RevokeKey",
    "RotateKey",
    "ServerStatus",
    "ShowKey",
    "ShowStatus",
]


class BudgetChoice(msgspec.Struct, frozen=True):
    """`amount` of `unit` in each `period`."""

    amount: int
    unit: BudgetUnit
    period: BudgetPeriod

    def budget(self) -> Budget:
        return Budget(self.unit, self.amount, self.period)


class CreateKey(msgspec.Struct, tag="keys.create", kw_only=True):
    label: str
    tier: Tier = Tier.CLIENT
    owner: str | None = None
    identity: str | None = None
    allowed_models: tuple[str, ...] = ("*",)
    rate_limit_override: int | None = None
    budget: BudgetChoice | None = None
    expires_at: int | None = None


class EditKey(msgspec.Struct, tag="keys.edit", kw_only=True):
    """What is left out stays. The values that may be taken away are given as `null`."""

    key: str
    label: str | msgspec.UnsetType = msgspec.UNSET
    owner: str | msgspec.UnsetType | None = msgspec.UNSET
    identity: str | msgspec.UnsetType | None = msgspec.UNSET
    allowed_models: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    rate_limit_override: int | msgspec.UnsetType | None = msgspec.UNSET
    budget: BudgetChoice | msgspec.UnsetType | None = msgspec.UNSET
    expires_at: int | msgspec.UnsetType | None = msgspec.UNSET


class RotateKey(msgspec.Struct, tag="keys.rotate"):
    key: str
    grace_ms: int


class RevokeKey(msgspec.Struct, tag="keys.revoke"):
    key: str
    reason: str | None = None


class ShowKey(msgspec.Struct, tag="keys.show"):
    key: str


class ListKeys(msgspec.Struct, tag="keys.list"):
    pass


class RecoverAdmin(msgspec.Struct, tag="admin.recover"):
    pass


class BackUp(msgspec.Struct, tag="backup"):
    """Write everything to a new file; `path` is absolute."""

    path: str


class EditConfig(msgspec.Struct, tag="config.edit"):
    """Replace a configuration file: its absolute path, what it says, and what it is to say."""

    path: str
    before: str
    after: str


class ShowStatus(msgspec.Struct, tag="status"):
    """How the running server is; refused where none runs."""


Command = (
    CreateKey
    | EditKey
    | RotateKey
    | RevokeKey
    | ShowKey
    | ListKeys
    | IdentityCommand
    | RecoverAdmin
    | BackUp
    | EditConfig
    | ShowStatus
    | ShowUsage
)


class KeyAnswer(msgspec.Struct, tag="key"):
    """One key; `text` only when it was just made."""

    key: KeyView
    text: str | None = None

    @override
    def __repr__(self) -> str:
        return f"KeyAnswer({self.key.id})"


class KeysAnswer(msgspec.Struct, tag="keys"):
    keys: list[KeyView]


class ServerStatus(msgspec.Struct, tag="server", frozen=True):
    """A running server. `started_with`: the configuration it started with, as JSON.

    `config_problem` says why a changed file is not used; `None` when it is, or when no file is watched.
    """

    pid: int
    auth_mode: str
    config_file: str | None
    config_problem: str | None
    started_with: str


class Done(msgspec.Struct, tag="done"):
    pass


class Refused(msgspec.Struct, tag="refused"):
    """Nothing was changed. The message is for the operator."""

    message: str


Answer = (
    KeyAnswer
    | KeysAnswer
    | IdentityAnswer
    | IdentitiesAnswer
    | SeatUsageAnswer
    | ServerStatus
    | UsageAnswer
    | Done
    | Refused
)

_RECOVERED: Final = KeyDraft(label="recovered admin", tier=Tier.ADMIN)


@frozen
class Operations:
    """Carries commands out. `quotas`: what asks GitHub; without it, commands that need it are refused.

    `seats` and `status`: of the server; `None` in a command's own process.
    """

    keyring: Keyring
    identities: IdentityBook
    database: Database
    writer: AuditWriter
    lock: DirectoryLock
    now_ms: Callable[[], int]
    quotas: Quotas | None = None
    seats: SeatStatuses | None = None
    status: Callable[[], ServerStatus] | None = None

    async def run(self, command: Command) -> Answer:
        """Never raises for what an operator can get wrong: that is `Refused`."""
        try:
            return await self._run(command)
        except KeyNotFound as error:
            return Refused(f"{error}, or more than one; capi keys list shows their ids")
        except IdentityNotFound as error:
            return Refused(f"{error}; capi identities list shows their names")
        except (ConfigError, KeyChoiceError, IdentityChoiceError, SinceError, StorageError) as error:
            return Refused(str(error))

    async def _run(self, command: Command) -> Answer:
        match command:
            case CreateKey():
                issued = await self.keyring.create(_draft_of(command), CLI)
                return KeyAnswer(KeyView.of(issued.record), issued.text)
            case EditKey():
                record = await self.keyring.edit(self._id(command.key), _edit_of(command), CLI)
                return KeyAnswer(KeyView.of(record))
            case RotateKey(key, grace_ms):
                issued = await self.keyring.rotate(self._id(key), grace_ms, CLI)
                return KeyAnswer(KeyView.of(issued.record), issued.text)
            case RevokeKey(key, reason):
                return KeyAnswer(KeyView.of(await self.keyring.revoke(self._id(key), CLI, reason=reason)))
            case ShowKey(key):
                return self._show(key)
            case ListKeys():
                return KeysAnswer([KeyView.of(record) for record in self.keyring.all()])
            case RecoverAdmin():
                issued = await self.keyring.create(_RECOVERED, CLI, action=Action.AUTH_RECOVER)
                return KeyAnswer(KeyView.of(issued.record), issued.text)
            case BackUp(path):
                await self._back_up(Path(path))
                return Done()
            case EditConfig(path, before, after):
                return await self._edit_config(Path(path), before, after)
            case ShowStatus():
                return Refused("no server runs here") if self.status is None else self.status()
            case ShowUsage(since, by):
                labels = {record.id: record.label for record in self.keyring.all()}
                return UsageAnswer(await UsageReports(self.database, self.now_ms).report(since, by, labels=labels))
            case _:
                return await run_identity_command(self.identities, command, seats=self.seats, quotas=self.quotas)

    def _id(self, wanted: str) -> str:
        found = self.keyring.find(wanted)
        return wanted if found is None else found.id

    def _show(self, wanted: str) -> KeyAnswer:
        found = self.keyring.find(wanted)
        if found is None:
            raise KeyNotFound(f"there is no key {wanted!r}")
        return KeyAnswer(KeyView.of(found))

    async def _back_up(self, path: Path) -> None:
        """The row is only true once the backup is there; and a backup without a row does not stay."""
        await self.database.check()
        manifest = await back_up(self.database, self.writer, self.lock, path, now_ms=self.now_ms())
        after = msgspec.json.encode(manifest).decode()
        draft = AuditDraft(ts=self.now_ms(), action=Action.BACKUP_CREATE, target=str(path), after=after)

        def change(_: sa.Connection) -> Mutation[None]:
            return Mutation(None, (draft,))

        try:
            await self.database.mutate(change)
        except CommitUnknown:
            raise
        except BaseException:
            await _at_all_events(partial(path.unlink, missing_ok=True))
            raise

    async def _edit_config(self, path: Path, before: str, after: str) -> Done | Refused:
        """The file changes as the last step before the row is committed, and changes back if the row is not."""
        draft = AuditDraft(ts=self.now_ms(), action=Action.CONFIG_EDIT, target=str(path), before=before, after=after)
        parse(after.encode())
        await self.database.check()
        try:
            swap = await trio.to_thread.run_sync(Swap.stage, path, before.encode(), after.encode())

            def change(_: sa.Connection) -> Mutation[None]:
                swap.make()
                return Mutation(None, (draft,), swap.undo)

            try:
                await self.database.mutate(change)
            finally:
                await _at_all_events(swap.discard)
        except OSError as error:
            return Refused(f"{path} cannot be written: {error.strerror}")
        return Done()


async def _at_all_events(work: Callable[[], object]) -> None:
    """Runs `work` in a thread, also when the caller is being cancelled."""
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(work)


def _draft_of(command: CreateKey) -> KeyDraft:
    return KeyDraft(
        label=command.label,
        tier=command.tier,
        owner=command.owner,
        identity=command.identity,
        allowed_models=command.allowed_models,
        rate_limit_override=command.rate_limit_override,
        budget=None if command.budget is None else command.budget.budget(),
        expires_at=command.expires_at,
    )


def _edit_of(command: EditKey) -> KeyEdit:
    budget = command.budget
    return KeyEdit(
        label=UNCHANGED if command.label is msgspec.UNSET else command.label,
        owner=UNCHANGED if command.owner is msgspec.UNSET else command.owner,
        identity=UNCHANGED if command.identity is msgspec.UNSET else command.identity,
        allowed_models=UNCHANGED if command.allowed_models is msgspec.UNSET else command.allowed_models,
        rate_limit_override=(
            UNCHANGED if command.rate_limit_override is msgspec.UNSET else command.rate_limit_override
        ),
        budget=UNCHANGED if budget is msgspec.UNSET else None if budget is None else budget.budget(),
        expires_at=UNCHANGED if command.expires_at is msgspec.UNSET else command.expires_at,
    )
