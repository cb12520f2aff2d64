"""One client's talk with a gateway: its requests go out, and what it gets to hear is timed, judged and boiled down."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec
import trio
from attrs import evolve, field, frozen

from capi_core.conformance import Severity, checker_for
from capi_core.exchange import Failure
from capi_core.headers import find
from capi_trio.client_answers import Answer, Listener
from capi_trio.client_setup import NO_KEY
from capi_trio.conform import PROBE_S, judge_error, judge_stream, short_body
from capi_trio.upstream import UpstreamFailedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from capi_core.conformance import Violation
    from capi_core.headers import Headers
    from capi_trio.client_requests import Voice
    from capi_trio.upstream import Secret, UpstreamClient, UpstreamResponse

__all__ = ["Heard", "Session", "Talk"]

_MODELS: Final = "/v1/models"
_CODE: Final = re.compile(r"[a-z_]{1,48}")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@frozen
class Heard:
    """What came of one request.

    `failure`: why there is no (whole) answer, and `reason` the kind of it. `status`: `None` without an answer. `code`:
    of the error that was told, with the status or in the stream; `None` when none was, `""` when it has none that can
    be shown. `body`: of an answer that is no stream. Times in seconds: `first_event_s` from the request to the first
    event, `pause_s` the longest without an event, `silence_s` the longest without a byte. `keep_alives`: what came in
    that longest pause. `whole`: the stream ended. `request_id`: under which the gateway logged it, if it said so.
    """

    status: int | None = None
    failure: Failure | None = None
    reason: str = ""
    code: str | None = None
    violations: tuple[Violation, ...] = ()
    answer: Answer = field(factory=Answer, repr=False)
    events: int = 0
    keep_alives: int = 0
    first_event_s: float | None = None
    pause_s: float = 0.0
    silence_s: float = 0.0
    body: bytes = field(default=b"", repr=False)
    whole: bool = False
    request_id: str | None = None

    @property
    def broken(self) -> tuple[str, ...]:
        """The rules that clients rely on and that the answer breaks."""
        return self._rules(Severity.MUST)

    @property
    def odd(self) -> tuple[str, ...]:
        """The rules that it breaks and clients tolerate."""
        return self._rules(Severity.SHOULD)

    def _rules(self, severity: Severity) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.rule for one in self.violations if one.severity is severity))


class Talk:
    """The stream of one answer as it is heard, with the times of its parts."""

    def __init__(self, voice: Voice) -> None:
        self.listener = Listener(voice.protocol)
        self.first_event_s: float | None = None
        self.pause_s = self.silence_s = 0.0
        self.keep_alives = self._kept_before = 0
        self._began = self._event_at = self._byte_at = trio.current_time()

    def hear(self, data: bytes) -> None:
        """Takes bytes at the moment that they come in."""
        now = trio.current_time()
        self.silence_s = max(self.silence_s, now - self._byte_at)
        self._byte_at = now
        kept = self.listener.keep_alives - self._kept_before
        if self.listener.receive_data(data):
            if now - self._event_at > self.pause_s:
                self.pause_s, self.keep_alives = now - self._event_at, kept
            self._event_at, self._kept_before = now, self.listener.keep_alives
            if self.first_event_s is None:
                self.first_event_s = now - self._began

    def heard(self, status: int, violations: tuple[Violation, ...] = (), *, whole: bool) -> Heard:
        """All of it."""
        answer = self.listener.finish()
        return Heard(
            status,
            code=None if answer.problem is None else _shown(answer.problem),
            violations=violations,
            answer=answer,
            events=self.listener.events,
            keep_alives=self.keep_alives,
            first_event_s=self.first_event_s,
            pause_s=self.pause_s,
            silence_s=self.silence_s,
            whole=whole,
        )


class Session:
    """Asks the gateway that `client` knows as `name`, as `voice` does. No method raises for what a gateway does."""

    def __init__(self, client: UpstreamClient, name: str, voice: Voice, key: Secret | None) -> None:
        self.voice = voice
        self.has_key = key is not None
        self._client = client
        self._name = name
        self._key = NO_KEY if key is None else key.reveal()

    async def stream(self, body: Mapping[str, object]) -> Heard:
        """A model request, heard to its end."""
        talk = Talk(self.voice)

        async def hear(response: UpstreamResponse) -> Heard:
            violations = await judge_stream(self.voice.protocol, response, talk.hear)
            return talk.heard(response.status, violations, whole=True)

        return await self._post(self.voice.path, body, hear)

    async def leave(self, body: Mapping[str, object]) -> Heard:
        """A model request whose client leaves at the first event; `whole` when that was all."""
        talk = Talk(self.voice)
        checker = checker_for(self.voice.protocol)

        async def hear(response: UpstreamResponse) -> Heard:
            async for chunk in response.chunks():
                checker.receive_data(chunk)
                talk.hear(chunk)
                if talk.first_event_s is not None:
                    break
            checker.finish()
            whole = not any(one.severity is Severity.MUST for one in checker.violations)
            return talk.heard(response.status, whole=whole)

        return await self._post(self.voice.path, body, hear)

    async def count(self, path: str, body: Mapping[str, object]) -> Heard:
        """A request to count tokens."""
        return await self._post(path, body, _whole, count=True)

    async def models(self, key: str | None = None) -> Heard:
        """The list of models. `key`: instead of the session's own."""
        headers = self.voice.head(self._key if key is None else key)
        return await self._ask("GET", _MODELS, headers, None, _whole)

    async def _post(
        self,
        path: str,
        body: Mapping[str, object],
        hear: Callable[[UpstreamResponse], Awaitable[Heard]],
        *,
        count: bool = False,
    ) -> Heard:
        return await self._ask("POST", path, self.voice.head(self._key, count=count), msgspec.json.encode(body), hear)

    async def _ask(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes | None,
        hear: Callable[[UpstreamResponse], Awaitable[Heard]],
    ) -> Heard:
        heard = Heard(failure=Failure.TIMEOUT, reason=f"no whole answer within {PROBE_S:.0f} s")
        try:
            with trio.move_on_after(PROBE_S):
                async with self._client.ask(self._name, method, path, headers, body) as response:
                    heard = await (hear(response) if response.status == 200 else self._refused(response))
                    heard = evolve(heard, request_id=_request_id(response))
        except UpstreamFailedError as error:
            return Heard(failure=error.failure, reason=error.reason)
        return heard

    async def _refused(self, response: UpstreamResponse) -> Heard:
        violations, problem = await judge_error(self.voice.protocol, response)
        return Heard(response.status, code="" if problem is None else _shown(problem.code), violations=violations)


async def _whole(response: UpstreamResponse) -> Heard:
    body = await short_body(response)
    return Heard(response.status, body=body or b"", whole=body is not None)


def _request_id(response: UpstreamResponse) -> str | None:
    value = (find(response.headers, b"x-request-id") or b"").decode("latin-1")
    return value if _ID.fullmatch(value) else None


def _shown(code: str) -> str:
    """A code that is one; anything else may be text of an answer."""
    return code if _CODE.fullmatch(code) else ""
