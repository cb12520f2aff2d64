"""A process that dies, or a system call that fails, at each named point: nothing acknowledged is lost or half done.

CAPI_FULL=1 goes through every point (D1 and D2 of the reliability plan), the default through a tenth.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.failpoints import ERRORS
from tests.support.scale import FULL, tell

EVERY: Final = 1 if FULL else 10
ROOT: Final = Path(__file__).parents[2]


@pytest.mark.parametrize("mode", ["kill", *ERRORS, "limit"])
def test_nothing_acknowledged_is_lost_and_nothing_is_half_done(tmp_path: Path, mode: str) -> None:
    """Each row is of a change that was made, and where only a call failed, each change that was made has its row."""
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "tests.support.failpoints", str(tmp_path), mode, str(EVERY)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    faults = [line for line in done.stdout.splitlines() if "FAULT" in line]
    assert (done.returncode, faults) == (0, []), done.stderr[-4000:]
    tell(done.stdout.splitlines()[-1])
