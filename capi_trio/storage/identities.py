"""Identities in the database. Every method runs in the caller's transaction, in a worker thread.

Within `Database.mutate` the write lock is held, so what a method reads is still so when the change commits: an identity
is not stopped twice, and of two of one name the second is refused. A removed identity keeps its row, and is not found.
"""

from __future__ import annotations

import sqlalchemy as sa
from attrs import asdict, frozen
from sqlalchemy.exc import IntegrityError

from capi_core.identities import IdentityEdit, IdentityRecord, IdentityState
from capi_trio.storage.errors import IdentityConflict, IdentityExists, IdentityNotFound, RowDamaged
from capi_trio.storage.tables import identities

__all__ = ["IdentityChange", "IdentityRepository"]


@frozen
class IdentityChange:
    """An identity before and after a change: what the audit row says."""

    before: IdentityRecord
    after: IdentityRecord


@frozen
class IdentityRepository:
    """Reads and writes the identities over one connection, within its transaction."""

    connection: sa.Connection

    def create(self, record: IdentityRecord) -> None:
        """Stores a new identity. Raises `IdentityExists` when one that is not removed has its name."""
        try:
            # Within a savepoint: PostgreSQL refuses all further work in a transaction in which a statement failed.
            with self.connection.begin_nested():
                self.connection.execute(identities.insert().values(_row(record)))
        except IntegrityError as error:
            raise IdentityExists(f"an identity {record.name!r} is there already") from error

    def get(self, name: str) -> IdentityRecord:
        """The identity of this name. Raises `IdentityNotFound`."""
        query = sa.select(identities).where(identities.c.name == name, identities.c.removed_at.is_(None))
        row = self.connection.execute(query).one_or_none()
        if row is None:
            raise IdentityNotFound(f"there is no identity {name!r}")
        return _record(row)

    def live(self) -> tuple[IdentityRecord, ...]:
        """All that are not removed, by name."""
        query = sa.select(identities).where(identities.c.removed_at.is_(None))
        # In Python: a database orders text by the rules of its language.
        return tuple(sorted(map(_record, self.connection.execute(query)), key=lambda record: record.name))

    def edit(self, name: str, edit: IdentityEdit, now_ms: int) -> IdentityChange:
        """Makes the changes, which the caller has validated. Raises `IdentityNotFound`, `IdentityConflict`."""
        before = self.get(name)
        conflict = edit.conflict(before)
        if conflict is not None:
            raise IdentityConflict(f"the identity {name!r} {conflict}")
        return self._change(before, edit.apply(before, now_ms))

    def remove(self, name: str, now_ms: int) -> IdentityChange:
        """Ends the identity for good; its name may be given again. Raises `IdentityNotFound`."""
        before = self.get(name)
        return self._change(before, before.removed(now_ms))

    def _change(self, before: IdentityRecord, after: IdentityRecord) -> IdentityChange:
        self.connection.execute(identities.update().where(identities.c.id == before.id).values(_row(after)))
        return IdentityChange(before, after)


def _row(record: IdentityRecord) -> dict[str, object]:
    return {**asdict(record), "state": record.state.value}


def _record(row: sa.Row[tuple[object, ...]]) -> IdentityRecord:
    members = row._asdict()
    try:
        state = IdentityState(members.pop("state"))
    except ValueError as error:
        raise RowDamaged(f"the stored identity {row.name!r} is damaged: restore a backup") from error
    return IdentityRecord(**members, state=state)
