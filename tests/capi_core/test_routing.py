"""Routing: in which protocol a model is asked, and what its record says that it takes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import ProtocolError
from capi_core.protocols.kinds import Protocol
from capi_core.routing import ModelFacts, UpstreamTraits, choose_protocol, model_facts, target_for
from capi_core.target import ReasoningMember, Target, ThinkingSupport

CHAT, RESPONSES, MESSAGES = Protocol.CHAT, Protocol.RESPONSES, Protocol.MESSAGES

COPILOT_CLAUDE = json.dumps(
    {
        "id": "claude-sonnet-4.6",
        "vendor": "Anthropic",
        "supported_endpoints": ["/chat/completions", "/v1/messages", "/something/new"],
        "capabilities": {
            "type": "chat",
            "limits": {"max_output_tokens": 32000, "max_prompt_tokens": 128000},
            "supports": {
                "vision": True,
                "adaptive_thinking": True,
                "min_thinking_budget": 1024,
                "max_thinking_budget": 32000,
                "reasoning_effort": ["low", "medium", "high"],
            },
        },
    }
).encode()


def test_copilots_record_says_what_the_model_takes() -> None:
    assert model_facts(COPILOT_CLAUDE) == ModelFacts(
        protocols=(CHAT, MESSAGES),
        max_output_tokens=32000,
        thinking=ThinkingSupport.ADAPTIVE,
        min_thinking_budget=1024,
        max_thinking_budget=32000,
        efforts=("low", "medium", "high"),
        images=True,
    )


def test_anthropics_record_says_how_long_an_answer_can_be() -> None:
    assert model_facts(b'{"id":"claude-x","max_tokens":64000}') == ModelFacts(max_output_tokens=64000)


@pytest.mark.parametrize(
    ("supports", "support"),
    [
        ({}, ThinkingSupport.UNKNOWN),
        ({"thinking": False}, ThinkingSupport.NONE),
        ({"thinking": True}, ThinkingSupport.ENABLED),
        ({"max_thinking_budget": 9000}, ThinkingSupport.ENABLED),
        ({"adaptive_thinking": True, "thinking": True}, ThinkingSupport.ADAPTIVE),
        ({"adaptive_thinking": False, "thinking": True}, ThinkingSupport.ENABLED),
    ],
)
def test_the_form_of_thinking_that_a_model_takes(supports: dict[str, object], support: ThinkingSupport) -> None:
    assert model_facts(json.dumps({"capabilities": {"supports": supports}}).encode()).thinking is support


@pytest.mark.parametrize(
    "record",
    [
        None,
        b"",
        b"{}",
        b"[]",
        b"{",
        b"\xff",
        b'{"supported_endpoints":"all","capabilities":7}',
        b'{"capabilities":{"limits":{"max_output_tokens":"many"}}}',
        b'{"max_tokens":-1,"capabilities":{"limits":{"max_output_tokens":0}}}',
    ],
)
def test_what_a_record_does_not_say_is_unknown(record: bytes | None) -> None:
    assert model_facts(record) == ModelFacts()


def test_one_unreadable_part_does_not_hide_the_other() -> None:
    facts = model_facts(b'{"supported_endpoints":["/responses","ws:/responses"],"capabilities":{"limits":3}}')
    assert facts == ModelFacts(protocols=(RESPONSES,))
    assert model_facts(b'{"supported_endpoints":1,"capabilities":{"supports":{"vision":false}}}').images is False
    assert model_facts(b'{"capabilities":{"supports":{"reasoning_effort":true}}}').efforts is None


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_no_record_is_a_fault(value: object) -> None:
    for member in ("supported_endpoints", "capabilities", "max_tokens"):
        assert isinstance(model_facts(json.dumps({member: value}).encode()), ModelFacts)


@pytest.mark.parametrize("client", list(Protocol))
def test_the_clients_own_protocol_is_preferred(client: Protocol) -> None:
    everything = UpstreamTraits(protocols=tuple(Protocol))
    assert choose_protocol(client, ModelFacts(), everything) is client
    assert choose_protocol(client, ModelFacts(protocols=tuple(Protocol)), UpstreamTraits()) is client


@pytest.mark.parametrize(
    ("client", "served", "chosen"),
    [
        (CHAT, (MESSAGES,), MESSAGES),
        (CHAT, (MESSAGES, RESPONSES), RESPONSES),
        (MESSAGES, (CHAT,), CHAT),
        (MESSAGES, (CHAT, RESPONSES), RESPONSES),
        (RESPONSES, (MESSAGES,), MESSAGES),
        (RESPONSES, (MESSAGES, CHAT), CHAT),
    ],
)
def test_otherwise_the_nearest_one(client: Protocol, served: tuple[Protocol, ...], chosen: Protocol) -> None:
    assert choose_protocol(client, ModelFacts(protocols=served), UpstreamTraits()) is chosen


def test_the_models_record_outweighs_the_configuration() -> None:
    assert choose_protocol(CHAT, ModelFacts(protocols=(MESSAGES,)), UpstreamTraits(protocols=(CHAT,))) is MESSAGES


def test_a_model_that_is_served_in_no_protocol_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        choose_protocol(CHAT, ModelFacts(), UpstreamTraits(protocols=()))
    assert (caught.value.code, caught.value.status_hint, caught.value.param) == ("model_not_served", 400, "model")


def test_the_target_knows_what_the_record_and_the_configuration_say() -> None:
    traits = UpstreamTraits(
        ask_usage=False,
        reasoning_member=ReasoningMember.REASONING_TEXT,
        max_tokens_member="max_tokens",
        image_urls=False,
    )
    assert target_for("m", model_facts(COPILOT_CLAUDE), traits) == Target(
        model="m",
        max_output_tokens=32000,
        thinking=ThinkingSupport.ADAPTIVE,
        min_thinking_budget=1024,
        max_thinking_budget=32000,
        efforts=("low", "medium", "high"),
        images=True,
        image_urls=False,
        reasoning_member=ReasoningMember.REASONING_TEXT,
        max_tokens_member="max_tokens",
        ask_usage=False,
    )
