"""Exchange: whatever happens on either side, one client gets one well-formed answer, and there is one account of it."""

import itertools
import json
from collections.abc import Callable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.aliases import Alias, Catalog, Fallback, MayCall, UpstreamModels
from capi_core.conformance import checker_for
from capi_core.errors import LocalError, Problem, ProtocolError
from capi_core.exchange import (
    Command,
    EndResponse,
    Exchange,
    ExchangeLimits,
    Failure,
    Operation,
    Outcome,
    Record,
    SendBody,
    SendRequest,
    Settings,
    StartResponse,
    State,
)
from capi_core.fidelity import Ledger
from capi_core.headers import upstream_request_headers
from capi_core.members import JSONObject
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_core.routing import UpstreamTraits
from capi_core.sse import KEEP_ALIVE, encode
from capi_core.usage import Usage, UsageSource
from tests.support import streams
from tests.support.playbook import (
    Client,
    ClientGone,
    Data,
    Eof,
    ErrorBody,
    ErrorEvent,
    Expected,
    Fail,
    Head,
    Input,
    KeepAlive,
    Refuse,
    Request,
    feed,
    play,
)
from tests.support.streams import SPENT as SPENT_ALL
from tests.support.streams import answer_document, answer_events, answer_stream
from tests.support.trickle import pieces

CATALOG = Catalog(
    {"fast": Alias("fast", "up-2026"), "off": Alias("off", "up-2026", enabled=False)},
    (UpstreamModels("lab", {"up-2026": b"{}"}),),
)
LIMITS = ExchangeLimits(max_event_bytes=400, max_answer_bytes=600, max_error_bytes=200)
SECRET = b"sk-upstream-secret"

Script = list[Input | Expected]


def exchange(operation: Operation = Operation.CHAT, **ask_usage: bool) -> Exchange:
    traits = {name: UpstreamTraits(ask_usage=asked) for name, asked in ask_usage.items()}
    settings = Settings(CATALOG, traits, limits=LIMITS, hidden=lambda: (SECRET, b""))
    return Exchange(operation, settings, request_id="req_1")


def asked(body: bytes, operation: Operation = Operation.CHAT, *, stream: bool = False) -> SendRequest:
    return SendRequest("lab", operation, upstream_request_headers(stream=stream, request_id="req_1"), body)


def only(wanted: str) -> MayCall:
    return lambda name, allowed_keys: name == wanted


EXACT = (b"x-capi-fidelity", b"exact")


def head(status: int, *more: tuple[bytes, bytes]) -> StartResponse:
    """The head of a JSON answer; its length is checked by the playbook's client."""
    exact = (EXACT,) if status < 300 else ()
    return StartResponse(status, ((b"content-type", b"application/json"), *more, *exact))


PLAIN_HEAD = StartResponse(200, ((b"content-type", b"application/json"),))


JSON_HEADERS = ((b"content-type", b"application/json"),)
STREAM_HEAD = StartResponse(
    200,
    (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
        EXACT,
    ),
)

ASK = Request(b'{"model":"fast"}')
ASKED = asked(b'{"model":"up-2026"}')
ASK_STREAM = Request(b'{"model":"fast","stream":true}')
ASKED_STREAM = asked(b'{"model":"up-2026","stream":true,"stream_options":{"include_usage":true}}', stream=True)
EMBED = Request(b'{"input":"x","model":"fast"}')
EMBEDDED = asked(b'{"input":"x","model":"up-2026"}', Operation.EMBEDDINGS)

HI = b'data: {"model":"up-2026","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
STOP = b'data: {"model":"up-2026","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"model":"up-2026","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'{"error":{"message":"overloaded","code":503}}'
SPENT = Usage(uncached_input=3, output=2)
ANSWER = b'{"model":"up-2026","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'


def out(event: bytes) -> SendBody:
    """An upstream's event as the client gets it."""
    return SendBody(event.replace(b"up-2026", b"fast"))


@attrs.frozen
class Case:
    script: Script
    outcome: Outcome
    status: int | None
    usage: Usage | None = None
    source: UsageSource = UsageSource.NONE
    make: Callable[[], Exchange] = exchange


def case(
    outcome: Outcome,
    status: int,
    *script: Input | Expected,
    usage: Usage | None = None,
    source: UsageSource = UsageSource.NONE,
    make: Callable[[], Exchange] = exchange,
) -> Case:
    return Case(list(script), outcome, status, usage, source, make)


OK, ERR, BROKE = Outcome.OK, Outcome.UPSTREAM_ERROR, Outcome.UPSTREAM_BROKE
FINAL, PARTIAL = UsageSource.UPSTREAM_FINAL, UsageSource.UPSTREAM_PARTIAL

WHOLE_ANSWERS = {
    "an answer": case(
        OK, 200, ASK, ASKED, Head(200, JSON_HEADERS), Data(ANSWER[:9]), Data(ANSWER[9:]), Eof(), head(200),
        out(ANSWER), EndResponse(), usage=SPENT, source=FINAL,
    ),
    "embeddings": case(
        OK, 200, EMBED, EMBEDDED, Head(200, JSON_HEADERS), Data(b'{"model":"up-2026","usage":{"prompt_tokens":3}}'),
        Eof(), PLAIN_HEAD, SendBody(b'{"model":"fast","usage":{"prompt_tokens":3}}'), EndResponse(),
        usage=Usage(uncached_input=3), source=FINAL, make=lambda: exchange(Operation.EMBEDDINGS),
    ),
    "the upstream's own name": case(
        OK, 200, Request(b'{"model":"up-2026"}'), ASKED, Head(), Data(ANSWER), Eof(), head(200), SendBody(ANSWER),
        EndResponse(), usage=SPENT, source=FINAL,
    ),
    "no usage": case(OK, 200, ASK, ASKED, Head(), Data(b"{}"), Eof(), head(200), SendBody(b"{}"), EndResponse()),
    "another success": case(
        OK, 201, ASK, ASKED, Head(201), Data(b"{}"), Eof(), head(201), SendBody(b"{}"), EndResponse(),
    ),
    "empty pieces": case(
        OK, 200, ASK, ASKED, Head(), Data(b""), Data(b"{}"), Data(b""), Eof(), head(200), SendBody(b"{}"),
        EndResponse(),
    ),
    "a keep-alive is for streams": case(
        OK, 200, ASK, ASKED, KeepAlive(), Head(), KeepAlive(), Data(b"{}"), Eof(), head(200), SendBody(b"{}"),
        EndResponse(),
    ),
    "a page instead of an answer": case(
        BROKE, 502, ASK, ASKED, Head(200, ((b"content-type", b"text/html"),)), Data(b"<html>"), Eof(), head(502),
        ErrorBody("upstream_garbage"), EndResponse(),
    ),
    "nothing instead of an answer": case(
        BROKE, 502, ASK, ASKED, Head(204), Eof(), head(502), ErrorBody("upstream_garbage"), EndResponse(),
    ),
    "an answer too large": case(
        BROKE, 502, ASK, ASKED, Head(), Data(b"x" * 600), Data(b"x"), head(502),
        ErrorBody("upstream_answer_too_large"), EndResponse(), Data(b"x"), Eof(),
    ),
    "an answer of the largest size": case(
        OK, 200, ASK, ASKED, Head(), Data(b"{" + b" " * 598 + b"}"), Eof(), head(200),
        SendBody(b"{" + b" " * 598 + b"}"), EndResponse(),
    ),
}  # fmt: skip

ERRORS = {
    "an error": case(ERR, 503, ASK, ASKED, Head(503), Data(ERROR), Eof(), head(503), SendBody(ERROR), EndResponse()),
    "an error of text": case(
        ERR, 400, ASK, ASKED, Head(400), Data(b'{"error":"bad"}'), Eof(), head(400), SendBody(b'{"error":"bad"}'),
        EndResponse(),
    ),
    "an error with half an emoji": case(
        ERR, 400, ASK, ASKED, Head(400), Data(b'{"error":{"message":"\\ud83d"}}'), Eof(), head(400),
        SendBody(b'{"error":{"message":"\\ud83d"}}'), EndResponse(),
    ),
    "an error's hints": case(
        ERR, 429, ASK, ASKED,
        Head(429, ((b"Retry-After", b"7"), (b"Set-Cookie", b"a=b"), (b"x-should-retry", b"true"))), Data(ERROR),
        Eof(), head(429, (b"retry-after", b"7"), (b"x-should-retry", b"true")), SendBody(ERROR), EndResponse(),
    ),
    "an error that is a page": case(
        ERR, 503, ASK, ASKED, Head(503), Data(b"<html>"), Eof(), head(503), ErrorBody("upstream_error"),
        EndResponse(),
    ),
    "an error that says nothing": case(
        ERR, 500, ASK, ASKED, Head(500), Eof(), head(500), ErrorBody("upstream_error"), EndResponse(),
    ),
    "an error in another protocol's shape": case(
        ERR, 404, ASK, ASKED, Head(404), Data(b'{"detail":"Not Found"}'), Eof(), head(404),
        ErrorBody("upstream_error"), EndResponse(),
    ),
    "an error too large": case(
        BROKE, 502, ASK, ASKED, Head(400), Data(b"x" * 201), head(502), ErrorBody("upstream_answer_too_large"),
        EndResponse(),
    ),
    "our key is refused": case(
        ERR, 502, ASK, ASKED, Head(401), Data(b'{"error":{"message":"bad key"}}'), Eof(), head(502),
        ErrorBody("upstream_unauthorized"), EndResponse(),
    ),
    "our proxy is refused": case(
        ERR, 502, ASK, ASKED, Head(407), Eof(), head(502), ErrorBody("upstream_unauthorized"), EndResponse(),
    ),
    "an error to a stream's request": case(
        ERR, 429, ASK_STREAM, ASKED_STREAM, Head(429), Data(ERROR), Eof(), head(429), SendBody(ERROR), EndResponse(),
    ),
    "an event stream that is an error": case(
        ERR, 500, ASK_STREAM, ASKED_STREAM, Head(500), Data(HI), Eof(), head(500), ErrorBody("upstream_error"),
        EndResponse(),
    ),
    "a success that is an error": case(
        ERR, 503, ASK, ASKED, Head(200), Data(ERROR), Eof(), head(503), SendBody(ERROR), EndResponse(),
    ),
    "a success that is an error, with usage": case(
        ERR, 503, ASK, ASKED, Head(200), Data(ERROR[:-1] + b',"usage":{"prompt_tokens":3,"completion_tokens":2}}'),
        Eof(), head(503), SendBody(ERROR[:-1] + b',"usage":{"prompt_tokens":3,"completion_tokens":2}}'),
        EndResponse(), usage=SPENT, source=PARTIAL,
    ),
    "a success that is an error about our key": case(
        ERR, 502, ASK, ASKED, Head(200), Data(b'{"error":{"message":"x","code":"401"}}'), Eof(), head(502),
        ErrorBody("upstream_unauthorized"), EndResponse(),
    ),
    "a success that is an error without a reason": case(
        ERR, 502, ASK, ASKED, Head(200), Data(b'{"error":true}'), Eof(), head(502), ErrorBody("upstream_error"),
        EndResponse(),
    ),
}  # fmt: skip
ERRORS |= {
    f"a redirect, {status}": case(
        ERR, 502, ASK, ASKED, Head(status, ((b"location", b"http://h.example/"),)), Data(ERROR), Eof(), head(502),
        ErrorBody("upstream_redirect"), EndResponse(),
    )
    for status in (300, 301, 304, 307, 399)
}  # fmt: skip

STREAMS = {
    "a stream": case(
        OK, 200, ASK_STREAM, ASKED_STREAM, Head(), Data(HI), STREAM_HEAD, out(HI), Data(STOP), out(STOP),
        Data(USAGE), Data(DONE), SendBody(DONE), Eof(), EndResponse(), usage=SPENT, source=FINAL,
    ),
    "usage for the client": case(
        OK, 200, Request(b'{"model":"fast","stream":true,"stream_options":{"include_usage":true}}'), ASKED_STREAM,
        Head(), Data(STOP + USAGE + DONE), STREAM_HEAD, out(STOP + USAGE + DONE), Eof(), EndResponse(),
        usage=SPENT, source=FINAL,
    ),
    "an upstream that cannot tell usage": case(
        OK, 200, ASK_STREAM, asked(b'{"model":"up-2026","stream":true}', stream=True), Head(), Data(STOP + USAGE),
        STREAM_HEAD, out(STOP + USAGE), Eof(), EndResponse(),
        usage=SPENT, source=FINAL, make=lambda: exchange(lab=False),
    ),
    "the upstream's own name": case(
        OK, 200, Request(b'{"model":"up-2026","stream":true}'), ASKED_STREAM, Head(), Data(STOP), STREAM_HEAD,
        SendBody(STOP), Eof(), EndResponse(),
    ),
    "a mislabelled stream": case(
        OK, 200, ASK_STREAM, ASKED_STREAM, Head(200, ((b"content-type", b"text/plain"),)), Data(STOP), STREAM_HEAD,
        out(STOP), Eof(), EndResponse(),
    ),
    "a stream without a label": case(
        OK, 200, ASK_STREAM, ASKED_STREAM, Head(200, ()), Data(STOP), STREAM_HEAD, out(STOP), Eof(), EndResponse(),
    ),
    "no blank line at the end": case(
        OK, 200, ASK_STREAM, ASKED_STREAM, Head(), Data(HI), STREAM_HEAD, out(HI), Data(STOP[:-2]), Eof(), out(STOP),
        EndResponse(),
    ),
    "an event in pieces": case(
        OK, 200, ASK_STREAM, ASKED_STREAM, Head(), Data(STOP[:30]), Data(STOP[30:]), STREAM_HEAD, out(STOP), Eof(),
        EndResponse(),
    ),
    "junk after the end": case(
        OK, 200, ASK_STREAM, ASKED_STREAM, Head(), Data(STOP + DONE), STREAM_HEAD, out(STOP + DONE), Data(b"<html>"),
        Data(HI), Eof(), EndResponse(),
    ),
    "n choices": case(
        BROKE, 200, Request(b'{"model":"fast","stream":true,"n":2}'),
        asked(b'{"model":"up-2026","stream":true,"n":2,"stream_options":{"include_usage":true}}', stream=True),
        Head(), Data(STOP), STREAM_HEAD, out(STOP), Eof(), ErrorEvent("upstream_truncated"), EndResponse(),
    ),
    # before the first event: a real status
    "a document instead of a stream": case(
        BROKE, 502, ASK_STREAM, ASKED_STREAM, Head(200, JSON_HEADERS), Data(ANSWER), Eof(), head(502),
        ErrorBody("upstream_garbage"), EndResponse(), usage=SPENT, source=PARTIAL,
    ),
    "an error document instead of a stream": case(
        ERR, 503, ASK_STREAM, ASKED_STREAM, Head(200, JSON_HEADERS), Data(ERROR), Eof(), head(503), SendBody(ERROR),
        EndResponse(),
    ),
    "a page instead of a stream": case(
        BROKE, 502, ASK_STREAM, ASKED_STREAM, Head(200, ((b"content-type", b"Text/HTML; charset=x"),)),
        Data(b"<html>"), Eof(), head(502), ErrorBody("upstream_garbage"), EndResponse(),
    ),
    "an unlabelled page instead of a stream": case(
        BROKE, 502, ASK_STREAM, ASKED_STREAM, Head(200, ()), Data(b"<html>\n\n"), head(502),
        ErrorBody("upstream_garbage"), EndResponse(),
    ),
    "an empty stream": case(
        BROKE, 502, ASK_STREAM, ASKED_STREAM, Head(), Eof(), head(502), ErrorBody("upstream_truncated"),
        EndResponse(),
    ),
    "a stream of no content": case(
        BROKE, 502, ASK_STREAM, ASKED_STREAM, Head(204), Eof(), head(502), ErrorBody("upstream_truncated"),
        EndResponse(),
    ),
    "an error first": case(
        ERR, 503, ASK_STREAM, ASKED_STREAM, Head(), Data(encode(ERROR) + DONE), head(503), SendBody(ERROR),
        EndResponse(), Eof(),
    ),
    "an error first, behind a comment in the same piece": case(
        ERR, 503, ASK_STREAM, ASKED_STREAM, Head(), Data(b": x\n\n" + encode(ERROR)), head(503), SendBody(ERROR),
        EndResponse(),
    ),
    "an event too large first": case(
        BROKE, 502, ASK_STREAM, ASKED_STREAM, Head(), Data(b"data: "), Data(b"x" * 400), head(502),
        ErrorBody("upstream_event_too_large"), EndResponse(),
    ),
    # after it: an event
    "garbage in a stream": case(
        BROKE, 200, ASK_STREAM, ASKED_STREAM, Head(), Data(HI + USAGE + b"data: <html>\n\n" + STOP), STREAM_HEAD,
        out(HI), ErrorEvent("upstream_garbage"), EndResponse(), Data(STOP), Eof(), usage=SPENT, source=PARTIAL,
    ),
    "a stream that is cut": case(
        BROKE, 200, ASK_STREAM, ASKED_STREAM, Head(), Data(HI + STOP[:50]), STREAM_HEAD, out(HI), Eof(),
        ErrorEvent("upstream_truncated"), EndResponse(),
    ),
    "an event too large later": case(
        BROKE, 200, ASK_STREAM, ASKED_STREAM, Head(), Data(HI), STREAM_HEAD, out(HI), Data(b"x" * 401),
        ErrorEvent("upstream_event_too_large"), EndResponse(),
    ),
    "an error later": case(
        ERR, 200, ASK_STREAM, ASKED_STREAM, Head(), Data(HI), STREAM_HEAD, out(HI), Data(encode(ERROR) + DONE),
        SendBody(encode(ERROR)), EndResponse(), Data(STOP), Eof(),
    ),
    "an error later in the same piece": case(
        ERR, 200, ASK_STREAM, ASKED_STREAM, Head(), Data(HI + encode(ERROR)), STREAM_HEAD, out(HI + encode(ERROR)),
        EndResponse(),
    ),
}  # fmt: skip

KEPT_ALIVE = {
    "before the upstream answers": case(
        OK, 200, ASK_STREAM, ASKED_STREAM, KeepAlive(), STREAM_HEAD, SendBody(KEEP_ALIVE), KeepAlive(),
        SendBody(KEEP_ALIVE), Head(), Data(STOP), out(STOP), Eof(), EndResponse(),
    ),
    "before its first event": case(
        OK, 200, ASK_STREAM, ASKED_STREAM, Head(), KeepAlive(), STREAM_HEAD, SendBody(KEEP_ALIVE), Data(STOP),
        out(STOP), Eof(), EndResponse(),
    ),
    "between events": case(
        OK, 200, ASK_STREAM, ASKED_STREAM, Head(), Data(HI), STREAM_HEAD, out(HI), KeepAlive(), SendBody(KEEP_ALIVE),
        Data(STOP), out(STOP), Eof(), EndResponse(), KeepAlive(),
    ),
    "then an error status": case(
        ERR, 200, ASK_STREAM, ASKED_STREAM, KeepAlive(), STREAM_HEAD, SendBody(KEEP_ALIVE), Head(503), KeepAlive(),
        Data(b'{"error":\n{"message":"x"}}'), Eof(), ErrorEvent("upstream_error"), EndResponse(),
    ),
    "then an error that is a page": case(
        ERR, 200, ASK_STREAM, ASKED_STREAM, KeepAlive(), STREAM_HEAD, SendBody(KEEP_ALIVE), Head(503),
        Data(b"<html>"), Eof(), ErrorEvent("upstream_error"), EndResponse(),
    ),
    "then our key is refused": case(
        ERR, 200, ASK_STREAM, ASKED_STREAM, KeepAlive(), STREAM_HEAD, SendBody(KEEP_ALIVE), Head(401), Eof(),
        ErrorEvent("upstream_unauthorized"), EndResponse(),
    ),
    "then a document": case(
        BROKE, 200, ASK_STREAM, ASKED_STREAM, KeepAlive(), STREAM_HEAD, SendBody(KEEP_ALIVE),
        Head(200, JSON_HEADERS), Data(ANSWER), Eof(), ErrorEvent("upstream_garbage"), EndResponse(),
        usage=SPENT, source=PARTIAL,
    ),
    "then an answer too large": case(
        BROKE, 200, ASK_STREAM, ASKED_STREAM, KeepAlive(), STREAM_HEAD, SendBody(KEEP_ALIVE), Head(400),
        Data(b"x" * 201), ErrorEvent("upstream_answer_too_large"), EndResponse(),
    ),
    "then an error in the stream": case(
        ERR, 200, ASK_STREAM, ASKED_STREAM, Head(), KeepAlive(), STREAM_HEAD, SendBody(KEEP_ALIVE),
        Data(encode(ERROR)), SendBody(encode(ERROR)), EndResponse(),
    ),
    "then garbage": case(
        BROKE, 200, ASK_STREAM, ASKED_STREAM, Head(), KeepAlive(), STREAM_HEAD, SendBody(KEEP_ALIVE),
        Data(b"data: x\n\n"), ErrorEvent("upstream_garbage"), EndResponse(),
    ),
    "then a refusal": case(
        Outcome.TIMEOUT, 200, ASK_STREAM, ASKED_STREAM, KeepAlive(), STREAM_HEAD, SendBody(KEEP_ALIVE),
        Refuse(Problem(429, "no_seat", "busy", retry_after_s=9), Outcome.TIMEOUT), ErrorEvent("no_seat"),
        EndResponse(),
    ),
}  # fmt: skip

REFUSALS = {
    "not JSON": case(
        Outcome.REFUSED_INVALID, 400, Request(b"{"), head(400), ErrorBody("invalid_json"), EndResponse(),
    ),
    "no body": case(Outcome.REFUSED_INVALID, 400, Request(b""), head(400), ErrorBody("empty_body"), EndResponse()),
    "no model": case(
        Outcome.REFUSED_INVALID, 400, Request(b"{}"), head(400), ErrorBody("missing_model", "model"), EndResponse(),
    ),
    "options of another shape": case(
        Outcome.REFUSED_INVALID, 400, Request(b'{"model":"fast","stream":true,"stream_options":5}'), head(400),
        ErrorBody("invalid_stream_options", "stream_options"), EndResponse(),
    ),
    "no model for embeddings": case(
        Outcome.REFUSED_INVALID, 400, Request(b"{}"), head(400), ErrorBody("missing_model", "model"), EndResponse(),
        make=lambda: exchange(Operation.EMBEDDINGS),
    ),
    "an unknown model": case(
        Outcome.REFUSED_MODEL, 404, Request(b'{"model":"gone","stream":true}'), head(404),
        ErrorBody("model_not_found", "model"), EndResponse(),
    ),
    "a disabled model for embeddings": case(
        Outcome.REFUSED_MODEL, 404, Request(b'{"model":"off"}'), head(404), ErrorBody("model_not_found", "model"),
        EndResponse(), make=lambda: exchange(Operation.EMBEDDINGS),
    ),
    "a model that is not this key's": case(
        Outcome.REFUSED_SCOPE, 403, ASK_STREAM, head(403), ErrorBody("model_not_allowed", "model"), EndResponse(),
        make=lambda: Exchange(Operation.CHAT, Settings(CATALOG, may_call=only("slow")), request_id="r"),
    ),
    "by the runtime before the body": case(
        Outcome.REFUSED_TOO_LARGE, 413,
        Refuse(Problem(413, "body_too_large", "too large"), Outcome.REFUSED_TOO_LARGE), head(413),
        ErrorBody("body_too_large"), EndResponse(), ASK,
    ),
    "by the runtime before the upstream": case(
        Outcome.TIMEOUT, 429, ASK, ASKED,
        Refuse(Problem(429, "no_seat", "busy", "x", retry_after_s=9), Outcome.TIMEOUT),
        head(429, (b"retry-after", b"9")), ErrorBody("no_seat", "x"), EndResponse(),
    ),
}  # fmt: skip

GROUPS = {
    "whole": WHOLE_ANSWERS,
    "error": ERRORS,
    "stream": STREAMS,
    "kept alive": KEPT_ALIVE,
    "refused": REFUSALS,
}
CASES = [pytest.param(case, id=f"{group}: {name}") for group, cases in GROUPS.items() for name, case in cases.items()]


@pytest.mark.parametrize("case", CASES)
def test_the_playbook(case: Case) -> None:
    machine = case.make()
    client = play(machine, case.script)
    assert machine.state is State.DONE
    assert client.ends == [EndResponse()]
    record = machine.record()
    assert (record.outcome, record.status, record.usage, record.usage_source) == (
        case.outcome,
        case.status,
        case.usage,
        case.source,
    )


# --- the account ---


def test_the_account_of_a_stream() -> None:
    machine = exchange()
    play(machine, STREAMS["a stream"].script)
    assert machine.record() == Record(
        Operation.CHAT, OK, 200, "fast", "lab", "up-2026", True, SPENT, FINAL, Protocol.CHAT
    )


def test_the_account_of_a_request_that_never_named_a_model() -> None:
    machine = exchange(Operation.EMBEDDINGS)
    play(machine, REFUSALS["not JSON"].script)
    assert machine.record() == Record(
        Operation.EMBEDDINGS, Outcome.REFUSED_INVALID, 400, None, None, None, False, None, UsageSource.NONE
    )


def test_the_account_of_a_model_that_leads_nowhere_names_it() -> None:
    machine = exchange()
    play(machine, REFUSALS["an unknown model"].script)
    record = machine.record()
    assert (record.model, record.upstream, record.upstream_model) == ("gone", None, None)


@pytest.mark.parametrize("steps", range(5))
def test_there_is_no_account_before_the_end(steps: int) -> None:
    machine = exchange()
    given_inputs: list[Input] = [ASK_STREAM, Head(), KeepAlive(), Data(HI)]
    for given_input in given_inputs[:steps]:
        feed(machine, given_input)
    with pytest.raises(LocalError):
        machine.record()


def test_the_embedder_can_see_where_a_request_goes_and_whether_it_streams() -> None:
    machine = exchange()
    assert (machine.upstream, machine.streams) == (None, False)
    feed(machine, ASK_STREAM)
    assert (machine.upstream, machine.streams) == ("lab", True)
    plain = exchange()
    feed(plain, ASK)
    assert (plain.upstream, plain.streams) == ("lab", False)


def test_no_text_of_a_request_or_an_answer_is_in_a_repr() -> None:
    """A command that ends in a log must not take a prompt with it."""
    machine = exchange()
    commands = feed(machine, Request(b'{"model":"fast","stream":true,"messages":"SECRET PROMPT"}'))
    feed(machine, Head())
    commands += feed(machine, Data(b'data: {"choices":[{"delta":{"content":"SECRET ANSWER"}}]}\n\n'))
    commands += feed(machine, Fail(Failure.BROKEN))
    assert "SECRET" not in repr(commands) + repr(machine.record())
    assert len(commands) == 5


def test_the_defaults_are_roomy() -> None:
    machine = Exchange(Operation.CHAT, Settings(CATALOG), request_id="req_1")
    large = b'{"model":"up-2026","x":"%b"}' % (b"x" * 2_000_000)
    play(machine, [ASK, ASKED, Head(), Data(large), Eof(), head(200), out(large), EndResponse()])


# --- errors that came with a success ---


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (b'{"code":503}', 503),
        (b'{"code":"429"}', 429),
        (b'{"status":404,"code":500}', 404),
        (b'{"status":"RESOURCE_EXHAUSTED","code":429}', 429),
        (b'{"code":200}', 502),
        (b'{"code":399}', 502),
        (b'{"code":600}', 502),
        (b'{"code":4040}', 502),
        (b'{"code":-404}', 502),
        (b'{"code":"04011"}', 502),
        (b'{"code":"404\\n"}', 502),
        (b'{"code":"\\u0664\\u0660\\u0664"}', 502),
        (b'{"code":"context_length_exceeded"}', 502),
        (b'{"code":null}', 502),
        (b'{"message":"x"}', 502),
        (b'{"code":[]}', 502),
        (b'{"code":%b}' % (b"4" * 5000), 502),
        (b'"text"', 502),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_that_came_with_a_success_gets_the_status_it_names(error: bytes, status: int, stream: bool) -> None:
    machine = Exchange(Operation.CHAT, Settings(CATALOG), request_id="req_1")
    client = Client()
    body = b'{"error":%b}' % error
    for given_input in (ASK_STREAM if stream else ASK, Head(), Data(encode(body) if stream else body), Eof()):
        client.take(feed(machine, given_input))
    assert client.status == status
    assert client.ends
    assert machine.record().outcome is Outcome.UPSTREAM_ERROR


# --- secrets ---


RETOLD = (
    b'{"error":{"message":"Incorrect key ***, or ***","type":"invalid_request_error",'
    b'"param":null,"code":"upstream_error"}}'
)


def leaky(text: bytes) -> bytes:
    return b'{"error":{"message":"Incorrect key %b, or %b"}}' % (text, text)


@pytest.mark.parametrize(
    ("script", "body"),
    [
        ([ASK, Head(400), Data(leaky(SECRET)), Eof()], leaky(b"***")),
        ([ASK, Head(400), Data(leaky(SECRET)[:40]), Data(leaky(SECRET)[40:]), Eof()], leaky(b"***")),
        ([ASK, Head(200), Data(leaky(SECRET)), Eof()], leaky(b"***")),
        ([ASK_STREAM, Head(), Data(encode(leaky(SECRET)))], leaky(b"***")),
        ([ASK_STREAM, KeepAlive(), Head(400), Data(leaky(SECRET)), Eof()], KEEP_ALIVE + encode(RETOLD)),
        ([ASK_STREAM, Head(), KeepAlive(), Data(encode(leaky(SECRET)))], KEEP_ALIVE + encode(leaky(b"***"))),
    ],
)
def test_our_key_in_an_upstreams_error_does_not_reach_the_client(script: list[Input], body: bytes) -> None:
    """Some servers echo the key that they refuse."""
    machine, client = exchange(), Client()
    for given_input in script:
        client.take(feed(machine, given_input))
    assert client.ends
    assert client.body == body


# --- failures, departures and calls out of turn, in every state ---

WAYS: dict[State, list[list[Input]]] = {
    State.IDLE: [[]],
    State.REQUESTED: [[ASK], [ASK_STREAM]],
    State.WAITING: [[ASK_STREAM, KeepAlive()]],
    State.COLLECTING: [
        [ASK, Head()],
        [ASK, Head(500), Data(b"x")],
        [ASK_STREAM, Head(400)],
        [ASK_STREAM, Head(200, JSON_HEADERS)],
        [ASK_STREAM, KeepAlive(), Head(500)],
    ],
    State.HOLDING: [[ASK_STREAM, Head()], [ASK_STREAM, Head(), Data(HI[:9])], [ASK_STREAM, Head(), Data(USAGE)]],
    State.STREAMING: [
        [ASK_STREAM, Head(), Data(HI)],
        [ASK_STREAM, Head(), KeepAlive()],
        [ASK_STREAM, KeepAlive(), Head()],
        [ASK_STREAM, Head(), Data(STOP)],
        [ASK_STREAM, Head(), Data(STOP + DONE)],
    ],
    State.DONE: [
        [Request(b"")],
        [ClientGone()],
        [ASK, Fail(Failure.TIMEOUT)],
        [ASK, Head(), Data(b"{}"), Eof()],
        [ASK_STREAM, Head(), Data(STOP), Eof()],
    ],
}
ALL_WAYS = [pytest.param(state, way, id=f"{state.name}-{at}") for state in State for at, way in enumerate(WAYS[state])]
INPUTS: list[Input] = [
    ASK,
    Refuse(Problem(429, "no_seat", "busy"), Outcome.REFUSED_TOO_LARGE),
    Head(),
    Data(HI),
    Eof(),
    *map(Fail, Failure),
    ClientGone(),
    KeepAlive(),
]
BODY = {State.COLLECTING, State.HOLDING, State.STREAMING}
TAKEN_IN: dict[type[Input], set[State]] = {
    Request: {State.IDLE},
    Refuse: {State.IDLE, State.REQUESTED, State.WAITING},
    Head: {State.REQUESTED, State.WAITING},
    Data: BODY,
    Eof: BODY,
    Fail: set(State),
    ClientGone: set(State),
    KeepAlive: set(State),
}


def brought(way: list[Input]) -> tuple[Exchange, Client]:
    machine, client = exchange(), Client()
    for given_input in way:
        client.take(feed(machine, given_input))
    return machine, client


@pytest.mark.parametrize(("state", "way"), ALL_WAYS)
def test_each_way_leads_where_the_tests_below_think(state: State, way: list[Input]) -> None:
    assert brought(way)[0].state is state


@pytest.mark.parametrize("given_input", INPUTS, ids=str)
@pytest.mark.parametrize(("state", "way"), ALL_WAYS)
def test_an_input_is_taken_in_its_turn_and_refused_out_of_it(
    state: State, way: list[Input], given_input: Input
) -> None:
    """Out of turn nothing changes; once all is done, everything is taken and nothing comes of it."""
    machine, client = brought(way)
    if state is State.DONE:
        before = machine.record()
        assert feed(machine, given_input) == []
        assert machine.record() == before
    elif state in TAKEN_IN[type(given_input)]:
        client.take(feed(machine, given_input))
    else:
        with pytest.raises(LocalError):
            feed(machine, given_input)
        assert machine.state is state


@pytest.mark.parametrize(("state", "way"), ALL_WAYS)
def test_a_client_may_leave_at_any_time(state: State, way: list[Input]) -> None:
    machine, client = brought(way)
    answered = machine.answered
    before = None if state is not State.DONE else machine.record()
    assert machine.client_gone() == []
    assert machine.state is State.DONE
    record = machine.record()
    assert record.status == client.status
    if before is not None:
        assert record == before
    else:
        assert record.outcome is (Outcome.OK if answered else Outcome.CLIENT_GONE)


FAILURES = {
    Failure.UNREACHABLE: (502, "upstream_unreachable", Outcome.UPSTREAM_UNREACHABLE),
    Failure.TIMEOUT: (504, "upstream_timeout", Outcome.TIMEOUT),
    Failure.BROKEN: (502, "upstream_broke", Outcome.UPSTREAM_BROKE),
    Failure.SHUTDOWN: (503, "shutting_down", Outcome.SHUTDOWN),
    Failure.INTERNAL: (500, "internal_error", Outcome.INTERNAL_ERROR),
}


@pytest.mark.parametrize("failure", Failure)
@pytest.mark.parametrize(("state", "way"), [way for way in ALL_WAYS if way.values[0] is not State.DONE])
def test_a_failure_is_told_in_whatever_way_is_left(state: State, way: list[Input], failure: Failure) -> None:
    """As a status while the head is not out, as an event once it is; and not at all once the answer is whole."""
    machine, client = brought(way)
    status, code, outcome = FAILURES[failure]
    head_is_out, answered = client.status is not None, machine.answered
    before = client.body
    client.take(machine.receive_failure(failure))
    assert client.ends == [EndResponse()]
    assert machine.record().outcome is (Outcome.OK if answered else outcome)
    if answered:
        assert client.body == before
        return
    told = client.body.removeprefix(before)
    error = json.loads(told.removeprefix(b"data: "))["error"]
    assert told.startswith(b"data: ") == head_is_out
    assert error["code"] == code
    assert client.status == (200 if head_is_out else status)
    if not head_is_out:
        assert dict(client.heads[0].headers).get(b"retry-after") == (b"5" if status == 503 else None)
    assert ("lab" in error["message"]) == (status in (502, 504) and state is not State.IDLE)


def test_answered_is_true_from_the_end_mark_on_and_not_before() -> None:
    way: list[Input] = [ASK_STREAM, Head(), Data(STOP), Data(DONE), KeepAlive(), Eof()]
    seen = [brought(way[:steps])[0].answered for steps in range(len(way) + 1)]
    assert seen == [False, False, False, False, True, True, False]


# --- laws ---

bodies = st.sampled_from(
    [HI, STOP, USAGE, DONE, encode(ERROR), ERROR, ANSWER, b"{}", b"<html>", b"x" * 500, b"", b"\n"]
)
content_types = st.sampled_from([b"text/event-stream", b"application/json", b"text/html", b"text/plain; x", b""]).map(
    lambda value: ((b"content-type", value),)
)
requests = st.sampled_from([ASK, ASK_STREAM, ASK_STREAM, Request(b""), Request(b'{"model":"gone"}')])
inputs = st.one_of(
    requests,
    st.builds(Head, st.sampled_from([200, 204, 301, 401, 429, 503]), content_types),
    st.builds(Data, bodies | st.binary(max_size=8)),
    st.builds(Data, bodies),
    st.just(Eof()),
    st.just(KeepAlive()),
    st.builds(Fail, st.sampled_from(Failure)),
    st.just(ClientGone()),
    st.builds(Refuse, st.just(Problem(413, "no", "no")), st.sampled_from(Outcome)),
)  # fmt: skip
likely = st.tuples(requests, st.lists(inputs, max_size=8)).map(lambda drawn: [drawn[0], *drawn[1]])


@given(likely | st.lists(inputs, max_size=8), st.sampled_from(Operation))
def test_any_sequence_of_inputs_gives_one_well_formed_answer(given_inputs: list[Input], operation: Operation) -> None:
    """`Client` holds the grammar: one head, then bodies, then one end, and nothing after it."""
    machine, client = exchange(operation), Client()
    gone = False
    for given_input in given_inputs:
        before = machine.state
        try:
            commands = feed(machine, given_input)
        except LocalError:
            assert (machine.state, before is State.DONE) == (before, False)
            continue
        gone = gone or (before is not State.DONE and isinstance(given_input, ClientGone))
        assert not (before is State.DONE and commands)
        client.take(commands)
        assert (machine.outcome is None) == (machine.state is not State.DONE)
        assert len(client.ends) == (machine.state is State.DONE and not gone)
    if machine.outcome is not None:
        record = machine.record()
        assert (record.outcome, record.operation) == (machine.outcome, operation)
        assert record.status == client.status
        assert (record.usage is None) == (record.usage_source is UsageSource.NONE)
        if record.usage is not None:
            assert (record.usage_source is FINAL) == (record.outcome is Outcome.OK)


def answer_of(way: list[Input], chunks: list[bytes]) -> tuple[int | None, bytes, Record]:
    machine, client = brought(way)
    for chunk in chunks:
        client.take(feed(machine, Data(chunk)))
    client.take(feed(machine, Eof()))
    assert client.ends
    return client.status, client.body, machine.record()


good_first = st.sampled_from([HI, STOP, USAGE + HI, b": x\n\n" + HI])
stream_bodies = st.tuples(good_first, st.lists(bodies | st.binary(max_size=6), max_size=4)).map(
    lambda drawn: b"".join([drawn[0], *drawn[1]])
)

STREAM_WAYS: list[list[Input]] = [
    [ASK_STREAM, Head()],
    [ASK_STREAM, Head(), KeepAlive()],
    [ASK_STREAM, KeepAlive(), Head()],
]


@given(stream_bodies, st.sampled_from(STREAM_WAYS), st.data())
def test_a_clients_bytes_do_not_depend_on_how_the_upstreams_were_cut(
    body: bytes, way: list[Input], chosen: st.DataObject
) -> None:
    """The exception, which is told below: a stream that begins with its error."""
    whole = answer_of(way, [body])
    assert answer_of(way, [body[at : at + 1] for at in range(len(body))]) == whole
    assert answer_of(way, chosen.draw(pieces(body))) == whole


def test_an_error_that_comes_first_gets_its_status_unless_something_was_sent_before_it() -> None:
    """A comment leaves at once, and the head with it; in one piece with the error it is held back and dropped."""
    comment, error = b": x\n\n", encode(ERROR)
    assert answer_of([ASK_STREAM, Head()], [comment + error])[:2] == (503, ERROR)
    assert answer_of([ASK_STREAM, Head()], [comment, error])[:2] == (200, comment + error)


whole_bodies = st.sampled_from([ANSWER, ERROR, leaky(SECRET), b"<html>", b"x" * 700])


@given(whole_bodies, st.sampled_from([200, 401, 500]), st.booleans(), st.data())
def test_nor_does_a_whole_answer(body: bytes, status: int, streams: bool, chosen: st.DataObject) -> None:
    answered = Head(status, JSON_HEADERS)
    way: list[Input] = [ASK_STREAM, KeepAlive(), answered] if streams else [ASK, answered]
    assert answer_of(way, chosen.draw(pieces(body))) == answer_of(way, [body])


# --- three protocols, any to any ---

OPERATIONS = {
    Protocol.CHAT: Operation.CHAT,
    Protocol.RESPONSES: Operation.RESPONSES,
    Protocol.MESSAGES: Operation.MESSAGES,
}
PAIRS = list(itertools.product(Protocol, Protocol))
MINIMAL: dict[Protocol, dict[str, object]] = {
    Protocol.CHAT: {"messages": [{"role": "user", "content": "hi"}], "stream_options": {"include_usage": True}},
    Protocol.RESPONSES: {"input": "hi"},
    Protocol.MESSAGES: {"max_tokens": 900, "messages": [{"role": "user", "content": "hi"}]},
}
DOCUMENT = Head(200, JSON_HEADERS)


def between(client: Protocol, upstream: Protocol, *, strict: bool = False) -> Exchange:
    """An exchange of a client with an upstream that speaks one protocol."""
    known = {"lab": UpstreamTraits(protocols=(upstream,), strict_fidelity=strict)}
    return Exchange(OPERATIONS[client], Settings(CATALOG, known, hidden=lambda: (SECRET,)), request_id="req_1", now_s=9)


def asking(client: Protocol, *, stream: bool = True, **members: object) -> Request:
    chosen = {name: value for name, value in MINIMAL[client].items() if stream or name != "stream_options"}
    return Request(json.dumps({"model": "fast", "stream": stream, **chosen, **members}).encode())


def fed(machine: Exchange, *given_inputs: Input) -> Client:
    client = Client()
    for given_input in given_inputs:
        client.take(feed(machine, given_input))
    return client


def headers_of(client: Client) -> dict[bytes, bytes]:
    return dict(client.heads[0].headers)


def held(protocol: Protocol, stream: bytes, *, usage_known: bool = True) -> None:
    """The stream is a legal one. Usage that came too late is `null` in Responses, never 0."""
    checker = checker_for(protocol)
    checker.receive_data(stream)
    checker.finish()
    assert [one for one in checker.violations if usage_known or one.rule != "responses-usage"] == []


def problem_in(protocol: Protocol, body: bytes, status: int) -> Problem:
    problem = CODECS[protocol].decode_error(body, status)
    assert problem is not None
    return problem


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_a_stream_arrives_in_the_clients_protocol(client: Protocol, upstream: Protocol) -> None:
    machine = between(client, upstream)
    got = fed(machine, asking(client), Head(), Data(answer_stream(upstream)), Eof())
    if client is not upstream or upstream is not Protocol.MESSAGES:  # whose own interleaving passes as it is
        held(client, got.body)
    assert (got.status, headers_of(got)[b"x-capi-fidelity"]) == (200, b"exact")
    (request,) = got.requests
    assert (request.operation, json.loads(request.body)["model"]) == (OPERATIONS[upstream], "up-2026")
    assert b'"fast"' in got.body
    assert machine.record() == Record(
        OPERATIONS[client], OK, 200, "fast", "lab", "up-2026", True, SPENT_ALL, FINAL, upstream
    )


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_a_whole_answer_arrives_in_the_clients_protocol(client: Protocol, upstream: Protocol) -> None:
    machine = between(client, upstream)
    got = fed(machine, asking(client, stream=False), DOCUMENT, Data(answer_document(upstream)), Eof())
    reply = CODECS[client].decode_reply(got.body, Ledger())
    assert (got.status, reply.model, reply.usage, len(reply.blocks)) == (200, "fast", SPENT_ALL, 4)
    assert headers_of(got)[b"x-capi-fidelity"] == b"exact"
    record = machine.record()
    assert (record.usage, record.usage_source, record.stream, record.losses) == (SPENT_ALL, FINAL, False, 0)


@pytest.mark.parametrize("kept_alive", [False, True])
@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_a_document_for_a_stream_is_told_as_one(client: Protocol, upstream: Protocol, kept_alive: bool) -> None:
    """Some servers never stream."""
    machine = between(client, upstream)
    waiting: list[Input] = [KeepAlive()] if kept_alive else []
    got = fed(machine, asking(client), *waiting, DOCUMENT, Data(answer_document(upstream)), Eof())
    held(client, got.body)
    assert got.body.startswith(KEEP_ALIVE) == kept_alive
    assert (got.status, headers_of(got)[b"content-type"]) == (200, b"text/event-stream; charset=utf-8")
    record = machine.record()
    assert (record.outcome, record.usage, record.usage_source, record.stream) == (OK, SPENT_ALL, FINAL, True)


@given(st.sampled_from(PAIRS), st.data())
def test_any_cutting_of_any_upstreams_stream_gives_the_same(
    pair: tuple[Protocol, Protocol], chosen: st.DataObject
) -> None:
    client, upstream = pair
    stream = answer_stream(upstream)
    whole, cut = between(client, upstream), between(client, upstream)
    got = fed(whole, asking(client), Head(), Data(stream), Eof())
    same = fed(cut, asking(client), Head(), *map(Data, chosen.draw(pieces(stream))), Eof())
    assert (same.heads, same.body, cut.record()) == (got.heads, got.body, whole.record())


@pytest.mark.parametrize("kept_alive", [False, True])
@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_a_failure_after_any_event_is_told_in_the_clients_protocol(
    client: Protocol, upstream: Protocol, kept_alive: bool
) -> None:
    """With a status while nothing is out; from then on inside the stream, which still has a legal end."""
    events = answer_events(upstream)
    waiting: list[Input] = [KeepAlive()] if kept_alive else []
    for taken in range(len(events) + 1):
        machine = between(client, upstream)
        got = fed(machine, asking(client), Head(), *waiting, *map(Data, events[:taken]))
        begun, answered, before = got.status is not None, machine.answered, got.body
        got.take(machine.receive_failure(Failure.BROKEN))
        assert got.ends == [EndResponse()]
        outcome = machine.record().outcome
        assert outcome is (OK if answered else Outcome.UPSTREAM_BROKE)
        if answered:
            assert got.body == before
        elif not begun:
            assert got.status == 502
            assert "broke off" in problem_in(client, got.body, 502).message
            continue
        if client is not upstream or upstream is not Protocol.MESSAGES:
            held(client, got.body)
        else:
            assert answered or got.body.endswith(b"\n\n")
        assert (b"broke off" in got.body) == (not answered)


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_every_failure_before_the_answer_has_the_clients_shape(client: Protocol, upstream: Protocol) -> None:
    for failure, (status, code, outcome) in FAILURES.items():
        machine = between(client, upstream)
        got = fed(machine, asking(client), Fail(failure))
        assert (got.status, machine.record().outcome) == (status, outcome)
        problem = problem_in(client, got.body, status)
        assert problem.message
        assert (problem.code == code) == (client is not Protocol.MESSAGES)


# --- an upstream's errors, translated ---

BUSY: dict[Protocol, dict[str, object]] = {
    Protocol.CHAT: {"error": {"message": "busy, and not ***", "type": "rate_limit_error", "code": 429}},
    Protocol.RESPONSES: {"error": {"message": "busy, and not ***", "code": "rate_limit_exceeded"}},
    Protocol.MESSAGES: {"type": "error", "error": {"type": "rate_limit_error", "message": "busy, and not ***"}},
}
BUSY_EVENTS = {
    Protocol.CHAT: streams.chat(BUSY[Protocol.CHAT]),
    Protocol.RESPONSES: streams.named({"type": "error", "code": "rate_limit_exceeded", "message": "busy, and not ***"}),
    Protocol.MESSAGES: streams.named(BUSY[Protocol.MESSAGES]),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_an_error_keeps_its_status_and_its_words_but_no_secret(
    client: Protocol, upstream: Protocol, stream: bool
) -> None:
    body = json.dumps(BUSY[upstream]).encode().replace(b"***", SECRET)
    for status in (429, 200):
        machine = between(client, upstream)
        hint = (*JSON_HEADERS, (b"retry-after", b"3"))
        got = fed(machine, asking(client, stream=stream), Head(status, hint), Data(body), Eof())
        assert (got.status, problem_in(client, got.body, 429).message) == (429, "busy, and not ***")
        assert headers_of(got)[b"retry-after"] == b"3"
        assert b"x-capi-fidelity" not in headers_of(got)
        assert machine.record().outcome is ERR


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_so_does_one_that_comes_first_in_a_stream(client: Protocol, upstream: Protocol) -> None:
    event = BUSY_EVENTS[upstream].replace(b"***", SECRET)
    machine = between(client, upstream)
    got = fed(machine, asking(client), Head(), Data(event))
    assert (got.status, problem_in(client, got.body, 429).message) == (429, "busy, and not ***")
    assert machine.record().outcome is ERR


@pytest.mark.parametrize("client", Protocol)
def test_a_status_that_the_client_has_no_word_for_is_kept(client: Protocol) -> None:
    event = streams.named({"type": "error", "error": {"type": "overloaded_error", "message": "x"}})
    got = fed(between(client, Protocol.MESSAGES), asking(client), Head(), Data(event))
    assert got.status == 529


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_and_one_that_comes_later_ends_the_stream(client: Protocol, upstream: Protocol) -> None:
    event = BUSY_EVENTS[upstream].replace(b"***", SECRET)
    machine = between(client, upstream)
    first = b"".join(answer_events(upstream)[:4])
    got = fed(machine, asking(client), Head(), Data(first), Data(event))
    assert got.ends == [EndResponse()]
    assert b"busy, and not ***" in got.body
    assert SECRET not in got.body
    if client is not upstream:  # what passes is the upstream's own
        held(client, got.body)
    assert (got.status, machine.record().outcome) == (200, ERR)


OUR_KEY = {
    Protocol.CHAT: streams.chat({"error": {"message": "bad key", "code": 401}}),
    Protocol.RESPONSES: streams.named({"type": "error", "code": "invalid_api_key", "message": "bad key"}),
    Protocol.MESSAGES: streams.named({"type": "error", "error": {"type": "authentication_error", "message": "x"}}),
}


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_an_error_about_our_key_that_comes_first_in_a_stream_is_not_the_clients(
    client: Protocol, upstream: Protocol
) -> None:
    """A client that got the bare 401 would distrust its own key."""
    machine = between(client, upstream)
    got = fed(machine, asking(client), Head(), Data(OUR_KEY[upstream]))
    assert (got.status, machine.record().outcome) == (502, ERR)
    assert "this gateway's credential" in problem_in(client, got.body, 502).message


# --- what a translation loses ---


def test_what_is_lost_is_told_and_accounted() -> None:
    for stream in (False, True):
        machine = between(Protocol.CHAT, Protocol.MESSAGES)
        answer = Data(answer_stream(Protocol.MESSAGES) if stream else answer_document(Protocol.MESSAGES))
        answered = Head() if stream else DOCUMENT
        got = fed(machine, asking(Protocol.CHAT, stream=stream, seed=7, logit_bias={"5": 1}), answered, answer, Eof())
        assert headers_of(got)[b"x-capi-fidelity"] == b"lossy; n=2"
        assert machine.record().losses == 2


@pytest.mark.parametrize("client", Protocol)
def test_a_strict_upstream_is_not_asked_for_less(client: Protocol) -> None:
    upstream = Protocol.MESSAGES if client is not Protocol.MESSAGES else Protocol.CHAT
    machine = between(client, upstream, strict=True)
    lost = "top_k" if client is Protocol.MESSAGES else "top_logprobs"
    whole = json.loads(asking(client).body)
    got = fed(machine, Request(json.dumps({**whole, lost: 3}).encode()))
    assert (got.requests, got.status) == ([], 400)
    problem = problem_in(client, got.body, 400)
    assert "strict_fidelity" in problem.message
    assert f"({lost})" in problem.message
    assert machine.record().outcome is Outcome.REFUSED_INVALID


def test_a_model_that_no_protocol_serves_is_refused() -> None:
    settings = Settings(CATALOG, {"lab": UpstreamTraits(protocols=())})
    machine = Exchange(Operation.CHAT, settings, request_id="r")
    got = fed(machine, ASK)
    assert (got.requests, got.status, json.loads(got.body)["error"]["code"]) == ([], 400, "model_not_served")


# --- special cases of one protocol ---


@pytest.mark.parametrize("client", Protocol)
def test_the_headers_of_messages_go_to_messages_upstreams(client: Protocol) -> None:
    told = ((b"anthropic-version", b"2024-01-01"), (b"anthropic-beta", b"x-1"), (b"x-secret", b"no"))
    for upstream in Protocol:
        settings = Settings(CATALOG, {"lab": UpstreamTraits(protocols=(upstream,))})
        machine = Exchange(OPERATIONS[client], settings, request_id="r", client_headers=told)
        (request,) = fed(machine, asking(client)).requests
        found = {name: value for name, value in request.headers if name.startswith(b"anthropic-")}
        if upstream is not Protocol.MESSAGES:
            assert found == {}
        elif client is Protocol.MESSAGES:
            assert found == {b"anthropic-version": b"2024-01-01", b"anthropic-beta": b"x-1"}
        else:
            assert found == {b"anthropic-version": b"2023-06-01"}
        assert b"x-secret" not in dict(request.headers)


@pytest.mark.parametrize("client", [Protocol.CHAT, Protocol.MESSAGES])
def test_a_responses_upstream_is_cut_at_the_clients_stop_sequence(client: Protocol) -> None:
    """The client has its answer; what the upstream still says is only counted."""
    member = "stop_sequences" if client is Protocol.MESSAGES else "stop"
    whole = json.loads(asking(client).body)
    machine = between(client, Protocol.RESPONSES)
    got = fed(machine, Request(json.dumps({**whole, member: ["STOP"]}).encode()), Head())
    assert "stop" not in json.loads(got.requests[0].body)
    for event in answer_events(Protocol.RESPONSES):
        got.take(feed(machine, Data(event)))
    assert machine.answered
    assert "world" not in got.body.decode()
    held(client, got.body)
    got.take(feed(machine, Eof()))
    record = machine.record()
    assert (record.outcome, record.usage, record.usage_source) == (OK, SPENT_ALL, FINAL)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("client", Protocol)
def test_copilots_chat_may_answer_as_anthropic_does(client: Protocol, stream: bool) -> None:
    machine = between(client, Protocol.CHAT)
    foreign = Data(answer_document(Protocol.MESSAGES))
    got = fed(machine, asking(client, stream=stream), DOCUMENT, foreign, Eof())
    assert (got.status, machine.record().usage) == (200, SPENT_ALL)
    if stream:
        held(client, got.body)
    else:
        assert len(CODECS[client].decode_reply(got.body, Ledger()).blocks) == 4


def test_an_answer_that_is_none_but_names_its_cost_is_accounted() -> None:
    """A whole answer whose `error` is the last thing that it says."""
    machine = between(Protocol.CHAT, Protocol.MESSAGES)
    body = b'{"type":"message","usage":{"input_tokens":3,"output_tokens":2}}'
    got = fed(machine, asking(Protocol.CHAT, stream=False), DOCUMENT, Data(body), Eof())
    assert got.status == 502
    record = machine.record()
    assert (record.outcome, record.usage, record.usage_source) == (BROKE, SPENT, PARTIAL)


# --- counting tokens ---

COUNT = Request(b'{"model":"fast","messages":[]}')
COUNTS = UpstreamTraits(protocols=(Protocol.MESSAGES,), count_tokens=True)


def count_here(document: JSONObject, model: str) -> bytes:
    assert (document.get("messages"), model) == (b"[]", "up-2026")
    return b'{"input_tokens":5}'


def counting(
    traits: UpstreamTraits, record: bytes = b"{}", count: Callable[[JSONObject, str], bytes] = count_here
) -> Exchange:
    catalog = Catalog({"fast": Alias("fast", "up-2026")}, (UpstreamModels("lab", {"up-2026": record}),))
    settings = Settings(catalog, {"lab": traits}, count_tokens=count)
    return Exchange(Operation.COUNT_TOKENS, settings, request_id="req_1")


def test_an_upstream_that_counts_is_asked() -> None:
    machine = counting(COUNTS)
    got = fed(machine, COUNT, DOCUMENT, Data(b'{"input_tokens":7}'), Eof())
    (request,) = got.requests
    assert (request.operation.value, request.body) == (
        "/messages/count_tokens",
        b'{"model":"up-2026","messages":[]}',
    )
    assert (got.status, got.body) == (200, b'{"input_tokens":7}')
    assert b"x-capi-fidelity" not in headers_of(got)
    assert machine.record() == Record(
        Operation.COUNT_TOKENS, OK, 200, "fast", "lab", "up-2026", False, None, UsageSource.NONE, Protocol.MESSAGES
    )


@pytest.mark.parametrize(
    ("traits", "record"),
    [
        (UpstreamTraits(protocols=(Protocol.MESSAGES,)), b"{}"),
        (UpstreamTraits(protocols=(Protocol.CHAT,), count_tokens=True), b"{}"),
        (COUNTS, b'{"supported_endpoints":["/chat/completions"]}'),
    ],
)
def test_else_tokens_are_counted_here(traits: UpstreamTraits, record: bytes) -> None:
    machine = counting(traits, record)
    got = fed(machine, COUNT)
    assert (got.requests, got.status, got.body) == ([], 200, b'{"input_tokens":5}')
    assert b"x-capi-fidelity" not in headers_of(got)
    assert machine.record() == Record(
        Operation.COUNT_TOKENS, OK, 200, "fast", "lab", "up-2026", False, None, UsageSource.NONE
    )


def test_a_core_without_a_tokenizer_estimates() -> None:
    machine = Exchange(Operation.COUNT_TOKENS, Settings(CATALOG), request_id="req_1")
    got = fed(machine, Request(b'{"model":"fast","messages":[{"role":"user","content":"hello"}]}'))
    assert (got.requests, got.status) == ([], 200)
    assert json.loads(got.body)["input_tokens"] > 0


def test_a_request_for_a_count_may_be_a_bad_one() -> None:
    def refuse(document: JSONObject, model: str) -> bytes:
        raise ProtocolError("no messages", code="invalid_messages", param="$.messages")

    machine = counting(UpstreamTraits(), count=refuse)
    got = fed(machine, COUNT)
    assert (got.status, machine.record().outcome) == (400, Outcome.REFUSED_INVALID)
    assert json.loads(got.body)["type"] == "error"


DATED = "claude-sonnet-4-5-20250929"


@pytest.mark.parametrize("upstream", Protocol)
@pytest.mark.parametrize("asked_for", [DATED, "claude-sonnet-4-5", "claude-sonnet-4.5"])
def test_a_dated_name_goes_upstream_in_the_listed_spelling_on_every_path(asked_for: str, upstream: Protocol) -> None:
    """Also where nothing is translated. The answer has the name that the client asked for."""
    catalog = Catalog({}, (UpstreamModels("lab", {"claude-sonnet-4": b"{}", "claude-sonnet-4.5": b"{}"}),))
    settings = Settings(catalog, {"lab": UpstreamTraits(protocols=(upstream,))})
    machine = Exchange(Operation.MESSAGES, settings, request_id="req_1", now_s=9)
    got = fed(machine, asking(Protocol.MESSAGES, model=asked_for), Head(), Data(answer_stream(upstream)), Eof())
    (request,) = got.requests
    assert json.loads(request.body)["model"] == "claude-sonnet-4.5"
    assert b'"model":"%b"' % asked_for.encode() in got.body.replace(b'": "', b'":"')


@pytest.mark.parametrize(("client", "upstream"), PAIRS)
def test_nothing_is_counted_but_for_who_asks_for_a_count(client: Protocol, upstream: Protocol) -> None:
    """Counting takes time that no other request is to pay for."""

    def count(document: JSONObject, model: str) -> bytes:
        raise AssertionError("nobody asked for a count")

    settings = Settings(CATALOG, {"lab": UpstreamTraits(protocols=(upstream,))}, count_tokens=count)
    for stream, head, answer in ((True, Head(), answer_stream), (False, DOCUMENT, answer_document)):
        machine = Exchange(OPERATIONS[client], settings, request_id="req_1", now_s=9)
        got = fed(machine, asking(client, stream=stream), head, Data(answer(upstream)), Eof())
        assert (got.status, machine.record().outcome) == (200, OK)


@pytest.mark.parametrize("upstream", [Protocol.CHAT, Protocol.RESPONSES])
def test_who_asks_by_an_anthropic_client_is_no_secret_told_to_another_provider(upstream: Protocol) -> None:
    """Claude Code's `user_id` has its account and its session in it: elsewhere they arrive as a digest."""
    user = json.dumps({"device_id": "d" * 64, "account_uuid": "a1b2", "session_id": "s3"})
    machine = between(Protocol.MESSAGES, upstream)
    (request,) = fed(machine, asking(Protocol.MESSAGES, metadata={"user_id": user})).requests
    assert b"account" not in request.body
    assert b"d" * 64 not in request.body
    told = [value for name, value in json.loads(request.body).items() if name in {"user", "safety_identifier"}]
    assert [len(value) for value in told] == [64]


# -- fallbacks -----------------------------------------------------------------------------------------------------

SPARES = (Fallback("spare-1", "other"), Fallback("claude", "third"))
SPARE_CATALOG = Catalog(
    {
        "fast": Alias(
            "fast", "up-2026", via="lab", fallbacks=(Fallback("spare-1", "other"), Fallback("claude", "third"))
        )
    },
    tuple(UpstreamModels(name) for name in ("lab", "other", "third")),
)
SPARE_TRAITS = {"third": UpstreamTraits(protocols=(Protocol.MESSAGES,))}
SPARE_BODY = b'{"model":"fast","messages":[{"role":"user","content":"hi"}],"max_tokens":9%b}'
SPARE_DOCUMENT = (
    b'{"id":"c","model":"spare-1","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
)


def spare_exchange(*, stream: bool = False) -> tuple[Exchange, SendRequest]:
    running = Exchange(Operation.CHAT, Settings(SPARE_CATALOG, SPARE_TRAITS), request_id="req_1")
    (first,) = running.receive_request(SPARE_BODY % (b',"stream":true' if stream else b""))
    assert isinstance(first, SendRequest)
    assert first.upstream == "lab"
    return running, first


def next_upstream(commands: list[Command]) -> str:
    (command,) = commands
    assert isinstance(command, SendRequest)
    return command.upstream


def refuse_with(running: Exchange, status: int) -> list[Command]:
    assert running.receive_head(status, JSON_HEADERS) == []
    assert running.receive_data(b'{"error":{"message":"no","code":"x"}}') == []
    return running.receive_eof()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["unreachable", "status", "broken document", "broken stream"])
def test_an_upstream_that_fails_has_another_take_its_place(how: str, stream: bool) -> None:
    running, _ = spare_exchange(stream=stream)
    match how:
        case "unreachable":
            commands = running.receive_failure(Failure.UNREACHABLE)
        case "status":
            commands = refuse_with(running, 503)
        case "broken document":
            running.receive_head(200, JSON_HEADERS)
            running.receive_data(b'{"half')
            commands = running.receive_failure(Failure.BROKEN)
        case _:
            running.receive_head(200, ((b"content-type", b"text/event-stream"),))
            commands = running.receive_failure(Failure.TIMEOUT)
    assert next_upstream(commands) == "other"
    assert running.upstream == "other"
    running.receive_head(200, JSON_HEADERS)
    running.receive_data(SPARE_DOCUMENT)
    start, *rest = running.receive_eof()
    assert isinstance(start, StartResponse)
    assert start.status == 200
    assert rest[-1] == EndResponse()
    record = running.record()
    assert (record.outcome, record.upstream, record.failed_upstreams) == (Outcome.OK, "other", ("lab",))
    assert record.usage is not None


def test_a_stream_that_only_has_an_error_is_a_failed_attempt() -> None:
    running, _ = spare_exchange(stream=True)
    running.receive_head(200, ((b"content-type", b"text/event-stream"),))
    commands = running.receive_data(b'data: {"error":{"message":"overloaded","code":503}}\n\n')
    assert next_upstream(commands) == "other"


def test_the_last_one_that_fails_is_the_answer() -> None:
    running, _ = spare_exchange()
    assert next_upstream(refuse_with(running, 500)) == "other"
    assert next_upstream(refuse_with(running, 429)) == "third"
    start, body, end = refuse_with(running, 529)
    assert isinstance(start, StartResponse)
    assert isinstance(body, SendBody)
    assert (start.status, end) == (529, EndResponse())
    assert running.record().failed_upstreams == ("lab", "other")
    assert running.record().outcome is Outcome.UPSTREAM_ERROR


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
def test_what_the_client_did_wrong_is_not_asked_twice(status: int) -> None:
    running, _ = spare_exchange()
    start, *_ = refuse_with(running, status)
    assert isinstance(start, StartResponse)
    assert start.status == status


@pytest.mark.parametrize("failure", [Failure.SHUTDOWN, Failure.INTERNAL])
def test_a_gateway_that_ends_asks_nobody_else(failure: Failure) -> None:
    running, _ = spare_exchange()
    assert isinstance(running.receive_failure(failure)[0], StartResponse)


def test_nobody_else_is_asked_once_the_client_has_something() -> None:
    """A keep-alive is something: the head that went before it told of the first upstream."""
    running, _ = spare_exchange(stream=True)
    assert running.keep_alive()
    assert running.receive_failure(Failure.UNREACHABLE)[-1] == EndResponse()
    running, _ = spare_exchange(stream=True)
    running.receive_head(200, ((b"content-type", b"text/event-stream"),))
    assert running.receive_data(b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n')
    assert running.receive_failure(Failure.BROKEN)[-1] == EndResponse()
    assert running.record().failed_upstreams == ()


# -- no slot -------------------------------------------------------------------------------------------------------

FULL = Problem(429, "queue_full", "too many requests wait", retry_after_s=7)


def test_who_gets_no_seat_is_told_when_to_come_back() -> None:
    running = exchange()
    running.receive_request(ASK.body)
    start, body, end = running.no_seat(FULL)
    assert isinstance(start, StartResponse)
    assert isinstance(body, SendBody)
    assert (start.status, end) == (429, EndResponse())
    assert (b"retry-after", b"7") in start.headers
    assert b'"queue_full"' in body.data
    assert running.record().outcome is Outcome.REFUSED_BUSY
    assert running.no_seat(FULL) == []


def test_a_stream_that_was_kept_alive_in_the_queue_is_told_in_an_event() -> None:
    running = exchange()
    running.receive_request(ASK_STREAM.body)
    running.keep_alive()
    (body, _) = running.no_seat(FULL)
    assert isinstance(body, SendBody)
    assert b'"queue_full"' in body.data


def test_where_there_is_no_seat_another_upstream_may_have_one() -> None:
    running, _ = spare_exchange()
    assert next_upstream(running.no_seat(FULL)) == "other"
    with pytest.raises(LocalError):
        exchange().no_seat(FULL)
