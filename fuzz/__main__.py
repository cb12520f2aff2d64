"""Looks for an input that breaks a fuzz target: `python -m fuzz sse --seconds 60`.

With atheris installed the search follows coverage; without it (other Pythons, other processors) it mutates the
corpus blindly, from a seed that is printed. Either way the finding is written into the target's corpus, where
tests/test_fuzz_corpus.py replays it from then on.
"""

import hashlib
import importlib
import importlib.util
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

FUZZ = Path(__file__).parent
# What coverage-guided runs found worth keeping between runs; ignores itself, like other tools' caches.
SCRATCH = FUZZ.parent / ".fuzz"
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in FUZZ.glob("fuzz_*.py"))
MAX_INPUT_BYTES = 65_536

# What matters to parsers of events, JSON, headers and secrets, and is rarely hit one bit at a time.
TOKENS = (
    b"\n", b"\r", b"\r\n", b"\n\n", b"\xef\xbb\xbf", b"\x00", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8",
    b"data: ", b"event: ", b"id: ", b": ", b"[DONE]", b'"', b"\\", b"\\u", b"\\ud83d", b"{", b"}", b"[", b"]",
    b",", b":", b"{}", b"[]", b"null", b"true", b"-0", b"1e999", b"9007199254740993", b'{"type":"', b'"index":',
    b"sk-cap-", b"ghp_", b"eyJ", b"Bearer ",
)  # fmt: skip


def mutate(rng: random.Random, corpus: list[bytes]) -> bytes:
    """One to eight random edits of a random corpus file."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.randint(1, 8)):
        at, length = rng.randint(0, len(data)), rng.randint(0, 16)
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * rng.randint(1, 4)
            case 3:
                data[at:] = rng.choice(corpus)[at:]
            case 4:
                del data[at:]
            case _:
                data[at:at] = rng.choice(TOKENS)
    return bytes(data[:MAX_INPUT_BYTES])


def run_blind(target: str, test_one_input: Callable[[bytes], None], seconds: float, seed: int) -> None:
    """Mutates the corpus until the time is over or the target raises."""
    folder = FUZZ / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    corpus = [b"", *(path.read_bytes() for path in sorted(folder.iterdir()))]
    rng = random.Random(seed)
    click.echo(f"{target}: blind mutation of {len(corpus)} inputs for {seconds:g} s, seed {seed}")
    runs, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(rng, corpus)
        try:
            test_one_input(data)
        except Exception:
            finding = folder / f"crash-{hashlib.sha256(data).hexdigest()[:16]}"
            finding.write_bytes(data)
            click.echo(f"{target}: broken by input {runs}, kept as {finding.relative_to(FUZZ.parent)}", err=True)
            raise
        runs += 1
    click.echo(f"{target}: {runs} inputs, none broke it")


def run_guided(target: str, seconds: float, seed: int) -> None:
    """Hands over to atheris, which ends the process itself."""
    atheris = importlib.import_module("atheris")
    kept = SCRATCH / target
    kept.mkdir(parents=True, exist_ok=True)
    (SCRATCH / ".gitignore").write_text("*\n")
    corpus = FUZZ / "corpus" / target
    with atheris.instrument_imports():
        test_one_input = importlib.import_module(f"fuzz.fuzz_{target}").test_one_input
    limits = [f"-max_total_time={max(1, round(seconds))}", f"-max_len={MAX_INPUT_BYTES}", f"-seed={seed}"]
    argv = [sys.argv[0], *limits, f"-artifact_prefix={corpus}/", str(kept), str(corpus)]
    atheris.Setup(argv, test_one_input)
    atheris.Fuzz()


@click.command()
@click.argument("target", type=click.Choice(TARGETS))
@click.option("--seconds", type=float, default=60.0, show_default=True, help="How long to look.")
@click.option("--seed", type=int, default=1, show_default=True, help="Repeats a run that it was printed by.")
@click.option("--blind", is_flag=True, help="Do not use atheris even if it is there.")
def main(target: str, seconds: float, seed: int, blind: bool) -> None:
    """Look for an input that breaks TARGET."""
    if blind or importlib.util.find_spec("atheris") is None:
        run_blind(target, importlib.import_module(f"fuzz.fuzz_{target}").test_one_input, seconds, seed)
    else:
        run_guided(target, seconds, seed)


if __name__ == "__main__":
    main()
