"""The prices that capi brings along: list prices of what is asked most often. An operator's own come before them.

They are from three places, Claude's as of October 2026, the others as of the summer of that year:

- Anthropic's documentation, its page of prices and the pages of its models: Claude. Cache writes are those of five
  minutes, as `Usage` does not tell them from those of an hour, which cost 1.6 times as much.
- The table of models and prices in GitHub's documentation of Copilot: OpenAI's and Google's models. Where both could be
  compared, these are the prices of the models' makers.
- Notes on releases of two public price lists, `claudit` and `PromptFuel`, which were held against Anthropic's page that
  month: Claude Haiku 5.5, and the cache reads of Claude Sonnet 5.5, which became cheaper on 2026-10-07.

What is not here has no price: models whose sources disagree (GPT-5.6 Luna), that are cheaper for a time (Gemini 3.6 and
3.7 Flash), or of which nothing could be read. Batches, priority, fast modes and regions have prices of their own, and
are not told apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core.prices import LongPromptConfig, PriceConfig, Prices

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEFAULT_PRICES", "PRICE_TABLE"]

_OPUS: Final = PriceConfig(input=5, cache_write=6.25, cache_read=0.5, output=25)
_SONNET_4: Final = PriceConfig(input=3, cache_write=3.75, cache_read=0.3, output=15)
_GPT_5_2: Final = PriceConfig(input=1.75, cache_read=0.175, output=14)

PRICE_TABLE: Final[Mapping[str, PriceConfig]] = {
    "claude-fable-5-1": PriceConfig(input=10, cache_write=12.5, cache_read=0.25, output=50),
    "claude-fable-5": PriceConfig(input=10, cache_write=12.5, cache_read=1, output=50),
    "claude-opus-5-5": PriceConfig(input=4, cache_write=5, cache_read=0.2, output=20),
    "claude-opus-5": _OPUS,
    "claude-opus-4-8": _OPUS,
    "claude-opus-4-7": _OPUS,
    "claude-opus-4-6": _OPUS,
    "claude-opus-4-5": _OPUS,
    "claude-opus-4-1": PriceConfig(input=15, cache_write=18.75, cache_read=1.5, output=75),
    "claude-sonnet-5-5": PriceConfig(input=2, cache_write=2.5, cache_read=0.1, output=10),
    "claude-sonnet-5": PriceConfig(input=2, cache_write=2.5, cache_read=0.2, output=10),
    "claude-sonnet-4-6": _SONNET_4,
    "claude-sonnet-4-5": _SONNET_4,
    "claude-sonnet-4": _SONNET_4,
    "claude-haiku-5-5": PriceConfig(
        input=0.1,
        cache_write=0.125,
        cache_read=0.01,
        output=0.5,
        long_prompt=LongPromptConfig(above_tokens=100_000, input=0.5, cache_write=0.625, cache_read=0.05, output=2.5),
    ),
    "claude-haiku-4-5": PriceConfig(input=1, cache_write=1.25, cache_read=0.1, output=5),
    "gpt-4.1": PriceConfig(input=2, cache_read=0.5, output=8),
    "gpt-5-mini": PriceConfig(input=0.25, cache_read=0.025, output=2),
    "gpt-5.2": _GPT_5_2,
    "gpt-5.2-codex": _GPT_5_2,
    "gpt-5.3-codex": _GPT_5_2,
    "gpt-5.4": PriceConfig(
        input=2.5,
        cache_read=0.25,
        output=15,
        long_prompt=LongPromptConfig(above_tokens=272_000, input=5, cache_read=0.5, output=22.5),
    ),
    "gpt-5.4-mini": PriceConfig(input=0.75, cache_read=0.075, output=4.5),
    "gpt-5.4-nano": PriceConfig(input=0.2, cache_read=0.02, output=1.25),
    "gpt-5.5": PriceConfig(
        input=5,
        cache_read=0.5,
        output=30,
        long_prompt=LongPromptConfig(above_tokens=272_000, input=10, cache_read=1, output=45),
    ),
    "gpt-5.6-sol": PriceConfig(
        input=5,
        cache_write=6.25,
        cache_read=0.5,
        output=30,
        long_prompt=LongPromptConfig(above_tokens=272_000, input=10, cache_write=12.5, cache_read=1, output=45),
    ),
    "gpt-5.6-terra": PriceConfig(
        input=2,
        cache_write=2.5,
        cache_read=0.2,
        output=12,
        long_prompt=LongPromptConfig(above_tokens=272_000, input=4, cache_write=5, cache_read=0.4, output=18),
    ),
    "gemini-3.1-pro-preview": PriceConfig(
        input=2,
        cache_read=0.2,
        output=12,
        long_prompt=LongPromptConfig(above_tokens=200_000, input=4, cache_read=0.4, output=18),
    ),
    "gemini-3.5-flash": PriceConfig(input=1.5, cache_read=0.15, output=9),
}
"""By the names that their makers, or Copilot, give them."""

DEFAULT_PRICES: Final = Prices.configured(PRICE_TABLE)
