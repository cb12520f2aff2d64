"""`python -m capi_trio.cli` is `capi`."""

from __future__ import annotations

import subprocess
import sys


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "capi_trio.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own module
    assert done.stdout.startswith("capi, version")
