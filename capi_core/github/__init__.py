"""GitHub's side of a Copilot seat: how an identity is linked, kept alive, metered, and how it asks. Pure.

- `endpoints`: which URLs a GitHub host has, and a request to it as plain data.
- `device_flow`: the device authorization grant, from a user code to a GitHub token.
- `copilot_token`: what the exchange of a GitHub token for a Copilot token answered.
- `refresh`: when to make that exchange, and what to do while there is no token.
- `account`, `quota`: whose seat it is, and what is left of it.
- `initiator`: whether a request was begun by the user or by the agent, and whether it shows images.
- `headers`: how the gateway presents itself.
"""

from __future__ import annotations

from capi_core.github.account import Account, read_account
from capi_core.github.copilot_token import CopilotToken, TokenProblem, TokenRefusal, read_copilot_token
from capi_core.github.device_flow import (
    Authorized,
    Denied,
    DeviceFlow,
    DeviceFlowEvent,
    DeviceFlowState,
    Expired,
    Failed,
    FlowFailure,
    ShowCode,
    Wait,
)
from capi_core.github.endpoints import GITHUB, Endpoint, GitHubHost, GitHubRequest
from capi_core.github.headers import ClientTraits
from capi_core.github.initiator import Initiator, has_images, initiator_of
from capi_core.github.quota import Quota, QuotaReport, read_quota
from capi_core.github.refresh import Refresh, RefreshSchedule, Refuse, TokenDecision, Use

__all__ = [
    "GITHUB",
    "Account",
    "Authorized",
    "ClientTraits",
    "CopilotToken",
    "Denied",
    "DeviceFlow",
    "DeviceFlowEvent",
    "DeviceFlowState",
    "Endpoint",
    "Expired",
    "Failed",
    "FlowFailure",
    "GitHubHost",
    "GitHubRequest",
    "Initiator",
    "Quota",
    "QuotaReport",
    "Refresh",
    "RefreshSchedule",
    "Refuse",
    "ShowCode",
    "TokenDecision",
    "TokenProblem",
    "TokenRefusal",
    "Use",
    "Wait",
    "has_images",
    "initiator_of",
    "read_account",
    "read_copilot_token",
    "read_quota",
]
