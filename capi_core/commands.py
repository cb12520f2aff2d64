"""The vocabulary of an exchange: what is asked, what the machine commands, how it ends, and its account."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from capi_core.protocols.kinds import Protocol

if TYPE_CHECKING:
    from capi_core.headers import Headers
    from capi_core.usage import Usage, UsageSource

__all__ = [
    "Command",
    "EndResponse",
    "ExchangeLimits",
    "Failure",
    "Operation",
    "Outcome",
    "Record",
    "SendBody",
    "SendRequest",
    "StartResponse",
]


class Operation(enum.Enum):
    """What is asked of a model; the value is the path below an upstream's base URL."""

    CHAT = "/chat/completions"
    RESPONSES = "/responses"
    MESSAGES = "/messages"
    COUNT_TOKENS = "/messages/count_tokens"
    EMBEDDINGS = "/embeddings"

    @property
    def protocol(self) -> Protocol:
        """Whose request, answer and error shapes it has."""
        return _PROTOCOLS[self]


_PROTOCOLS: Final = {
    Operation.CHAT: Protocol.CHAT,
    Operation.RESPONSES: Protocol.RESPONSES,
    Operation.MESSAGES: Protocol.MESSAGES,
    Operation.COUNT_TOKENS: Protocol.MESSAGES,
    Operation.EMBEDDINGS: Protocol.CHAT,
}


class Outcome(enum.Enum):
    """How a request ended. Closed: a dashboard can count on these."""

    OK = "ok"
    CLIENT_GONE = "client_gone"
    UPSTREAM_ERROR = "upstream_error"
    """The upstream answered, with an error."""
    UPSTREAM_BROKE = "upstream_broke"
    """The upstream's answer was cut or was not in its protocol."""
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    INTERNAL_ERROR = "internal_error"
    REFUSED_INVALID = "refused_invalid"
    REFUSED_MODEL = "refused_model"
    REFUSED_SCOPE = "refused_scope"
    """The key may not use this model, or no identity serves it there."""
    REFUSED_RATE = "refused_rate"
    REFUSED_TOO_LARGE = "refused_too_large"
    REFUSED_BUDGET = "refused_budget"
    """The key has spent what it may in this day or month."""
    REFUSED_DENIED = "refused_denied"
    """The operator of the gateway was asked, and did not allow it."""
    REFUSED_BUSY = "refused_busy"
    """No slot at the upstream came free in time, or the seat that serves the caller cannot be used now."""


class Failure(enum.Enum):
    """Why the embedder has no (more) upstream response."""

    UNREACHABLE = enum.auto()
    TIMEOUT = enum.auto()
    BROKEN = enum.auto()
    SHUTDOWN = enum.auto()
    INTERNAL = enum.auto()


@frozen
class ExchangeLimits:
    """Bounds on what one exchange holds in memory, in bytes."""

    max_event_bytes: int = 4 * 1024 * 1024
    max_answer_bytes: int = 64 * 1024 * 1024
    """A whole JSON answer; embeddings of a large batch are tens of MB."""
    max_error_bytes: int = 1024 * 1024
    """An upstream's error body."""


@frozen
class SendRequest:
    """Ask `upstream` (its name in the catalog): POST `operation.value` below its base URL."""

    upstream: str
    operation: Operation
    headers: Headers
    body: bytes = field(repr=False)


@frozen
class StartResponse:
    """The client's response head. `headers` are complete but for what the server adds (date, request id)."""

    status: int
    headers: Headers


@frozen
class SendBody:
    """Bytes of the client's response body; never empty."""

    data: bytes = field(repr=False)


@frozen
class EndResponse:
    """The client's response is complete."""


Command = SendRequest | StartResponse | SendBody | EndResponse


@frozen
class Record:
    """The account of one exchange. `None`: it never came to that. Holds no text of a prompt or an answer.

    `model` is the name in the client's request, `status` the HTTP status that the client got. `upstream_protocol`: in
    which the upstream was asked; `losses`: how many entries of the fidelity ledger weaken what was sent.
    `failed_upstreams`: who was asked before `upstream`, to no avail.
    """

    operation: Operation
    outcome: Outcome
    status: int | None
    model: str | None
    upstream: str | None
    upstream_model: str | None
    stream: bool
    usage: Usage | None
    usage_source: UsageSource
    upstream_protocol: Protocol | None = None
    losses: int = 0
    failed_upstreams: tuple[str, ...] = ()
