"""Whether each core module is covered wholly by its own test file: `make cov` runs it after the core's tests.

A line that only another module's tests reach is covered by accident, and stays without a test that says what it is for.
tests/conftest.py marks what ran with the test file that ran it; what ran at import has no mark and counts for all.
"""

import io
import re
import sys
from pathlib import Path

from coverage import Coverage
from coverage.exceptions import NoDataError

__all__ = ["main"]

ROOT = Path(__file__).parent.parent


def uncovered(measured: Coverage, module: Path) -> str:
    """The report's line on a module that its own tests leave uncovered in part; empty when they do not."""
    twin = f"tests/{module.parent}/test_{module.name}"
    report = io.StringIO()
    try:
        covered = measured.report(include=[str(module)], contexts=["^$", f"^{re.escape(twin)}$"], file=report)
    except NoDataError:
        return f"{module} was never imported"
    return (
        "" if covered == 100 else next(line for line in report.getvalue().splitlines() if line.startswith(str(module)))
    )


def main() -> int:
    """Print what is missing; the exit code."""
    measured = Coverage()
    measured.load()
    modules = (path.relative_to(ROOT) for path in sorted((ROOT / "capi_core").rglob("*.py")))
    found = [line for module in modules if not module.name.startswith("__") and (line := uncovered(measured, module))]
    for line in found:
        sys.stdout.write(f"not covered by its own test file: {line}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
