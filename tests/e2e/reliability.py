"""`make reliability`: the tests of the reliability plan at full counts (security, storage, streams), as a table.

make reliability                    # everything; takes about forty minutes
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
LIMITS: Final = f"{E2E}test_load_limits.py"
GATE: Final = "tests/capi_core/test_gate.py"
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
    "C1": (f"{E2E}test_leaving.py", f"{E2E}test_cancellation.py::test_the_upstream_sees_a_client_leave"),
    "C2": (
        f"{LIMITS}::test_no_failure_keeps_its_slot",
        f"{LIMITS}::test_a_slot_is_free_before_its_client_sees_the_end",
    ),
    "C3": (f"{E2E}test_cancellation.py", "-k", "pool_of_upstream or thousand_clients"),
    "C4": (
        f"{LIMITS}::test_who_asks_once_does_not_wait_for_who_asks_a_hundred_times",
        f"{GATE}::test_small_callers_next_to_a_busy_one",
        f"{GATE}::test_equal_keys_get_equal_shares",
    ),
    "C5": (f"{LIMITS}::test_a_full_queue_says_when_to_come_back_and_asks_nobody",),
    "C6": (
        f"{GATE}::test_a_hundred_thousand_steps_with_the_cap_changing_all_the_while",
        "tests/capi_trio/test_slots.py::test_a_thousand_callers_and_none_is_lost_or_stuck",
    ),
    "C7": (f"{LIMITS}::test_an_upstream_that_wants_to_be_left_alone_is",),
    "C8": (f"{E2E}test_shutdown.py", "-k", "streams or second_signal or waited_for"),
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
    "U1": (
        f"{E2E}test_hostile_github.py",
        f"{E2E}test_copilot.py::test_no_request_fails_while_the_token_ends_again_and_again",
        "-k",
        "thousand or trouble or ends_again",
    ),
    "U2": (
        f"{E2E}test_hostile_github.py::test_no_answer_of_githubs_leads_elsewhere_or_holds_anybody_up",
        "tests/capi_trio/github/test_api_base.py",
        "tests/capi_core/test_config.py",
        "tests/capi_trio/test_upstream.py",
        "-k",
        "elsewhere or place or copilot or url or http or loopback or redirect or proxy",
    ),
    "U3": (f"{E2E}test_hostile_upstreams.py", f"{E2E}test_upstream_faults.py"),
    "X1": (f"{E2E}test_soak.py",),
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
