"""How much the tests of reliability do: everything with CAPI_FULL=1 (`make reliability`), else a tenth."""

import os
import sys
from typing import Final

__all__ = ["FULL", "MARK", "scaled", "tell"]

FULL: Final = os.environ.get("CAPI_FULL") == "1"
MARK: Final = "measured: "
"""What begins a line for the table of `make reliability`."""


def scaled(count: int) -> int:
    """So many of `count`, at least one."""
    return count if FULL else max(1, count // 10)


def tell(text: str) -> None:
    """Tells what was counted or measured."""
    sys.stdout.write(f"\n{MARK}{text}\n")
