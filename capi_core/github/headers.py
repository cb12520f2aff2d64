"""How the gateway presents itself to GitHub and to Copilot: the least that both take, as data.

Copilot refuses a request without an integration and an editor version (wire.md 1.8). The user agent is the gateway's
own and says so. What a later Copilot wants besides goes into `extra`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import Attribute, field, frozen

from capi_core.errors import LocalError
from capi_core.request_head import TOKEN

if TYPE_CHECKING:
    from capi_core.github.initiator import Initiator
    from capi_core.headers import Headers

__all__ = ["RESERVED_NAMES", "ClientTraits"]

_OURS: Final = frozenset(
    {
        b"authorization",
        b"accept",
        b"content-type",
        b"content-length",
        b"host",
        b"x-initiator",
        b"copilot-vision-request",
    }
)
"""What no configuration may set: credentials, framing, and what is billed by."""
RESERVED_NAMES: Final = frozenset(name.decode() for name in _OURS)


def _one_line(_instance: ClientTraits, attribute: Attribute[str], value: str) -> None:
    if not value.strip() or not _is_value(value):
        raise LocalError(f"{attribute.name} is not the value of a header")


def _free(_instance: ClientTraits, _attribute: Attribute[Headers], value: Headers) -> None:
    for name, text in value:
        if not TOKEN.fullmatch(name) or name != name.lower() or name in _OURS or not _is_value(text.decode("latin-1")):
            raise LocalError("an extra header has a lower-case name that is free to be set, and a value on one line")


def _is_value(text: str) -> bool:
    return text.isascii() and text.isprintable()


@frozen
class ClientTraits:
    """Raises `LocalError` for values that would not be one header each.

    `user_agent`: the gateway's, with its version. `editor_version`: `NAME/VERSION`. `integration_id`: one that Copilot
    knows. `extra`: further headers to Copilot, names in lower case; they replace those of the same name.
    """

    user_agent: str = field(validator=_one_line)
    editor_version: str = field(validator=_one_line)
    integration_id: str = field(default="vscode-chat", validator=_one_line)
    github_api_version: str = field(default="2025-04-01", validator=_one_line)
    copilot_api_version: str = field(default="2025-05-01", validator=_one_line)
    extra: Headers = field(default=(), validator=_free)

    def github_headers(self, token: str) -> Headers:
        """The head of a request to GitHub's REST API; `token` is the identity's GitHub token."""
        return (
            (b"accept", b"application/json"),
            (b"authorization", b"token " + _credential(token)),
            (b"user-agent", self.user_agent.encode()),
            (b"editor-version", self.editor_version.encode()),
            (b"x-github-api-version", self.github_api_version.encode()),
        )

    def copilot_headers(self, token: str, *, initiator: Initiator | None = None, images: bool = False) -> Headers:
        """What a request to Copilot has besides the head that every upstream request has.

        `token`: the Copilot token. `initiator`: of a request to a model. `images`: that request shows images.
        """
        extra = dict(self.extra)
        usual = (
            (b"user-agent", self.user_agent.encode()),
            (b"copilot-integration-id", self.integration_id.encode()),
            (b"editor-version", self.editor_version.encode()),
            (b"x-github-api-version", self.copilot_api_version.encode()),
        )
        found = [(b"authorization", b"Bearer " + _credential(token))]
        found += [header for header in usual if header[0] not in extra]
        if initiator is not None:
            found.append((b"x-initiator", initiator.value.encode()))
        if images:
            found.append((b"copilot-vision-request", b"true"))
        return (*found, *self.extra)


def _credential(token: str) -> bytes:
    """A token as it goes on the wire. Raises `LocalError`: a line feed from a token's file would end the header."""
    if not token or not _is_value(token) or " " in token:
        raise LocalError("a token is visible ASCII")
    return token.encode()
