"""The vocabulary of the in-flight gate: its limits, what becomes of a ticket, what an operator sees of it."""

import enum
import math
from collections.abc import Mapping

from attrs import frozen

from capi_core.commands import Failure
from capi_core.errors import LocalError, Problem
from capi_core.failures import failure_of

__all__ = [
    "Event",
    "GateLimits",
    "GateSnapshot",
    "GateState",
    "Granted",
    "PauseCause",
    "Queued",
    "Refusal",
    "Refused",
    "TicketState",
    "problem_refused",
]


class GateState(enum.Enum):
    """What the gate does with requests."""

    OPEN = "open"
    PAUSED = "paused"
    """No grants until the pause is over."""
    STOPPED = "stopped"
    """The operator's kill switch: all are refused, until it is started again."""
    DRAINING = "draining"
    """Shutting down: all are refused, for good."""


class TicketState(enum.Enum):
    """Where a ticket is."""

    WAITING = enum.auto()
    IN_FLIGHT = enum.auto()
    ENDED = enum.auto()


class PauseCause(enum.Enum):
    """Why there are no grants for a while."""

    RETRY_AFTER = "retry_after"
    """The upstream said when to come back (RFC 9110 section 10.2.3)."""
    COOL_DOWN = "cool_down"
    """The upstream refused so often that it may take this identity for an abuser."""
    OPERATOR = "operator"


class Refusal(enum.Enum):
    """Why a request gets no slot. The value is the code that its caller is told."""

    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    PAUSED = "identity_paused"
    STOPPED = "identity_stopped"
    SHUTTING_DOWN = "shutting_down"


@frozen(kw_only=True)
class GateLimits:
    """Counts of requests, and seconds. Raises `LocalError` for a value that would leave the gate useless."""

    cap: int = 4
    """In flight at the same time."""
    max_queued: int = 64
    queue_timeout_s: float = 60.0
    max_pause_s: float = 3600.0
    """No pause, of whatever cause, is longer."""
    abuse_refusals: int = 5
    """So many refusals by the upstream within `abuse_window_s` are a sign of abuse, and cool the gate down.
    More than `cap`: all that were in flight at once may well be refused for one and the same reason."""
    abuse_window_s: float = 60.0
    cool_down_s: float = 60.0
    """The first cool-down. Each that follows within `cool_down_memory_s` after the last one's end is twice as long."""
    cool_down_memory_s: float = 3600.0

    def __attrs_post_init__(self) -> None:
        spans = (
            self.queue_timeout_s,
            self.max_pause_s,
            self.abuse_window_s,
            self.cool_down_s,
            self.cool_down_memory_s,
        )
        if self.cap < 1 or self.max_queued < 0 or self.abuse_refusals < 1:
            raise LocalError("a gate needs a slot and a refusal to count, and no fewer than 0 places in its queue")
        if not all(0 < span < math.inf for span in spans):
            raise LocalError("a gate's times are finite and more than 0 seconds")


@frozen
class Granted:
    """The ticket has a slot, from now until `release` or `cancel`."""

    ticket: int
    waited_s: float


@frozen
class Queued:
    """The ticket waits. `position`: 1 is next, if nobody else comes or goes; `wait_s`: a guess of how long."""

    ticket: int
    position: int
    wait_s: int
    deadline: float


@frozen
class Refused:
    """The ticket has ended without a slot. `retry_after_s` is at least 1; `None`: nobody knows."""

    ticket: int
    why: Refusal
    retry_after_s: int | None


Event = Granted | Refused


@frozen(kw_only=True)
class GateSnapshot:
    """The gate as the operator sees it. `pause_cause` and `pause_left_s` are of the pause that runs, if one does.

    Of all tickets given out, `issued`, each is in exactly one of: `in_flight`, `queued`, `released`, `cancelled`,
    `refused`. `repeated`: how often a ticket was ended that had ended before; not 0 means that the embedder has a bug.
    """

    state: GateState
    pause_cause: PauseCause | None
    pause_left_s: float
    note: str | None
    """Why the operator stopped it."""
    limits: GateLimits
    in_flight: Mapping[str, int]
    """By key."""
    queued: Mapping[str, int]
    """By key, the next one to be served first."""
    peak_in_flight: int
    slot_s: float
    """How long a slot is held: a moving average."""
    issued: int
    granted: int
    released: int
    cancelled: int
    refused: Mapping[Refusal, int]
    repeated: int


def problem_refused(refused: Refused) -> Problem:
    """What a caller is told who gets no slot: 429 when there are too many of them, 503 when the identity takes none."""
    match refused.why:
        case Refusal.QUEUE_FULL:
            status, text = 429, "too many requests already wait for this upstream; retry in {} s"
        case Refusal.QUEUE_TIMEOUT:
            status, text = 429, "this upstream was busy for as long as a request may wait; retry in {} s"
        case Refusal.PAUSED:
            status, text = 503, "this upstream takes no requests for a while; retry in {} s"
        case Refusal.STOPPED:
            status, text = 503, "the operator has stopped the use of this upstream; ask them"
        case _:
            return failure_of(Failure.SHUTDOWN, None)[0]
    return Problem(status, refused.why.value, text.format(refused.retry_after_s), retry_after_s=refused.retry_after_s)
