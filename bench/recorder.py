"""`python -m bench.recorder`: what it costs to record each request, in a database on this disk.

Two figures. How many requests a second are stored when they come as fast as they can; and which share of a processor
it takes at a steady pace, beside the same loop without a recorder, in turns in one process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

import click
import trio
from attrs import evolve, frozen

from bench.report import table
from capi_core.commands import Operation, Outcome
from capi_core.protocols.kinds import Protocol
from capi_core.usage import Usage, UsageSource
from capi_core.usage_events import UsageEvent
from capi_trio.clock import now_ms, random_bytes
from capi_trio.ids import new_request_id
from capi_trio.recorder import Recorder, RecorderOptions
from capi_trio.storage.database import Database, open_database
from capi_trio.storage.lock import DirectoryLock

__all__ = ["Figures", "main", "measure", "render"]

_KEYS: Final = 20
_MODELS: Final = ("fast", "smart", "cheap")
_PACE_S: Final = 0.02
_BURST: Final = 20_000

_EVENT: Final = UsageEvent(
    ts_ms=0,
    request_id="",
    key_id="",
    owner="Ann",
    identity="seat",
    operation=Operation.CHAT,
    transport="http",
    stream=True,
    upstream="copilot",
    upstream_protocol=Protocol.CHAT,
    upstream_model="gpt-4.1",
    usage=Usage(uncached_input=900, cache_read=100, output=300),
    usage_source=UsageSource.UPSTREAM_FINAL,
    status=200,
    outcome=Outcome.OK,
    ttft_ms=400.0,
    latency_ms=2400.0,
    queue_ms=0.1,
)


@frozen
class Figures:
    """`idle` and `busy`: the share of a processor of each round, without and with a recorder, at `rate` a second."""

    stored_s: float
    rate: int
    idle: list[float]
    busy: list[float]
    dropped: int


def _event(number: int) -> UsageEvent:
    return evolve(
        _EVENT,
        ts_ms=now_ms(),
        request_id=new_request_id(),
        key_id=f"key_{number % _KEYS}",
        model=_MODELS[number % len(_MODELS)],
        latency_ms=2400.0 + number % 97,
    )


async def _pace(rate: int, seconds: float, note: Callable[[UsageEvent], None]) -> float:
    """Notes requests at a steady pace; returns the share of a processor that the process took meanwhile."""
    began, used, noted = time.perf_counter(), time.process_time(), 0
    while (passed := time.perf_counter() - began) < seconds:
        while noted < passed * rate:
            note(_event(noted))
            noted += 1
        await trio.sleep(_PACE_S)
    return (time.process_time() - used) / (time.perf_counter() - began)


def _recorder(database: Database) -> Recorder:
    return Recorder(
        database,
        now_ms=now_ms,
        keep_days=lambda: 30,
        new_batch_id=lambda: random_bytes(8).hex(),
        options=RecorderOptions(max_waiting=_BURST, drain_s=60.0),
    )


async def _burst(database: Database, count: int) -> tuple[float, int]:
    """Requests stored a second, from the first to the last; and how many were dropped."""
    events = [_event(number) for number in range(count)]
    recorder = _recorder(database)
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.run)
        for event in events:
            recorder.note(event)
        nursery.cancel_scope.cancel()
    return count / (time.perf_counter() - began), recorder.dropped


async def measure(folder: Path, *, rate: int, seconds: float, rounds: int, burst: int = _BURST) -> Figures:
    """Runs both in a new database in `folder`."""
    idle, busy, dropped = [], [], 0
    with DirectoryLock.take(folder) as lock:
        async with open_database(lock) as database:
            for _ in range(rounds):
                idle.append(await _pace(rate, seconds, lambda event: None))
                recorder = _recorder(database)
                async with trio.open_nursery() as nursery:
                    await nursery.start(recorder.run)
                    busy.append(await _pace(rate, seconds, recorder.note))
                    nursery.cancel_scope.cancel()
                dropped += recorder.dropped
            stored_s, missed = await _burst(database, burst)
    return Figures(stored_s, rate, idle, busy, dropped + missed)


def render(figures: Figures) -> str:
    """The figures as a table in Markdown."""
    idle, busy = median(figures.idle), median(figures.busy)
    rows = [
        ["stored as fast as they come, requests / s", f"{figures.stored_s:.0f}"],
        [f"CPU at {figures.rate} requests / s", f"{busy:.1%}"],
        ["CPU of the same without a recorder", f"{idle:.1%}"],
        ["ratio", f"{busy / idle:.1f}"],
        ["CPU us / request recorded", f"{(busy - idle) / figures.rate * 1e6:.0f}"],
        ["dropped", f"{figures.dropped}"],
    ]
    return table(["recorder, SQLite", ""], rows)


@click.command()
@click.option("--rate", type=click.IntRange(1), default=500, help="Requests a second.")
@click.option("--seconds", type=click.FloatRange(0.1), default=3.0, help="How long each turn of a round takes.")
@click.option("--rounds", type=click.IntRange(1), default=3)
def main(rate: int, seconds: float, rounds: int) -> None:
    """Measure what it costs to record requests."""
    with tempfile.TemporaryDirectory(prefix="capi-bench-") as folder:
        click.echo(render(trio.run(lambda: measure(Path(folder), rate=rate, seconds=seconds, rounds=rounds))))


if __name__ == "__main__":
    main()
