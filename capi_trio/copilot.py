"""Copilot as an upstream: a seat is a GitHub identity, its live token, and one of its slots.

Which identity a request rides is decided by the binding of its key (`capi_core.identities.choose`); in the pool a
conversation stays where it began, as its reasoning can be read there only. Identities come, go, pause and stop while
requests run: `run` follows the book, and keeps a token alive for each.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import define, evolve, field
from typing_extensions import override

from capi_core import __version__
from capi_core.conversation_key import conversation_key
from capi_core.errors import Problem
from capi_core.exchange import Failure
from capi_core.gate_events import PauseCause
from capi_core.github.copilot_token import TokenRefusal
from capi_core.github.endpoints import GitHubHost
from capi_core.github.headers import ClientTraits
from capi_core.identities import IdentityState, Standing, choose
from capi_trio.github.client import GitHubClient, own_traits
from capi_trio.github.tokens import CopilotTokens, NoTokenError, TokenStatus
from capi_trio.logs import get_logger
from capi_trio.quotas import Quotas, SeatUsage
from capi_trio.seat import NoSeatError, Seat, gate_limits, hold
from capi_trio.slots import Slots
from capi_trio.storage.errors import StorageError
from capi_trio.upstream import UpstreamFailedError, UpstreamTarget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from typing import NoReturn

    from capi_core.commands import SendRequest
    from capi_core.config import Config, UpstreamConfig
    from capi_core.gate_events import GateLimits, GateSnapshot
    from capi_core.identities import IdentityRecord
    from capi_core.keys import KeyRecord
    from capi_trio.fanout import FanoutWatch
    from capi_trio.github.tokens import CopilotAccess, TokenState
    from capi_trio.upstream import Secret, UpstreamClient

__all__ = ["CopilotSeats", "Identities", "client_traits", "configured_traits"]

_LOOK_AGAIN_S: Final = 60.0
"""How soon an identity whose token could not be read is looked at again; and how long a pause is set for at a time."""
_REMEMBERED: Final = 4096
"""Conversations of which it is known where they began."""


def client_traits(upstream: UpstreamConfig) -> ClientTraits:
    """How the gateway presents itself to GitHub and Copilot: under its own name, unless it is told otherwise."""
    name = f"capi/{__version__}"
    extra = tuple((header.encode(), value.encode()) for header, value in upstream.extra_headers.items())
    return ClientTraits(name, upstream.editor_version or name, upstream.integration_id, extra=extra)


def configured_traits(config: Config | None) -> ClientTraits:
    """The same, where there may be no such upstream, or no configuration."""
    found = [] if config is None else [one for one in config.upstreams.values() if one.kind == "copilot"]
    return client_traits(found[0]) if found else own_traits()


@define(eq=False)
class _Linked:
    """An identity with its slots, and what keeps its token alive: nothing while it is stopped or its file is gone."""

    record: IdentityRecord
    slots: Slots
    github_token: str = field(default="", repr=False)
    tokens: CopilotTokens | None = None
    running: trio.CancelScope = field(factory=trio.CancelScope)
    _former: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Its credentials, for masking: also those that were let go while requests that began with them still run."""
        former = self._former if self.slots.in_flight else ()
        return former if self.tokens is None else (*former, *self.tokens.secrets)

    @property
    def standing(self) -> Standing:
        if self.tokens is None or self.tokens.is_refused:
            return Standing.UNUSABLE
        return Standing.PAUSED if self.slots.is_paused else Standing.READY

    def unlink(self) -> None:
        """Keeps its token alive no longer."""
        self.running.cancel()
        self._former = self.secrets
        self.tokens = None


@define(eq=False)
class _CopilotSeat(Seat):
    _linked: _Linked = field(kw_only=True, repr=False)
    _access: CopilotAccess = field(kw_only=True, repr=False)
    _seats: CopilotSeats = field(kw_only=True, repr=False)
    _replayed: bool = field(kw_only=True, default=False)

    @override
    def may_renew(self) -> bool:
        tokens = self._linked.tokens
        again = tokens is not None and tokens.refused(self._access.token, replayed=self._replayed)
        self._replayed = True
        return again

    @override
    async def renew(self) -> None:
        self._access = await self._seats.access(self._linked)
        self.target = self._seats.target(self._access)


class Identities(Protocol):
    """What there is of identities: the part of `IdentityBook` that is needed here."""

    def live(self) -> tuple[IdentityRecord, ...]: ...

    async def token(self, name: str, /) -> Secret:
        """The GitHub token of an identity. Raises `StorageError`."""
        ...

    def watch(self, watcher: Callable[[tuple[IdentityRecord, ...]], None], /) -> None:
        """Calls `watcher` now and after every change."""
        ...


class CopilotSeats:
    """The seats of the identities in `book`, at the one upstream of kind `copilot`. `run` must run while it is used.

    `fanout` meters who rides which of them, and has to be run by whoever made it. `quotas`: what is left of each.

    `now_s`: seconds since epoch; `fraction`: a random number from 0 to 1. `on_linked` is called when an identity can be
    used that could not before: there may be other models now.
    """

    def __init__(
        self,
        book: Identities,
        client: UpstreamClient,
        fanout: FanoutWatch,
        *,
        now_s: Callable[[], float],
        fraction: Callable[[], float],
        on_linked: Callable[[], None] = lambda: None,
    ) -> None:
        self.quotas: Final = Quotas(book, client, traits=lambda: configured_traits(self._config), now_s=now_s)
        self._fanout = fanout
        self._book = book
        self._client = client
        self._now_s = now_s
        self._fraction = fraction
        self._on_linked = on_linked
        self._log = get_logger("copilot")
        self._config: Config | None = None
        self._name = ""
        self._upstream: UpstreamConfig | None = None
        self._linked: dict[str, _Linked] = {}  # by the identity's id
        self._retired: dict[str, _Linked] = {}  # the same, of those that are no longer there
        self._began_on: OrderedDict[tuple[str, bytes], str] = OrderedDict()
        self._changed = trio.Event()

    # -- what the operator changes ------------------------------------------------------------------------------

    def set_config(self, config: Config) -> None:
        """Goes on with another configuration."""
        found = [(name, upstream) for name, upstream in config.upstreams.items() if upstream.kind == "copilot"]
        self._config = config
        self._name, self._upstream = found[0] if found else ("", None)
        self._fanout.set_thresholds(config.limits.fanout.thresholds())
        self._changed.set()

    async def run(self) -> NoReturn:
        """Follows the book for ever."""
        self._book.watch(lambda records: self._changed.set())
        async with trio.open_nursery() as nursery:
            while True:
                self._changed = trio.Event()
                await self._follow(nursery)
                with trio.move_on_after(_LOOK_AGAIN_S):
                    await self._changed.wait()

    async def _follow(self, nursery: trio.Nursery) -> None:
        live = {record.id: record for record in self._book.live()} if self._upstream is not None else {}
        self._retired = {id: linked for id, linked in self._retired.items() if linked.slots.in_flight}
        for gone in self._linked.keys() - live.keys():
            self._retire(gone)
        for record in live.values():
            linked = self._linked.get(record.id)
            if linked is None:
                linked = self._retired.pop(record.id, None) or _Linked(record, Slots(self._limits(record)))
                self._linked[record.id] = linked
            if linked.tokens is None or linked.record != record:
                await self._link(linked, record, nursery)
            if self._upstream is None:  # it was taken out while a token was read: the next round lets all go
                return
            self._apply(linked, record)

    def _retire(self, id: str) -> None:
        """Lets it go. What is still in flight counts, should it come back: with the upstream, if not by itself."""
        linked = self._retired[id] = self._linked.pop(id)
        linked.unlink()
        linked.slots.stop("it was taken out")

    async def _link(self, linked: _Linked, record: IdentityRecord, nursery: trio.Nursery) -> None:
        """Keeps the identity's token alive: of a GitHub token that may be another than before."""
        if record.state is IdentityState.STOPPED:
            linked.unlink()
            return
        try:
            token = await self._book.token(record.name)
        except StorageError as error:
            self._log.warning("identity_not_linked", identity=record.name, reason=str(error))
            linked.unlink()
            return
        if self._upstream is None:  # it was taken out while the token was read
            return
        if linked.tokens is not None and linked.github_token == token.reveal():
            return
        linked.unlink()
        linked.github_token, linked.running = token.reveal(), trio.CancelScope()
        github = GitHubClient(self._client, GitHubHost.of(record.host), self._traits, now=self._now_s)
        linked.tokens = CopilotTokens(
            record.name, token, github, now=self._now_s, fraction=self._fraction, on_change=self._note
        )
        nursery.start_soon(_keep, linked.tokens, linked.running)

    def _note(self, state: TokenState) -> None:
        if state.status is TokenStatus.LINKED:
            self._on_linked()

    def _apply(self, linked: _Linked, record: IdentityRecord) -> None:
        """Has the gate do what the record says."""
        before, linked.record = linked.record.state, record
        linked.slots.resize(self._limits(record))
        match record.state:
            case IdentityState.STOPPED:
                linked.slots.stop(record.state_reason or "")
            case IdentityState.PAUSED:
                linked.slots.start()
                linked.slots.pause(2 * _LOOK_AGAIN_S, PauseCause.OPERATOR)
            case IdentityState.ACTIVE:
                linked.slots.start()
                if before is IdentityState.PAUSED:
                    linked.slots.resume()

    def _limits(self, record: IdentityRecord) -> GateLimits:
        if self._config is None or self._upstream is None:
            raise AssertionError("identities are linked for an upstream that is configured")
        limits = self._config.limits
        cap = record.max_in_flight or self._upstream.max_in_flight or limits.max_in_flight_per_identity
        return gate_limits(cap, limits)

    @property
    def _traits(self) -> ClientTraits:
        if self._upstream is None:
            raise AssertionError("nobody is asked for an upstream that is not configured")
        return client_traits(self._upstream)

    # -- requests -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def take(self, key: KeyRecord, request: SendRequest, address: str | None) -> AsyncIterator[Seat]:
        """A seat for a request of that key, from a client at that address. Raises `NoSeatError`."""
        conversation = self._conversation(key, request)
        linked = self._choose(key, conversation)
        async with hold(linked.slots, key.id) as slot:
            access = await self.access(linked)
            if conversation is not None:
                self._remember(conversation, linked.record.name)
            with self._fanout.riding(linked.record.name, key, address):
                yield _CopilotSeat(
                    self.target(access),
                    slot,
                    identity=linked.record.name,
                    slots=linked.slots,
                    now_s=self._now_s,
                    linked=linked,
                    access=access,
                    seats=self,
                )

    def _conversation(self, key: KeyRecord, request: SendRequest) -> tuple[str, bytes] | None:
        """What is remembered to have it stay on its seat; `None` where there is nothing to choose, or to know it by."""
        if len(self._book.live()) < 2:
            return None
        began = conversation_key(request.operation.protocol, request.body)
        return None if began is None else (key.id, began)

    def _choose(self, key: KeyRecord, conversation: tuple[str, bytes] | None) -> _Linked:
        # By the records of this moment: a name may have been given to another account.
        by_name = {record.name: self._linked[record.id] for record in self._book.live() if record.id in self._linked}
        chosen = self._pick(key, by_name, None if conversation is None else self._began_on.get(conversation))
        linked = by_name.get(chosen.name)
        if linked is None:  # it has just come
            raise NoSeatError(_unusable(chosen.name))
        return linked

    def _pick(self, key: KeyRecord, by_name: Mapping[str, _Linked], sticky: str | None) -> IdentityRecord:
        chosen = choose(
            self._book.live(),
            owner=key.owner,
            identity=key.identity,
            standing=lambda name: by_name[name].standing if name in by_name else Standing.UNUSABLE,
            load=lambda name: by_name[name].slots.in_flight + by_name[name].slots.queued if name in by_name else 0,
            sticky=sticky,
        )
        if isinstance(chosen, Problem):
            raise NoSeatError(chosen)
        return chosen

    def _remember(self, conversation: tuple[str, bytes], identity: str) -> None:
        self._began_on[conversation] = identity
        self._began_on.move_to_end(conversation)
        if len(self._began_on) > _REMEMBERED:
            self._began_on.popitem(last=False)

    async def access(self, linked: _Linked) -> CopilotAccess:
        """A live token. Raises `NoSeatError`."""
        if linked.tokens is None:
            raise NoSeatError(_unusable(linked.record.name))
        try:
            access = await linked.tokens.token()
        except NoTokenError as error:
            retry = None if error.retry_at is None else max(1, round(error.retry_at - self._now_s()))
            raise NoSeatError(evolve(_unusable(linked.record.name), retry_after_s=retry)) from None
        if self._upstream is None:  # it was taken out in this very moment
            raise NoSeatError(_unusable(linked.record.name))
        return access

    def target(self, access: CopilotAccess) -> UpstreamTarget:
        """Where that token's Copilot is, and what it is told of us."""
        timeout_s = 10.0 if self._upstream is None else self._upstream.connect_timeout_s
        headers = self._traits.copilot_headers(access.token.reveal())
        return UpstreamTarget(self._name, access.api, None, timeout_s, copilot=True, headers=headers)

    async def list_models(self) -> bytes:
        """What the first identity that can be asked may use. Raises `UpstreamFailedError`."""
        failed = UpstreamFailedError(Failure.UNREACHABLE, "no identity that can be asked")
        for linked in sorted(self._linked.values(), key=lambda linked: linked.record.name):
            try:
                access = await self.access(linked)
            except NoSeatError:
                continue
            try:
                return await self._client.list_models(self._name, self.target(access))
            except UpstreamFailedError as error:
                failed = error
        raise failed

    async def usage(self, key: KeyRecord) -> SeatUsage:
        """What is left of the seat that a new conversation of that key would ride now. Raises `NoSeatError`."""
        record = self._pick(key, {linked.record.name: linked for linked in self._linked.values()}, None)
        try:
            report = await self.quotas.of(record)
        except StorageError:
            raise NoSeatError(_unusable(record.name)) from None
        if isinstance(report, TokenRefusal):
            raise NoSeatError(_untold(record.name, report.retry_after_s))
        return SeatUsage.of(record.name, report)

    # -- what the operator sees ---------------------------------------------------------------------------------

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Every credential of every identity, for masking."""
        every = (*self._linked.values(), *self._retired.values())
        return tuple(secret for linked in every for secret in linked.secrets)

    def snapshots(self) -> Mapping[str, tuple[TokenState | None, GateSnapshot]]:
        """By the name of each identity: how its token is, `None` while none is kept, and its gate."""
        return {
            linked.record.name: (None if linked.tokens is None else linked.tokens.state, linked.slots.snapshot())
            for linked in self._linked.values()
        }


async def _keep(tokens: CopilotTokens, running: trio.CancelScope) -> None:
    with running:
        await tokens.run()


def _unusable(name: str) -> Problem:
    text = f"the identity {name!r} has no live token; the operator can see why with: capi identities show {name}"
    return Problem(503, "identity_unusable", text)


def _untold(name: str, retry_after_s: float | None) -> Problem:
    text = f"GitHub does not tell what is left of the identity {name!r}; the operator can see why with: "
    retry = None if retry_after_s is None else max(1, round(retry_after_s))
    return Problem(503, "usage_unavailable", f"{text}capi identities usage {name}", retry_after_s=retry)
