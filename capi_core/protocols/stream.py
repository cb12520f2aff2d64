"""What every stream machine has in common, whichever protocol it speaks.

`StreamMachine`: an upstream's bytes in, the client's bytes out, both in the same protocol or not. The exchange drives
it without knowing which. `StreamDecoder` and `StreamEncoder` are the two halves of a translation.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.deltas import AnswerDelta
    from capi_core.errors import Problem, ProtocolError
    from capi_core.usage import Usage

__all__ = ["ENDED", "StreamDecoder", "StreamEncoder", "StreamMachine", "StreamState"]


class StreamState(enum.Enum):
    """How far a stream has come."""

    OPEN = enum.auto()
    """The answer is unfinished: the end of the bytes here is a broken stream."""
    FINISHED = enum.auto()
    """The answer is complete but for its end mark: the end of the bytes is an end."""
    DONE = enum.auto()
    """The end mark was seen: whatever follows is not part of the answer and is dropped."""
    ERRORED = enum.auto()
    """The upstream told of an error inside the stream: a legal, unhappy end."""
    BROKEN = enum.auto()
    """Cut, or not in the protocol: nothing more can be read."""


ENDED: Final = frozenset({StreamState.DONE, StreamState.ERRORED, StreamState.BROKEN})


class StreamMachine(Protocol):
    """An upstream's event stream in, the client's event stream out.

    `usage`: what the upstream reported so far. `chunks`: how many events of the answer went through. `failure`: why the
    stream is BROKEN, status 502. `error`: the upstream's own error when it is ERRORED, raw JSON with a member `error`
    or as the protocol has it.
    """

    state: StreamState
    usage: Usage | None
    chunks: int
    failure: ProtocolError | None
    error: bytes | None

    def receive_data(self, data: bytes) -> bytes:
        """Takes upstream bytes in any chunking; returns what can go to the client now (possibly nothing).

        A stream that breaks still yields the events before the break. Raises `LocalError` once it is BROKEN.
        """
        ...

    def finish(self) -> bytes:
        """The upstream ended its response properly. Returns the tail; `state` tells whether this was a legal end."""
        ...

    def fail(self, problem: Problem) -> bytes:
        """The last bytes of a stream that has begun and cannot go on: the protocol's error event and what it takes to
        make a legal end. Ends the machine."""
        ...


class StreamDecoder(Protocol):
    """An upstream's event stream in, deltas out, as the rules in `deltas` say. Never raises on what a peer sends: a
    stream that is cut or cannot be read ends with `Failed`. After `End` or `Failed` everything is dropped."""

    def receive_data(self, data: bytes) -> list[AnswerDelta]:
        """Takes upstream bytes in any chunking."""
        ...

    def finish(self) -> list[AnswerDelta]:
        """The upstream ended its response properly: the tail, `End` or `Failed` included unless that came before."""
        ...


class StreamEncoder(Protocol):
    """Deltas in, the client's event stream out. Total: `Failed` at any point becomes the protocol's error event and a
    legal end."""

    def encode(self, deltas: Iterable[AnswerDelta]) -> bytes:
        """The bytes for these deltas; empty when they have to wait for more."""
        ...
