"""Who may ask: the decision that stands before every route, and the account of those who may not.

With auth on, a request is judged by the key that it presents; with auth off (loopback, or at the operator's own risk)
everybody is the one anonymous caller. A refusal is audited by hash prefix only, at most once a minute for each prefix
and never more than `_REJECTS_PER_MINUTE` in all: an attacker must not be able to fill a disk with audit rows.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from capi_core.audit import Action, AuditDraft
from capi_core.credentials import ADMIN_REQUIRED, Credential, find_credential
from capi_core.errors import Problem
from capi_core.keys import KeyRecord, Tier, effective_rpm, hash_prefix
from capi_core.limits import Buckets, RetryAfter, problem_rate_limited
from capi_trio.logs import get_logger
from capi_trio.storage.database import Mutation
from capi_trio.storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import sqlalchemy as sa

    from capi_trio.keyring import Keyring
    from capi_trio.storage.database import Database

__all__ = ["ANONYMOUS", "Access", "Door", "OpenDoor", "RejectLog"]

ANONYMOUS: Final = KeyRecord(id="__noauth__", hash="", tier=Tier.CLIENT, label="auth is off", created_at=0)
"""Who everybody is while auth is off."""

_MINUTE_MS: Final = 60_000
_REJECTS_PER_MINUTE: Final = 60
_REMEMBERED_PREFIXES: Final = 10_000
_QUEUED_REJECTS: Final = 100


@frozen
class Access:
    """A caller who was let in."""

    key: KeyRecord

    @property
    def is_admin(self) -> bool:
        return self.key.tier is Tier.ADMIN


class OpenDoor:
    """Auth is off: every caller is the same one, who may use every model."""

    mode: Final = "off"

    def enter(self, headers: Iterable[tuple[bytes, bytes]], *, ip: str | None, admin: bool = False) -> Access | Problem:
        return ADMIN_REQUIRED if admin else Access(ANONYMOUS)

    def grant(self, access: Access, now: float) -> Problem | None:
        return None


class Door:
    """Auth is on. `default_rpm` is the rate limit of the moment, in requests per minute."""

    mode: Final = "on"

    def __init__(self, keyring: Keyring, rejects: RejectLog, *, default_rpm: Callable[[], int]) -> None:
        self._keyring = keyring
        self._rejects = rejects
        self._default_rpm = default_rpm
        self._buckets = Buckets()

    def enter(self, headers: Iterable[tuple[bytes, bytes]], *, ip: str | None, admin: bool = False) -> Access | Problem:
        """Lets a caller in, or says why not. `admin`: the route is for admin keys only."""
        headers = list(headers)
        found = self._keyring.authenticate(headers)
        if isinstance(found, Problem):
            self._rejects.note(found, headers, ip)
            return found
        if admin and found.tier is not Tier.ADMIN:
            self._rejects.note(ADMIN_REQUIRED, headers, ip)
            return ADMIN_REQUIRED
        return Access(found)

    def grant(self, access: Access, now: float) -> Problem | None:
        """Counts one model request of this caller at `now`, monotonic seconds; a 429 when it is one too many."""
        rpm = effective_rpm(access.key, self._default_rpm())
        granted = self._buckets.take(access.key.id, rpm, now)
        return problem_rate_limited(rpm, granted) if isinstance(granted, RetryAfter) else None


class RejectLog:
    """Audits refused callers from a task of its own: a refusal never waits for a disk."""

    def __init__(self, database: Database, *, now_ms: Callable[[], int]) -> None:
        self._database = database
        self._now_ms = now_ms
        self._log = get_logger("access")
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._minute = 0
        self._count = 0
        self._send, self._receive = trio.open_memory_channel[AuditDraft](_QUEUED_REJECTS)

    def note(self, problem: Problem, headers: Iterable[tuple[bytes, bytes]], ip: str | None) -> None:
        """Takes down a refusal, unless there were too many like it."""
        credential = find_credential(headers)
        prefix = hash_prefix(credential.hash) if isinstance(credential, Credential) else problem.code
        now_ms = self._now_ms()
        if not self._worth_a_row(prefix, now_ms):
            return
        self._log.info("auth_reject", code=problem.code, sha256_prefix=prefix, ip=ip)
        draft = AuditDraft(ts=now_ms, action=Action.AUTH_REJECT, target=prefix, ip=ip, reason=problem.code)
        try:
            self._send.send_nowait(draft)
        except trio.WouldBlock:  # the disk is slower than the attack; the log line above has it
            return

    async def run(self) -> None:
        """Writes what was taken down, for ever."""
        async for draft in self._receive:

            def change(_: sa.Connection, draft: AuditDraft = draft) -> Mutation[None]:
                return Mutation(None, (draft,))

            try:
                await self._database.mutate(change)
            except StorageError as error:
                self._log.warning("auth_reject_not_audited", reason=str(error))

    def _worth_a_row(self, prefix: str, now_ms: int) -> bool:
        minute = now_ms // _MINUTE_MS
        if minute != self._minute:
            self._minute, self._count = minute, 0
        last = self._seen.get(prefix)
        if self._count >= _REJECTS_PER_MINUTE or (last is not None and 0 <= now_ms - last < _MINUTE_MS):
            return False
        self._seen[prefix] = now_ms
        self._seen.move_to_end(prefix)
        if len(self._seen) > _REMEMBERED_PREFIXES:
            self._seen.popitem(last=False)
        self._count += 1
        return True
