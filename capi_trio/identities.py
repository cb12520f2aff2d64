"""The identities of a running gateway: in memory for choosing among, in the database for keeping, tokens in files.

As with the keyring a change is made in the database first, with its audit row in the same transaction; the copy in
memory follows before the call returns, and whoever watches is told. So a stopped identity takes no further request from
the moment that its stop is acknowledged. A replica that shares a PostgreSQL database learns of the others' changes when
it reloads (`follow`); the token files it has are its own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from capi_core.audit import Action, AuditDraft
from capi_core.errors import CoreError
from capi_core.identities import IdentityDraft, IdentityEdit, IdentityRecord, IdentityState, validate
from capi_core.keys import UNCHANGED, FieldProblem
from capi_trio.logs import get_logger
from capi_trio.storage.database import Mutation
from capi_trio.storage.errors import IdentityExists, IdentityNotFound, StorageError
from capi_trio.storage.identities import IdentityRepository
from capi_trio.token_files import TOKENS_NAME, TokenFiles, is_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import sqlalchemy as sa

    from capi_trio.keyring import Actor
    from capi_trio.storage.database import Database
    from capi_trio.storage.identities import IdentityChange
    from capi_trio.upstream import Secret

__all__ = ["IdentityBook", "IdentityChoiceError", "IdentityView"]

_FOLLOW_S: Final = 2.0
_STATE_ACTIONS: Final = {
    IdentityState.ACTIVE: Action.IDENTITY_RESUME,
    IdentityState.PAUSED: Action.IDENTITY_PAUSE,
    IdentityState.STOPPED: Action.IDENTITY_STOP,
}


class IdentityChoiceError(CoreError):
    """An identity cannot be as it was asked for. `problems` is never empty."""

    def __init__(self, problems: tuple[FieldProblem, ...]) -> None:
        super().__init__("; ".join(f"{problem.field} {problem.message}" for problem in problems))
        self.problems = problems


class IdentityView(msgspec.Struct, kw_only=True):
    """An identity as commands and audit rows show it. Times in ms since the epoch."""

    id: str
    name: str
    host: str
    login: str | None
    owner: str | None
    shared: bool
    share_reason: str | None
    state: str
    state_reason: str | None
    max_in_flight: int | None
    created_at: int
    updated_at: int
    removed_at: int | None

    @classmethod
    def of(cls, record: IdentityRecord) -> IdentityView:
        return cls(
            id=record.id,
            name=record.name,
            host=record.host,
            login=record.login,
            owner=record.owner,
            shared=record.shared,
            share_reason=record.share_reason,
            state=record.state.value,
            state_reason=record.state_reason,
            max_in_flight=record.max_in_flight,
            created_at=record.created_at,
            updated_at=record.updated_at,
            removed_at=record.removed_at,
        )


class IdentityBook:
    """The identities that are not removed. `load` it before use.

    `directory`: the data directory, for the token files. `now_ms` is the wall clock; `random_bytes` a cryptographic
    source.
    """

    def __init__(
        self,
        database: Database,
        directory: Path,
        *,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._database = database
        self._tokens = TokenFiles(directory / TOKENS_NAME)
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._live: tuple[IdentityRecord, ...] = ()
        self._watchers: list[Callable[[tuple[IdentityRecord, ...]], None]] = []
        # Held from a read or change of the database until memory has followed, and a token file with it: two that end
        # at the same moment must not get there in the wrong order, or an identity that was just stopped would go on.
        self._following = trio.Lock()

    # -- looking up ---------------------------------------------------------------------------------------------

    def live(self) -> tuple[IdentityRecord, ...]:
        """Every identity, by name."""
        return self._live

    def find(self, name: str) -> IdentityRecord:
        """The identity of this name. Raises `IdentityNotFound`."""
        for record in self._live:
            if record.name == name:
                return record
        raise IdentityNotFound(f"there is no identity {name!r}")

    async def token(self, name: str) -> Secret:
        """The GitHub token of an identity that is there. Raises `IdentityNotFound`, `TokenFileError`."""
        return await trio.to_thread.run_sync(self._tokens.read, self.find(name).name)

    async def token_problems(self, records: Iterable[IdentityRecord]) -> list[str | None]:
        """Of each, why its token cannot be used; `None` when it can."""
        names = [record.name for record in records]
        return await trio.to_thread.run_sync(lambda: [self._tokens.problem(name) for name in names])

    def watch(self, watcher: Callable[[tuple[IdentityRecord, ...]], None]) -> None:
        """Calls `watcher` with all identities now and after every change, in the trio thread. It must not raise."""
        self._watchers.append(watcher)
        watcher(self._live)

    async def load(self) -> None:
        """Reads every identity, and sweeps away what a killed command left half-made. Raises `StorageError`."""
        await trio.to_thread.run_sync(self._tokens.sweep)
        await self.reload()

    async def reload(self) -> None:
        """Reads every identity. Raises `StorageError`."""
        async with self._following:
            self._use(await self._database.read(lambda connection: IdentityRepository(connection).live()))

    async def follow(self) -> None:
        """Reloads for ever, so that the changes of other replicas take effect here within `_FOLLOW_S` seconds.

        While the database cannot be read, the identities are those of the last time that it could.
        """
        log = get_logger("identities")
        while True:
            await trio.sleep(_FOLLOW_S)
            try:
                await self.reload()
            except StorageError as error:
                log.warning("identities_not_reloaded", reason=str(error))

    # -- changing -----------------------------------------------------------------------------------------------

    async def add(self, draft: IdentityDraft, token: Secret, actor: Actor) -> IdentityRecord:
        """Makes an identity. Its token is on disk before it is there, and is gone again if it never gets there.

        Raises `IdentityChoiceError`, `IdentityExists`, `TokenFileError`, `StorageError`.
        """
        now_ms = self._now_ms()
        _check(draft, token)
        record = draft.record(id=f"idn_{self._random_bytes(8).hex()}", now_ms=now_ms)

        def change(connection: sa.Connection) -> Mutation[None]:
            IdentityRepository(connection).create(record)
            old = self._tokens.exchange(record.name, token)  # what a killed addition left
            row = _draft(Action.IDENTITY_ADD, actor, now_ms, None, None, record)
            return Mutation(None, (row,), partial(self._tokens.keep, record.name, old))

        async with self._following:
            await self._database.mutate(change)
            self._use((*self._live, record))
        return record

    async def relink(self, draft: IdentityDraft, token: Secret, actor: Actor) -> IdentityRecord:
        """Gives an identity that is there another token of the same account; the rest of it stays.

        Raises `IdentityChoiceError`, `IdentityNotFound`, `IdentityExists` when it is another account's or owner's,
        `TokenFileError`, `StorageError`.
        """
        now_ms = self._now_ms()
        _check(draft, token)

        def change(connection: sa.Connection) -> Mutation[IdentityChange]:
            identities = IdentityRepository(connection)
            mismatch = draft.mismatch(identities.get(draft.name))
            if mismatch is not None:
                raise IdentityExists(f"the identity {draft.name!r} {mismatch}")
            done = identities.edit(draft.name, IdentityEdit(login=draft.login), now_ms)
            row = _draft(Action.IDENTITY_LINK, actor, now_ms, None, done.before, done.after)
            old = self._tokens.exchange(draft.name, token)
            return Mutation(done, (row,), partial(self._tokens.keep, draft.name, old))

        async with self._following:
            done = await self._database.mutate(change)
            self._use((*self._others(done.after), done.after))
        return done.after

    async def edit(self, name: str, edit: IdentityEdit, actor: Actor) -> IdentityRecord:
        """Changes an identity. Raises `IdentityChoiceError`, `IdentityNotFound`, `IdentityConflict`, `StorageError`."""
        now_ms = self._now_ms()
        _check(edit)

        def change(connection: sa.Connection) -> Mutation[IdentityChange]:
            done = IdentityRepository(connection).edit(name, edit, now_ms)
            row = _draft(_edit_action(edit), actor, now_ms, edit.reason, done.before, done.after)
            return Mutation(done, (row,))

        async with self._following:
            done = await self._database.mutate(change)
            self._use((*self._others(done.after), done.after))
        return done.after

    async def remove(self, name: str, actor: Actor, *, reason: str | None = None) -> IdentityRecord:
        """Ends an identity for good, and deletes its token before that is acknowledged.

        Raises `IdentityChoiceError`, `IdentityNotFound`, `TokenFileError`, `StorageError`.
        """
        now_ms = self._now_ms()
        _check(IdentityEdit(reason=reason))

        def change(connection: sa.Connection) -> Mutation[IdentityChange]:
            done = IdentityRepository(connection).remove(name, now_ms)
            row = _draft(Action.IDENTITY_REMOVE, actor, now_ms, reason, done.before, done.after)
            # The other way round, a kill in between would leave the token of an identity that nobody sees any more.
            token = self._tokens.exchange(name, None)
            return Mutation(done, (row,), partial(self._tokens.keep, name, token))

        async with self._following:
            done = await self._database.mutate(change)
            self._use(self._others(done.after))
        return done.after

    def _others(self, record: IdentityRecord) -> tuple[IdentityRecord, ...]:
        return tuple(other for other in self._live if other.id != record.id)

    def _use(self, records: Iterable[IdentityRecord]) -> None:
        live = tuple(sorted(records, key=lambda record: record.name))
        if live != self._live:
            self._live = live
            for watcher in self._watchers:
                watcher(live)


def _check(chosen: IdentityDraft | IdentityEdit, token: Secret | None = None) -> None:
    problems = validate(chosen)
    if token is not None and not is_token(token.reveal()):
        problems += (FieldProblem("token", "must be a GitHub token: gho_..., ghu_..., ghp_... or github_pat_..."),)
    if problems:
        raise IdentityChoiceError(problems)


def _draft(
    action: Action,
    actor: Actor,
    now_ms: int,
    reason: str | None,
    before: IdentityRecord | None,
    after: IdentityRecord,
) -> AuditDraft:
    return AuditDraft(
        ts=now_ms,
        action=action,
        target=after.id,
        actor_key_id=actor.key_id,
        actor_tier=actor.tier,
        before=None if before is None else _shown(before),
        after=_shown(after),
        ip=actor.ip,
        user_agent=actor.user_agent,
        reason=reason,
    )


def _shown(record: IdentityRecord) -> str:
    return msgspec.json.encode(IdentityView.of(record)).decode()


def _edit_action(edit: IdentityEdit) -> Action:
    """The one action that names an edit: the special one if it changes just that, else the general one."""
    names = ("login", "owner", "max_in_flight", "state", "shared")
    changed = [name for name in names if getattr(edit, name) is not UNCHANGED]
    if changed == ["state"] and isinstance(edit.state, IdentityState):
        return _STATE_ACTIONS[edit.state]
    if changed == ["shared"]:
        return Action.IDENTITY_SHARE if edit.shared else Action.IDENTITY_UNSHARE
    return Action.IDENTITY_EDIT
