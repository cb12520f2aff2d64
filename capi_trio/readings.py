"""The routes that tell a caller something and ask no model: models, and what is left of a seat."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

import msgspec

from capi_core.errors import Problem
from capi_core.keys import may_call
from capi_core.protocols.openai import encode_model, encode_models
from capi_trio.request import JSON, OPERATIONS, READING, wrong_method
from capi_trio.seat import NoSeatError

if TYPE_CHECKING:
    from capi_core.aliases import Catalog
    from capi_core.keys import KeyRecord
    from capi_trio.request import Request
    from capi_trio.seats import Seats

__all__ = ["answer_reading"]

_MODEL_LISTS: Final = frozenset({b"/v1/models", b"/models"})
_MODEL_PREFIXES: Final = (b"/v1/models/", b"/models/")
_USAGE: Final = b"/usage"
_NOWHERE: Final = Problem(
    404,
    "unknown_route",
    "there is nothing at this path; the API is below /v1, for example POST /v1/chat/completions",
)


async def answer_reading(request: Request, key: KeyRecord, catalog: Catalog, seats: Seats) -> None:
    """Answers a request of that key, whose body was read, if it is one of these; else refuses it."""
    path, method = request.scope["raw_path"], request.scope["method"]
    if path in OPERATIONS:
        await request.refuse(wrong_method("POST"), (b"allow", b"POST"))
    elif not _is_here(path, seats):
        await request.refuse(_NOWHERE)
    elif method not in READING:
        await request.refuse(wrong_method("GET"), (b"allow", b"GET, HEAD"))
    elif path in _MODEL_LISTS:
        await request.respond(200, JSON, encode_models(catalog.listed(partial(may_call, key))))
    elif path == _USAGE:
        await _answer_usage(request, key, seats)
    else:
        await _answer_model(request, key, catalog)


def _is_here(path: bytes, seats: Seats) -> bool:
    return path in _MODEL_LISTS or path.startswith(_MODEL_PREFIXES) or (path == _USAGE and seats.have_identities)


async def _answer_model(request: Request, key: KeyRecord, catalog: Catalog) -> None:
    name = unquote_to_bytes(request.scope["raw_path"].partition(b"/models/")[2]).decode("utf-8", "replace")
    for model in catalog.listed(partial(may_call, key)):
        if model.name == name:
            await request.respond(200, JSON, encode_model(model))
            return
    text = "there is no such model here; GET /v1/models lists what this key may use"
    await request.refuse(Problem(404, "model_not_found", text, param="model"))


async def _answer_usage(request: Request, key: KeyRecord, seats: Seats) -> None:
    try:
        usage = await seats.usage(key)
    except NoSeatError as refused:
        wait_s = refused.problem.retry_after_s
        await request.refuse(refused.problem, *([] if wait_s is None else [(b"retry-after", b"%d" % wait_s)]))
    else:
        await request.respond(200, JSON, msgspec.json.encode(usage))
