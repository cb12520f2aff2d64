"""Cache marks are kept to what Anthropic takes."""

import pytest

from capi_core.conversation import CacheMark
from capi_core.fidelity import Change, Ledger
from capi_core.protocols.messages.cache_marks import CacheMarks, trim


@pytest.mark.parametrize(
    ("cache", "control", "noted"),
    [
        (None, None, []),
        (CacheMark(), {"type": "ephemeral"}, []),
        (CacheMark("1h"), {"type": "ephemeral", "ttl": "1h"}, []),
        (CacheMark("24h"), {"type": "ephemeral"}, [(Change.ALTERED, "$.a")]),
    ],
)
def test_a_mark_is_set_where_the_sender_set_it(
    cache: CacheMark | None, control: object, noted: list[tuple[Change, str]]
) -> None:
    ledger = Ledger()
    part = CacheMarks(ledger).put({"type": "text"}, cache, "$.a")
    assert part.get("cache_control") == control
    assert [(entry.change, entry.path) for entry in ledger] == noted


def test_the_last_four_marks_stay() -> None:
    ledger = Ledger()
    tools, turns = CacheMarks(ledger), CacheMarks(ledger)
    later = [turns.put({}, CacheMark(), f"$.m[{place}]") for place in range(4)]
    first = [tools.put({}, CacheMark(), f"$.t[{place}]") for place in range(2)]
    trim((tools, turns), ledger)
    assert (first, all(later)) == ([{}, {}], True)
    assert [(entry.change, entry.path) for entry in ledger] == [(Change.DROPPED, "$.t[0]"), (Change.DROPPED, "$.t[1]")]
