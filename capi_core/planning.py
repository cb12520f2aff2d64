"""From a client's request to what is asked of which upstream, and how the answer comes back.

A `Plan` is made once per request, when its body is there and its model is resolved. Two kinds of request differ only
here: one that goes to an upstream of its own protocol is edited, every other one is translated. After that the exchange
treats both the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from attrs import evolve, field, frozen

from capi_core import headers as header_rules
from capi_core.commands import Operation
from capi_core.errors import ProtocolError
from capi_core.fidelity import Ledger
from capi_core.github.initiator import has_images, initiator_of
from capi_core.members import decode
from capi_core.protocols import embeddings, openai
from capi_core.protocols.chat.passthrough import ChatRequest
from capi_core.protocols.codec import Envelope, PassedAnswer
from capi_core.protocols.kinds import Protocol as Wire
from capi_core.protocols.messages.versions import merge_betas, upstream_version
from capi_core.protocols.reading import shown_path
from capi_core.protocols.registry import CODECS
from capi_core.protocols.responses.row import RESPONSES_WITHOUT_IDS
from capi_core.routing import UpstreamTraits, choose_protocol, model_facts, target_for
from capi_core.tool_names import ToolNames
from capi_core.translation import Translation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capi_core.aliases import Resolution
    from capi_core.headers import Headers
    from capi_core.protocols.codec import ClientRequest, Codec
    from capi_core.protocols.stream import StreamMachine
    from capi_core.routing import ModelFacts
    from capi_core.translation import TranslatedStream
    from capi_core.usage import Usage

__all__ = ["Answers", "Plan", "Planner"]

_OPERATIONS: Final[Mapping[Wire, Operation]] = {
    Wire.CHAT: Operation.CHAT,
    Wire.RESPONSES: Operation.RESPONSES,
    Wire.MESSAGES: Operation.MESSAGES,
}
_MOST_CHAT_STOPS: Final = 4
_MOST_SHOWN_LOSSES: Final = 5


class _Typed(msgspec.Struct):
    type: str | None = None


class _Choices(msgspec.Struct):
    choices: list[msgspec.Raw] = []


_TYPED: Final = msgspec.json.Decoder(_Typed)
_CHOICES: Final = msgspec.json.Decoder(_Choices)
_PERHAPS_MESSAGE: Final = re.compile(rb'"type"\s*:\s*"message"')


class Answers(Protocol):
    """How an upstream's answer becomes the client's. `machine`: for its stream, `None` when none was asked for."""

    @property
    def machine(self) -> StreamMachine | None: ...

    @property
    def codec(self) -> Codec:
        """The upstream's protocol."""
        ...

    @property
    def ledger(self) -> Ledger: ...

    def whole(self, body: bytes) -> PassedAnswer:
        """The client's document for the upstream's. Raises `ProtocolError` (502)."""
        ...

    def as_stream(self, body: bytes) -> tuple[bytes, Usage | None]:
        """The client's event stream for the upstream's document. Raises `ProtocolError` (502)."""
        ...

    def error_status(self, error: bytes) -> int:
        """The HTTP status that the `error` of the machine means."""
        ...


@frozen
class Plan:
    """What is asked: POST `operation.value` below the base URL of `upstream`, with `headers` and `body`."""

    upstream: str
    operation: Operation
    headers: Headers
    body: bytes = field(repr=False)
    answers: Answers


@frozen
class _Passed:
    """Both sides speak the same protocol. `choices`: how many answers were asked for."""

    codec: Codec
    envelope: Envelope
    upstream_model: str
    machine: StreamMachine | None
    choices: int = 1
    ledger: Ledger = field(factory=Ledger)

    def whole(self, body: bytes) -> PassedAnswer:
        if _is_foreign(self.codec, body) or (self.choices == 1 and _is_split(self.codec, body)):
            return self._translation(body).whole(body)
        return self.codec.pass_answer(body, upstream_model=self.upstream_model, public_name=self.envelope.model)

    def as_stream(self, body: bytes) -> tuple[bytes, Usage | None]:
        return self._translation(body).as_stream(body)

    def error_status(self, error: bytes) -> int:
        problem = self.codec.decode_error(error, 200)
        return 502 if problem is None else problem.status

    def _translation(self, body: bytes) -> Translation:
        codec = CODECS[Wire.MESSAGES] if _is_foreign(self.codec, body) else self.codec
        return Translation(codec, self.codec, self.envelope, self.ledger, ToolNames())


@frozen
class _Translated:
    translation: Translation
    machine: TranslatedStream | None

    @property
    def codec(self) -> Codec:
        return self.translation.upstream

    @property
    def ledger(self) -> Ledger:
        return self.translation.ledger

    def whole(self, body: bytes) -> PassedAnswer:
        return self._reading(body).whole(body)

    def as_stream(self, body: bytes) -> tuple[bytes, Usage | None]:
        return self._reading(body).as_stream(body)

    def error_status(self, error: bytes) -> int:
        """As the upstream's protocol has it: the client's may have no word for it."""
        problem = None if self.machine is None else self.machine.problem
        return 502 if problem is None else problem.status

    def _reading(self, body: bytes) -> Translation:
        if _is_foreign(self.codec, body):
            return evolve(self.translation, upstream=CODECS[Wire.MESSAGES])
        return self.translation


@frozen
class _Embedded:
    """Embeddings: one document for another."""

    public_name: str | None
    machine: None = None
    codec: Codec = CODECS[Wire.CHAT]
    ledger: Ledger = field(factory=Ledger)

    def whole(self, body: bytes) -> PassedAnswer:
        return openai.decode_answer(body, public_name=self.public_name)

    def as_stream(self, body: bytes) -> tuple[bytes, Usage | None]:
        raise AssertionError("embeddings are never streamed")

    def error_status(self, error: bytes) -> int:
        raise AssertionError("embeddings are never streamed")


@frozen
class Planner:
    """What plans are made from, besides the request. `client_headers`: the client's own, names in lower case."""

    request_id: str
    now_s: int
    client_headers: Headers
    max_event_bytes: int

    def plan_embeddings(self, request: embeddings.EmbeddingsRequest, resolution: Resolution) -> Plan:
        body = embeddings.encode_request(request, upstream_model=resolution.upstream_model)
        answers = _Embedded(resolution.public_name if resolution.renames else None)
        return self._plan(resolution, Operation.EMBEDDINGS, body, answers, stream=False)

    def plan(
        self, client: Wire, request: ClientRequest, resolution: Resolution, record: bytes | None, traits: UpstreamTraits
    ) -> Plan:
        """Raises `ProtocolError` (400) when the request cannot be asked of that model."""
        facts = model_facts(record)
        upstream = choose_protocol(client, facts, traits)
        if upstream is client:
            return self._pass_through(client, request, resolution, traits, self._seat_headers(client, request, traits))
        return self._translate(client, upstream, request, resolution, facts, traits)

    def pass_count(self, request: ClientRequest, resolution: Resolution, traits: UpstreamTraits) -> Plan:
        """POST /messages/count_tokens as it is. Its answer is a document whatever the request says of streams."""
        return self._pass_through(
            Wire.MESSAGES, evolve(request, stream=False), resolution, traits, operation=Operation.COUNT_TOKENS
        )

    def _pass_through(
        self,
        protocol: Wire,
        request: ClientRequest,
        resolution: Resolution,
        traits: UpstreamTraits,
        seat_headers: Headers = (),
        operation: Operation | None = None,
    ) -> Plan:
        codec = RESPONSES_WITHOUT_IDS if traits.copilot and protocol is Wire.RESPONSES else CODECS[protocol]
        passage = codec.pass_through(
            request,
            upstream_model=resolution.upstream_model,
            public_name=resolution.public_name,
            ask_usage=traits.ask_usage,
            max_event_bytes=self.max_event_bytes,
        )
        choices = request.choices if isinstance(request, ChatRequest) else 1
        answers = _Passed(
            codec, self._envelope(request, resolution), resolution.upstream_model, passage.machine, choices
        )
        extra = (*self._protocol_headers(protocol, traits, translated=False), *seat_headers)
        return self._plan(
            resolution, operation or _OPERATIONS[protocol], passage.body, answers, extra, stream=request.stream
        )

    def _translate(
        self,
        client: Wire,
        upstream: Wire,
        request: ClientRequest,
        resolution: Resolution,
        facts: ModelFacts,
        traits: UpstreamTraits,
    ) -> Plan:
        ledger = Ledger()
        conversation = CODECS[client].decode_request(request.document, ledger)
        target = target_for(resolution.upstream_model, facts, traits)
        encoded = CODECS[upstream].encode_request(conversation, target, ledger)
        if traits.strict_fidelity and ledger.losses:
            raise _lossy(ledger, upstream)
        emulated = upstream is Wire.RESPONSES or (upstream is Wire.CHAT and len(conversation.stop) > _MOST_CHAT_STOPS)
        translation = Translation(
            CODECS[upstream],
            CODECS[client],
            self._envelope(request, resolution),
            ledger,
            encoded.names,
            stop=conversation.stop if emulated else (),
        )
        machine = translation.stream(max_event_bytes=self.max_event_bytes) if request.stream else None
        extra = (
            *self._protocol_headers(upstream, traits, translated=True),
            *self._seat_headers(client, request, traits),
        )
        answers = _Translated(translation, machine)
        return self._plan(resolution, _OPERATIONS[upstream], encoded.body, answers, extra, stream=request.stream)

    def _plan(
        self,
        resolution: Resolution,
        operation: Operation,
        body: bytes,
        answers: Answers,
        extra: Headers = (),
        *,
        stream: bool,
    ) -> Plan:
        headers = header_rules.upstream_request_headers(stream=stream, request_id=self.request_id)
        return Plan(resolution.upstream, operation, (*headers, *extra), body, answers)

    def _envelope(self, request: ClientRequest, resolution: Resolution) -> Envelope:
        return Envelope(
            request_id=self.request_id,
            model=resolution.public_name,
            now_s=self.now_s,
            include_usage=request.asks_usage,
            request=request.document,
        )

    @staticmethod
    def _seat_headers(client: Wire, request: ClientRequest, traits: UpstreamTraits) -> Headers:
        """What Copilot is told of a request: who began it, which decides what it costs, and whether it has images."""
        if not traits.copilot:
            return ()
        document = request.document
        begun: Headers = ((b"x-initiator", initiator_of(client, document).value.encode()),)
        return (*begun, (b"copilot-vision-request", b"true")) if has_images(client, document) else begun

    def _protocol_headers(self, upstream: Wire, traits: UpstreamTraits, *, translated: bool) -> Headers:
        """What a Messages upstream needs besides: the version of the protocol, and the betas in use (wire.md 0.1)."""
        if upstream is not Wire.MESSAGES:
            return ()
        version = header_rules.find(self.client_headers, b"anthropic-version")
        betas = merge_betas(
            None if translated else header_rules.find(self.client_headers, b"anthropic-beta"),
            ",".join(traits.betas).encode(),
        )
        found: Headers = ((b"anthropic-version", upstream_version(version, translated=translated)),)
        return found if betas is None else (*found, (b"anthropic-beta", betas))


def _is_foreign(codec: Codec, body: bytes) -> bool:
    """Whether a Chat upstream answered as Anthropic does: Copilot does, for some of Claude's models (wire.md 1.8)."""
    if codec is not CODECS[Wire.CHAT] or not _PERHAPS_MESSAGE.search(body):
        return False
    try:
        return decode(_TYPED, body)[0].type == "message"
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False


def _is_split(codec: Codec, body: bytes) -> bool:
    """Whether a Chat upstream gave the parts of one answer as choices: Copilot does, for Claude's (wire.md 1.8)."""
    if codec is not CODECS[Wire.CHAT] or body.count(b'"finish_reason"') < 2:
        return False
    try:
        return len(decode(_CHOICES, body)[0].choices) > 1
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False


def _lossy(ledger: Ledger, upstream: Wire) -> ProtocolError:
    losses = [shown_path(entry.path) for entry in ledger if entry.lossy]
    shown = ", ".join(losses[:_MOST_SHOWN_LOSSES]) + (", ..." if len(losses) > _MOST_SHOWN_LOSSES else "")
    return ProtocolError(
        f"this request would lose {ledger.losses} of its parts on the way into the {upstream.value} protocol "
        f"({shown}), and the operator has set strict_fidelity for this upstream; leave them out, or choose another "
        "model",
        code="lossy_translation",
        param=next(iter(losses), None),
    )
