"""The demo provider: a simulated model server that speaks real protocols, for `capi demo` and for tests.

Nothing here thinks, and nothing here is random: the same request gets the same answer. The rooms:

- `catalog`: which models there are.
- `prompt`: a request and a reply as plain data, in no protocol's shape.
- `script` (with `toolcalls`, `synthesis`, `tokens`): what the model says to a prompt. Pure.
- `faults`, `directive`: how a caller asks for trouble, in a member of the request or in words. Pure.
- `wire`: a reply's events and the trouble, turned into bytes and pauses. Pure.
- `answers`: a ready HTTP answer, and the ways to refuse.
- `seal`: reasoning that a client hands back.
- the protocols, JSON to `Prompt` and `Reply` to JSON: `chat_request`, `completion`, `chat_stream`, `chat`;
  `messages_request`, `messages`; `responses_request`, `response_object`, `responses`; `embeddings`. They share
  nothing with the gateway's own codecs, so that a mistake there meets a peer that does not make it too.
- `socket`: Responses over a WebSocket, which remembers what was said on it.
- `github`: GitHub itself: linking an account, Copilot tokens and quota, with every trouble that it can make.
- `app`: the ASGI application: routes, bodies, disconnects; `records`: what tests read of a request that ended.

Another protocol is more modules beside these and one more line in `app`'s table of routes.
"""

from capi_trio.demo.app import DemoProvider, IdCounter
from capi_trio.demo.records import Outcome, RequestRecord

__all__ = ["DemoProvider", "IdCounter", "Outcome", "RequestRecord"]
