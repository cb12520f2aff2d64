"""Where a request may come from, told by its own words: its `host`, its `origin`, and the address behind a proxy.

A browser can be made to send requests to this gateway by any page it shows. A name that a page made point here (DNS
rebinding) still stands in `host`; a page's own request names the page in `origin`. Both are held to an allow-list. What
a proxy says of its client is believed only if the connection comes from a proxy that the operator trusts.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from attrs import field, frozen

from capi_core.config import is_loopback_host
from capi_core.errors import Problem
from capi_trio.asgi import header

if TYPE_CHECKING:
    from hypercorn.typing import HTTPScope, WebsocketScope

__all__ = ["Network", "Perimeter", "parse_network"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_network(text: str) -> Network:
    """An address range such as `10.0.0.0/8`, or one address. Raises `ValueError`."""
    return ipaddress.ip_network(text, strict=False)


@frozen
class Perimeter:
    """`hosts`: names in lower case that this gateway answers to, besides loopback addresses."""

    hosts: frozenset[str] = frozenset()
    trusted_proxies: tuple[Network, ...] = field(default=())

    def problem(self, scope: HTTPScope | WebsocketScope) -> Problem | None:
        """Why a request is not served, whoever sends it; `None` when it may be."""
        host = _host_of(b"//" + (header(scope, b"host") or b"localhost"))
        if not self._is_ours(host):
            text = "this gateway does not answer to that name; the operator can add it with --allowed-host"
            return Problem(421, "unknown_host", text)
        origin = header(scope, b"origin")
        if origin is not None and not self._is_ours(_host_of(origin)):
            return Problem(403, "cross_site_request", "requests from web pages of other sites are not served")
        return None

    def client_ip(self, scope: HTTPScope | WebsocketScope) -> str | None:
        """The caller's address: the connection's, or behind trusted proxies the nearest one that is none of them."""
        client = scope["client"]
        if client is None:
            return None
        address = client[0]
        hops = (header(scope, b"x-forwarded-for") or b"").decode("ascii", "replace").split(",")
        while hops and self._is_trusted(address):
            nearer = hops.pop().strip()
            if _address(nearer) is None:
                break
            address = nearer
        return address

    def _is_ours(self, host: str) -> bool:
        return is_loopback_host(host) or host.lower() in self.hosts

    def _is_trusted(self, address: str) -> bool:
        parsed = _address(address)
        return parsed is not None and any(parsed in network for network in self.trusted_proxies)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _host_of(url: bytes) -> str:
    try:
        return urlsplit(url.decode("ascii")).hostname or ""
    except ValueError:  # not ASCII, or not a URL
        return ""
