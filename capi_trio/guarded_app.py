"""The app as a connection calls it: whatever it raises becomes an end of that request, and of nothing else."""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import trio
from hypercorn.typing import WebsocketCloseEvent

from capi_core.errors import Problem
from capi_core.protocols.openai import encode_error
from capi_trio.asgi import ResetConnectionError, deny, respond
from capi_trio.logs import describe, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypercorn.typing import (
        ASGIFramework,
        ASGIReceiveCallable,
        ASGIReceiveEvent,
        ASGISendCallable,
        ASGISendEvent,
        Scope,
    )

__all__ = ["GuardedApp", "Peer", "split_cancelled"]

_MESSAGE_BYTES: Final = 64
"""What a message costs besides its text."""
_INTERNAL_ERROR: Final = 1011
"""Why a WebSocket is closed (RFC 6455 7.4.1)."""


class Peer(Protocol):
    """What the app's wrapper asks of the client's stream."""

    def answer_complete(self) -> None: ...
    def switched(self) -> None: ...
    async def ping(self) -> None: ...
    async def abort(self) -> None: ...


class _Answer(enum.Enum):
    """How much of an answer has been sent."""

    NONE = enum.auto()
    BEGUN = enum.auto()
    WHOLE = enum.auto()


class _Inbox:
    """What the client of a WebSocket has sent and the app has not taken: bounded, as hypercorn's own queue is not.

    A client that goes on sending to an app which cannot keep up (it waits for the client to take an answer, say) is cut
    off at `limit` bytes.
    """

    def __init__(self, receive: ASGIReceiveCallable, stream: Peer, limit: int) -> None:
        self._receive = receive
        self._stream = stream
        self._limit = limit
        self._messages: deque[ASGIReceiveEvent] = deque()
        self._bytes = 0
        self._something = trio.Event()

    async def pump(self) -> None:
        """Takes what comes, to its end."""
        while True:
            message = await self._receive()
            self._messages.append(message)
            self._bytes += _size(message)
            self._something.set()
            if message["type"] == "websocket.disconnect":
                return
            if self._bytes > self._limit:
                await self._stream.abort()

    async def receive(self) -> ASGIReceiveEvent:
        """The next message, as ASGI's own `receive`."""
        while not self._messages:
            self._something = trio.Event()
            await self._something.wait()
        message = self._messages.popleft()
        self._bytes -= _size(message)
        return message


def _size(message: ASGIReceiveEvent) -> int:
    if message["type"] != "websocket.receive":
        return 0
    return _MESSAGE_BYTES + len(message["text"] or message["bytes"] or b"")


class GuardedApp:
    """The app as hypercorn calls it: tells the stream how far an answer is, and survives what the app raises.

    `max_unread`: bytes that a WebSocket's client may be ahead of the app.
    """

    def __init__(self, app: ASGIFramework, stream: Peer, new_request_id: Callable[[], str], *, max_unread: int) -> None:
        self._app = app
        self._stream = stream
        self._new_request_id = new_request_id
        self._max_unread = max_unread
        self._log = get_logger("connection")

    async def __call__(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        sync_spawn: object,
        call_soon: object,
    ) -> None:
        answer = _Answer.NONE

        async def guarded_send(message: ASGISendEvent) -> None:
            nonlocal answer
            answer = _Answer.BEGUN
            await send(message)
            if message["type"] == "http.response.body" and not message["more_body"]:
                answer = _Answer.WHOLE
                self._stream.answer_complete()
            elif message["type"] == "websocket.accept":
                self._stream.switched()
                tasks.start_soon(self._stream.ping)
            elif message["type"] == "websocket.close":
                answer = _Answer.WHOLE

        try:
            if scope["type"] == "websocket":
                async with trio.open_nursery() as tasks:
                    inbox = _Inbox(receive, self._stream, self._max_unread)
                    tasks.start_soon(inbox.pump)
                    await self._app(scope, inbox.receive, guarded_send)
                    tasks.cancel_scope.cancel()
            else:
                await self._app(scope, receive, guarded_send)
        except BaseException as error:
            cancelled, failed = split_cancelled(error)
            if failed is not None:
                await self._end_failed(scope, failed, answer, guarded_send)
            if cancelled is not None:
                raise cancelled from None

    async def _end_failed(self, scope: Scope, error: BaseException, answer: _Answer, send: ASGISendCallable) -> None:
        if isinstance(error, ResetConnectionError):
            await self._stream.abort()
            return
        self._log.error("app_failed", **describe(error))
        websocket = scope["type"] == "websocket"
        match answer:
            case _Answer.WHOLE:
                pass
            case _Answer.BEGUN if websocket:
                await send(WebsocketCloseEvent(type="websocket.close", code=_INTERNAL_ERROR, reason=None))
            case _Answer.BEGUN:  # half an answer must not look like a whole one
                await self._stream.abort()
            case _Answer.NONE:
                problem = Problem(500, "internal_error", "this gateway failed; its log says where")
                request_id = (b"x-request-id", self._new_request_id().encode())
                headers = ((b"content-type", b"application/json"), request_id)
                await (deny if websocket else respond)(send, 500, headers, encode_error(problem))


def split_cancelled(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Takes apart what must go on being raised (cancellation, exits) and what is a failure of the code below.

    An exception group from a nursery can hold both. A group of one failure is that failure.
    """
    if isinstance(error, BaseExceptionGroup):
        failures, rest = error.split(Exception)
        failed: BaseException | None = failures
        while isinstance(failed, BaseExceptionGroup) and len(failed.exceptions) == 1:
            failed = failed.exceptions[0]
        return rest, failed
    return (None, error) if isinstance(error, Exception) else (error, None)
