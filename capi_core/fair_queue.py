"""Who is next: a queue that goes round over keys, with a deadline for each that waits.

Theory of operation. The keys that wait form a ring; each has its own line, first come, first served. `take` serves the
head of the first key's line and moves that key to the end of the ring: deficit round robin (Shreedhar and Varghese,
"Efficient fair queuing using deficit round-robin", 1996) with each request at the cost of one quantum, so that no
deficit is ever left over. Between two turns of one key, every other key that waited all the while has had one.

A bounded queue that is full would let one busy key shut the others out. Hence `excess`, the buffer stealing of the same
paper: the key with the longest line gives up its newest place to a key whose line stays shorter all the same.

`take`, `join`, `leave` and the deadlines cost O(log n) over time; `place` and `excess` go over the keys that wait.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from attrs import frozen

from capi_core.errors import LocalError

__all__ = ["FairQueue", "Waiter"]

_STALE_DEADLINES: Final = 64
"""Deadlines of tickets that are gone are dropped when there are so many more of them than of those that wait."""


@frozen
class Waiter:
    """A request that waits: whose it is, since when, and until when; both in seconds of one clock."""

    key: str
    since: float
    deadline: float


class FairQueue:
    """Tickets that wait. A ticket is any number; it waits once at a time."""

    def __init__(self) -> None:
        self._waiting: dict[int, Waiter] = {}
        self._ring: OrderedDict[str, OrderedDict[int, None]] = OrderedDict()  # no line is empty
        self._deadlines: list[tuple[float, int]] = []  # a heap; may hold tickets that wait no more

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, ticket: int) -> bool:
        return ticket in self._waiting

    def join(self, ticket: int, waiter: Waiter) -> None:
        """Puts a ticket at the end of its key's line; a key that did not wait goes to the end of the ring.

        Raises `LocalError` for a ticket that waits already.
        """
        if ticket in self._waiting:
            raise LocalError("this ticket waits already")
        self._waiting[ticket] = waiter
        self._ring.setdefault(waiter.key, OrderedDict())[ticket] = None
        heapq.heappush(self._deadlines, (waiter.deadline, ticket))

    def leave(self, ticket: int) -> Waiter:
        """Takes a ticket out, wherever it stands. Raises `LocalError` for one that does not wait."""
        waiter = self._waiting.pop(ticket, None)
        if waiter is None:
            raise LocalError("this ticket does not wait")
        line = self._ring[waiter.key]
        del line[ticket]
        if not line:
            del self._ring[waiter.key]
        if len(self._deadlines) > 2 * len(self._waiting) + _STALE_DEADLINES:
            self._deadlines = [(other.deadline, number) for number, other in self._waiting.items()]
            heapq.heapify(self._deadlines)
        return waiter

    def take(self) -> tuple[int, Waiter]:
        """Takes out the ticket whose turn it is. Raises `LocalError` when nobody waits."""
        if not self._ring:
            raise LocalError("nobody waits")
        key, line = next(iter(self._ring.items()))
        self._ring.move_to_end(key)
        ticket = next(iter(line))
        return ticket, self.leave(ticket)

    def take_overdue(self, horizon: float) -> tuple[int, Waiter] | None:
        """Takes out the ticket with the earliest deadline, if that is not after `horizon`."""
        if self.first_deadline() > horizon:
            return None
        ticket = self._deadlines[0][1]
        return ticket, self.leave(ticket)

    def first_deadline(self) -> float:
        """The earliest deadline; infinite when nobody waits."""
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def place(self, key: str) -> int:
        """Which turn from now on would be that of this key's next request; 1: the next one."""
        own = self._length(key)
        place, turns = own + 1, own + 1
        for other, line in self._ring.items():
            if other == key:
                turns = own  # a key behind it has had one turn less when it is its turn
            else:
                place += min(len(line), turns)
        return place

    def excess(self, key: str) -> int | None:
        """The ticket that has to make room for one of this key in a full queue; `None` when the key asks too much.

        That is the newest of the longest line, if the key's own stays shorter than that line even then.
        """
        if not self._ring:
            return None
        longest = max(self._ring.values(), key=len)
        return next(reversed(longest)) if len(longest) > self._length(key) + 1 else None

    def tickets(self) -> list[int]:
        """All that wait, in the order in which they came."""
        return list(self._waiting)

    def by_key(self) -> Mapping[str, int]:
        """How many wait, by key; the key whose turn it is comes first."""
        return {key: len(line) for key, line in self._ring.items()}

    def _length(self, key: str) -> int:
        return len(self._ring.get(key, ()))
