"""The routes that tell a caller something and ask no model: models, what it has used, and what is left of a seat."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, unquote_to_bytes

import msgspec

from capi_core.errors import Problem
from capi_core.keys import may_call
from capi_core.protocols.openai import encode_model, encode_models
from capi_trio.logs import get_logger
from capi_trio.request import JSON, OPERATIONS, READING, wrong_method
from capi_trio.seat import NoSeatError
from capi_trio.storage.errors import StorageError
from capi_trio.usage_reports import DEFAULT_SINCE, SinceError, UsageBy

if TYPE_CHECKING:
    from capi_core.aliases import Catalog
    from capi_core.keys import KeyRecord
    from capi_trio.request import Request
    from capi_trio.seats import Seats
    from capi_trio.usage_reports import UsageReports

__all__ = ["USAGE_PATHS", "answer_reading"]

_MODEL_LISTS: Final = frozenset({b"/v1/models", b"/models"})
_MODEL_PREFIXES: Final = (b"/v1/models/", b"/models/")
_SEAT_USAGE: Final = b"/usage"
USAGE_PATHS: Final = frozenset({b"/v1/usage"})
_NOWHERE: Final = Problem(
    404,
    "unknown_route",
    "there is nothing at this path; the API is below /v1, for example POST /v1/chat/completions",
)


_UNREAD: Final = Problem(503, "usage_unavailable", "the database cannot be read; the log of this gateway says why")


async def answer_reading(
    request: Request, key: KeyRecord, catalog: Catalog, seats: Seats, usage: UsageReports | None = None
) -> None:
    """Answers a request of that key, whose body was read, if it is one of these; else refuses it.

    Without `usage` there is no route that tells what a key has used.
    """
    path, method = request.scope["raw_path"], request.scope["method"]
    if path in OPERATIONS:
        await request.refuse(wrong_method("POST"), (b"allow", b"POST"))
    elif not _is_here(path, seats, usage):
        await request.refuse(_NOWHERE)
    elif method not in READING:
        await request.refuse(wrong_method("GET"), (b"allow", b"GET, HEAD"))
    elif path in _MODEL_LISTS:
        await request.respond(200, JSON, encode_models(catalog.listed(partial(may_call, key))))
    elif path == _SEAT_USAGE:
        await _answer_seat_usage(request, key, seats)
    elif path in USAGE_PATHS and usage is not None:
        await _answer_own_usage(request, key, usage)
    else:
        await _answer_model(request, key, catalog)


def _is_here(path: bytes, seats: Seats, usage: UsageReports | None) -> bool:
    if path == _SEAT_USAGE:
        return seats.have_identities
    if path in USAGE_PATHS:
        return usage is not None
    return path in _MODEL_LISTS or path.startswith(_MODEL_PREFIXES)


async def _answer_model(request: Request, key: KeyRecord, catalog: Catalog) -> None:
    name = unquote_to_bytes(request.scope["raw_path"].partition(b"/models/")[2]).decode("utf-8", "replace")
    for model in catalog.listed(partial(may_call, key)):
        if model.name == name:
            await request.respond(200, JSON, encode_model(model))
            return
    text = "there is no such model here; GET /v1/models lists what this key may use"
    await request.refuse(Problem(404, "model_not_found", text, param="model"))


async def _answer_seat_usage(request: Request, key: KeyRecord, seats: Seats) -> None:
    try:
        usage = await seats.usage(key)
    except NoSeatError as refused:
        wait_s = refused.problem.retry_after_s
        await request.refuse(refused.problem, *([] if wait_s is None else [(b"retry-after", b"%d" % wait_s)]))
    else:
        await request.respond(200, JSON, msgspec.json.encode(usage))


async def _answer_own_usage(request: Request, key: KeyRecord, usage: UsageReports) -> None:
    """What this key has used, by model: never anything of another key, whoever asks."""
    query = parse_qs(request.scope["query_string"].decode("ascii", "replace"), keep_blank_values=True)
    since = query.get("since", [DEFAULT_SINCE])
    try:
        if len(since) > 1:
            raise SinceError("since was given more than once")
        report = await usage.report(since[0], UsageBy.MODEL, key_id=key.id)
    except SinceError as error:
        await request.refuse(Problem(400, "invalid_since", str(error), param="since"))
    except StorageError as error:
        get_logger("usage").warning("usage_not_read", reason=str(error))
        await request.refuse(_UNREAD)
    else:
        await request.respond(200, JSON, msgspec.json.encode(report))
