"""What there is to tell about a request that has ended: tests read it."""

import enum
from typing import Protocol

from attrs import field, frozen

__all__ = ["Ledger", "Outcome", "RequestRecord"]


class Outcome(enum.Enum):
    """How a request ended. FAULTED: with an error, or cut short, because the caller asked for that fault."""

    COMPLETED = "completed"
    CLIENT_GONE = "client_gone"
    FAULTED = "faulted"
    CANCELLED = "cancelled"
    """The server was stopped under it."""


@frozen
class RequestRecord:
    """A request that has ended: what came, how it ended, and when (`trio.current_time`, seconds).

    `body` is empty and `status` None when the client left before all of the body was there; `status` is also
    None when it left before the response head. Each frame of a WebSocket is a request (`websocket` True) with the
    method, path and headers of the handshake, its text for a body, and the status that an error frame told.
    """

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    body: bytes = field(repr=False)
    status: int | None
    outcome: Outcome
    started: float
    ended: float
    websocket: bool = False

    def header(self, name: bytes) -> bytes | None:
        """The value of the first header of that name (small letters), or None."""
        return next((value for found, value in self.headers if found == name), None)


class Ledger(Protocol):
    """Whoever counts the requests in progress and keeps the records of those that ended."""

    def begin_request(self) -> None: ...
    def end_request(self, record: RequestRecord) -> None: ...
