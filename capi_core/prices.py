"""What a request cost, in millionths of a US dollar, from what was told of its tokens; or that this is not known.

All arithmetic is in whole numbers. A price is in micro-dollars for a million tokens; a request's cost is rounded once,
to the nearest micro-dollar, and up from the half of one.

A cost is never made up. A model without a price, a kind of tokens without a price, or a count that nobody told give
`None`, not 0. A price of 0 says that something is not billed: then its count need not be known.

Which counts must be known: what a prompt and an answer come to, `uncached_input` and `output`. The others are parts
taken out of these where an upstream tells of them; where it tells of none, their tokens are in those two (OpenAI) or
there are none (Anthropic). Reasoning is billed as output.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from attrs import evolve, frozen

from capi_core.errors import LocalError
from capi_core.model_names import ModelName
from capi_core.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MICROS", "LongPromptConfig", "Price", "PriceConfig", "Prices"]

MICROS: Final = 1_000_000
"""Micro-dollars to a dollar, and the tokens that a price is for."""
_MAX_COST: Final = 2**53 - 1
"""In micro-dollars, nine billion dollars. What comes out above is no cost but an upstream that tells nonsense."""


@frozen(kw_only=True)
class Price:
    """The price of one model: micro-dollars for a million tokens of each kind; `None`: not known, 0: not billed.

    `request`: micro-dollars for each request, of a plan that bills requests: its price times the model's multiplier.
    `long_prompt`: the prices of all tokens of a request whose prompt, with what is cached of it, has more than
    `long_prompt_above` tokens. Raises `LocalError` for a negative price, and for a long one without its limit.
    """

    uncached_input: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    output: int | None = None
    request: int = 0
    long_prompt_above: int | None = None
    long_prompt: Price | None = None

    def __attrs_post_init__(self) -> None:
        known = (self.uncached_input, self.cache_read, self.cache_write, self.output, self.request)
        if any(price is not None and price < 0 for price in known):
            raise LocalError("a price is not negative")
        if (self.long_prompt is None) != (self.long_prompt_above is None):
            raise LocalError("a price for long prompts comes with the length from which on it holds")

    def cost(self, usage: Usage | None) -> int | None:
        """The cost of a request in micro-dollars; `None` when it is not known. `usage` is `None`: nobody told."""
        usage = usage or Usage()
        if self.long_prompt is not None and self.long_prompt_above is not None:
            if usage.uncached_input is None:
                return None  # nobody knows which price holds
            prompt = usage.uncached_input + (usage.cache_read or 0) + (usage.cache_write or 0)
            if prompt > self.long_prompt_above:
                return self.long_prompt.cost(usage)
        made = None if usage.output is None else usage.output + (usage.reasoning or 0)
        billed = (
            _product(usage.uncached_input, self.uncached_input),
            _product(usage.cache_read or 0, self.cache_read),
            _product(usage.cache_write or 0, self.cache_write),
            _product(made, self.output),
        )
        known = [part for part in billed if part is not None]
        if len(known) < len(billed):
            return None
        cost = self.request + (sum(known) + MICROS // 2) // MICROS
        return cost if cost <= _MAX_COST else None


def _product(tokens: int | None, price: int | None) -> int | None:
    """Either of them being 0, the other one need not be known."""
    if tokens == 0 or price == 0:
        return 0
    return None if tokens is None or price is None else tokens * price


class Prices:
    """Prices by the name that a model has at its upstream.

    A name in `table` is a model's, or the beginning of some with a `*` after it. What is most like the asked name wins:
    the name itself, then another spelling of it (`model_names`; one without a date stands for every snapshot), then the
    longest beginning. Where `table` has none, `others` are asked. Raises `LocalError` for a `*` elsewhere in a name.
    """

    def __init__(self, table: Mapping[str, Price], others: Prices | None = None) -> None:
        self._others = others
        self._names: dict[str, Price] = {}
        self._spellings: dict[ModelName, Price] = {}
        beginnings: dict[str, Price] = {}
        for name, price in table.items():
            beginning = name.removesuffix("*")
            if "*" in beginning:
                raise LocalError("a name of a price may only end with *")
            if beginning != name:
                beginnings[beginning] = price
            else:
                self._names[name] = price
                self._spellings.setdefault(ModelName.of(name), price)
        self._beginnings = sorted(beginnings.items(), key=lambda item: len(item[0]), reverse=True)

    @classmethod
    def configured(cls, table: Mapping[str, PriceConfig], others: Prices | None = None) -> Prices:
        """The prices that an operator wrote down; what has none there is asked of `others`."""
        return cls({name: config.price() for name, config in table.items()}, others)

    def find(self, model: str) -> Price | None:
        """The price of a model; `None` when it is not known."""
        spelling = ModelName.of(model)
        price = (
            self._names.get(model)
            or self._spellings.get(spelling)
            or self._spellings.get(ModelName(spelling.base, ""))
            or next((price for beginning, price in self._beginnings if model.startswith(beginning)), None)
        )
        return self._others.find(model) if price is None and self._others is not None else price

    def cost(self, usage: Usage | None, model: str) -> int | None:
        """The cost of a request to `model`, in micro-dollars; `None` when it is not known."""
        price = self.find(model)
        return None if price is None else price.cost(usage)


_Dollars = Annotated[float, msgspec.Meta(ge=0, le=1_000_000, description="US dollars")]


def _micros(dollars: float | None, unset: int | None) -> int | None:
    """Exact: what stands in the file is a decimal number, and its shortest float reads back as that number."""
    if dollars is None:
        return unset
    micros = Decimal(repr(dollars)) * MICROS
    if micros != int(micros):
        raise ValueError("a price is in whole millionths of a dollar")
    return int(micros)


class _TokenPrices(msgspec.Struct, frozen=True, kw_only=True):
    input: _Dollars | None = None
    """For a million tokens of a prompt that are in no cache."""
    cache_read: _Dollars | None = None
    cache_write: _Dollars | None = None
    output: _Dollars | None = None
    """For a million tokens of an answer, reasoning among them."""

    def token_price(self, unset: int | None) -> Price:
        """The prices in micro-dollars, `unset` for what has none."""
        return Price(
            uncached_input=_micros(self.input, unset),
            cache_read=_micros(self.cache_read, unset),
            cache_write=_micros(self.cache_write, unset),
            output=_micros(self.output, unset),
        )


class LongPromptConfig(_TokenPrices, frozen=True, kw_only=True):
    """The prices of a request with a long prompt, also of its first tokens."""

    above_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
    """The prompt has more tokens than this; cached ones count."""


class PriceConfig(_TokenPrices, frozen=True, kw_only=True):
    """The price of a model as an operator writes it down, in US dollars."""

    request: _Dollars | None = None
    """For each request, of a plan that bills requests. With it, tokens that have no price are not billed."""
    long_prompt: LongPromptConfig | None = None

    def __post_init__(self) -> None:
        self.price()

    def price(self) -> Price:
        """The price in micro-dollars. Raises `ValueError` for one that is no whole number of them."""
        unset = None if self.request is None else 0
        request = _micros(self.request, 0) or 0
        price = evolve(self.token_price(unset), request=request)
        if self.long_prompt is None:
            return price
        long_prompt = evolve(self.long_prompt.token_price(unset), request=request)
        return evolve(price, long_prompt_above=self.long_prompt.above_tokens, long_prompt=long_prompt)
