"""Invariant: any bytes are a configuration or a `ConfigError`, and a base URL that is taken means one thing only.

What is taken is written and read again without a change or a warning, and makes a catalog. Each problem and warning has
a place. A name stands once in each object (the standard library's `json` is the second opinion), and whoever splits a
base URL by hand finds the host that `urlsplit` found.
"""

import json
from urllib.parse import urlsplit

import msgspec

from capi_core.config import ConfigError, is_loopback_host, parse

__all__ = ["test_one_input"]


def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    assert len(dict(pairs)) == len(pairs), "a name that stands twice was taken"
    return dict(pairs)


def check_names(text: bytes) -> None:
    """In the objects that are read; what is not known is not looked into."""
    document = json.loads(text, object_pairs_hook=lambda pairs: pairs, parse_int=str)
    once(document)
    for name, value in document:
        if name in ("models", "upstreams", "limits"):
            once(value)
        if name in ("models", "upstreams"):
            for _, entry in value:
                once(entry)


def check_url(url: str, *, allow_http: bool) -> None:
    scheme, _, rest = url.partition("://")
    authority = rest.partition("/")[0]
    host = authority.partition("]")[0].removeprefix("[") if authority.startswith("[") else authority.partition(":")[0]
    assert scheme.lower() == "https" or (scheme.lower() == "http" and (allow_http or is_loopback_host(host)))
    assert host.lower() == urlsplit(url).hostname
    assert not set(url) & set(" ?#\\\r\n\t\0")
    assert "@" not in authority


def test_one_input(data: bytes) -> None:
    try:
        config, told = parse(data)
    except ConfigError as error:  # the file is what is wrong
        config, told = None, error.problems
    assert all(problem.path.startswith("$") and problem.message for problem in told)
    if config is None:
        assert told
        return
    assert parse(msgspec.json.encode(config)) == (config, ())
    config.catalog(dict.fromkeys(config.upstreams))
    for upstream in config.upstreams.values():
        if upstream.base_url is not None:
            check_url(upstream.base_url, allow_http=upstream.allow_http)
    check_names(data)
