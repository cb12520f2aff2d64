"""`make reliability`: the tests of the reliability plan at full counts (security, storage, streams), as a table.

make reliability                    # everything; takes about half an hour
make reliability ARGS="A3 D1"       # these rows
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.support.scale import MARK

__all__ = ["main"]

E2E: Final = "tests/e2e/"
STORAGE: Final = "tests/capi_trio/storage/"
ROWS: Final = {
    "A1": (f"{E2E}test_key_secrets.py::test_the_text_of_a_key_is_in_one_answer_and_its_hash_in_the_database_alone",),
    "A2": (f"{E2E}test_key_secrets.py::test_the_text_of_a_key_is_in_one_answer_and_its_hash_in_the_database_alone",),
    "A3": (f"{E2E}auth_timing.py",),
    "A4": (f"{E2E}test_key_secrets.py::test_keys_that_begin_alike_are_not_mixed_up",),
    "A5": (f"{E2E}test_key_secrets.py::test_guessing_locks_nobody_out_and_fills_nothing",),
    "A6": (f"{E2E}test_key_secrets.py::test_a_command_changes_what_it_is_for_and_nothing_else",),
    "A7": (
        "tests/capi_trio/test_access.py",
        f"{E2E}test_boot_matrix.py::test_a_client_key_reaches_nothing_of_an_admin",
    ),
    "A9": (f"{E2E}test_boot_matrix.py::test_who_may_listen_where", f"{E2E}test_bootstrap.py"),
    "A10": (
        f"{E2E}test_bootstrap.py::test_of_eight_first_starts_at_once_one_serves_and_there_is_one_admin_key",
        f"{STORAGE}test_database.py::test_of_eight_that_bootstrap_at_once_one_makes_the_key",
        f"{E2E}test_boot_matrix.py::test_of_two_replicas_that_start_at_once_one_makes_the_admin_key",
    ),
    "D1": (f"{E2E}test_failpoints.py", "-k", "kill"),
    "D1 random": (f"{E2E}test_kill.py",),
    "D2": (f"{E2E}test_failpoints.py", "-k", "not kill]"),
    "D3": (f"{E2E}test_interleavings.py", "-k", "sixteen"),
    "D4": (f"{STORAGE}test_sqlite.py",),
    "D5": (f"{STORAGE}test_audit_writer.py", f"{STORAGE}test_audit_log.py", f"{STORAGE}test_database.py"),
    "D6": (f"{STORAGE}migrations",),
    "D7": (f"{E2E}test_interleavings.py", f"{E2E}test_reload.py", "-k", "not sixteen"),
    "S1": (f"{E2E}test_event_streams.py", "-k", "test_s1"),
    "S2": (f"{E2E}test_event_streams.py", "-k", "test_s2"),
    "S3": (f"{E2E}test_event_streams.py", "-k", "test_s3"),
    "S4": (f"{E2E}test_event_streams.py", "-k", "test_s4"),
    "S5": (f"{E2E}test_bounded_memory.py", "-k", "test_s5"),
    "S6": (f"{E2E}test_cut_streams.py",),
    "S7": (f"{E2E}test_rewriting.py", "-k", "test_s7"),
    "S8": (f"{E2E}test_rewriting.py", "-k", "test_s8"),
    "S9": (f"{E2E}test_bounded_memory.py", "-k", "test_s9"),
}


def main(wanted: list[str]) -> int:
    """Runs the rows one after the other. Returns how many of them failed."""
    failed = 0
    for name, tests in ROWS.items():
        if wanted and name not in wanted:
            continue
        began = time.monotonic()
        done = subprocess.run(  # noqa: S603 - our own tests
            [sys.executable, "-m", "pytest", "-q", "-s", *tests],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "CAPI_FULL": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = done.stdout.splitlines()
        passed = done.returncode == 0
        failed += not passed
        sys.stdout.write(
            f"| {name} | {'ok' if passed else 'FAILED'} | {time.monotonic() - began:.0f} s | {lines[-1]} |\n"
        )
        for line in lines if not passed else [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]:
            sys.stdout.write(f"    {line}\n")
        sys.stdout.flush()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) > 0)
