"""Whose token it is: the answer to GET /user.

Source: GitHub REST API, "Get the authenticated user".
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from attrs import frozen

from capi_core.protocols.reading import read_json

__all__ = ["Account", "read_account"]


@frozen
class Account:
    """`login` may be changed by its owner, `id` never changes."""

    id: int
    login: str


class _User(msgspec.Struct):
    id: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    # GitHub's own rule is narrower (39 letters, digits and hyphens); managed users have an underscore besides.
    login: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.\[\]-]{1,100}$")]


_USER: Final = msgspec.json.Decoder(_User)


def read_account(body: bytes) -> Account:
    """The account in the body of a 200. Raises `ProtocolError` (502, `upstream_garbage`)."""
    user = read_json(_USER, body, status=502)
    return Account(user.id, user.login)
