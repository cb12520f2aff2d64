"""How much the tests of reliability do: everything with CAPI_FULL=1 (`make reliability`), else a tenth."""

import os
from typing import Final

__all__ = ["FULL", "scaled"]

FULL: Final = os.environ.get("CAPI_FULL") == "1"


def scaled(count: int) -> int:
    """So many of `count`, at least one."""
    return count if FULL else max(1, count // 10)
