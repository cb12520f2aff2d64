"""The tables of docs/protocols.md, made by asking the codecs: `python -m tests.support.field_matrix` rewrites them.

For each member of a protocol's request one request is translated with it and one without. What became of it is what the
ledger and the two results say. Nothing here is typed in by hand but the examples.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from capi_core.errors import ProtocolError
from capi_core.fidelity import Change, Entry, Ledger
from capi_core.members import JSONObject
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_core.target import ReasoningMember, Target, ThinkingSupport
from tests.support.request_examples import BASES, EXAMPLES, Example

__all__ = ["DOCUMENT", "fate", "rewritten", "table"]

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "protocols.md"

TARGET: Final = Target(
    "up-model",
    max_output_tokens=64_000,
    thinking=ThinkingSupport.ENABLED,
    reasoning_member=ReasoningMember.REASONING_CONTENT,
)

_WORDS: Final[Mapping[Change, str]] = {
    Change.DROPPED: "dropped",
    Change.ALTERED: "altered",
    Change.RENAMED: "renamed",
    Change.DEFAULTED: "defaulted",
    Change.SYNTHESISED: "synthesised",
}
_STOPS: Final = frozenset({"stop", "stop_sequences"})
_TABLE: Final = re.compile(r"(<!-- requests of (\w+) -->\n).*?(<!-- end of requests -->)", re.DOTALL)


def fate(client: Protocol, example: Example, upstream: Protocol) -> str:
    """What becomes of an example on its way: `carried`, `refused`, what the ledger calls it, or `no effect`."""
    base = {**BASES[client], **example.without}
    try:
        plain, before = _translate(client, base, upstream)
        changed, after = _translate(client, {**base, **example.changes}, upstream)
    except ProtocolError as error:
        return f"refused (`{error.code}`)"
    new = [entry for entry in after if entry not in before]
    told = dict.fromkeys(_WORDS[entry.change] for entry in new)
    if any(entry.lossy for entry in new):
        return ", ".join(word for word in told if word in ("dropped", "altered"))
    if upstream is Protocol.RESPONSES and example.name in _STOPS:
        return "done by capi"
    carried = "carried" if changed != plain else "no effect"
    return ", ".join([carried, *told]) if told else carried


def table(client: Protocol) -> str:
    """One row for each example: what becomes of it in each of the other protocols."""
    others = [protocol for protocol in Protocol if protocol is not client]
    rows = [f"| | to {' | to '.join(protocol.value for protocol in others)} |", "|---|---|---|"]
    for example in EXAMPLES[client]:
        fates = " | ".join(fate(client, example, other) for other in others)
        rows.append(f"| {example.name} | {fates} |")
    return "\n".join(rows) + "\n"


def rewritten(document: str) -> str:
    """The document with every table as the codecs have it."""
    return _TABLE.sub(lambda found: found[1] + table(Protocol(found[2])) + found[3], document)


def _translate(client: Protocol, request: Mapping[str, object], upstream: Protocol) -> tuple[bytes, list[Entry]]:
    ledger = Ledger()
    conversation = CODECS[client].decode_request(JSONObject(msgspec.json.encode(request)), ledger)
    body = CODECS[upstream].encode_request(conversation, TARGET, ledger).body
    return body, list(ledger)


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text()))
    sys.exit(0)
