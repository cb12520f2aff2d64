"""Asks a running gateway what a client would ask it, and tells how each matter went and what to do where it went wrong.

`conform` judges a gateway's grammar; this tries whether a client can work with it: its key, its model, its headers and
betas, a tool's result on the second turn, leaving in the middle of an answer. Nothing of an answer's text is kept.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import msgspec
from attrs import field, frozen

from capi_trio.catalog import decode_model_list
from capi_trio.client_session import Session
from capi_trio.doctor_advice import MODELS, advice_for, said_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from capi_trio.client_requests import Voice
    from capi_trio.client_session import Heard
    from capi_trio.upstream import Secret, UpstreamClient

__all__ = ["GATEWAY", "Finding", "Probe", "Verdict", "examine"]

GATEWAY: Final = "gateway"
"""The client's name for the gateway."""

_WRONG_KEY: Final = "sk-cap-doctor-there-is-no-such-key"
_ASK: Final = "Say hello in one short sentence."
_ASK_LONG: Final = "Count from 1 to 300 in words, one number a line."
_ASK_THINKING: Final = "Think it through: which is larger, 9.11 or 9.9? Answer with the number alone."
_TOOL_OUTPUT: Final = "capi"

# The demo provider's models do on request what others do by chance (docs of `capi_trio.demo`).
_DEMO: Final = "demo-"
_DEMO_LONG: Final = ' [[demo {"events": 2000, "pace_ms": 20}]]'
_DEMO_PAUSE: Final = ' [[demo {"fault": "silence", "silence_ms": 17000, "at": 1}]]'

_KEEP_ALIVE_S: Final = 15.0
"""After this long a gateway breaks its silence (`limits.keep_alive_s`)."""
_SLACK_S: Final = 1.0
_CUT_S: Final = 60.0
"""After this long without a byte common proxies cut a stream."""
_NONE_WHOLE: Final = "no answer came whole"
_AT_ONCE_S: Final = 5.0
_AT_ONCE_TIMES: Final = 4


class Verdict(enum.Enum):
    """How a matter stands."""

    OK = "ok"
    WARN = "warn"
    """It works, but somebody should look at it."""
    FAIL = "fail"
    SKIPPED = "skipped"
    """It could not be tried; `Finding.seen` says why."""


class Probe(enum.Enum):
    """What is looked at, in this order."""

    AUTH = "auth"
    MODELS = "models"
    STREAM = "stream"
    TOOLS = "tools"
    THINKING = "thinking"
    ABORT = "abort"
    COUNT_TOKENS = "count_tokens"
    KEEPALIVE = "keepalive"
    TOKENS = "tokens"


@frozen
class Finding:
    """What one probe found. `advice`: what the operator does next. `heard`: the answer that was judged."""

    probe: Probe
    verdict: Verdict
    seen: str
    advice: str | None = None
    heard: Heard | None = field(default=None, repr=False)


async def examine(
    client: UpstreamClient, voice: Voice, key: Secret | None, model: str, tell: Callable[[Finding], None]
) -> None:
    """Probes the gateway that `client` knows as `GATEWAY` as `voice` would ask it; tells each finding at once."""
    visit = _Visit(Session(client, GATEWAY, voice, key), model)
    for probe, look in visit.probes.items():
        blocked = visit.blocked
        tell(await look(probe) if blocked is None else Finding(probe, Verdict.SKIPPED, blocked))


class _Visit:
    """The probes of one voice, which build on each other. `blocked`: why no more can be tried."""

    def __init__(self, session: Session, model: str) -> None:
        self.blocked: str | None = None
        self.probes: Mapping[Probe, Callable[[Probe], Awaitable[Finding]]] = {
            Probe.AUTH: self._auth,
            Probe.MODELS: self._models,
            Probe.STREAM: self._stream,
            Probe.TOOLS: self._tools,
            Probe.THINKING: self._thinking,
            Probe.ABORT: self._abort,
            Probe.COUNT_TOKENS: self._count_tokens,
            Probe.KEEPALIVE: self._keepalive,
            Probe.TOKENS: self._tokens,
        }
        self._session = session
        self._voice = session.voice
        self._model = model
        self._list = b""
        self._streams: list[Heard] = []
        self._usual_s = 0.0

    async def _auth(self, probe: Probe) -> Finding:
        own = await self._session.models()
        if own.status != 200:
            self.blocked = "the gateway does not let this client in" if own.status else "the gateway does not answer"
            return self._failed(probe, own)
        self._list = own.body
        other = await self._session.models(_WRONG_KEY)
        if other.status == 200:
            seen = "every key is accepted: auth is off"
            return Finding(
                probe, Verdict.WARN, seen, "start the gateway without --no-auth, unless nobody else can reach it"
            )
        if other.status != 401 or other.broken:
            return self._failed(probe, other, "a wrong key: ")
        return Finding(probe, Verdict.OK, "the key is accepted, a wrong one is refused with 401")

    async def _models(self, probe: Probe) -> Finding:
        try:
            names = decode_model_list(self._list)
        except ValueError:
            self.blocked = "GET /v1/models gives no list of models"
            return Finding(
                probe, Verdict.FAIL, self.blocked, "check that --url is the gateway's address, without a path"
            )
        if self._model in names:
            return Finding(probe, Verdict.OK, f"listed for this key, one of {len(names)}")
        seen = f"not one of the {len(names)} that are listed for this key; asked for all the same"
        return Finding(probe, Verdict.WARN, seen, MODELS)

    async def _stream(self, probe: Probe) -> Finding:
        heard = await self._ask(_ASK)
        self._usual_s = heard.first_event_s or 0.0
        if heard.status != 200:
            self.blocked = "the stream was not answered"
        if self._fails(heard):
            return self._failed(probe, heard)
        if not heard.answer.spoke:
            return Finding(
                probe, Verdict.WARN, f"{_times(heard)}, but no text", "ask the model something yourself", heard
            )
        return self._good(probe, heard)

    async def _tools(self, probe: Probe) -> Finding:
        request = self._request(f"Call {self._voice.tool} once with the command `echo capi`, then say what it printed.")
        first = await self._heard(request)
        calls = first.answer.calls
        if self._fails(first):
            return self._failed(probe, first, "the call: ")
        if not calls:
            seen = f"{_times(first)}, but {self._voice.tool} was not called"
            return Finding(
                probe, Verdict.WARN, seen, "agents need a model that calls tools; try again, or another", first
            )
        if any(not call.readable or call.name != self._voice.tool for call in calls):
            advice = "the model calls tools badly, or its upstream garbles them; try another model"
            return Finding(probe, Verdict.FAIL, "a call has another name or arguments that are no JSON", advice, first)
        results = [self._voice.result(call.id, _TOOL_OUTPUT) for call in calls]
        second = await self._heard(self._voice.go_on(request, [*first.answer.turns, *results]))
        if self._fails(second):
            return self._failed(probe, second, "the turn with the result: ")
        return self._good(probe, second, f"called {self._voice.tool}, took its result; ")

    async def _thinking(self, probe: Probe) -> Finding:
        heard = await self._heard(self._request(_ASK_THINKING, thinking=True))
        if heard.status == 400:
            seen = f"asking for reasoning is refused: {said_of(heard)}"
            return Finding(probe, Verdict.WARN, seen, "nothing to do when this model has no reasoning", heard)
        if self._fails(heard):
            return self._failed(probe, heard)
        if heard.answer.reasoned:
            return self._good(probe, heard, "reasoning came; ")
        hidden = heard.answer.usage and heard.answer.usage.reasoning
        if hidden:
            return self._good(probe, heard, f"{hidden} tokens of reasoning, kept by the provider; ")
        return Finding(
            probe, Verdict.SKIPPED, "no reasoning came: the model has none, or does not show it", heard=heard
        )

    async def _abort(self, probe: Probe) -> Finding:
        left = await self._session.leave(self._request(_ASK_LONG + self._on_demo(_DEMO_LONG)))
        if self._fails(left):
            return self._failed(probe, left)
        if left.whole:
            return Finding(probe, Verdict.SKIPPED, "the answer was over before it could be left", heard=left)
        after = await self._ask(_ASK)
        if self._fails(after):
            return self._failed(probe, after, "the request after an answer that was left: ")
        seen = f"left at the first event; the next answer began after {after.first_event_s or 0:.2f} s"
        if (after.first_event_s or 0.0) > max(_AT_ONCE_S, _AT_ONCE_TIMES * self._usual_s):
            advice = "the upstream may go on with answers that nobody reads; look for client_gone in capi's log"
            return Finding(probe, Verdict.WARN, seen, advice, after)
        return Finding(probe, Verdict.OK, seen, heard=after)

    async def _count_tokens(self, probe: Probe) -> Finding:
        path = self._voice.count_path
        if path is None:
            return Finding(probe, Verdict.SKIPPED, "this client does not have tokens counted")
        heard = await self._session.count(path, self._voice.count(self._model, _ASK))
        if self._fails(heard):
            return self._failed(probe, heard)
        try:
            counted = msgspec.json.decode(heard.body, type=_Counted).input_tokens
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            counted = 0
        if counted <= 0:
            return Finding(probe, Verdict.FAIL, "the answer has no input_tokens", "report it: capi's own answer has")
        return Finding(probe, Verdict.OK, f"{counted} tokens", heard=heard)

    async def _keepalive(self, probe: Probe) -> Finding:
        if self._on_demo(_DEMO_PAUSE):
            paused = await self._ask(_ASK + _DEMO_PAUSE)
            if self._fails(paused):
                return self._failed(probe, paused)
        longest = max(self._streams, key=lambda heard: heard.pause_s, default=None)
        if longest is None:
            return Finding(probe, Verdict.SKIPPED, _NONE_WHOLE)
        silence_s = max(heard.silence_s for heard in self._streams)
        if silence_s >= _KEEP_ALIVE_S + _SLACK_S:
            verdict = Verdict.FAIL if silence_s >= _CUT_S else Verdict.WARN
            advice = "lower limits.keep_alive_s; or something between here and capi holds the stream back"
            return Finding(probe, verdict, f"nothing at all came for {silence_s:.0f} s", advice, longest)
        if longest.pause_s < _KEEP_ALIVE_S or not longest.keep_alives:
            return Finding(probe, Verdict.SKIPPED, f"the model did not pause {_KEEP_ALIVE_S:.0f} s")
        return Finding(probe, Verdict.OK, f"{longest.keep_alives} in a pause of {longest.pause_s:.0f} s", heard=longest)

    async def _tokens(self, probe: Probe) -> Finding:
        if not self._streams:
            return Finding(probe, Verdict.SKIPPED, _NONE_WHOLE)
        told = [heard.answer.usage for heard in self._streams if heard.answer.usage is not None]
        given = sum((use.uncached_input or 0) + (use.cache_read or 0) + (use.cache_write or 0) for use in told)
        made = sum((use.output or 0) + (use.reasoning or 0) for use in told)
        seen = f"reported with {len(told)} of {len(self._streams)} answers: {given} in, {made} out"
        if len(told) < len(self._streams) or not given or not made:
            advice = "the upstream does not report what it used: this client's own figures will be wrong"
            return Finding(probe, Verdict.WARN, seen, advice)
        return Finding(probe, Verdict.OK, seen)

    # -- asking and judging -----------------------------------------------------------------------------------------

    def _request(self, text: str, *, thinking: bool = False) -> dict[str, object]:
        return self._voice.request(self._model, text, thinking=thinking)

    async def _ask(self, text: str) -> Heard:
        return await self._heard(self._request(text))

    async def _heard(self, request: Mapping[str, object]) -> Heard:
        heard = await self._session.stream(request)
        if heard.whole and heard.code is None:
            self._streams.append(heard)
        return heard

    def _on_demo(self, wish: str) -> str:
        return wish if self._model.startswith(_DEMO) else ""

    @staticmethod
    def _fails(heard: Heard) -> bool:
        return heard.status != 200 or heard.failure is not None or heard.code is not None or bool(heard.broken)

    def _failed(self, probe: Probe, heard: Heard, what: str = "") -> Finding:
        advice = advice_for(heard, self._voice.protocol, has_key=self._session.has_key)
        return Finding(probe, Verdict.FAIL, what + said_of(heard), advice, heard)

    def _good(self, probe: Probe, heard: Heard, what: str = "") -> Finding:
        if heard.odd:
            seen = f"{what}{_times(heard)}; odd: {', '.join(heard.odd)}"
            return Finding(probe, Verdict.WARN, seen, advice_for(heard, self._voice.protocol, has_key=True), heard)
        return Finding(probe, Verdict.OK, what + _times(heard), heard=heard)


class _Counted(msgspec.Struct):
    input_tokens: int


def _times(heard: Heard) -> str:
    return f"first event {heard.first_event_s or 0:.2f} s, {heard.events} events"
