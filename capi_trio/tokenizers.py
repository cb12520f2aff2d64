"""Which tokenizer counts for which model.

The tables of tokens come with splintr, an optional dependency (`pip install capi-gateway[tokens]`); without it all is
estimated. It is imported when the first count is asked for: loading takes tens of milliseconds and megabytes.
"""

from __future__ import annotations

import functools
import re
import threading
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from capi_core.tokens import ESTIMATOR, TextCounter

if TYPE_CHECKING:
    from splintr import AnyTokenizer

__all__ = ["load_counter", "vendor_factor"]

_CL100K: Final = re.compile(r"gpt-(?:4(?![.o\d]|-o-)|3\.?5)")
_O200K: Final = re.compile(r"(?:chat)?gpt-(?:4o|4-o-|4\.[15]|5|oss)|o[134](?![^-])|codex-mini")
"""The names of OpenAI's models that are known to have that encoding (tiktoken's table of models)."""
_CLAUDE: Final = re.compile(r"claude|(?:opus|sonnet|haiku)(?![a-z])")
_CLAUDE_FACTOR: Final = 1.15
"""Claude's tokenizer is not public. 1.15 is what others who count for it with OpenAI's tables use (wire.md 4)."""

_LOADING: Final = threading.Lock()


@frozen
class _SplintrCounter:
    """Counts with one of splintr's tables; its cache is bounded. `exact`: the table is the model's own."""

    exact: bool
    _tokenizer: AnyTokenizer = field(repr=False, alias="tokenizer")

    def count(self, text: str) -> int:
        try:
            return len(self._tokenizer.encode_ordinary(text))
        except UnicodeEncodeError:  # unpaired surrogates, which no tokenizer takes
            return len(self._tokenizer.encode_ordinary(text.encode("utf-8", "replace").decode()))


def load_counter(model: str) -> TextCounter:
    """The counter for a model, by the name that its provider knows it by.

    Models that are not OpenAI's are counted with `o200k_base`, which is then not exact. Without splintr it is
    `ESTIMATOR`. The first call for a table loads it, up to 0.1 s. May be called from any thread.
    """
    name = _bare(model)
    if _CL100K.match(name):
        return _load("cl100k_base", exact=True)
    return _load("o200k_base", exact=_O200K.match(name) is not None)


def vendor_factor(model: str) -> float:
    """How many of its vendor's tokens one token of `load_counter(model)` is."""
    return _CLAUDE_FACTOR if _CLAUDE.search(model.lower()) else 1.0


def _bare(model: str) -> str:
    """Without the vendor before it (`openai/`) and the mark of a fine-tuned model (`ft:`)."""
    return model.strip().lower().rpartition("/")[2].removeprefix("ft:")


def _load(encoding: str, *, exact: bool) -> TextCounter:
    with _LOADING:  # or threads that come at once would each load the tables
        tokenizer = _tokenizer(encoding)
    return ESTIMATOR if tokenizer is None else _SplintrCounter(exact, tokenizer)


@functools.cache
def _tokenizer(encoding: str) -> AnyTokenizer | None:
    try:
        from splintr import Tokenizer
    except ImportError:
        return None
    return Tokenizer.from_pretrained(encoding)
