"""The demo provider: a simulated model server that speaks real protocols, for `capi demo` and for tests.

Nothing here thinks, and nothing here is random: the same request gets the same answer. The rooms:

- `catalog`: which models there are.
- `prompt`: a request and a reply as plain data, in no protocol's shape.
- `script` (with `toolcalls`, `synthesis`, `tokens`): what the model says to a prompt. Pure.
- `faults`: how a caller asks for trouble. Pure.
- `wire`: a reply's events and the trouble, turned into bytes and pauses. Pure.
- `answers`: a ready HTTP answer, and the ways to refuse.
- one module per protocol (`chat_request`, `chat`, `embeddings`): JSON to `Prompt`, `Reply` to JSON.
- `app`: the ASGI application: routes, bodies, disconnects, the record that tests read.

Another protocol is one more module beside `chat` and one more line in `app`'s table of routes.
"""

from capi_trio.demo.app import DemoProvider, IdCounter, Outcome, RequestRecord

__all__ = ["DemoProvider", "IdCounter", "Outcome", "RequestRecord"]
