"""Which URLs a GitHub host has, and a request to it as plain data.

Sources: GitHub docs, "Authorizing OAuth apps", "Getting started with the REST API" (Enterprise Cloud with data
residency: `api.SUBDOMAIN.ghe.com`; Enterprise Server: `HOSTNAME/api/v3`); spec.md 4.3 for `copilot_internal`.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from attrs import field, frozen

from capi_core.errors import ProtocolError

if TYPE_CHECKING:
    from capi_core.headers import Headers

__all__ = ["GITHUB", "Endpoint", "GitHubHost", "GitHubRequest", "base_url"]

_MOST_URL: Final = 512
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME: Final = rf"{_LABEL}(?:\.{_LABEL})+"
_BASE: Final = re.compile(rf"https://{_NAME}(?::[0-9]{{1,5}})?(?:/[A-Za-z0-9._~/-]*)?")
_LOOPBACK: Final = re.compile(
    r"http://(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?"
)
_DATA_RESIDENCY: Final = ".ghe.com"


class Endpoint(enum.Enum):
    """What is read of an account; the value is the path below `GitHubHost.api`."""

    USER = "/user"
    COPILOT_TOKEN = "/copilot_internal/v2/token"  # noqa: S105  (a path)
    COPILOT_USER = "/copilot_internal/user"


@frozen
class GitHubRequest:
    """A request to send as it is. `headers` and `body` may hold a token or a device code."""

    method: str
    url: str
    headers: Headers = field(repr=False)
    body: bytes = field(default=b"", repr=False)


@frozen
class GitHubHost:
    """Base URLs without a final slash: the pages, the REST API, and Copilot where a token does not name its own."""

    web: str
    api: str
    copilot: str

    @classmethod
    def of(cls, text: str) -> GitHubHost:
        """The host that an operator names: `github.com`, `octo.ghe.com`, `ghe.example.com`, with or without `https://`.

        `http://` is for loopback addresses only: a simulated GitHub, which has everything at one base URL. Raises
        `ProtocolError` with the code `invalid_github_host` for anything else.
        """
        url = text.strip().lower().rstrip("/")
        base = base_url(url if "://" in url else f"https://{url}")
        if base is None or urlsplit(base).path:
            message = "a GitHub host is a host name, such as github.com or octo.ghe.com, without a path"
            raise ProtocolError(message, code="invalid_github_host")
        host = base.partition("://")[2]
        if base.startswith("http://"):
            return cls(base, base, base)
        if host == "github.com":
            return GITHUB
        if host.endswith(_DATA_RESIDENCY):
            return cls(base, f"https://api.{host}", f"https://copilot-api.{host}")
        return cls(base, f"{base}/api/v3", GITHUB.copilot)

    @property
    def device_code_url(self) -> str:
        return f"{self.web}/login/device/code"

    @property
    def access_token_url(self) -> str:
        return f"{self.web}/login/oauth/access_token"

    @property
    def verification_url(self) -> str:
        """The page on which a user enters the code."""
        return f"{self.web}/login/device"

    def get(self, endpoint: Endpoint, headers: Headers) -> GitHubRequest:
        """The request that reads `endpoint`; `headers` as `ClientTraits.github_headers` makes them."""
        return GitHubRequest("GET", self.api + endpoint.value, headers)


GITHUB: Final = GitHubHost("https://github.com", "https://api.github.com", "https://api.githubcopilot.com")


def base_url(text: str) -> str | None:
    """`text` without its final slash if requests with a token may go there, else `None`.

    That is https to a host name, or http to a loopback address; no user, query or fragment.
    """
    if len(text) > _MOST_URL or not (_BASE.fullmatch(text) or _LOOPBACK.fullmatch(text)):
        return None
    return text.rstrip("/")
