"""Where a Copilot token may go: to Copilot, or to the enterprise that gave it, and nowhere else."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.github import GITHUB, GitHubHost
from capi_trio.github.api_base import api_base_url

RESIDENT = GitHubHost.of("octo.ghe.com")
SERVER = GitHubHost.of("https://ghe.example.com:8443")
DEMO = GitHubHost.of("http://127.0.0.1:4000")
COPILOT = [
    "https://api.githubcopilot.com",
    "https://api.individual.githubcopilot.com",
    "https://api.enterprise.githubcopilot.com:443",
    "https://githubcopilot.com/v1",
]


@pytest.mark.parametrize("host", [GITHUB, RESIDENT, SERVER])
@pytest.mark.parametrize("url", COPILOT)
def test_copilot_is_copilot_for_every_github(url: str, host: GitHubHost) -> None:
    assert api_base_url(url, host) == url
    assert api_base_url(f"{url}/", host) == url


@pytest.mark.parametrize("host", [GITHUB, RESIDENT, SERVER, DEMO])
def test_where_a_token_goes_when_it_names_no_place_is_allowed(host: GitHubHost) -> None:
    assert api_base_url(host.copilot, host) == host.copilot


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://copilot-api.octo.ghe.com", RESIDENT),
        ("https://octo.ghe.com/copilot", RESIDENT),
        ("https://ghe.example.com:8443", SERVER),
        ("https://copilot.ghe.example.com", SERVER),
    ],
)
def test_an_enterprise_may_serve_copilot_itself(url: str, host: GitHubHost) -> None:
    assert api_base_url(url, host) == url
    assert api_base_url(url, GITHUB) is None


@pytest.mark.parametrize("host", [GITHUB, RESIDENT, SERVER, DEMO])
@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://evil.example",
        "https://githubcopilot.com.evil.example",
        "https://evilgithubcopilot.com",
        "https://api.githubcopilot.com@evil.example",
        "https://evil.example/api.githubcopilot.com",
        "https://evil.example?api.githubcopilot.com",
        "https://evil.example#.githubcopilot.com",
        "https://evil.example\\.githubcopilot.com",
        "https://api.githubcopilot.com:22",
        "https://api.githubcopilot.com:99999",
        "https://169.254.169.254",
        "https://127.0.0.1",
        "https://10.0.0.1.githubcopilot.com.",
        "http://api.githubcopilot.com",
        "http://169.254.169.254/latest",
        "ftp://api.githubcopilot.com",
        "file:///etc/passwd",
        "https://other.ghe.com",
        "https://ghe.com",
        "https://example.com",
        "https://octo.ghe.com:8080",
    ],
)
def test_any_other_place_is_refused(url: str, host: GitHubHost) -> None:
    assert api_base_url(url, host) is None


def test_a_loopback_address_is_for_a_github_on_this_machine_only() -> None:
    for url in (f"http://{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]") for port in (4000, 9)):
        assert api_base_url(url, DEMO) == url
        assert [api_base_url(url, host) for host in (GITHUB, RESIDENT, SERVER)] == [None] * 3
    assert [api_base_url(url, DEMO) for url in COPILOT] == [None] * 4


@given(st.text(alphabet=string.ascii_lowercase + ".:/@?#\\-0123456789", max_size=30))
def test_what_stands_before_copilots_name_does_not_lead_elsewhere(text: str) -> None:
    """Whatever is let through has Copilot's own name for its host."""
    url = api_base_url(f"https://{text}.githubcopilot.com", GITHUB)
    if url is not None:
        authority = url.removeprefix("https://").partition("/")[0]
        assert authority.endswith(".githubcopilot.com")
        assert set(authority) <= {*string.ascii_lowercase, *string.digits, ".", "-"}
