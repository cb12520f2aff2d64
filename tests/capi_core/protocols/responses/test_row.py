"""The row of Responses: each entry reaches the module that does it."""

import json

import pytest

from capi_core.conversation import Conversation, Role, Text, Turn
from capi_core.deltas import End, Finish, FinishReason, Reply, ReplyText, Start
from capi_core.errors import Problem, ProtocolError
from capi_core.fidelity import Ledger
from capi_core.protocols.codec import Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.row import RESPONSES, RESPONSES_WITHOUT_IDS
from capi_core.protocols.stream import StreamState
from capi_core.target import Target
from tests.support.responses_events import CREATED, completed, numbered

BODY = b'{"model":"m","stream":true,"input":[{"role":"user","id":"x","content":"hi"}]}'


def test_a_request_is_read_and_passed_through() -> None:
    request = RESPONSES.read(BODY)
    assert (request.model, request.stream) == ("m", True)
    passage = RESPONSES.pass_through(
        request, upstream_model="up", public_name="pub", ask_usage=True, max_event_bytes=1 << 16
    )
    assert passage.body == BODY.replace(b'"m"', b'"up"')
    assert passage.machine is not None
    out = passage.machine.receive_data(numbered([CREATED, completed()]))
    assert (b'"pub"' in out, passage.machine.state) == (True, StreamState.DONE)


def test_without_a_stream_there_is_no_machine() -> None:
    request = RESPONSES.read(b'{"model":"m","stream":null}')
    passage = RESPONSES.pass_through(request, upstream_model="m", public_name="m", ask_usage=False, max_event_bytes=9)
    assert (passage.body, passage.machine) == (b'{"model":"m","stream":null}', None)


def test_ids_are_taken_out_for_copilot() -> None:
    request = RESPONSES_WITHOUT_IDS.read(BODY)
    passage = RESPONSES_WITHOUT_IDS.pass_through(
        request, upstream_model="m", public_name="m", ask_usage=False, max_event_bytes=9
    )
    assert passage.body == BODY.replace(b'"id":"x",', b"")


def test_a_stream_that_is_no_boolean_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        RESPONSES.read(b'{"model":"m","stream":"yes"}')
    assert (caught.value.status_hint, caught.value.param) == (400, "stream")


def test_requests_are_decoded_and_encoded() -> None:
    found = RESPONSES.decode_request(RESPONSES.read(BODY).document, Ledger())
    assert found == Conversation(Protocol.RESPONSES, "m", (Turn(Role.USER, (Text("hi"),)),), stream=True)
    assert json.loads(RESPONSES.encode_request(found, Target("up"), Ledger()).body)["model"] == "up"


def test_answers_are_passed_decoded_and_encoded() -> None:
    reply = Reply("resp_q", "pub", (ReplyText("hi"),), Finish(FinishReason.STOP), None, 0)
    body = RESPONSES.encode_reply(reply, Envelope("q", "pub"), Ledger())
    assert RESPONSES.decode_reply(body, Ledger()) == reply
    assert RESPONSES.pass_answer(body, upstream_model="pub", public_name="x").body == body.replace(b'"pub"', b'"x"')


def test_streams_are_decoded_and_encoded() -> None:
    stream = RESPONSES.stream_encoder(Envelope("q", "pub"), Ledger()).encode(
        [Start(), Finish(FinishReason.STOP), End()]
    )
    decoder = RESPONSES.stream_decoder(Ledger(), max_event_bytes=1 << 16)
    assert isinstance(decoder.receive_data(stream)[-1], End)


def test_errors_are_encoded_and_decoded() -> None:
    body = RESPONSES.encode_error(Problem(429, "slow", "m", "p"), "q")
    assert RESPONSES.decode_error(body, 429) == Problem(429, "slow", "m", "p")
