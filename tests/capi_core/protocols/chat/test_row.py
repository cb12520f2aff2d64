"""The row of Chat: each entry reaches the module that does it."""

import json

import pytest

from capi_core.conversation import Conversation, Role, Text, Turn
from capi_core.deltas import End, Finish, FinishReason, Reply, ReplyText, Start
from capi_core.errors import LocalError, Problem
from capi_core.fidelity import Ledger
from capi_core.protocols.chat.row import CHAT
from capi_core.protocols.codec import ClientRequest, Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.stream import StreamState
from capi_core.target import Target
from tests.support.chat_events import answer, say, sse

BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'


def test_a_request_is_read_and_passed_through() -> None:
    request = CHAT.read(BODY)
    assert (request.model, request.stream, request.asks_usage) == ("m", True, False)
    passage = CHAT.pass_through(
        request, upstream_model="up", public_name="pub", ask_usage=False, max_event_bytes=1 << 16
    )
    assert passage.body == BODY.replace(b'"m"', b'"up"')
    assert passage.machine is not None
    out = passage.machine.receive_data(sse(say("stop")))
    assert (b'"pub"' in out, passage.machine.state) == (True, StreamState.DONE)


def test_only_what_it_read_itself_passes() -> None:
    request = CHAT.read(BODY)
    other = ClientRequest(request.document, "m", stream=True)
    with pytest.raises(LocalError):
        CHAT.pass_through(other, upstream_model="m", public_name="m", ask_usage=False, max_event_bytes=9)


def test_requests_are_decoded_and_encoded() -> None:
    found = CHAT.decode_request(CHAT.read(BODY).document, Ledger())
    assert found == Conversation(Protocol.CHAT, "m", (Turn(Role.USER, (Text("hi"),)),), stream=True)
    assert json.loads(CHAT.encode_request(found, Target("up"), Ledger()).body)["model"] == "up"


def test_answers_are_passed_decoded_and_encoded() -> None:
    reply = Reply("c1", "up", (ReplyText("hi"),), Finish(FinishReason.STOP), None, 7)
    body = answer({"content": "hi"})
    assert CHAT.decode_reply(body, Ledger()) == reply
    assert CHAT.pass_answer(body, upstream_model="up", public_name="up").body == body
    assert CHAT.pass_answer(body, upstream_model="up", public_name="pub").body == body.replace(b"up", b"pub")
    written = CHAT.encode_reply(reply, Envelope("rid", "pub"), Ledger())
    assert json.loads(written)["choices"][0]["message"]["content"] == "hi"


def test_streams_are_decoded_and_encoded() -> None:
    decoder = CHAT.stream_decoder(Ledger(), max_event_bytes=1 << 16)
    deltas = decoder.receive_data(sse(say("stop")))
    assert deltas == [Start("c1", "up", 7), Finish(FinishReason.STOP), End()]
    assert CHAT.stream_encoder(Envelope("rid", "pub"), Ledger()).encode(deltas).endswith(b"data: [DONE]\n\n")


def test_errors_are_encoded_and_decoded() -> None:
    problem = Problem(429, "slow_down", "wait")
    assert CHAT.decode_error(CHAT.encode_error(problem, "rid"), 429) == problem
