"""Linking a GitHub identity: the device flow on trio's clock, and whose token it brought."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from capi_core.github.copilot_token import TokenProblem
from capi_core.github.device_flow import Authorized, Denied, Expired, Failed, ShowCode, Wait
from capi_trio.github.client import GitHubFailedError
from capi_trio.upstream import Secret, UpstreamFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from capi_core.github.account import Account
    from capi_core.github.device_flow import DeviceFlow
    from capi_core.github.endpoints import GitHubRequest
    from capi_trio.github.client import GitHubClient

__all__ = ["CLIENT_ID", "LinkedAccount", "account_of", "link", "run_device_flow"]

CLIENT_ID: Final = "Iv1.b507a08c87ecfe98"
"""The OAuth app whose tokens can be exchanged for Copilot's (spec.md 4.3). Public: a device flow has no secret."""

_ASKED: Final = 4
_PAUSE_S: Final = 2.0
_MOST_PAUSE_S: Final = 30.0
_PASSING: Final = frozenset(
    {TokenProblem.UNREACHABLE, TokenProblem.SERVER_ERROR, TokenProblem.RATE_LIMITED, TokenProblem.GARBAGE}
)

FlowEnd = Authorized | Denied | Expired | Failed


@frozen
class LinkedAccount:
    """A GitHub token, and whose it is."""

    token: Secret
    account: Account


async def run_device_flow(client: GitHubClient, flow: DeviceFlow, show: Callable[[ShowCode], None]) -> FlowEnd:
    """Runs a new flow to its end; `show` is called once, with the code for the user.

    A lost network is waited out for as long as the code lives. May be cancelled at any time: nothing was stored, and a
    token that GitHub gave just then is known to nobody.
    """
    request = flow.start()
    while True:
        until = await _step(client, flow, request, show)
        if not isinstance(until, float):
            return until
        await trio.sleep_until(until)
        request = flow.poll(trio.current_time())


async def _step(
    client: GitHubClient, flow: DeviceFlow, request: GitHubRequest, show: Callable[[ShowCode], None]
) -> float | FlowEnd:
    """One request: when to send the next one, or how it ended."""
    try:
        answer = await client.send(request)
    except UpstreamFailedError:
        events = flow.receive_failure(trio.current_time())
    else:
        events = flow.receive(answer.status, answer.body, trio.current_time())
    for event in events:
        match event:
            case ShowCode():
                show(event)
            case Wait(until):
                return until
            case _:
                return event
    raise AssertionError("the device flow waits or ends")


async def link(
    client: GitHubClient, flow: DeviceFlow, show: Callable[[ShowCode], None]
) -> LinkedAccount | Denied | Expired | Failed:
    """Runs a new flow to its end and asks whose token it brought. Raises `GitHubFailedError` when nobody would say."""
    end = await run_device_flow(client, flow, show)
    if not isinstance(end, Authorized):
        return end
    return await account_of(client, Secret(end.token))


async def account_of(client: GitHubClient, token: Secret) -> LinkedAccount:
    """Asks whose token it is, several times if need be: the user has just done their part, and would have to again.

    Raises `GitHubFailedError`.
    """
    for attempt in range(_ASKED):
        try:
            return LinkedAccount(token, await client.account(token))
        except GitHubFailedError as error:
            if error.problem not in _PASSING or attempt == _ASKED - 1:
                raise
            pause = max(_PAUSE_S * 2.0**attempt, error.retry_after_s or 0)
        await trio.sleep(min(pause, _MOST_PAUSE_S))
    raise AssertionError("the last attempt returns or raises")
