"""The models that the demo provider pretends to have, and how GET /models describes them."""

from typing import Final, Literal

from attrs import frozen

from capi_trio.demo.answers import Refused

__all__ = [
    "CHAT_ENDPOINT",
    "EMBEDDINGS_ENDPOINT",
    "MESSAGES_ENDPOINT",
    "MIN_THINKING_BUDGET",
    "MODELS",
    "RESPONSES_ENDPOINT",
    "Model",
    "find",
    "listing",
    "serving",
]

CHAT_ENDPOINT: Final = "/chat/completions"
EMBEDDINGS_ENDPOINT: Final = "/embeddings"
# With its version: that is how GitHub Copilot's list names it.
MESSAGES_ENDPOINT: Final = "/v1/messages"
RESPONSES_ENDPOINT: Final = "/responses"

MIN_THINKING_BUDGET: Final = 1024

# A fixed date (2026-09-01), so that the list is the same bytes on every start.
_CREATED: Final = 1788220800


@frozen
class Model:
    """One model. Limits are in tokens; `endpoints` are named as in Copilot's list.

    `reasons`: thinks before it answers, in deltas of its own. `vision`: accepts images.
    """

    id: str
    name: str
    kind: Literal["chat", "embeddings"]
    endpoints: tuple[str, ...]
    max_prompt_tokens: int
    max_output_tokens: int
    reasons: bool = False
    vision: bool = False

    def describe(self) -> dict[str, object]:
        """The model as GET /models gives it: OpenAI's members and GitHub Copilot's, in one object."""
        return {
            "id": self.id,
            "object": "model",
            "created": _CREATED,
            "owned_by": "capi",
            "name": self.name,
            "vendor": "capi demo",
            "version": "1",
            "preview": False,
            "model_picker_enabled": self.kind == "chat",
            "supported_endpoints": list(self.endpoints),
            "capabilities": {
                "object": "model_capabilities",
                "type": self.kind,
                "family": "demo",
                "tokenizer": "demo_bytes_4",
                "limits": self._limits(),
                "supports": self._supports(),
            },
        }

    def _limits(self) -> dict[str, object]:
        if self.kind == "embeddings":
            return {"max_inputs": 2048, "max_prompt_tokens": self.max_prompt_tokens}
        return {
            "max_context_window_tokens": self.max_prompt_tokens + self.max_output_tokens,
            "max_prompt_tokens": self.max_prompt_tokens,
            "max_output_tokens": self.max_output_tokens,
        }

    def _supports(self) -> dict[str, object]:
        if self.kind == "embeddings":
            return {"dimensions": True}
        supports: dict[str, object] = {
            "streaming": True,
            "tool_calls": True,
            "parallel_tool_calls": True,
            "structured_outputs": True,
            "vision": self.vision,
        }
        if self.reasons:
            supports["reasoning_effort"] = ["none", "low", "medium", "high"]
        if self.reasons and MESSAGES_ENDPOINT in self.endpoints:
            budgets = {"min_thinking_budget": MIN_THINKING_BUDGET, "max_thinking_budget": self.max_output_tokens - 1}
            supports |= {"thinking": True, "adaptive_thinking": True, **budgets}
        return supports


_ALL: Final = (CHAT_ENDPOINT, RESPONSES_ENDPOINT, MESSAGES_ENDPOINT)

MODELS: Final[tuple[Model, ...]] = (
    Model("demo-chat", "Demo Chat", "chat", (CHAT_ENDPOINT,), 128_000, 32_768, vision=True),
    Model("demo-chat-mini", "Demo Chat Mini", "chat", (CHAT_ENDPOINT,), 16_000, 4_096),
    Model("demo-reasoner", "Demo Reasoner", "chat", (CHAT_ENDPOINT,), 128_000, 32_768, reasons=True),
    Model("demo-claude", "Demo Claude", "chat", (MESSAGES_ENDPOINT,), 200_000, 32_768, reasons=True, vision=True),
    Model("demo-gpt", "Demo GPT", "chat", (RESPONSES_ENDPOINT,), 200_000, 32_768, reasons=True, vision=True),
    Model("demo-all", "Demo All", "chat", _ALL, 200_000, 32_768, reasons=True, vision=True),
    Model("demo-embed", "Demo Embed", "embeddings", (EMBEDDINGS_ENDPOINT,), 8_192, 0),
)

_BY_ID: Final = {model.id: model for model in MODELS}


def find(model_id: str) -> Model:
    """The model of that id. Raises `Refused` (404) when there is none."""
    model = _BY_ID.get(model_id)
    if model is None:
        message = f"The model `{model_id}` does not exist or you do not have access to it."
        raise Refused.because(message, "model_not_found", "model", status=404)
    return model


def serving(model_id: str | None, endpoint: str) -> Model:
    """The model that a request to `endpoint` names. Raises `Refused` when it names none, or one without it."""
    if not model_id:
        raise Refused.because("you must provide a model parameter", "missing_required_parameter", "model")
    model = find(model_id)
    if endpoint not in model.endpoints:
        message = f"The model `{model.id}` does not support {endpoint}."
        raise Refused.because(message, "unsupported_api_for_model", "model")
    return model


def listing() -> dict[str, object]:
    """The answer to GET /models."""
    return {"object": "list", "data": [model.describe() for model in MODELS]}
