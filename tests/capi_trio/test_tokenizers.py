"""Tokenizers: the right table for each model, loaded once, and an estimate where there is none."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.tokens import ESTIMATOR
from capi_trio import tokenizers
from capi_trio.tokenizers import load_counter, vendor_factor

O200K = "gpt-4o"
CL100K = "gpt-4"


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is loaded yet, nor will what the test loaded stay."""
    tokenizers._tokenizer.cache_clear()
    yield
    tokenizers._tokenizer.cache_clear()


# The first four are printed in the OpenAI Cookbook, "How to count tokens with tiktoken".
@pytest.mark.parametrize(
    ("text", "o200k", "cl100k"),
    [
        ("tiktoken is great!", 6, 6),
        ("antidisestablishmentarianism", 6, 6),
        ("2 + 2 = 4", 7, 7),
        ("お誕生日おめでとう", 8, 9),
        ("", 0, 0),
        ("hello world", 2, 2),
        ("The quick brown fox jumps over the lazy dog.", 10, 10),
        ("def f(x: int) -> int:\n    return x ** 2\n", 16, 16),
        ('{"city":"Paris","days":3}', 9, 9),
        ("人人生而自由", 4, 6),
        ("люди рождаются", 4, 8),
        ("👩‍💻🇩🇪", 9, 13),
        ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ", 21, 21),
        (" " * 100, 2, 2),
        ("a" * 10_000, 1_250, 1_250),
    ],
)
def test_counts_are_those_of_the_published_tables(text: str, o200k: int, cl100k: int) -> None:
    assert (load_counter(O200K).count(text), load_counter(CL100K).count(text)) == (o200k, cl100k)


@pytest.mark.parametrize(("text", "tokens"), [("<|endoftext|>", 7), ("<|im_start|>system<|im_end|>", 13)])
@pytest.mark.parametrize("model", [O200K, CL100K])
def test_names_of_special_tokens_are_ordinary_text(model: str, text: str, tokens: int) -> None:
    """A user who writes them must not be counted, nor be taken, for somebody who may end a turn."""
    assert load_counter(model).count(text) == tokens


@given(st.text(st.characters(exclude_categories=())))
def test_every_text_has_a_count_unpaired_surrogates_included(text: str) -> None:
    for model in (O200K, CL100K):
        tokens = load_counter(model).count(text)
        assert bool(text) <= tokens <= len(text.encode("utf-8", "replace"))


@pytest.mark.parametrize(
    "model",
    [
        "gpt-4o",
        "gpt-4o-mini-2024-07-18",
        "gpt-4-o-preview",
        "chatgpt-4o-latest",
        "gpt-4.1-nano",
        "gpt-4.5-preview",
        "gpt-5",
        "gpt-5.1-codex",
        "openai/gpt-5-mini",
        "GPT-5",
        "gpt-oss-120b",
        "ft:gpt-4o-mini:acme::x1",
        "o1",
        "o3-mini",
        "o4-mini-2025-04-16",
        "codex-mini-latest",
    ],
)
def test_models_of_o200k(model: str) -> None:
    assert load_counter(model).exact
    assert load_counter(model).count("お誕生日おめでとう") == 8


@pytest.mark.parametrize(
    "model", ["gpt-4", "gpt-4-turbo", "gpt-4-0613", "gpt-4-32k", "gpt-3.5-turbo", "gpt-35-turbo", "azure/gpt-4"]
)
def test_models_of_cl100k(model: str) -> None:
    assert load_counter(model).exact
    assert load_counter(model).count("お誕生日おめでとう") == 9


@pytest.mark.parametrize(
    "model", ["claude-opus-4.6", "gemini-3-pro", "grok-4", "o5-pro", "o1x", "my-gpt-5", "", "\ud83d"]
)
def test_other_models_are_counted_with_o200k_and_that_is_no_exact_count(model: str) -> None:
    assert not load_counter(model).exact
    assert load_counter(model).count("お誕生日おめでとう") == 8


@pytest.mark.parametrize(
    ("model", "factor"),
    [
        ("claude-opus-4-6", 1.15),
        ("anthropic/claude-sonnet-4.5", 1.15),
        ("Claude-3-5-haiku", 1.15),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", 1.15),
        ("opus", 1.15),
        ("sonnet[1m]", 1.15),
        ("gpt-5", 1.0),
        ("opuscule", 1.0),
        ("", 1.0),
    ],
)
def test_only_claudes_tokens_are_more(model: str, factor: float) -> None:
    assert vendor_factor(model) == factor


@pytest.mark.usefixtures("fresh")
def test_without_the_tokenizer_all_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "splintr", None)
    assert load_counter(O200K) is ESTIMATOR
    assert load_counter(CL100K) is ESTIMATOR


@pytest.mark.usefixtures("fresh")
def test_threads_that_come_at_once_load_a_table_once_and_count_alike() -> None:
    counts: list[int] = []
    ready = threading.Barrier(8)

    def count() -> None:
        ready.wait(10)
        counter = load_counter(O200K)
        counts.extend(counter.count(f"line {number}\n" * 50) for number in range(50))

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert tokenizers._tokenizer.cache_info().misses == 1
    assert counts == counts[:50] * 8


def test_the_tokenizer_is_not_imported_before_it_is_asked_for() -> None:
    """A gateway that only passes requests on does not pay for the tables."""
    script = "import sys, capi_trio.tokenizers; sys.exit('splintr' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)  # noqa: S603 (our own interpreter)
