"""One identity's Copilot token on trio: a live one for whoever asks, from as few exchanges as possible.

    tokens = CopilotTokens("alice", github_token, client, now=..., fraction=...)
    nursery.start_soon(tokens.run)
    access = await tokens.token()          # raises `NoTokenError`
    ...                                    # Copilot answers 401
    if tokens.refused(access.token, replayed=False):
        access = await tokens.token()      # and send once more

Theory of operation. `capi_core.github.refresh` decides, `run` does: it alone asks GitHub, one exchange at a time, ahead
of a token's end and whenever somebody waits. Whoever waits only watches for its outcome, so one of them that is
cancelled takes nothing from the others, and a thousand of them are one request.

The wall clock is looked at before each use and at least every `_LOOK_S` seconds: a machine's monotonic clock stands
still while it sleeps, and a pause that was set before would last on after it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NoReturn

import trio
from attrs import define, frozen

from capi_core.github.copilot_token import CopilotToken, TokenProblem, TokenRefusal
from capi_core.github.endpoints import Endpoint
from capi_core.github.refresh import Refresh, RefreshSchedule, Refuse, Use
from capi_trio.logs import get_logger
from capi_trio.upstream import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from capi_trio.github.client import GitHubClient

__all__ = ["CopilotAccess", "CopilotTokens", "NoTokenError", "TokenCounts", "TokenState", "TokenStatus"]

_LOOK_S: Final = 30.0
_LEAST_PAUSE_S: Final = 0.05
_LEAST_GAP_S: Final = 1.0
"""Between two exchanges, whatever the answers say: tokens that are dead when they come must not become a storm."""

_REFUSALS: Final = frozenset(
    {
        TokenProblem.REVOKED,
        TokenProblem.NO_SUBSCRIPTION,
        TokenProblem.BLOCKED,
        TokenProblem.NOT_FOUND,
        TokenProblem.REFUSED,
    }
)


@frozen
class CopilotAccess:
    """What a request to Copilot needs: a live token, and the base URL of Copilot for this seat, without a slash."""

    token: Secret
    api: str


class TokenStatus(enum.Enum):
    """How it is with an identity's token."""

    NEW = "new"
    """GitHub was not asked yet."""
    LINKED = "linked"
    FAILING = "failing"
    """The last exchange failed and is tried again soon; the token before it may still be good."""
    REFUSED = "refused"
    """GitHub says no: somebody has to do something."""


@frozen
class TokenState:
    """`retry_at`: when what failed is tried again, Unix seconds; `None` with a problem: not before a new link.

    `expires_at`, `sku`: of the last token there was.
    """

    status: TokenStatus
    problem: TokenProblem | None = None
    retry_at: float | None = None
    expires_at: float | None = None
    sku: str | None = None

    @property
    def next_step(self) -> str | None:
        """What the operator can do; `None` while there is nothing to do."""
        return None if self.problem is None else self.problem.next_step


class NoTokenError(Exception):
    """There is no token, and waiting would not help. `problem` is `None` when the identity was taken out.

    `retry_at` as in `TokenState`.
    """

    def __init__(self, identity: str, problem: TokenProblem | None, retry_at: float | None) -> None:
        super().__init__(f"no Copilot token for {identity}: {'taken out' if problem is None else problem.value}")
        self.problem = problem
        self.retry_at = retry_at


@define
class TokenCounts:
    """Since the start: exchanges that brought a token, those that did not, and times that somebody had to wait."""

    refreshes: int = 0
    failures: int = 0
    waits: int = 0


class CopilotTokens:
    """The token of one identity. `run` must run for as long as it is used, and only once.

    `now`: Unix seconds; `fraction`: a random number from 0 to 1. `on_change` is called in `run` when the status or the
    problem has changed; it must not raise. Raises `LocalError` for a GitHub token that cannot be one.
    """

    def __init__(
        self,
        identity: str,
        github_token: Secret,
        client: GitHubClient,
        *,
        now: Callable[[], float],
        fraction: Callable[[], float],
        on_change: Callable[[TokenState], None] | None = None,
    ) -> None:
        client.request(Endpoint.COPILOT_TOKEN, github_token)
        self.identity: Final = identity
        self.counts: Final = TokenCounts()
        self._github_token = github_token
        self._client = client
        self._now = now
        self._fraction = fraction
        self._on_change = on_change
        self._log = get_logger("github")
        self._schedule = RefreshSchedule()
        self._state = TokenState(TokenStatus.NEW)
        self._received: tuple[CopilotToken, ...] = ()  # the last one and the one before
        self._nudged = trio.Event()
        self._settled = trio.Event()
        self._ended = False

    @property
    def state(self) -> TokenState:
        """As of the last exchange."""
        return self._state

    @property
    def is_refused(self) -> bool:
        """Whether whoever asks for a token now is told that there is none."""
        return self._ended or isinstance(self._schedule.decide(self._now()), Refuse)

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Every credential of this identity that may be alive, for masking."""
        return (self._github_token.reveal().encode(), *(received.token.encode() for received in self._received))

    async def token(self) -> CopilotAccess:
        """A live token; a checkpoint only when one has to be waited for. Raises `NoTokenError`."""
        waited = False
        while not self._ended:
            decision = self._schedule.decide(self._now())
            if isinstance(decision, Refuse):
                raise NoTokenError(self.identity, decision.problem, decision.retry_at)
            if isinstance(decision, Use):
                if decision.refresh:
                    self._nudged.set()
                return CopilotAccess(Secret(decision.token.token), decision.token.api)
            self._nudged.set()
            self.counts.waits += not waited
            waited = True
            await self._settled.wait()
        raise NoTokenError(self.identity, None, None)

    def refused(self, token: Secret, *, replayed: bool) -> bool:
        """Copilot answered 401 to a request with `token`: whether to ask for one again and to send it once more.

        `replayed`: it was the second time for that request. A token that is the present one is not used again, and a
        new one is fetched, unless it came just now (`RefreshSchedule.may_replay`).
        """
        again = self._schedule.may_replay(token.reveal(), self._now(), replayed=replayed)
        self._nudged.set()
        return again

    async def run(self) -> NoReturn:
        """Keeps the token alive until it is cancelled; whoever waits for one then is told that there is none."""
        try:
            while True:
                await self._until_wanted()
                await self._exchange()
                self._wake_waiting()
                await trio.sleep(_LEAST_GAP_S)
        finally:
            self._ended = True
            self._wake_waiting()

    async def _until_wanted(self) -> None:
        while not self._is_wanted():
            next_at = self._schedule.next_at
            pause = _LOOK_S if next_at is None else min(next_at - self._now(), _LOOK_S)
            self._nudged = trio.Event()
            with trio.move_on_after(max(pause, _LEAST_PAUSE_S)):
                await self._nudged.wait()

    def _is_wanted(self) -> bool:
        decision = self._schedule.decide(self._now())
        return decision.refresh if isinstance(decision, Use) else isinstance(decision, Refresh)

    async def _exchange(self) -> None:
        self._schedule.begin()
        try:
            answer = await self._client.copilot_token(self._github_token)
        except BaseException:
            self._schedule.abandon()
            raise
        self._schedule.receive(answer, self._now(), self._fraction())
        if isinstance(answer, CopilotToken):
            self.counts.refreshes += 1
            self._received = (answer, *self._received[:1])
            self._log.debug("copilot_token", identity=self.identity, expires_in_s=round(answer.life_s))
        else:
            self.counts.failures += 1
        self._set_state(self._state_after(answer))

    def _state_after(self, answer: CopilotToken | TokenRefusal) -> TokenState:
        last = self._received[0] if self._received else None
        expires_at, sku = (None, None) if last is None else (last.expires_at, last.sku)
        if isinstance(answer, CopilotToken):
            return TokenState(TokenStatus.LINKED, expires_at=expires_at, sku=sku)
        status = TokenStatus.REFUSED if answer.problem in _REFUSALS else TokenStatus.FAILING
        return TokenState(status, answer.problem, self._schedule.next_at, expires_at, sku)

    def _set_state(self, state: TokenState) -> None:
        before, self._state = self._state, state
        if (before.status, before.problem) == (state.status, state.problem):
            return
        if state.problem is None:
            self._log.info("identity_linked", identity=self.identity, sku=state.sku)
        else:
            told = self._log.error if state.status is TokenStatus.REFUSED else self._log.warning
            told("no_new_token", identity=self.identity, problem=state.problem.value, next_step=state.next_step)
        if self._on_change is not None:
            self._on_change(state)

    def _wake_waiting(self) -> None:
        self._settled.set()
        self._settled = trio.Event()
