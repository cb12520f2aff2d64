"""An answer on its way from an upstream's protocol to a client's: streams as a machine, whole answers as a function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from capi_core.delta_filters import StopFilter, ToolNameFilter
from capi_core.deltas import AnswerDelta, End, Failed, Finish, Ping, Reply, UsageReport, assemble
from capi_core.errors import LocalError, Problem, ProtocolError
from capi_core.protocols.codec import PassedAnswer
from capi_core.protocols.stream import ENDED, StreamState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.fidelity import Ledger
    from capi_core.protocols.codec import Codec, Envelope
    from capi_core.tool_names import ToolNames
    from capi_core.usage import Usage

__all__ = ["TranslatedStream", "Translation"]


@frozen
class Translation:
    """How the answers of one request are translated. `stop`: stop sequences that the upstream could not be told."""

    upstream: Codec
    client: Codec
    envelope: Envelope
    ledger: Ledger
    names: ToolNames
    stop: tuple[str, ...] = field(default=())

    def whole(self, body: bytes) -> PassedAnswer:
        """An upstream's whole answer as the client's. Raises `ProtocolError` (502)."""
        reply = self.filtered(self.upstream.decode_reply(body, self.ledger))
        return PassedAnswer(self.client.encode_reply(reply, self.envelope, self.ledger), reply.usage, error=False)

    def filtered(self, reply: Reply) -> Reply:
        """The reply under the client's names for tools, cut at its stop sequences. Raises `ProtocolError` (502)."""
        if self.names.plain and not self.stop:
            return reply
        deltas: Iterable[AnswerDelta] = reply.deltas()
        for apply in self._filters():
            deltas = apply.apply(deltas)
        result = assemble(deltas)
        if isinstance(result, Failed):
            problem = result.problem
            raise ProtocolError(problem.message, code=problem.code, status_hint=problem.status)
        return evolve(result, usage=reply.usage)  # a cut answer has cost as much as the whole one

    def stream(self, *, max_event_bytes: int) -> TranslatedStream:
        """The machine for the upstream's event stream."""
        return TranslatedStream(self, self._filters(), max_event_bytes)

    def as_stream(self, body: bytes) -> tuple[bytes, Usage | None]:
        """A whole answer as the client's event stream: some servers answer a streaming request with a document.

        Raises `ProtocolError` (502).
        """
        reply = self.filtered(self.upstream.decode_reply(body, self.ledger))
        return self.client.stream_encoder(self.envelope, self.ledger).encode(reply.deltas()), reply.usage

    def _filters(self) -> list[ToolNameFilter | StopFilter]:
        filters: list[ToolNameFilter | StopFilter] = []
        if not self.names.plain:
            filters.append(ToolNameFilter(self.names))
        if self.stop:
            filters.append(StopFilter(self.stop))
        return filters


class TranslatedStream:
    """A `StreamMachine` made of a decoder, filters and an encoder. Made by `Translation.stream`.

    `problem`: what `error` tells. An answer that was ended at a stop sequence is DONE while its upstream may go on:
    nothing of that is sent, and `usage` is still kept up to date.
    """

    def __init__(
        self, translation: Translation, filters: list[ToolNameFilter | StopFilter], max_event_bytes: int
    ) -> None:
        self.state = StreamState.OPEN
        self.usage: Usage | None = None
        self.chunks = 0
        self.failure: ProtocolError | None = None
        self.error: bytes | None = None
        self.problem: Problem | None = None
        self._translation = translation
        self._filters = filters
        self._decoder = translation.upstream.stream_decoder(translation.ledger, max_event_bytes=max_event_bytes)
        self._encoder = translation.client.stream_encoder(translation.envelope, translation.ledger)

    def receive_data(self, data: bytes) -> bytes:
        """See `StreamMachine`."""
        if self.state is StreamState.BROKEN:
            raise LocalError("the stream is broken: it takes no more bytes")
        return self._translate(self._decoder.receive_data(data))

    def finish(self) -> bytes:
        """See `StreamMachine`."""
        if self.state is StreamState.BROKEN:
            raise LocalError("the stream is broken: it cannot finish")
        return self._translate(self._decoder.finish())

    def fail(self, problem: Problem) -> bytes:
        """See `StreamMachine`."""
        self.state = StreamState.ERRORED
        return self._encoder.encode((Failed(problem, upstream=False),))

    def _translate(self, deltas: list[AnswerDelta]) -> bytes:
        self.usage = next((delta.usage for delta in reversed(deltas) if isinstance(delta, UsageReport)), self.usage)
        if self.state in ENDED:
            return b""
        for apply in self._filters:
            deltas = apply.apply(deltas)
        for at, delta in enumerate(deltas):
            match delta:
                case Finish():
                    self.state = StreamState.FINISHED
                case End():
                    self.state = StreamState.DONE
                case Failed(problem=problem, upstream=True):
                    self.state, self.problem = StreamState.ERRORED, problem
                    self.error = self._translation.client.encode_error(problem, self._translation.envelope.request_id)
                case Failed(problem=problem):
                    self.state = StreamState.BROKEN
                    self.failure = ProtocolError(problem.message, code=problem.code, status_hint=problem.status)
                    return self._encoder.encode(deltas[:at])  # its end is `fail`, if there is a stream to end
                case Ping():
                    continue
                case _:
                    pass
            self.chunks += not isinstance(delta, UsageReport | Failed)
        return self._encoder.encode(deltas)
