"""POST /v1/embeddings: vectors that depend on nothing but the input (wire.md 1.3). Pure."""

import base64
import hashlib
import math
import struct
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from capi_trio.demo import catalog
from capi_trio.demo.answers import Answer, Refused, Request, World, decode
from capi_trio.demo.faults import parse_options
from capi_trio.demo.tokens import estimate_tokens
from capi_trio.demo.wire import whole_answer

__all__ = ["DEFAULT_DIMENSIONS", "answer", "embed"]

DEFAULT_DIMENSIONS: Final = 64
_MAX_INPUTS: Final = 2048


class EmbeddingRequest(msgspec.Struct, frozen=True):
    model: str | None = None
    # One union of arrays is all that msgspec can tell apart: what they hold is sorted out in `_inputs`.
    input: str | list[str | int | list[int]] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=4096)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    demo: object = None


def answer(incoming: Request, _world: World) -> Answer:
    """The answer to a request. Raises `Refused` for one that OpenAI's server would not take."""
    request = decode(incoming.body, EmbeddingRequest)
    options = parse_options(request.demo, streaming=False)
    model = catalog.serving(request.model, catalog.EMBEDDINGS_ENDPOINT)
    inputs = _inputs(request.input)
    tokens = [_tokens(item) for item in inputs]
    if max(tokens) > model.max_prompt_tokens:
        message = f"An input is longer than {model.max_prompt_tokens} tokens."
        raise Refused.because(message, "context_length_exceeded", "input")
    dimensions = request.dimensions or DEFAULT_DIMENSIONS
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _encoded(embed(item, dimensions), request.encoding_format),
        }
        for index, item in enumerate(inputs)
    ]
    usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
    return whole_answer({"object": "list", "data": data, "model": model.id, "usage": usage}, options)


def embed(item: str | tuple[int, ...], dimensions: int) -> tuple[float, ...]:
    """The unit vector of a text, or of token numbers. Each component is exactly a 32-bit float."""
    key = b"text:" + item.encode() if isinstance(item, str) else b"tokens:" + repr(item).encode()
    digest = hashlib.shake_256(key).digest(4 * dimensions)
    # Odd numbers only: no component is zero, so there is always a length to divide by.
    raw = [float(2 * number + 1) for number in struct.unpack(f"<{dimensions}i", digest)]
    length = math.hypot(*raw)
    return struct.unpack(f"<{dimensions}f", struct.pack(f"<{dimensions}f", *(x / length for x in raw)))


def _encoded(vector: tuple[float, ...], form: str | None) -> str | tuple[float, ...]:
    """Floats as they are, or base64 of their little-endian 32-bit form."""
    if form != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _inputs(value: str | list[str | int | list[int]] | None) -> list[str | tuple[int, ...]]:
    """The inputs as a list: a text, texts, one array of tokens, or several."""
    inputs: list[str | tuple[int, ...]] = []
    if isinstance(value, str):
        inputs = [value]
    elif value is not None:
        texts = [item for item in value if isinstance(item, str)]
        numbers = [item for item in value if isinstance(item, int)]
        arrays = [tuple(item) for item in value if isinstance(item, list)]
        if sum(1 for kind in (texts, numbers, arrays) if kind) > 1:
            raise Refused.because("'input' must not mix texts and tokens.", "invalid_type", "input")
        inputs = [*texts, *arrays, *([tuple(numbers)] if numbers else ())]
    if not inputs or not all(inputs):
        raise Refused.because("'input' must be given, and no input may be empty.", "invalid_input", "input")
    if len(inputs) > _MAX_INPUTS:
        raise Refused.because(f"At most {_MAX_INPUTS} inputs are allowed.", "array_above_max_length", "input")
    return inputs


def _tokens(item: str | tuple[int, ...]) -> int:
    return estimate_tokens(item) if isinstance(item, str) else len(item)
