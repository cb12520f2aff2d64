"""Hosts of GitHub, and where a token may be sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import ProtocolError
from capi_core.github.endpoints import GITHUB, Endpoint, GitHubHost, GitHubRequest, base_url


@pytest.mark.parametrize("text", ["github.com", "GitHub.com", " https://github.com/ "])
def test_github_itself_has_its_apis_on_hosts_of_their_own(text: str) -> None:
    assert GitHubHost.of(text) == GITHUB
    assert GITHUB.device_code_url == "https://github.com/login/device/code"
    assert GITHUB.access_token_url == "https://github.com/login/oauth/access_token"
    assert GITHUB.verification_url == "https://github.com/login/device"


def test_a_tenant_with_data_residency_has_its_own_api_and_its_own_copilot() -> None:
    host = GitHubHost.of("octo.ghe.com")
    assert host == GitHubHost("https://octo.ghe.com", "https://api.octo.ghe.com", "https://copilot-api.octo.ghe.com")


def test_a_server_of_ones_own_has_its_api_below_a_path() -> None:
    host = GitHubHost.of("git.example.com:8443")
    assert (host.web, host.api) == ("https://git.example.com:8443", "https://git.example.com:8443/api/v3")
    assert host.copilot == GITHUB.copilot


@pytest.mark.parametrize("base", ["http://127.0.0.1:4000", "http://localhost", "http://[::1]:80"])
def test_a_simulated_github_has_everything_at_one_loopback_address(base: str) -> None:
    assert GitHubHost.of(f"{base}/") == GitHubHost(base, base, base)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "github",
        "http://github.com",
        "https://u:p@github.com",
        "github.com/login",
        "git hub.com",
        "github.com?x=1",
        "ftp://github.com",
        "-a.com",
        "a..com",
        "github.com#x",
        "github.com\r\nx: y",
        "http://127.0.0.1.evil.com",
        "x" * 600,
    ],
)
def test_anything_else_is_no_host(text: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        GitHubHost.of(text)
    assert refused.value.code == "invalid_github_host"
    assert "evil" not in str(refused.value)


def test_an_account_is_read_with_the_headers_given() -> None:
    headers = ((b"authorization", b"token gho_secret"),)
    request = GITHUB.get(Endpoint.COPILOT_TOKEN, headers)
    assert request == GitHubRequest("GET", "https://api.github.com/copilot_internal/v2/token", headers)
    assert "gho_secret" not in repr(request)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.individual.githubcopilot.com",
        "https://a.b/",
        "https://a.b/v1/x",
        "http://127.0.0.1:1/x",
        "https://a.b/" + "x" * 500,
    ],
)
def test_a_base_url_loses_its_final_slash(url: str) -> None:
    assert base_url(url) == url.rstrip("/")


@given(st.text("htps:/@?#.a1-[]\r\n é", max_size=30))
def test_what_passes_as_a_base_url_has_a_host_and_nothing_that_could_lead_elsewhere(text: str) -> None:
    found = base_url(text)
    if found is not None:
        assert found.startswith(("https://", "http://127", "http://localhost", "http://[::1]"))
        assert found.isascii()
        assert not set("@?#\r\n ") & set(found)
