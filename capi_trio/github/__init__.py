"""GitHub's side of a Copilot seat on trio: what is asked of GitHub, how an identity is linked, and its live token.

- `api_base`: where a Copilot token may be sent.
- `client`: requests to one GitHub host, and no other.
- `linking`: the device flow, from a code on the operator's screen to a token and its account.
- `tokens`: one identity's Copilot token, always a live one while GitHub gives any.

What the answers mean is decided in `capi_core.github`.
"""
