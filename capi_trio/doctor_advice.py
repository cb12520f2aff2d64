"""What an answer that is none says, in a few words, and what the operator does about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capi_core.exchange import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capi_core.protocols.kinds import Protocol
    from capi_trio.client_session import Heard

__all__ = ["MODELS", "advice_for", "said_of"]

_FAILURES: Final[Mapping[Failure, str]] = {
    Failure.UNREACHABLE: "start the gateway, or name its address with --url",
    Failure.BROKEN: "look for this request in capi's log; a proxy in between may have cut it",
    Failure.TIMEOUT: "look for this request in capi's log; the upstream may be stuck",
}
MODELS: Final = "`capi models` lists the names, `capi keys list` what a key may use"
_UPSTREAM: Final = "the upstream is at fault; capi's log says which and how"
_CODES: Final[Mapping[str, str]] = {
    "admin_key_unread": "read and delete admin.key.txt in the gateway's data directory",
    "budget_exceeded": "raise the key's budget, or wait until it begins anew",
    "lossy_translation": "turn strict_fidelity off for the upstream, or use a model that speaks this client's protocol",
    "model_not_served": "this model is for something else, such as embeddings: use another",
    "model_not_allowed": "allow the key this model: `capi keys edit`",
    "rate_limit_exceeded": "wait a minute, or raise the key's limit: `capi keys edit --rpm`",
    "unknown_host": "start the gateway with --allowed-host and the name in --url",
    "unknown_model": f"`strict` is on, and this is no alias: {MODELS}",
    "unknown_route": "name the gateway's address with --url, without a path",
    "untranslatable": "use a model whose upstream speaks this client's protocol: docs/protocols.md",
    "upstream_timeout": "the upstream is too slow: raise its time limits, or look at it",
    "upstream_unauthorized": "check the upstream's api_key_env or api_key_file in the configuration",
    "upstream_unreachable": "check that the upstream runs and that its base_url is right",
}
_STATUSES: Final[Mapping[int, str]] = {
    400: "its line in capi's log tells who refused it: refused_invalid is capi, upstream_error the model's server",
    401: "the key is unknown, revoked or expired: `capi keys list`; `capi keys create` makes another",
    403: f"the key may not do this: {MODELS}",
    404: f"no such model here: {MODELS}",
    413: "raise limits.max_body_bytes",
    429: "too many requests: wait, or raise the limit of the key (`capi keys edit --rpm`) or of the account behind it",
    503: "wait until the gateway has started; its log says what it waits for",
    504: "the upstream is too slow: raise its time limits, or look at it",
}
_NO_KEY: Final = "name the file with a client key with --key-file, or set CAPI_API_KEY"
_REDIRECT: Final = "something else answers at --url: name the gateway's own address"


def said_of(heard: Heard) -> str:
    """How it went wrong, and under which id the gateway logged it. Quotes nothing but a code."""
    if heard.failure is not None:
        return f"no whole answer: {heard.reason}"
    told = "" if not heard.code else f" {heard.code}"
    logged = "" if heard.request_id is None else f" ({heard.request_id})"
    if heard.status != 200:
        return f"answered with {heard.status}{told}{_breaking(heard)}{logged}"
    if heard.code is not None:
        return f"the stream ended with an error{told}{logged}"
    return f"{heard.events} events{_breaking(heard)}{logged}"


def advice_for(heard: Heard, protocol: Protocol, *, has_key: bool) -> str:
    """What to do next. `has_key`: a key was sent."""
    if heard.failure is not None:
        return _FAILURES.get(heard.failure, _UPSTREAM)
    if heard.status == 401 and not has_key:
        return _NO_KEY
    if heard.code and heard.code in _CODES:
        return _CODES[heard.code]
    if heard.status == 200:
        if heard.code is not None:
            return _UPSTREAM
        return f"`capi conform --protocol {protocol.value}` tells where; the upstream's own stream may be at fault"
    return _STATUSES.get(heard.status or 0, _UPSTREAM if (heard.status or 0) >= 500 else _REDIRECT)


def _breaking(heard: Heard) -> str:
    rules = (*heard.broken, *heard.odd)
    return f", breaking {', '.join(rules)}" if rules else ""
