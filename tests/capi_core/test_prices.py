"""What a request cost: exact to the micro-dollar, and not known rather than made up."""

from collections.abc import Callable
from fractions import Fraction

import msgspec
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import LocalError
from capi_core.prices import MICROS, LongPromptConfig, Price, PriceConfig, Prices
from capi_core.usage import Usage

PRICE = Price(uncached_input=3_000_000, cache_read=300_000, cache_write=3_750_000, output=15_000_000)
USAGE = Usage(uncached_input=1000, cache_read=2000, cache_write=400, output=500, reasoning=100)
LONG = evolve(PRICE, long_prompt_above=1000, long_prompt=Price(uncached_input=0, cache_read=0, cache_write=0, output=9))
AMOUNTS = st.integers(0, 10**9)


def configured(text: str) -> PriceConfig:
    return msgspec.json.decode(text, type=PriceConfig)


# -- one price --------------------------------------------------------------------------------------------------------


def test_each_kind_of_tokens_has_its_price() -> None:
    """3000 + 600 + 1500 for the prompt, 7500 + 1500 for the answer: reasoning is billed as output."""
    assert PRICE.cost(USAGE) == 14_100


@given(st.tuples(*[AMOUNTS] * 5), st.tuples(*[AMOUNTS] * 4))
def test_a_cost_is_the_nearest_micro_dollar(tokens: tuple[int, ...], prices: tuple[int, ...]) -> None:
    read, cached, written, made, thought = tokens
    usage = Usage(read, cached, written, made, thought)
    price = Price(uncached_input=prices[0], cache_read=prices[1], cache_write=prices[2], output=prices[3])
    billed = zip((read, cached, written, made + thought), prices, strict=True)
    exact = sum((Fraction(count * each, MICROS) for count, each in billed), Fraction(0))
    cost = price.cost(usage)
    assert cost is not None
    assert -Fraction(1, 2) < cost - exact <= Fraction(1, 2)


@pytest.mark.parametrize(("tokens", "cost"), [(0, 0), (1, 0), (2, 1), (3, 1), (5, 1), (6, 2)])
def test_half_a_micro_dollar_is_one(tokens: int, cost: int) -> None:
    """At 0.25 $ for a million tokens: it is rounded once, after the sum."""
    assert Price(uncached_input=250_000, output=250_000).cost(Usage(uncached_input=tokens, output=0)) == cost


@pytest.mark.parametrize(
    "usage",
    [
        None,
        Usage(),
        evolve(USAGE, uncached_input=None),
        evolve(USAGE, output=None),
        evolve(USAGE, output=None, reasoning=None),
    ],
)
def test_tokens_that_nobody_told_give_no_cost(usage: Usage | None) -> None:
    assert PRICE.cost(usage) is None


def test_parts_that_an_upstream_tells_nothing_of_are_in_the_whole_or_not_there() -> None:
    assert PRICE.cost(Usage(uncached_input=1000, output=100)) == 4500


@pytest.mark.parametrize(
    ("price", "without"),
    [
        (evolve(PRICE, uncached_input=None), evolve(USAGE, uncached_input=0)),
        (evolve(PRICE, cache_read=None), evolve(USAGE, cache_read=0)),
        (evolve(PRICE, cache_write=None), evolve(USAGE, cache_write=None)),
        (evolve(PRICE, output=None), evolve(USAGE, output=0, reasoning=None)),
    ],
)
def test_a_kind_without_a_price_gives_no_cost_unless_there_is_nothing_of_it(price: Price, without: Usage) -> None:
    assert price.cost(USAGE) is None
    assert price.cost(without) == PRICE.cost(without) is not None


def test_what_is_not_billed_need_not_be_known() -> None:
    """An embedding has no output, and nobody tells how much."""
    assert Price(uncached_input=20_000, output=0).cost(Usage(uncached_input=100)) == 2


def test_a_plan_that_bills_requests_needs_no_tokens() -> None:
    plan = Price(uncached_input=0, cache_read=0, cache_write=0, output=0, request=13_200)
    assert plan.cost(None) == plan.cost(USAGE) == 13_200


def test_requests_and_tokens_may_both_be_billed() -> None:
    assert evolve(PRICE, request=40_000).cost(USAGE) == 54_100


def test_a_cost_beyond_sense_is_not_known() -> None:
    """An upstream that tells of 2 ** 53 tokens must not ruin a month's sum."""
    assert PRICE.cost(evolve(USAGE, output=2**53 - 1)) is None
    assert Price(uncached_input=MICROS, output=0).cost(Usage(uncached_input=2**53 - 1)) == 2**53 - 1


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(uncached_input=1000, output=1), 3015),
        (Usage(uncached_input=1001, output=10**6), 9),
        (Usage(uncached_input=1, cache_read=1000, output=10**6), 9),
        (Usage(uncached_input=1, cache_write=1000, output=10**6), 9),
        (Usage(uncached_input=1, cache_read=500, cache_write=500, output=10**6), 9),
        (Usage(uncached_input=1, cache_read=500, cache_write=499, output=0), 2024),
    ],
)
def test_a_long_prompt_has_its_own_prices_for_all_tokens(usage: Usage, cost: int) -> None:
    """The prompt is long with what is cached of it."""
    assert LONG.cost(usage) == cost


def test_with_a_prompt_of_unknown_length_the_price_is_not_known() -> None:
    assert LONG.cost(Usage(output=5)) is None
    assert LONG.cost(None) is None


def test_a_negative_price_is_refused() -> None:
    makers: list[Callable[[], Price]] = [
        lambda: Price(uncached_input=-1),
        lambda: Price(cache_read=-1),
        lambda: Price(cache_write=-1),
        lambda: Price(output=-1),
        lambda: Price(request=-1),
    ]
    for make in makers:
        with pytest.raises(LocalError, match="negative"):
            make()


def test_a_price_for_long_prompts_goes_with_its_length() -> None:
    with pytest.raises(LocalError, match="length"):
        Price(long_prompt=PRICE)
    with pytest.raises(LocalError, match="length"):
        Price(long_prompt_above=1000)


# -- which price ------------------------------------------------------------------------------------------------------


def priced(*names: str) -> Prices:
    """Each name's price is its place in the list."""
    return Prices({name: Price(request=place) for place, name in enumerate(names)})


def place(prices: Prices, model: str) -> int | None:
    price = prices.find(model)
    return None if price is None else price.request


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt-5", 0),
        ("gpt-5-2025-08-07", 0),
        ("GPT-5", 0),
        ("gpt-5-mini", 2),
        ("gpt-5-mini-2025-08-07", 2),
        ("gpt-4o", 1),
        ("gpt-", 1),
        ("gpt", None),
        ("claude-sonnet-4-5", 3),
        ("claude-sonnet-4.5", 3),
        ("claude-sonnet-4-5-20250929", 4),
        ("claude-sonnet-4.5-20250929", 4),
        ("claude-sonnet-4-5-20260101", 3),
        ("anthropic/claude-sonnet-4.5", 3),
        ("claude-sonnet-4-5-thinking", None),
        ("", None),
        ("llama", None),
    ],
)
def test_the_name_most_like_a_model_has_its_price(model: str, expected: int | None) -> None:
    prices = priced("gpt-5", "gpt-*", "gpt-5-*", "claude-sonnet-4-5", "claude-sonnet-4-5-20250929")
    assert place(prices, model) == expected


def test_a_date_stands_only_for_its_snapshot() -> None:
    """That one snapshot had a price does not tell what the latest costs."""
    assert place(priced("gpt-5-2025-08-07"), "gpt-5") is None
    assert place(priced("gpt-5-2025-08-07"), "gpt-5-2026-01-01") is None


def test_of_two_spellings_each_has_its_own_price() -> None:
    prices = priced("claude-opus-4-6", "claude-opus-4.6")
    assert (place(prices, "claude-opus-4-6"), place(prices, "claude-opus-4.6")) == (0, 1)
    assert place(prices, "claude-opus-4-6-20260101") == 0


@given(st.lists(st.text("ab", max_size=4), unique=True), st.text("ab", max_size=6))
def test_the_longest_beginning_wins(beginnings: list[str], model: str) -> None:
    prices = priced(*(f"{beginning}*" for beginning in beginnings))
    fitting = [beginning for beginning in beginnings if model.startswith(beginning)]
    assert place(prices, model) == (beginnings.index(max(fitting, key=len)) if fitting else None)


def test_what_is_written_down_comes_before_what_is_brought_along() -> None:
    """Also a beginning, before the very name."""
    brought = Prices({"gpt-5": Price(request=1), "o3": Price(request=2)})
    prices = Prices.configured({"gpt-*": PriceConfig(request=0.5)}, brought)
    assert [place(prices, model) for model in ("gpt-5", "o3", "llama")] == [500_000, 2, None]


@pytest.mark.parametrize("name", ["gpt-*-mini", "*gpt", "gpt**"])
def test_a_star_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(LocalError, match=r"end with \*"):
        Prices({name: PRICE})


def test_the_cost_of_a_request_is_that_of_its_model() -> None:
    prices = Prices({"sonnet": PRICE})
    assert prices.cost(USAGE, "sonnet") == 14_100
    assert prices.cost(None, "sonnet") is None


def test_an_unknown_model_costs_nobody_knows_what() -> None:
    assert Prices({"sonnet": PRICE}).cost(USAGE, "opus") is None


# -- as an operator writes it -----------------------------------------------------------------------------------------


def test_prices_are_written_in_dollars_for_a_million_tokens() -> None:
    text = '{"input": 3, "cache_read": 0.3, "cache_write": 3.75, "output": 15.0}'
    assert configured(text).price() == PRICE


@given(st.integers(0, 10**12))
def test_every_micro_dollar_can_be_written(micros: int) -> None:
    text = f'{{"output": {micros // MICROS}.{micros % MICROS:06}}}'
    assert configured(text).price() == Price(output=micros)


def test_what_is_not_written_is_not_known() -> None:
    assert configured("{}").price() == Price()


def test_with_a_price_for_requests_tokens_without_one_are_not_billed() -> None:
    price = configured('{"request": 0.0132, "output": 1, "long_prompt": {"above_tokens": 9, "output": 2}}').price()
    assert price == Price(
        uncached_input=0,
        cache_read=0,
        cache_write=0,
        output=MICROS,
        request=13_200,
        long_prompt_above=9,
        long_prompt=Price(uncached_input=0, cache_read=0, cache_write=0, output=2 * MICROS, request=13_200),
    )


def test_long_prompts_are_written_beside() -> None:
    config = PriceConfig(input=1, long_prompt=LongPromptConfig(above_tokens=9, input=2))
    assert config.price() == Price(
        uncached_input=MICROS, long_prompt_above=9, long_prompt=Price(uncached_input=2 * MICROS)
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"input": -0.1}',
        '{"input": 1000001}',
        '{"input": "3"}',
        '{"output": 0.0000001}',
        '{"request": 1.0000005}',
        '{"long_prompt": {"input": 1}}',
        '{"long_prompt": {"above_tokens": 0}}',
        '{"long_prompt": {"above_tokens": 9, "output": 0.00000025}}',
    ],
)
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        configured(text)
