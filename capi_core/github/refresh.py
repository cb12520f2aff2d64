"""When to get a new Copilot token, and what a request does meanwhile.

    match schedule.decide(now):
        case Use(token, refresh): ...     # use it; if `refresh`, begin one beside the request
        case Refresh(): ...               # begin one, or join the one under way; then ask again
        case Refuse(problem, retry_at):   # there is no token, and asking now would not help

    schedule.begin()                      # single flight: raises while one is under way
    schedule.receive(token_or_refusal, now, fraction)     # or abandon(), when it was cancelled

Theory of operation. A token is renewed at 80 % of its life, give or take 5 % by chance so that many identities do not
ask at once, and is used until shortly before its end: a failing refresh harms nobody until then. The wall clock is what
a token's end is written in, and the only clock that goes on while a machine sleeps; so each decision looks at it anew,
and after a sleep the first one finds the token dead. A clock that was set back by more than a minute makes the token's
age unknown: it is renewed before use.

One schedule belongs to one GitHub token. A new link is a new schedule.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from attrs import frozen

from capi_core.errors import LocalError
from capi_core.github.copilot_token import CopilotToken, TokenProblem, TokenRefusal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Refresh", "RefreshSchedule", "Refuse", "TokenDecision", "Use"]

_RENEW_AT: Final = 0.80
_SPREAD: Final = 0.05
_MARGIN: Final = 0.1
_MOST_MARGIN_S: Final = 10.0
"""A token is not used in the last tenth of its life, 10 s at most: a request takes its time to arrive."""
_CLOCK_SLACK_S: Final = 60.0
_YOUNG_S: Final = 30.0
_FIRST_BACKOFF_S: Final = 2.0
_MOST_BACKOFF_S: Final = 300.0
_SLOWLY_S: Final = 900.0

# What is not told here comes and goes, and is tried again with a backoff. `None`: only a new link helps.
_PACE: Final[Mapping[TokenProblem, float | None]] = {
    TokenProblem.REVOKED: None,
    TokenProblem.NO_SUBSCRIPTION: _SLOWLY_S,
    TokenProblem.BLOCKED: _SLOWLY_S,
    TokenProblem.NOT_FOUND: _SLOWLY_S,
    TokenProblem.REFUSED: _SLOWLY_S,
}


@frozen
class Use:
    """`token` is good. `refresh`: begin a refresh now, without waiting for it."""

    token: CopilotToken
    refresh: bool = False


@frozen
class Refresh:
    """No token is good: a refresh first, one's own or the one under way."""


@frozen
class Refuse:
    """No token, and no refresh before `retry_at` (Unix seconds); `None`: not before the identity is linked again."""

    problem: TokenProblem
    retry_at: float | None


TokenDecision = Use | Refresh | Refuse


class RefreshSchedule:
    """The token of one identity. `now` is always Unix seconds; a `fraction` is random, from 0 to 1."""

    def __init__(self) -> None:
        self._token: CopilotToken | None = None
        self._due_at = -math.inf
        self._failure: Refuse | None = None
        self._failed_at = -math.inf
        self._failures = 0  # in a row
        self._refreshing = False

    @property
    def refreshing(self) -> bool:
        """A refresh is under way."""
        return self._refreshing

    @property
    def problem(self) -> TokenProblem | None:
        """Why the last refresh gave no token. The one before it may still be good."""
        return None if self._failure is None else self._failure.problem

    @property
    def next_at(self) -> float | None:
        """When a refresh is due, by the present state: Unix seconds, minus infinity for at once; `None` for never."""
        return self._due_at if self._failure is None else self._failure.retry_at

    def decide(self, now: float) -> TokenDecision:
        """What a request does that needs a token at `now`; it may be asked as often as wanted."""
        due = not self._refreshing and self._is_due(now)
        if self._token is not None and self._is_good(self._token, now):
            return Use(self._token, due)
        if due or self._refreshing or self._failure is None:
            return Refresh()
        return self._failure

    def begin(self) -> None:
        """A refresh is being sent. Raises `LocalError` while one is under way: two would race for the same token."""
        if self._refreshing:
            raise LocalError("a refresh is under way already")
        self._refreshing = True

    def abandon(self) -> None:
        """The refresh was called off, and nothing was learned. Raises `LocalError` when none is under way."""
        self._end()

    def receive(self, answer: CopilotToken | TokenRefusal, now: float, fraction: float) -> None:
        """What the refresh came to. Raises `LocalError` when none is under way, or for a fraction that is none."""
        if not 0 <= fraction <= 1:
            raise LocalError("the random fraction is from 0 to 1")
        self._end()
        if isinstance(answer, CopilotToken):
            self._token = answer
            share = _RENEW_AT + _SPREAD * (2 * fraction - 1)
            self._due_at = answer.obtained_at + answer.life_s * share
            self._failure = None
            self._failures = 0
        else:
            self._failures += 1
            self._failed_at = now
            self._failure = Refuse(answer.problem, self._retry_at(answer, now, fraction))

    def may_replay(self, token: str, now: float, *, replayed: bool) -> bool:
        """The upstream refused `token` with 401: whether to ask `decide` again and to send the request once more.

        Once per request (`replayed`: this was the second time). A token that is not the present one was renewed in the
        meantime. The present one is never used again, unless it is younger than half a minute and has not ended: then
        it is not its age that the upstream dislikes, and a new one for each refused request would only make noise at
        GitHub.
        """
        if replayed:
            return False
        current = self._token
        if current is not None and current.token == token:
            if 0 <= now - current.obtained_at < _YOUNG_S and now < current.expires_at:
                return False
            self._token = None
            self._due_at = -math.inf
        return True

    def _end(self) -> None:
        if not self._refreshing:
            raise LocalError("no refresh is under way")
        self._refreshing = False

    def _is_good(self, token: CopilotToken, now: float) -> bool:
        margin = min(_MOST_MARGIN_S, _MARGIN * token.life_s)
        return token.obtained_at - _CLOCK_SLACK_S <= now < token.expires_at - margin

    def _is_due(self, now: float) -> bool:
        if self._failure is not None:
            retry_at = self._failure.retry_at
            # A clock that was set back would make a short pause a long one.
            return retry_at is not None and (now >= retry_at or now < self._failed_at - _CLOCK_SLACK_S)
        return now >= self._due_at

    def _retry_at(self, refusal: TokenRefusal, now: float, fraction: float) -> float | None:
        backoff = min(_FIRST_BACKOFF_S * 2.0 ** min(self._failures - 1, 16), _MOST_BACKOFF_S)
        pace = _PACE.get(refusal.problem, backoff)
        if pace is None:
            return None
        return now + max(pace * (1 + fraction) / 2, refusal.retry_after_s or 0)
