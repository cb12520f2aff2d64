"""`make bench`: capi beside the bare relay, in one run on one machine. docs/performance.md says how to read it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import msgspec

from bench import core
from bench.measure import FULL, QUICK, measure
from bench.peers import available
from bench.report import render

__all__ = ["main"]


@click.command()
@click.option("--quick", is_flag=True, help="A look instead of a measurement: two short rounds.")
@click.option("--core", "of_core", is_flag=True, help="Measure the protocol machines alone, without any socket.")
@click.option("--rounds", type=click.IntRange(1), help="How often each pair is measured.")
@click.option("--peer", "names", multiple=True, help="Measure this peer only; may be given again.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Keep every figure here.")
def main(quick: bool, of_core: bool, rounds: int | None, names: tuple[str, ...], json_file: Path | None) -> None:
    """Measure CPU, lag and memory of capi and of reference relays."""
    if of_core:
        text, raw = core.measure(quick=quick)
    else:
        text, raw = _measure_peers(quick, rounds, names)
    click.echo(text)
    if json_file is not None:
        json_file.write_bytes(raw)


def _measure_peers(quick: bool, rounds: int | None, names: tuple[str, ...]) -> tuple[str, bytes]:
    peers = available()
    unknown = set(names) - {peer.name for peer in peers}
    if unknown:
        raise click.UsageError(f"no such peer here: {', '.join(sorted(unknown))}")
    schedule = QUICK if quick else FULL
    if rounds is not None:
        schedule = msgspec.structs.replace(
            schedule, rounds=rounds, reference_rounds=min(rounds, schedule.reference_rounds)
        )
    chosen = [peer for peer in peers if not names or peer.name in names]
    with tempfile.TemporaryDirectory(prefix="capi-bench-") as folder:
        run = measure(chosen, schedule, Path(folder), _tell)
    return render(run), msgspec.json.encode(run)


def _tell(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
