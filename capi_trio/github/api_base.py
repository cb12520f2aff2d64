"""Where a Copilot token may be sent: an answer of GitHub's names the place, and is not believed in everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from capi_core.github.endpoints import GITHUB, base_url

if TYPE_CHECKING:
    from capi_core.github.endpoints import GitHubHost

__all__ = ["api_base_url"]

_COPILOT: Final = "githubcopilot.com"


def api_base_url(text: str, host: GitHubHost) -> str | None:
    """`text` without its final slash if it is a place for a Copilot token that `host` gave, else `None`.

    Whoever chooses that place is sent the token and every prompt, and has this machine connect to it (CWE-918). So it
    is https at `githubcopilot.com` or below, or at the enterprise's own host or below; and at a loopback address only
    for a GitHub that is itself at one.
    """
    base = base_url(text)
    if base is None:
        return None
    named, asked = urlsplit(base), urlsplit(host.web)
    if "http" in (named.scheme, asked.scheme):  # `base_url` takes plain HTTP for loopback addresses only
        return base if named.scheme == asked.scheme else None
    if _is_at(named, _COPILOT, (None, 443)):
        return base
    own = asked.hostname
    enterprise = own is not None and own != urlsplit(GITHUB.web).hostname
    return base if enterprise and _is_at(named, own or "", (None, 443, asked.port)) else None


def _is_at(url: SplitResult, domain: str, ports: tuple[int | None, ...]) -> bool:
    name = url.hostname or ""
    try:
        port = url.port
    except ValueError:  # more than 65535
        return False
    return (name == domain or name.endswith(f".{domain}")) and port in ports
