"""What a request to an upstream rides on: where it goes, with what credential, and in which slot of how many."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from attrs import define, field

from capi_core.gate_events import GateLimits, PauseCause
from capi_core.headers import retry_after_s
from capi_trio.slots import SlotRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from capi_core.config import LimitsConfig
    from capi_core.errors import Problem
    from capi_core.headers import Headers
    from capi_trio.slots import Slot, Slots
    from capi_trio.upstream import UpstreamTarget

__all__ = ["NoSeatError", "Seat", "gate_limits", "hold"]

_PAUSING: Final = frozenset({429, 503, 529})
"""What an upstream says when it wants to be left alone (529: Anthropic's "overloaded"); then `retry-after` is about all
requests."""
_TOO_MANY: Final = 429
"""What it says to those that it may take for abusers, when it does not say until when; a seat's is also:"""
_FORBIDDEN: Final = 403
_LEAST_REFUSALS: Final = 5


class NoSeatError(Exception):
    """Nobody can take this request there. `problem`: what its caller is told."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code)
        self.problem = problem


@define
class Seat:
    """`slot`: `None` where there is no cap. `identity`: the name of the one that is ridden, where there are some."""

    target: UpstreamTarget
    slot: Slot | None
    identity: str | None = field(kw_only=True, default=None)
    slots: Slots | None = field(kw_only=True, default=None, repr=False)
    now_s: Callable[[], float] = field(kw_only=True, repr=False)

    def heard(self, status: int, headers: Headers) -> None:
        """The upstream's answer has begun: the gate learns from it what all others have to know."""
        if self.slots is None:
            return
        pause = retry_after_s(headers, self.now_s()) if status in _PAUSING else None
        if pause:
            self.slots.pause(pause, PauseCause.RETRY_AFTER)
        refused = status == _TOO_MANY or (status == _FORBIDDEN and self.identity is not None)
        if refused and not pause:
            self.slots.upstream_refused()

    def may_renew(self) -> bool:
        """The upstream refused the credential: whether there may be a better one, for one more attempt."""
        return False

    async def renew(self) -> None:
        """Gets it. Raises `NoSeatError`."""


def gate_limits(cap: int, limits: LimitsConfig) -> GateLimits:
    """The limits of a gate of `cap` slots. All that are in flight at once may be refused for one reason."""
    return GateLimits(
        cap=cap,
        max_queued=limits.max_queued_per_identity,
        queue_timeout_s=limits.queue_timeout_s,
        abuse_refusals=max(_LEAST_REFUSALS, cap + 1),
    )


@asynccontextmanager
async def hold(slots: Slots, key_id: str) -> AsyncIterator[Slot]:
    """A slot for the block. Raises `NoSeatError`."""
    try:
        async with slots.hold(key_id) as slot:
            yield slot
    except SlotRefusedError as refused:
        raise NoSeatError(refused.problem) from None
