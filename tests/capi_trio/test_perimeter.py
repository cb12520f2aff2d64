"""Hosts, origins and forwarded addresses: what is believed, and of whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from capi_trio.perimeter import Perimeter, parse_network

if TYPE_CHECKING:
    from hypercorn.typing import HTTPScope


LOCAL = ("127.0.0.1", 5)


def scope(client: tuple[str, int] | None, **headers: str) -> HTTPScope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.1"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        "client": client,
        "server": ("127.0.0.1", 4141),
        "state": {},  # type: ignore[typeddict-item] # hypercorn's class for it is a dict
        "extensions": {},
    }


def code(perimeter: Perimeter, **headers: str) -> str | None:
    problem = perimeter.problem(scope(LOCAL, **headers))
    return None if problem is None else problem.code


@pytest.mark.parametrize("host", ["localhost", "localhost:4141", "127.0.0.1:4141", "127.9.9.9", "[::1]:4141"])
def test_loopback_hosts_are_answered(host: str) -> None:
    assert code(Perimeter(), host=host) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "127.0.0.1.nip.io",
        "0.0.0.0",  # noqa: S104
        "localhost.evil.test",
        "capi.example",
        "[",
        "127.0.0.999",
    ],
)
def test_other_hosts_are_not(host: str) -> None:
    assert code(Perimeter(), host=host) == "unknown_host"


def test_an_allowed_host_is_answered_in_any_case_and_its_pages_may_call() -> None:
    perimeter = Perimeter(frozenset({"capi.example"}))
    assert code(perimeter, host="CAPI.example:443", origin="https://capi.example") is None
    assert code(perimeter, host="capi.example", origin="https://evil.test") == "cross_site_request"


@pytest.mark.parametrize("origin", ["null", "https://evil.test", "https://localhost.evil.test", "\u00e9", ""])
def test_pages_of_other_sites_are_refused(origin: str) -> None:
    assert code(Perimeter(), host="localhost", origin=origin) == "cross_site_request"


def test_a_local_page_may_call() -> None:
    assert code(Perimeter(), host="localhost", origin="http://localhost:3000") is None


def test_a_request_without_a_host_is_http_1_0_from_here() -> None:
    assert code(Perimeter()) is None


PROXIES = (parse_network("10.0.0.0/8"), parse_network("::1"))


@pytest.mark.parametrize(
    ("client", "forwarded", "seen"),
    [
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),  # not a proxy of ours: its word is nothing
        ("10.1.1.1", "198.51.100.7", "198.51.100.7"),
        ("10.1.1.1", "6.6.6.6, 198.51.100.7", "198.51.100.7"),  # the client's own claim stands further left
        ("10.1.1.1", "198.51.100.7, 10.2.2.2", "198.51.100.7"),
        ("10.1.1.1", "10.3.3.3, 10.2.2.2", "10.3.3.3"),
        ("10.1.1.1", "198.51.100.7, nonsense", "10.1.1.1"),
        ("::1", "2001:db8::1", "2001:db8::1"),
    ],
)
def test_a_forwarded_address_is_believed_of_trusted_proxies_only(client: str, forwarded: str, seen: str) -> None:
    assert Perimeter(trusted_proxies=PROXIES).client_ip(scope((client, 5), x_forwarded_for=forwarded)) == seen


def test_without_a_header_or_an_address_there_is_what_there_is() -> None:
    assert Perimeter(trusted_proxies=PROXIES).client_ip(scope(("10.1.1.1", 5))) == "10.1.1.1"
    assert Perimeter().client_ip(scope(None)) is None
