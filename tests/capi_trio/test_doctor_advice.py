"""What is said of an answer that is none."""

import pytest
from attrs import evolve

from capi_core.conformance import RULES
from capi_core.exchange import Failure
from capi_core.protocols.kinds import Protocol
from capi_trio.client_session import Heard
from capi_trio.doctor_advice import advice_for, said_of

BROKEN = (RULES["chat-unfinished"](), RULES["chat-unfinished"](), RULES["chat-done"]())


@pytest.mark.parametrize(
    ("heard", "said", "advice"),
    [
        (Heard(failure=Failure.UNREACHABLE, reason="ConnectError"), "no whole answer: ConnectError", "--url"),
        (Heard(failure=Failure.BROKEN, reason="ReadError"), "no whole answer: ReadError", "capi's log"),
        (Heard(failure=Failure.TIMEOUT, reason="too long"), "no whole answer: too long", "capi's log"),
        (Heard(401, code="invalid_api_key"), "answered with 401 invalid_api_key", "capi keys"),
        (Heard(404, code=""), "answered with 404", "capi models"),
        (Heard(403, code="model_not_allowed"), "answered with 403 model_not_allowed", "capi keys edit"),
        (Heard(502, code="upstream_unauthorized"), "answered with 502 upstream_unauthorized", "api_key_env"),
        (Heard(502, code="something_new"), "answered with 502 something_new", "upstream is at fault"),
        (Heard(302, code=""), "answered with 302", "something else answers"),
        (Heard(200, code="upstream_broke"), "the stream ended with an error upstream_broke", "upstream is at fault"),
        (Heard(200, code=""), "the stream ended with an error", "upstream is at fault"),
        (Heard(200, events=3, violations=BROKEN), "3 events, breaking chat-unfinished, chat-done", "capi conform"),
        (Heard(500, code="", violations=BROKEN[:1]), "answered with 500, breaking chat-unfinished", "upstream"),
    ],
)
def test_each_trouble_has_its_words_and_its_advice(heard: Heard, said: str, advice: str) -> None:
    assert said_of(heard) == said
    assert advice in advice_for(heard, Protocol.CHAT, has_key=True)


def test_who_sent_no_key_is_told_to_send_one() -> None:
    refused = Heard(401, code="invalid_api_key")
    assert "--key-file" in advice_for(refused, Protocol.CHAT, has_key=False)
    assert "--key-file" not in advice_for(evolve(refused, status=403), Protocol.CHAT, has_key=False)
    assert "--key-file" not in advice_for(refused, Protocol.CHAT, has_key=True)


def test_the_id_in_the_log_is_named() -> None:
    for heard in (Heard(500, code="x"), Heard(200, code="x"), Heard(200, violations=BROKEN)):
        assert said_of(evolve(heard, request_id="req_1")) == f"{said_of(heard)} (req_1)"


def test_conform_is_named_with_the_protocol() -> None:
    heard = Heard(200, violations=BROKEN)
    assert "--protocol messages" in advice_for(heard, Protocol.MESSAGES, has_key=True)
