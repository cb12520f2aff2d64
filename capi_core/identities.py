"""Identities: the named GitHub seats behind an upstream of kind `copilot`, and which of them a key's requests ride.

An identity belongs to an owner and serves that owner's keys. Keys of others it serves only while it is shared, which
somebody did on purpose and gave a reason for; one without an owner is everybody's. So no seat is spread over people
whom nobody chose to let ride it.

A name is for people, in commands and in a key's binding; it may be given again once its identity is removed. An id is
for good. The identity's token is no part of the record. Times are integer milliseconds since the epoch, UTC, passed in.
"""

import enum
import re
from collections.abc import Callable, Collection
from typing import Final, Protocol, Self

from attrs import evolve, frozen

from capi_core.errors import Problem, ProtocolError
from capi_core.github.endpoints import GitHubHost
from capi_core.keys import UNCHANGED, FieldProblem, Unchanged, changed, text_fault

__all__ = [
    "IdentityDraft",
    "IdentityEdit",
    "IdentityRecord",
    "IdentityState",
    "Linked",
    "Standing",
    "canonical_host",
    "choose",
    "is_identity_name",
    "validate",
]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_LOGIN: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,100}")  # as `capi_core.github.account` reads it
_TOKEN_LIKE: Final = re.compile(r"gh[a-z]_[A-Za-z0-9]{8}|github_pat_")
_MAX_REASON: Final = 300
_MAX_IN_FLIGHT: Final = 1000


def is_identity_name(text: str) -> bool:
    """Whether an identity may be called so: 1 to 64 of a-z, 0-9 and -, the first no hyphen. Safe as a file's name."""
    return _NAME.fullmatch(text) is not None


def canonical_host(text: str) -> str:
    """The one way to write a GitHub host: `github.com`, `octo.ghe.com`, or a loopback address with its `http://`.

    Raises `ProtocolError` (`invalid_github_host`) for what is none.
    """
    return GitHubHost.of(text).web.removeprefix("https://")


class IdentityState(enum.Enum):
    """What the operator lets an identity do."""

    ACTIVE = "active"
    PAUSED = "paused"
    """Serves nothing for a while. Still chosen where nothing else is left: its gate answers."""
    STOPPED = "stopped"
    """The kill switch: never chosen, until it is resumed."""


@frozen(kw_only=True)
class IdentityRecord:
    """An identity as it is stored. `owner`: `None` for the pool's own. `login`: at GitHub, `None` until it is known.

    `max_in_flight`: requests at a time, `None` for the configured default. `share_reason` is there while it is shared;
    `state_reason` may say why it is paused or stopped.
    """

    id: str
    name: str
    host: str = "github.com"
    login: str | None = None
    owner: str | None = None
    shared: bool = False
    share_reason: str | None = None
    state: IdentityState = IdentityState.ACTIVE
    state_reason: str | None = None
    max_in_flight: int | None = None
    created_at: int
    updated_at: int
    removed_at: int | None = None

    @property
    def in_pool(self) -> bool:
        """Whether it serves keys whose owner has no identity."""
        return self.shared or self.owner is None

    def serves(self, owner: str | None) -> bool:
        """Whether it may serve the keys of `owner`; `None`: of nobody."""
        return self.in_pool or self.owner == owner

    def removed(self, now_ms: int) -> Self:
        """This identity after its end. Its record stays, its name is free."""
        return evolve(self, removed_at=now_ms, updated_at=now_ms)


# What an operator chooses about an identity.


class Linked(Protocol):
    """The account that an identity is, and whose it is."""

    @property
    def host(self) -> str: ...

    @property
    def login(self) -> str | None: ...

    @property
    def owner(self) -> str | None: ...


@frozen(kw_only=True)
class IdentityDraft:
    """What is chosen when an identity is added. Only what passes `validate` may become a record."""

    name: str
    host: str = "github.com"
    login: str | None = None
    owner: str | None = None
    max_in_flight: int | None = None

    def record(self, *, id: str, now_ms: int) -> IdentityRecord:
        """The record of a new identity with this draft's choices. Raises `ProtocolError` when the host is none."""
        return IdentityRecord(
            id=id,
            name=self.name,
            host=canonical_host(self.host),
            login=self.login,
            owner=self.owner,
            max_in_flight=self.max_in_flight,
            created_at=now_ms,
            updated_at=now_ms,
        )

    def mismatch(self, record: Linked) -> str | None:
        """Why this is not the identity of that name, linked again, as the end of a sentence about it; `None` if it is.

        The account must be known to be the same. What the draft leaves open may be anything.
        """
        if self.login is None or record.login not in (None, self.login) or canonical_host(self.host) != record.host:
            whose = "another account" if record.login is None else f"{record.login} at {record.host}"
            return f"is there already, for {whose}: remove it first, or choose another name"
        if self.owner not in (None, record.owner):
            return f"is there already, for the owner {record.owner!r}: capi identities set changes that"
        return None


@frozen(kw_only=True)
class IdentityEdit:
    """Changes to an identity. `reason` goes with a change of `state` or `shared`. Name and host never change."""

    login: str | Unchanged | None = UNCHANGED
    owner: str | Unchanged | None = UNCHANGED
    max_in_flight: int | Unchanged | None = UNCHANGED
    state: IdentityState | Unchanged = UNCHANGED
    shared: bool | Unchanged = UNCHANGED
    reason: str | None = None

    def conflict(self, record: IdentityRecord) -> str | None:
        """Why this cannot be done to an identity as it is, as the end of a sentence about it; `None` if it can."""
        if self.state is record.state:
            return f"is {record.state.value} already"
        if self.state is IdentityState.PAUSED and record.state is IdentityState.STOPPED:
            return "is stopped, which is more than paused: resume it first"
        if self.shared is record.shared:
            return "is shared already" if record.shared else "is not shared"
        if self.shared is True and changed(self.owner, record.owner) is None:
            return "has no owner, so it serves everybody's keys already"
        return None

    def apply(self, record: IdentityRecord, now_ms: int) -> IdentityRecord:
        """The record with the changes made. What an owner shared is not shared by the next one."""
        owner = changed(self.owner, record.owner)
        shared, share_reason = record.shared, record.share_reason
        if not isinstance(self.shared, Unchanged):
            shared, share_reason = self.shared, self.reason if self.shared else None
        elif owner != record.owner:
            shared, share_reason = False, None
        return evolve(
            record,
            login=changed(self.login, record.login),
            owner=owner,
            max_in_flight=changed(self.max_in_flight, record.max_in_flight),
            state=changed(self.state, record.state),
            state_reason=record.state_reason if isinstance(self.state, Unchanged) else self.reason,
            shared=shared,
            share_reason=share_reason,
            updated_at=now_ms,
        )


def validate(chosen: IdentityDraft | IdentityEdit) -> tuple[FieldProblem, ...]:
    """Everything that is wrong with a draft or an edit, whatever it is made to; empty when nothing is."""
    faults = {
        "login": _login_fault(chosen.login),
        "owner": _text_fault(chosen.owner),
        "max_in_flight": _cap_fault(chosen.max_in_flight),
    }
    if isinstance(chosen, IdentityDraft):
        faults = {"name": _name_fault(chosen.name), "host": _host_fault(chosen.host), **faults}
    else:
        faults["reason"] = _reason_fault(chosen)
    return tuple(FieldProblem(name, message) for name, message in faults.items() if message is not None)


def _name_fault(name: str) -> str | None:
    if is_identity_name(name):
        return None
    return "must be 1 to 64 lower-case letters, digits and hyphens, and not begin with a hyphen"


def _host_fault(host: str) -> str | None:
    try:
        canonical_host(host)
    except ProtocolError as error:
        return f"cannot be used: {error}"
    return None


def _login_fault(login: str | Unchanged | None) -> str | None:
    if login is None or isinstance(login, Unchanged) or _LOGIN.fullmatch(login):
        return None
    return "is no login of GitHub's"


def _cap_fault(cap: int | Unchanged | None) -> str | None:
    if cap is None or isinstance(cap, Unchanged) or 1 <= cap <= _MAX_IN_FLIGHT:
        return None
    return f"must be from 1 to {_MAX_IN_FLIGHT}; to let nothing through, stop the identity"


def _reason_fault(edit: IdentityEdit) -> str | None:
    if edit.shared is True and edit.reason is None:
        return "must say why others may ride this seat"
    return _text_fault(edit.reason, _MAX_REASON)


def _text_fault(text: str | Unchanged | None, most: int = 100) -> str | None:
    fault = text_fault(text, most)
    if fault is None and isinstance(text, str) and _TOKEN_LIKE.search(text):
        return "must not hold a token: what is typed here is stored and shown as it is"
    return fault


# Which identity a request rides.


class Standing(enum.IntEnum):
    """What would come of a request to an identity now, the best first."""

    READY = 0
    PAUSED = 1
    """It would wait, or be told when to come back."""
    UNUSABLE = 2
    """There is no token for it."""


def choose(
    identities: Collection[IdentityRecord],
    *,
    owner: str | None,
    identity: str | None,
    standing: Callable[[str], Standing],
    load: Callable[[str], int],
    sticky: str | None = None,
) -> IdentityRecord | Problem:
    """The identity that a request of a key rides, or a 403 `no_identity` that says what the operator can do.

    `identities`: the ones that are not removed. `owner` and `identity` are the key's, both `None` where there is no
    key. By name, `standing`: whether it can serve now; `load`: how many requests it has in flight and waiting.
    `sticky`: the name of the one that served this conversation before.

    A key that names an identity rides no other. Else its owner's identities serve it; the pool (what is shared, and
    what has no owner) only keys whose owner has none: when all of an owner's are stopped, no other seat takes their
    place. Among those, a stopped one is never chosen, and one that cannot serve now only when none can; then the sticky
    one, else the one with the least to do, else the first by name.
    """
    bound = _bound_to(identities, identity, owner) if identity is not None else _for_owner(identities, owner)
    if isinstance(bound, Problem):
        return bound
    running = [record for record in bound if record.state is not IdentityState.STOPPED]
    if not running:
        names = ", ".join(sorted(record.name for record in bound))
        return _no_identity(f"what serves this key is stopped: {names}. The operator can run: capi identities resume")

    def rank(record: IdentityRecord) -> tuple[Standing, bool, int, str]:
        least = Standing.PAUSED if record.state is IdentityState.PAUSED else Standing.READY
        return max(least, standing(record.name)), record.name != sticky, load(record.name), record.name

    return min(running, key=rank)


def _bound_to(
    identities: Collection[IdentityRecord], name: str, owner: str | None
) -> Collection[IdentityRecord] | Problem:
    found = [record for record in identities if record.name == name]
    if not found:
        return _no_identity(f"this key is bound to the identity {name!r}, and there is none. The operator can add it")
    if not found[0].serves(owner):
        return _no_identity(f"this key is bound to the identity {name!r} of another owner, who does not share it")
    return found


def _for_owner(identities: Collection[IdentityRecord], owner: str | None) -> Collection[IdentityRecord] | Problem:
    own = [record for record in identities if owner is not None and record.owner == owner]
    bound = own or [record for record in identities if record.in_pool]
    return bound or _no_identity(
        "no identity serves this key: its owner has none, and none is shared. The operator can add one, or share one"
    )


def _no_identity(message: str) -> Problem:
    return Problem(403, "no_identity", message)
