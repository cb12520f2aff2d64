"""The row of Messages: each entry reaches the module that does it."""

import json

import pytest

from capi_core.conversation import Role, Text
from capi_core.deltas import End, Finish, FinishReason, Reply, ReplyText, Start
from capi_core.errors import Problem, ProtocolError
from capi_core.fidelity import Ledger
from capi_core.protocols.codec import Envelope
from capi_core.protocols.messages.row import MESSAGES
from capi_core.protocols.stream import StreamState
from capi_core.target import Target
from tests.support.messages_events import STOP, finish, start, written

BODY = b'{"model":"m","stream":true,"max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'


def test_a_request_is_read_and_passed_through() -> None:
    request = MESSAGES.read(BODY)
    assert (request.model, request.stream) == ("m", True)
    passage = MESSAGES.pass_through(
        request, upstream_model="up", public_name="pub", ask_usage=True, max_event_bytes=1 << 16
    )
    assert passage.body == BODY.replace(b'"m"', b'"up"')
    assert passage.machine is not None
    out = passage.machine.receive_data(written(start(), finish(), STOP))
    assert (b'"pub"' in out, passage.machine.state) == (True, StreamState.DONE)


def test_without_a_stream_there_is_no_machine() -> None:
    request = MESSAGES.read(b'{"model":"m","stream":null}')
    passage = MESSAGES.pass_through(request, upstream_model="m", public_name="m", ask_usage=False, max_event_bytes=9)
    assert (passage.body, passage.machine) == (b'{"model":"m","stream":null}', None)


def test_a_stream_that_is_no_boolean_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        MESSAGES.read(b'{"model":"m","stream":"yes"}')
    assert (caught.value.status_hint, caught.value.param) == (400, "stream")


def test_requests_are_decoded_and_encoded() -> None:
    found = MESSAGES.decode_request(MESSAGES.read(BODY).document, Ledger())
    assert [(turn.role, turn.blocks) for turn in found.turns] == [(Role.USER, (Text("hi"),))]
    assert json.loads(MESSAGES.encode_request(found, Target("up"), Ledger()).body)["model"] == "up"


def test_answers_are_passed_decoded_and_encoded() -> None:
    reply = Reply("msg_q", "pub", (ReplyText("hi"),), Finish(FinishReason.STOP), None)
    body = MESSAGES.encode_reply(reply, Envelope("q", "pub"), Ledger())
    assert MESSAGES.decode_reply(body, Ledger()).blocks == reply.blocks
    assert MESSAGES.pass_answer(body, upstream_model="pub", public_name="x").body == body.replace(b'"pub"', b'"x"')


def test_streams_are_decoded_and_encoded() -> None:
    stream = MESSAGES.stream_encoder(Envelope("q", "pub"), Ledger()).encode([Start(), Finish(FinishReason.STOP), End()])
    decoder = MESSAGES.stream_decoder(Ledger(), max_event_bytes=1 << 16)
    assert isinstance(decoder.receive_data(stream)[-1], End)


def test_errors_are_encoded_and_decoded() -> None:
    body = MESSAGES.encode_error(Problem(429, "rate_limit_error", "m"), "q")
    assert json.loads(body)["request_id"] == "q"
    assert MESSAGES.decode_error(body, 429) == Problem(429, "rate_limit_error", "m")
