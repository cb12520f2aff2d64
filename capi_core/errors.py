"""What can go wrong in the core, in two families, and how a caller is told.

- `CoreError`
    - `LocalError`: the embedder drove a machine against its contract. A bug on our side of the wire.
    - `ProtocolError`: bytes from outside broke a rule. Carries the status and code to answer with.

A machine that raised `ProtocolError` stays failed: every later call raises `LocalError`.

`Problem` is not an exception: it is the answer a caller gets, before it takes the shape of a protocol.
"""

from __future__ import annotations

from attrs import frozen

__all__ = ["CoreError", "LocalError", "Problem", "ProtocolError"]


class CoreError(Exception):
    """Base of everything the core raises on purpose."""


class LocalError(CoreError):
    """A machine was called in a state in which that call is not allowed."""


class ProtocolError(CoreError):
    """Input from a peer broke a protocol rule.

    `code` is stable and machine-readable; `status_hint` is the HTTP status a server should answer with;
    `param` names the offending request member, if one member is to blame. The message never contains the
    offending bytes: they may hold a secret.
    """

    def __init__(self, message: str, *, code: str, status_hint: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status_hint = status_hint
        self.param = param


@frozen
class Problem:
    """Why a request gets no model answer: told to the caller in the caller's own protocol shape.

    `message` says what happened and what to do next; `code` is stable; `param` names the offending request
    member, if one member is to blame; `retry_after_s` becomes a `retry-after` header, in seconds.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None

    @classmethod
    def of(cls, error: ProtocolError) -> Problem:
        """The answer to a request that broke a rule."""
        return cls(error.status_hint, error.code, str(error), error.param)
