"""Keys in the database. Every method runs in the caller's transaction, in a worker thread.

Within `Database.mutate` the write lock is held, so what a method reads is still so when the change commits: a key is
not revoked twice, and of two bootstraps one finds the other's key.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from attrs import evolve, frozen
from sqlalchemy.exc import IntegrityError

from capi_core.keys import Budget, BudgetPeriod, BudgetUnit, KeyEdit, KeyRecord, KeyState, Tier
from capi_trio.storage.errors import KeyExists, KeyNotActive, KeyNotFound, RowDamaged
from capi_trio.storage.tables import keys

__all__ = ["Cursor", "KeyChange", "KeyPage", "KeyRepository"]

_MAX_PAGE = 1000


@frozen
class Cursor:
    """Where a page of keys begins: after this key, from the newest to the oldest."""

    created_at: int
    id: str


@frozen
class KeyPage:
    """Some keys, newest first, and where the next page begins; `None` when there is none."""

    keys: tuple[KeyRecord, ...]
    next: Cursor | None


@frozen
class KeyChange:
    """A key before and after a change: what the audit row says."""

    before: KeyRecord
    after: KeyRecord


@frozen
class KeyRepository:
    """Reads and writes the keys over one connection, within its transaction."""

    connection: sa.Connection

    def create(self, record: KeyRecord) -> None:
        """Stores a new key. Raises `KeyExists` when its id or its hash is there already."""
        try:
            # Within a savepoint: PostgreSQL refuses all further work in a transaction in which a statement failed.
            with self.connection.begin_nested():
                self.connection.execute(keys.insert().values(_row(record)))
        except IntegrityError as error:
            raise KeyExists(f"a key with the id {record.id} or the same text is there already") from error

    def get(self, key_id: str) -> KeyRecord:
        """The key with this id. Raises `KeyNotFound`."""
        found = self._find(keys.c.id == key_id)
        if found is None:
            raise KeyNotFound(f"there is no key {key_id!r}")
        return found

    def by_hash(self, key_hash: str) -> KeyRecord | None:
        """The key whose text has this SHA-256, whatever its state; the whole hash is compared."""
        return self._find(keys.c.hash == key_hash)

    def list(self, *, after: Cursor | None = None, limit: int = 100) -> KeyPage:
        """At most `limit` (1 to 1000) keys, newest first, whatever their state."""
        limit = min(max(limit, 1), _MAX_PAGE)
        query = sa.select(keys).order_by(keys.c.created_at.desc(), keys.c.id.desc()).limit(limit + 1)
        if after is not None:
            query = query.where(sa.tuple_(keys.c.created_at, keys.c.id) < sa.tuple_(after.created_at, after.id))
        records = [_record(row) for row in self.connection.execute(query)]
        page = tuple(records[:limit])
        more = len(records) > limit
        return KeyPage(page, Cursor(page[-1].created_at, page[-1].id) if more else None)

    def active_admins(self, now_ms: int) -> tuple[KeyRecord, ...]:
        """The admin keys that open something at `now_ms`, oldest first."""
        rows = self.connection.execute(
            sa.select(keys)
            .where(
                keys.c.tier == Tier.ADMIN.value,
                keys.c.revoked_at.is_(None),
                sa.or_(keys.c.expires_at.is_(None), keys.c.expires_at > now_ms),
            )
            .order_by(keys.c.created_at, keys.c.id)
        )
        return tuple(_record(row) for row in rows)

    def edit(self, key_id: str, edit: KeyEdit) -> KeyChange:
        """Makes the changes, which the caller has validated. Raises `KeyNotFound`, or `KeyNotActive` when revoked."""
        before = self.get(key_id)
        if before.revoked_at is not None:
            raise KeyNotActive(f"the key {key_id!r} is revoked; nothing about it can be changed")
        return self._change(before, edit.apply(before))

    def rotate(self, key_id: str, new: KeyRecord, *, now_ms: int, grace_ms: int) -> KeyChange:
        """Stores `new` in the place of the key `key_id`, which works for `grace_ms` more; returns the old one's change.

        `new.rotated_from` is set here. Raises `KeyNotFound`, `KeyNotActive`, `KeyExists`.
        """
        before = self.get(key_id)
        if before.state(now_ms) is not KeyState.ACTIVE:
            raise KeyNotActive(f"the key {key_id!r} is {before.state(now_ms).value}; create a new one instead")
        if new.tier is not before.tier:
            raise KeyNotActive(f"the key {key_id!r} is of the tier {before.tier.value}, which never changes")
        self.create(evolve(new, rotated_from=before.id))
        return self._change(before, before.rotated_out(now_ms, grace_ms))

    def revoke(self, key_id: str, now_ms: int) -> KeyChange:
        """Ends the key at once, for good. Raises `KeyNotFound`, or `KeyNotActive` when it is revoked already."""
        before = self.get(key_id)
        if before.revoked_at is not None:
            raise KeyNotActive(f"the key {key_id!r} is revoked already")
        return self._change(before, evolve(before, revoked_at=now_ms))

    def _change(self, before: KeyRecord, after: KeyRecord) -> KeyChange:
        self.connection.execute(keys.update().where(keys.c.id == before.id).values(_row(after)))
        return KeyChange(before, after)

    def _find(self, condition: sa.ColumnElement[bool]) -> KeyRecord | None:
        row = self.connection.execute(sa.select(keys).where(condition)).one_or_none()
        return None if row is None else _record(row)


def _row(record: KeyRecord) -> dict[str, object]:
    budget = record.budget
    return {
        "id": record.id,
        "hash": record.hash,
        "tier": record.tier.value,
        "label": record.label,
        "owner": record.owner,
        "identity": record.identity,
        "allowed_models": msgspec.json.encode(record.allowed_models).decode(),
        "rate_limit_override": record.rate_limit_override,
        "budget_unit": None if budget is None else budget.unit.value,
        "budget_amount": None if budget is None else budget.amount,
        "budget_period": None if budget is None else budget.period.value,
        "expires_at": record.expires_at,
        "debug_expires_at": record.debug_expires_at,
        "created_at": record.created_at,
        "revoked_at": record.revoked_at,
        "rotated_from": record.rotated_from,
    }


def _record(row: sa.Row[tuple[object, ...]]) -> KeyRecord:
    try:
        return _read(row)
    except (ValueError, msgspec.MsgspecError) as error:
        raise RowDamaged(f"the stored key {row.id!r} is damaged: restore a backup") from error


def _read(row: sa.Row[tuple[object, ...]]) -> KeyRecord:
    budget = None
    if row.budget_unit is not None:
        budget = Budget(BudgetUnit(row.budget_unit), row.budget_amount, BudgetPeriod(row.budget_period))
    return KeyRecord(
        id=row.id,
        hash=row.hash,
        tier=Tier(row.tier),
        label=row.label,
        owner=row.owner,
        identity=row.identity,
        allowed_models=msgspec.json.decode(row.allowed_models, type=tuple[str, ...]),
        rate_limit_override=row.rate_limit_override,
        budget=budget,
        expires_at=row.expires_at,
        debug_expires_at=row.debug_expires_at,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        rotated_from=row.rotated_from,
    )
