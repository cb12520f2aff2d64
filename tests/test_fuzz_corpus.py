"""Replays every corpus file through its fuzz target: what fuzzing found once stays found.

Needs no fuzzer; fuzz/README.md tells how to look for more.
"""

import importlib
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent.parent / "fuzz"
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in FUZZ.glob("fuzz_*.py"))
CASES = [
    pytest.param(target, path, id=f"{target}/{path.name}")
    for target in TARGETS
    for path in sorted((FUZZ / "corpus" / target).iterdir())
]


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_holds_for_no_input(target: str) -> None:
    importlib.import_module(f"fuzz.fuzz_{target}").test_one_input(b"")


@pytest.mark.parametrize(("target", "path"), CASES)
def test_each_corpus_file_keeps_the_invariant(target: str, path: Path) -> None:
    importlib.import_module(f"fuzz.fuzz_{target}").test_one_input(path.read_bytes())
