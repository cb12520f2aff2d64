"""The prices that capi brings along: found under the names that models have, and each in itself plausible."""

import itertools

import pytest

from capi_core.price_table import DEFAULT_PRICES, PRICE_TABLE
from capi_core.prices import MICROS, Price
from capi_core.usage import Usage

MILLION = Usage(uncached_input=MICROS, output=MICROS)


def tiers(model: str) -> list[Price]:
    """The price of a model, and the one for its long prompts."""
    price = DEFAULT_PRICES.find(model)
    assert price is not None
    return [price] if price.long_prompt is None else [price, price.long_prompt]


@pytest.mark.parametrize("model", PRICE_TABLE)
def test_what_is_read_from_a_cache_is_cheaper_and_what_is_made_dearer(model: str) -> None:
    for price in tiers(model):
        assert price.cache_read is not None
        assert price.uncached_input is not None
        assert price.output is not None
        assert 0 < price.cache_read < price.uncached_input < price.output
        assert price.cache_write is None or price.cache_write * 4 == price.uncached_input * 5


@pytest.mark.parametrize("model", PRICE_TABLE)
def test_a_long_prompt_is_dearer_in_every_kind(model: str) -> None:
    for short, long in itertools.pairwise(tiers(model)):
        assert short.uncached_input is not None
        assert long.uncached_input is not None
        assert short.output is not None
        assert long.output is not None
        assert short.uncached_input < long.uncached_input
        assert short.output < long.output


@pytest.mark.parametrize(
    ("model", "dollars"),
    [
        ("claude-sonnet-4.5", 18),
        ("claude-sonnet-4-5-20250929", 18),
        ("claude-opus-4.6", 30),
        ("claude-haiku-4-5-20251001", 6),
        ("claude-haiku-5-5", 3),
        ("claude-opus-4-1-20250805", 90),
        ("gpt-4.1-2025-04-14", 10),
        ("gpt-5-mini-2025-08-07", 2.25),
        ("gpt-5.4", 27.5),
        ("gpt-5.6-terra", 22),
    ],
)
def test_models_are_found_in_every_spelling(model: str, dollars: float) -> None:
    """A million tokens each way, which is a long prompt."""
    assert DEFAULT_PRICES.cost(MILLION, model) == dollars * MICROS


@pytest.mark.parametrize("model", ["gpt-5.6-luna", "claude-opus-4.6-fast", "gpt-5.4-pro", "llama3.3", "claude"])
def test_what_is_not_certain_has_no_price(model: str) -> None:
    assert DEFAULT_PRICES.find(model) is None
