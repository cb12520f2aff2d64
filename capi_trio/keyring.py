"""The client keys of a running gateway: in memory for looking up, in the database for keeping.

A change is made in the database first, with its audit row in the same transaction; the copy in memory follows before
the call returns. So a revoked key is refused from the moment that its revocation is acknowledged, and a look-up never
waits for a disk. A replica that shares a PostgreSQL database learns of the others' changes when it reloads (`follow`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio
from attrs import evolve, field, frozen

from capi_core.audit import Action, AuditDraft
from capi_core.credentials import decide, find_credential
from capi_core.errors import CoreError, Problem
from capi_core.keys import (
    UNCHANGED,
    FieldProblem,
    KeyDraft,
    KeyEdit,
    KeyRecord,
    KeyState,
    Tier,
    format_key,
    hash_prefix,
    key_hash,
    validate,
)
from capi_trio.logs import get_logger
from capi_trio.storage.database import Mutation
from capi_trio.storage.errors import StorageError
from capi_trio.storage.keys import KeyRepository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import sqlalchemy as sa

    from capi_trio.storage.database import Database

__all__ = ["CLI", "Actor", "AdminExists", "IssuedKey", "KeyChoiceError", "KeyView", "Keyring"]

_RANDOM_BYTES: Final = 32
_PAGE: Final = 1000
_FOLLOW_S: Final = 2.0


class KeyChoiceError(CoreError):
    """A key cannot be as it was asked for. `problems` is never empty."""

    def __init__(self, problems: tuple[FieldProblem, ...]) -> None:
        super().__init__("; ".join(f"{problem.field} {problem.message}" for problem in problems))
        self.problems = problems


class AdminExists(CoreError):
    """A first admin key is not needed: another replica has made one."""


@frozen
class Actor:
    """Who makes a change, as the audit row names it. All `None`: whoever may run commands on this machine."""

    key_id: str | None = None
    tier: str | None = None
    ip: str | None = None
    user_agent: str | None = None


CLI: Final = Actor()


@frozen
class IssuedKey:
    """A key that was just made. The only place where its text ever is: `text` is not stored and not shown again."""

    record: KeyRecord
    text: str = field(repr=False)


class KeyView(msgspec.Struct, kw_only=True):
    """A key as commands and audit rows show it: no text, of its hash the prefix only. Times in ms since the epoch."""

    id: str
    hash_prefix: str
    tier: str
    label: str
    owner: str | None
    identity: str | None
    allowed_models: list[str]
    rate_limit_override: int | None
    budget: str | None
    expires_at: int | None
    debug_expires_at: int | None
    created_at: int
    revoked_at: int | None
    rotated_from: str | None

    @classmethod
    def of(cls, record: KeyRecord) -> KeyView:
        budget = record.budget
        return cls(
            id=record.id,
            hash_prefix=hash_prefix(record.hash),
            tier=record.tier.value,
            label=record.label,
            owner=record.owner,
            identity=record.identity,
            allowed_models=list(record.allowed_models),
            rate_limit_override=record.rate_limit_override,
            budget=None if budget is None else f"{budget.amount} {budget.unit.value} a {budget.period.value}",
            expires_at=record.expires_at,
            debug_expires_at=record.debug_expires_at,
            created_at=record.created_at,
            revoked_at=record.revoked_at,
            rotated_from=record.rotated_from,
        )


class Keyring:
    """Looks keys up and changes them. `load` it before use.

    `now_ms` is the wall clock; `random_bytes` a cryptographic source; `default_rpm` the rate limit of the moment.
    """

    def __init__(
        self,
        database: Database,
        *,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        default_rpm: Callable[[], int],
    ) -> None:
        self._database = database
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._default_rpm = default_rpm
        self._by_hash: dict[str, KeyRecord] = {}
        # Held from a read or change of the database until memory has followed: two that end at the same moment must not
        # get there in the wrong order, or a key that was just revoked would be back.
        self._following = trio.Lock()

    # -- looking up ---------------------------------------------------------------------------------------------

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> KeyRecord | Problem:
        """The key that a request with these headers presents, or why it presents none."""
        credential = find_credential(headers)
        if isinstance(credential, Problem):
            return credential
        return decide(credential, self._by_hash.get(credential.hash), self._now_ms())

    def all(self) -> list[KeyRecord]:
        """Every key, newest first."""
        return sorted(self._by_hash.values(), key=lambda record: (record.created_at, record.id), reverse=True)

    def find(self, wanted: str) -> KeyRecord | None:
        """The key with this id or, if just one fits, this label or hash prefix."""
        records = self._by_hash.values()
        exact = [record for record in records if record.id == wanted]
        fits = exact or [record for record in records if wanted in (record.label, hash_prefix(record.hash))]
        return fits[0] if len(fits) == 1 else None

    def has_active_admin(self) -> bool:
        now_ms = self._now_ms()
        return any(
            record.tier is Tier.ADMIN and record.state(now_ms) is KeyState.ACTIVE for record in self._by_hash.values()
        )

    async def load(self) -> None:
        """Reads every key. Raises `StorageError`."""
        async with self._following:
            records = await self._database.read(_every_key)
            self._by_hash = {record.hash: record for record in records}

    async def follow(self) -> None:
        """Reloads for ever, so that the changes of other replicas take effect here within `_FOLLOW_S` seconds.

        While the database cannot be read, the keys are those of the last time that it could.
        """
        log = get_logger("keyring")
        while True:
            await trio.sleep(_FOLLOW_S)
            try:
                await self.load()
            except StorageError as error:
                log.warning("keys_not_reloaded", reason=str(error))

    # -- changing -----------------------------------------------------------------------------------------------

    async def create(
        self,
        draft: KeyDraft,
        actor: Actor,
        *,
        action: Action = Action.KEY_CREATE,
        deliver: Callable[[str], None] | None = None,
        unless_admin: bool = False,
    ) -> IssuedKey:
        """Makes a key. `deliver` gets its text, in a worker thread, before the key becomes valid: if it raises, the
        key never does. `unless_admin`: only if there is no active admin key, else `AdminExists`; decided under the
        database's write lock, so that of several replicas one makes it. Raises `KeyChoiceError`, `StorageError`.
        """
        now_ms = self._now_ms()
        self._check(draft, now_ms)
        issued = self._issue(draft, now_ms)

        def change(connection: sa.Connection) -> Mutation[None]:
            keys = KeyRepository(connection)
            if unless_admin and keys.active_admins(now_ms):
                raise AdminExists("there is an active admin key already")
            keys.create(issued.record)
            if deliver is not None:
                deliver(issued.text)
            return Mutation(None, (_draft(action, issued.record.id, actor, now_ms, after=issued.record),))

        async with self._following:
            await self._database.mutate(change)
            self._by_hash[issued.record.hash] = issued.record
        return issued

    async def edit(self, key_id: str, edit: KeyEdit, actor: Actor) -> KeyRecord:
        """Changes a key. Raises `KeyChoiceError`, `KeyNotFound`, `KeyNotActive`, `StorageError`."""
        now_ms = self._now_ms()
        self._check(edit, now_ms)

        def change(connection: sa.Connection) -> Mutation[KeyRecord]:
            done = KeyRepository(connection).edit(key_id, edit)
            draft = _draft(_edit_action(edit), key_id, actor, now_ms, before=done.before, after=done.after)
            return Mutation(done.after, (draft,))

        async with self._following:
            record = await self._database.mutate(change)
            self._by_hash[record.hash] = record
        return record

    async def rotate(
        self, key_id: str, grace_ms: int, actor: Actor, *, deliver: Callable[[str], None] | None = None
    ) -> IssuedKey:
        """Makes a key in the place of another, which works for `grace_ms` more. Raises like `create` and `edit`."""
        now_ms = self._now_ms()

        def change(connection: sa.Connection) -> Mutation[tuple[KeyRecord, IssuedKey]]:
            keys = KeyRepository(connection)
            issued = self._issue(keys.get(key_id), now_ms)
            done = keys.rotate(key_id, issued.record, now_ms=now_ms, grace_ms=grace_ms)
            if deliver is not None:
                deliver(issued.text)
            record = evolve(issued.record, rotated_from=key_id)
            draft = _draft(Action.KEY_ROTATE, key_id, actor, now_ms, before=done.before, after=record)
            return Mutation((done.after, IssuedKey(record, issued.text)), (draft,))

        async with self._following:
            old, issued = await self._database.mutate(change)
            self._by_hash[old.hash] = old
            self._by_hash[issued.record.hash] = issued.record
        return issued

    async def revoke(self, key_id: str, actor: Actor, *, reason: str | None = None) -> KeyRecord:
        """Ends a key at once, for good. Raises `KeyNotFound`, `KeyNotActive`, `StorageError`."""
        now_ms = self._now_ms()

        def change(connection: sa.Connection) -> Mutation[KeyRecord]:
            done = KeyRepository(connection).revoke(key_id, now_ms)
            draft = _draft(Action.KEY_REVOKE, key_id, actor, now_ms, before=done.before, after=done.after)
            return Mutation(done.after, (evolve(draft, reason=reason),))

        async with self._following:
            record = await self._database.mutate(change)
            self._by_hash[record.hash] = record
        return record

    def _check(self, chosen: KeyDraft | KeyEdit, now_ms: int) -> None:
        problems = validate(chosen, default_rpm=self._default_rpm(), now_ms=now_ms)
        if problems:
            raise KeyChoiceError(problems)

    def _issue(self, like: KeyDraft | KeyRecord, now_ms: int) -> IssuedKey:
        text = format_key(self._random_bytes(_RANDOM_BYTES))
        key_id, digest = f"key_{self._random_bytes(8).hex()}", key_hash(text)
        if isinstance(like, KeyDraft):
            return IssuedKey(like.record(id=key_id, hash=digest, now_ms=now_ms), text)
        record = evolve(like, id=key_id, hash=digest, created_at=now_ms, debug_expires_at=None)
        return IssuedKey(record, text)


def _every_key(connection: sa.Connection) -> list[KeyRecord]:
    keys = KeyRepository(connection)
    page = keys.list(limit=_PAGE)
    records = list(page.keys)
    while page.next is not None:
        page = keys.list(after=page.next, limit=_PAGE)
        records += page.keys
    return records


def _draft(
    action: Action,
    target: str,
    actor: Actor,
    now_ms: int,
    *,
    before: KeyRecord | None = None,
    after: KeyRecord | None = None,
) -> AuditDraft:
    return AuditDraft(
        ts=now_ms,
        action=action,
        target=target,
        actor_key_id=actor.key_id,
        actor_tier=actor.tier,
        before=_shown(before),
        after=_shown(after),
        ip=actor.ip,
        user_agent=actor.user_agent,
    )


def _shown(record: KeyRecord | None) -> str | None:
    return None if record is None else msgspec.json.encode(KeyView.of(record)).decode()


def _edit_action(edit: KeyEdit) -> Action:
    """The one action that names an edit: the special one if it changes just that, else the general one."""
    special = {
        "allowed_models": Action.KEY_SCOPE_CHANGE,
        "rate_limit_override": Action.KEY_RATE_LIMIT_OVERRIDE_CHANGE,
        "debug_expires_at": Action.KEY_DEBUG_TOGGLE,
    }
    names = ("label", "owner", "identity", "budget", "expires_at", *special)
    changed = [name for name in names if getattr(edit, name) is not UNCHANGED]
    return special.get(changed[0], Action.KEY_EDIT) if len(changed) == 1 else Action.KEY_EDIT
