"""The models that the demo provider has, and how it lists them."""

import pytest
from openai.types import Model as OpenAIModel

from capi_trio.demo import catalog
from capi_trio.demo.answers import Refused


@pytest.mark.parametrize("model", catalog.MODELS, ids=lambda model: model.id)
def test_each_model_is_a_model_to_the_official_sdk(model: catalog.Model) -> None:
    described = OpenAIModel.model_validate(model.describe())
    assert (described.id, described.object, described.owned_by) == (model.id, "model", "capi")


@pytest.mark.parametrize("model", catalog.MODELS, ids=lambda model: model.id)
def test_each_model_says_what_copilots_list_says(model: catalog.Model) -> None:
    described = model.describe()
    assert described["vendor"] == "capi demo"
    assert described["supported_endpoints"] == list(model.endpoints)
    capabilities = described["capabilities"]
    assert isinstance(capabilities, dict)
    assert capabilities["type"] == model.kind
    assert capabilities["limits"]["max_prompt_tokens"] == model.max_prompt_tokens


def test_capabilities_differ_as_the_models_do() -> None:
    def supports(model_id: str) -> dict[str, object]:
        capabilities = catalog.find(model_id).describe()["capabilities"]
        assert isinstance(capabilities, dict)
        found: dict[str, object] = capabilities["supports"]
        return found

    assert supports("demo-chat")["vision"] is True
    assert supports("demo-chat-mini")["vision"] is False
    assert supports("demo-reasoner")["reasoning_effort"] == ["none", "low", "medium", "high"]
    assert "reasoning_effort" not in supports("demo-chat")
    assert supports("demo-embed") == {"dimensions": True}
    assert supports("demo-claude")["adaptive_thinking"] is True
    assert (supports("demo-claude")["min_thinking_budget"], supports("demo-claude")["max_thinking_budget"]) == (
        1024,
        32_767,
    )
    assert supports("demo-all").keys() == supports("demo-claude").keys()
    assert "adaptive_thinking" not in supports("demo-gpt")


@pytest.mark.parametrize(
    ("model_id", "endpoints"),
    [
        ("demo-chat", ["/chat/completions"]),
        ("demo-claude", ["/v1/messages"]),
        ("demo-gpt", ["/responses"]),
        ("demo-all", ["/chat/completions", "/responses", "/v1/messages"]),
        ("demo-embed", ["/embeddings"]),
    ],
)
def test_each_model_has_its_endpoints_and_no_others(model_id: str, endpoints: list[str]) -> None:
    assert catalog.find(model_id).describe()["supported_endpoints"] == endpoints
    for endpoint in ("/chat/completions", "/responses", "/v1/messages", "/embeddings"):
        if endpoint in endpoints:
            assert catalog.serving(model_id, endpoint).id == model_id
        else:
            with pytest.raises(Refused, match=f"does not support {endpoint}"):
                catalog.serving(model_id, endpoint)


def test_the_list_holds_every_model_once() -> None:
    listing = catalog.listing()
    assert listing["object"] == "list"
    assert listing["data"] == [model.describe() for model in catalog.MODELS]
    assert len({model.id for model in catalog.MODELS}) == len(catalog.MODELS)


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(Refused) as refused:
        catalog.find("gpt-12")
    assert (refused.value.problem.status, refused.value.problem.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("model_id", "status", "code"),
    [
        (None, 400, "missing_required_parameter"),
        ("", 400, "missing_required_parameter"),
        ("gpt-12", 404, "model_not_found"),
        ("demo-embed", 400, "unsupported_api_for_model"),
    ],
)
def test_a_request_must_name_a_model_with_its_endpoint(model_id: str | None, status: int, code: str) -> None:
    with pytest.raises(Refused) as refused:
        catalog.serving(model_id, catalog.CHAT_ENDPOINT)
    problem = refused.value.problem
    assert (problem.status, problem.code, problem.param) == (status, code, "model")


def test_a_request_gets_the_model_it_names() -> None:
    assert catalog.serving("demo-embed", catalog.EMBEDDINGS_ENDPOINT).kind == "embeddings"
