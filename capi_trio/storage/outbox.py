"""The audit rows of changes, in the transactions of the changes, until they are in an audit file.

A row gets its number under the database's write lock, so numbers follow the order of the commits and have no gaps,
also when a transaction is rolled back. Every data directory has its own series, its `stream`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from attrs import frozen

from capi_core.audit import START, Action, AuditDraft, AuditEntry, Link
from capi_core.keys import mask_keys
from capi_trio.storage.tables import audit_head, audit_outbox

__all__ = ["Head", "clear", "head", "pending", "put", "renumber"]

_MAX_TEXT: Final = 8192  # characters; a line of an audit file shows fewer


@frozen
class Head:
    """How far a stream is: the next number to give, and the last line known to be in a file."""

    next_seq: int
    written: Link


_NEW: Final = Head(1, START)


def put(connection: sa.Connection, stream: str, drafts: Sequence[AuditDraft]) -> None:
    """Numbers and stores the rows, within the caller's writing transaction."""
    first = _stored_head(connection, stream).next_seq
    connection.execute(audit_head.update().where(audit_head.c.stream == stream).values(next_seq=first + len(drafts)))
    connection.execute(
        audit_outbox.insert(), [_row(stream, seq, draft) for seq, draft in enumerate(drafts, start=first)]
    )


def head(connection: sa.Connection, stream: str) -> Head:
    """How far the stream is; that of a new one when nothing was stored in it yet."""
    row = connection.execute(
        sa.select(audit_head.c.next_seq, audit_head.c.written_seq, audit_head.c.written_hash).where(
            audit_head.c.stream == stream
        )
    ).one_or_none()
    return _NEW if row is None else Head(row.next_seq, Link(row.written_seq, row.written_hash))


def pending(connection: sa.Connection, stream: str, limit: int) -> list[AuditEntry]:
    """At most `limit` rows that were not cleared yet, in their order."""
    rows = connection.execute(
        sa.select(audit_outbox).where(audit_outbox.c.stream == stream).order_by(audit_outbox.c.seq).limit(limit)
    )
    return [_entry(row) for row in rows]


def clear(connection: sa.Connection, stream: str, written: Link) -> None:
    """Drops the rows up to the line `written`, which are in a file for good."""
    connection.execute(audit_outbox.delete().where(audit_outbox.c.stream == stream, audit_outbox.c.seq <= written.seq))
    connection.execute(
        audit_head.update()
        .where(audit_head.c.stream == stream)
        .values(written_seq=written.seq, written_hash=written.hash)
    )


def renumber(connection: sa.Connection, stream: str, written: Link) -> None:
    """Lets the stream go on after the line `written`, and gives the rows that wait the numbers from there on."""
    _stored_head(connection, stream)
    waiting = (
        connection.execute(sa.select(audit_outbox).where(audit_outbox.c.stream == stream).order_by(audit_outbox.c.seq))
        .mappings()
        .all()
    )
    connection.execute(audit_outbox.delete().where(audit_outbox.c.stream == stream))
    if waiting:
        connection.execute(
            audit_outbox.insert(),
            [{**row, "seq": number} for number, row in enumerate(waiting, start=written.seq + 1)],
        )
    connection.execute(
        audit_head.update()
        .where(audit_head.c.stream == stream)
        .values(next_seq=written.seq + 1 + len(waiting), written_seq=written.seq, written_hash=written.hash)
    )


def _stored_head(connection: sa.Connection, stream: str) -> Head:
    found = head(connection, stream)
    if found is _NEW:
        connection.execute(
            audit_head.insert().values(stream=stream, next_seq=1, written_seq=START.seq, written_hash=START.hash)
        )
    return found


def _row(stream: str, seq: int, draft: AuditDraft) -> dict[str, object]:
    return {
        "stream": stream,
        "seq": seq,
        "ts": draft.ts,
        "actor_key_id": draft.actor_key_id,
        "actor_tier": draft.actor_tier,
        "action": draft.action.value,
        "target": _storable(draft.target),
        "before": _masked(draft.before),
        "after": _masked(draft.after),
        "ip": _storable(draft.ip),
        "user_agent": _storable(draft.user_agent),
        "reason": _storable(draft.reason),
    }


def _storable(text: str | None) -> str | None:
    """What a change cannot fail by, whatever came from outside: PostgreSQL takes no NUL, neither a lone surrogate."""
    if text is None:
        return None
    return mask_keys(text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd"))[:_MAX_TEXT]


def _masked(text: str | None) -> str | None:
    # Here and not only in the file: a key that somebody typed into the wrong field must not be in the database either.
    return None if text is None else mask_keys(text)


def _entry(row: sa.Row[tuple[object, ...]]) -> AuditEntry:
    return AuditEntry(
        seq=row.seq,
        ts=row.ts,
        actor_key_id=row.actor_key_id,
        actor_tier=row.actor_tier,
        action=Action(row.action),
        target=row.target,
        before=row.before,
        after=row.after,
        ip=row.ip,
        user_agent=row.user_agent,
        reason=row.reason,
    )
