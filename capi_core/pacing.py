"""One request every so many seconds, over the whole gateway: who goes, who waits for which instant, who is refused.

Theory of operation. There is one next free instant. A request that comes at or after it goes, and moves it on by the
interval; so there are never two within one interval, and silence saves nothing up. One that comes too early either is
refused, or joins a line in which each has an instant of its own, an interval after the one before it:

    ask ->  gone
        ->  waiting  --claim, when its instant has come-->  gone
               |
               +-- cancel: those behind it move up by one interval
        ->  too early: nobody may wait (`max_waiting` 0), or as many as may do so already

Only the first in line can go, so the order of arrival holds even when the embedder is late or wakes all of them at
once. One that goes late moves the others with it: the interval lies between requests, not between plans.

The clock must be monotonic. Should it go back all the same, it stands still here until it is again where it was.
"""

import math
from collections import OrderedDict
from typing import Final

from attrs import frozen

from capi_core.errors import LocalError, Problem

__all__ = ["Go", "Pacer", "TooEarly", "Wait", "problem_too_early"]

_CLOCK_SLACK_S: Final = 1e-4
"""Without slack, who waited exactly as long as it was told could be too early by the last digit of a float clock."""


@frozen
class Go:
    """The request may go on, and was counted."""


@frozen
class Wait:
    """The request is in line. Call `claim` at `until`, in seconds of the machine's clock, or `cancel` before."""

    ticket: int
    until: float


@frozen
class TooEarly:
    """The request is refused, and was not counted. Asked again after `retry_after_s` (at least 1), it goes or waits.

    `waiting`: how many are in line; 0 when nobody may wait.
    """

    retry_after_s: int
    waiting: int


_GO: Final = Go()


class Pacer:
    """At most one request every `interval_s` seconds, more than 0 and finite; at most `max_waiting` wait in line."""

    def __init__(self, interval_s: float, max_waiting: int = 0) -> None:
        if not 0 < interval_s < math.inf or max_waiting < 0:
            raise LocalError(
                "an interval is a finite time of more than 0 seconds, and a line has no less than 0 places"
            )
        self._interval_s = interval_s
        self._max_waiting = max_waiting
        self._now = -math.inf  # the latest instant seen
        self._free_at = -math.inf  # when the next one may go
        self._line: OrderedDict[int, None] = OrderedDict()  # tickets, in the order of arrival
        self._next_ticket = 0

    @property
    def interval_s(self) -> float:
        """Seconds between two requests, at least."""
        return self._interval_s

    @property
    def waiting(self) -> int:
        """How many are in line."""
        return len(self._line)

    def look(self, now: float) -> TooEarly | None:
        """How `ask` would refuse a request at `now`, if it would; changes nothing else. `LocalError`: not finite."""
        self._tick(now)
        if self._is_free() or len(self._line) < self._max_waiting:
            return None
        return TooEarly(max(1, math.ceil(self._free_at - self._now - _CLOCK_SLACK_S)), len(self._line))

    def ask(self, now: float) -> Go | Wait | TooEarly:
        """Asks for one request at `now`, in seconds of a monotonic clock. Raises `LocalError` when not finite."""
        refused = self.look(now)
        if refused is not None:
            return refused
        if self._is_free():
            return self._go()
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        self._line[ticket] = None
        return Wait(ticket, self.due(ticket))

    def claim(self, ticket: int, now: float) -> Go | Wait:
        """Whether the turn of one that waits has come; if not, until when it waits as things are now.

        Raises `LocalError` for a ticket that does not wait, or a clock that is not finite.
        """
        self._tick(now)
        due = self.due(ticket)
        if next(iter(self._line)) != ticket or due > self._now + _CLOCK_SLACK_S:
            return Wait(ticket, due)
        del self._line[ticket]
        return self._go()

    def cancel(self, ticket: int) -> None:
        """Takes one that waits out of the line. `LocalError`: it does not wait. Then see `due` of those behind it."""
        if ticket not in self._line:
            raise LocalError("this ticket does not wait")
        del self._line[ticket]

    def due(self, ticket: int) -> float:
        """The instant of one that waits, if nobody before it leaves or is late. `LocalError`: it does not wait."""
        for place, waiting in enumerate(self._line):
            if waiting == ticket:
                return max(self._free_at, self._now) + place * self._interval_s
        raise LocalError("this ticket does not wait")

    # -- inside ---------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if not math.isfinite(now):
            raise LocalError("the clock must be a finite number of seconds")
        self._now = max(now, self._now)

    def _is_free(self) -> bool:
        return not self._line and self._now >= self._free_at - _CLOCK_SLACK_S

    def _go(self) -> Go:
        # Who comes early by the slack counts as on time: the slack does not add up.
        self._free_at = max(self._free_at, self._now) + self._interval_s
        return _GO


def problem_too_early(interval_s: float, refused: TooEarly) -> Problem:
    """What a caller is told who came too early: 429 with `retry-after` (RFC 6585 section 4)."""
    line = f", and {refused.waiting} wait for their turn already" if refused.waiting else ""
    return Problem(
        429,
        "rate_limited",
        f"this gateway takes one request every {interval_s:g} s{line}; retry in {refused.retry_after_s} s",
        retry_after_s=refused.retry_after_s,
    )
