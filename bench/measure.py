"""One run: every peer under the same loads, in turns, on one machine.

Machines are noisy, and their noise changes slowly. So peers take turns at each load, round after round, and a ratio is
made of two figures of the same round; what is reported is the median over the rounds.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from bench.load import Load
from bench.peers import Peer, Process, start_peer, start_upstream
from bench.procfs import busy_seconds, cpu_seconds, peak_bytes, pinned, reset_peak, resident_bytes

__all__ = ["FULL", "QUICK", "Run", "Sample", "Scenario", "Schedule", "cores", "measure"]

_LARGE_BODY_BYTES: Final = 10_000_000
_LARGE_BODIES: Final = 3
_BURST_S: Final = 0.5


class Scenario(msgspec.Struct, frozen=True):
    """A load: `k` clients for `seconds`, asking for streams or for whole answers.

    `burst`: how many clients ask for a stream at once just before, unmeasured. What they leave behind, such as idle
    connections to the upstream, may make every later request dearer.
    """

    name: str
    k: int
    stream: bool
    seconds: float
    burst: int = 0


class Schedule(msgspec.Struct, frozen=True):
    """How much is measured. `reference_rounds`: in how many of the rounds the references take part."""

    scenarios: tuple[Scenario, ...]
    rounds: int
    reference_rounds: int
    starts: int
    events: int = 100
    gap_ms: float = 20.0


class Sample(msgspec.Struct, frozen=True):
    """One peer under one load. `other_cores`: how many processors all other processes kept busy meanwhile."""

    round: int
    scenario: str
    peer: str
    load: Load
    other_cores: float


class Run(msgspec.Struct):
    """All that was measured. By peer: seconds of each start, MB resident after the load, and MB for a large body."""

    schedule: Schedule
    peers: list[str]
    compared: list[str]
    """Those of `peers` whose ratio to the first of them is given."""
    samples: list[Sample] = []
    starts: dict[str, list[float]] = {}
    rss_mb: dict[str, float] = {}
    large_body_mb: dict[str, float] = {}
    remarks: list[str] = []


def _schedule(rounds: int, reference_rounds: int, starts: int, *, paced: tuple[float, ...], plain: float) -> Schedule:
    requests = [Scenario(f"plain requests, K={k}", k, False, plain) for k in (1, 20)]
    streams = [Scenario(f"streams, K={k}", k, True, seconds) for k, seconds in zip((1, 20, 100), paced, strict=True)]
    later = Scenario("plain requests, K=20, after 100 streams at once", 20, False, plain, burst=100)
    return Schedule((*requests, *streams, later), rounds, reference_rounds, starts)


FULL: Final = _schedule(5, 2, 5, paced=(8.0, 6.0, 6.0), plain=3.0)
QUICK: Final = _schedule(2, 1, 1, paced=(2.0, 2.0, 2.0), plain=1.0)


def cores() -> tuple[int | None, int | None]:
    """One processor for what is under test, another for upstream and load generator; none where there is only one."""
    ours = sorted(os.sched_getaffinity(0))
    return (ours[-1], ours[0]) if len(ours) > 1 else (None, None)


class _Bench:
    """The peers as they run, and the upstream behind them."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run = run
        self._folder = folder
        self._tested, self._harness = cores()
        self._running: dict[str, Process] = {}

    def start(self, stack: contextlib.ExitStack, peers: Sequence[Peer]) -> None:
        schedule = self._run.schedule
        upstream = start_upstream(self._folder, events=schedule.events, gap_ms=schedule.gap_ms, core=self._harness)
        self._upstream = stack.enter_context(upstream)
        for peer in peers:
            self._running[peer.name] = upstream if peer.prepare is None else self._start(peer, stack)

    def _start(self, peer: Peer, stack: contextlib.ExitStack) -> Process:
        """Starts it as often as the schedule says; the last one stays."""
        folder = self._folder / peer.name
        folder.mkdir()
        process = start_peer(peer, self._upstream, folder / "1", core=self._tested)
        starts = [process.started_s]
        for number in range(2, self._run.schedule.starts + 1):
            process.stop()
            process = start_peer(peer, self._upstream, folder / str(number), core=self._tested)
            starts.append(process.started_s)
        self._run.starts[peer.name] = starts
        return stack.enter_context(process)

    def sample(self, peer: Peer, scenario: Scenario, number: int) -> Sample:
        if scenario.burst:
            self._load(peer, scenario.burst, _BURST_S, stream=True)
        began, busy, upstream = time.monotonic(), busy_seconds(), cpu_seconds(self._upstream.pid)
        load = self._load(peer, scenario.k, scenario.seconds, stream=scenario.stream)
        ours = load.cpu_s + load.own_cpu_s + cpu_seconds(self._upstream.pid) - upstream
        others = (busy_seconds() - busy - ours) / (time.monotonic() - began)
        return Sample(number, scenario.name, peer.name, load, max(0.0, others))

    def _load(self, peer: Peer, k: int, seconds: float, *, stream: bool) -> Load:
        process = self._running[peer.name]
        argv = [sys.executable, "-m", "bench.load", process.url, str(k), str(seconds), "--model", peer.model]
        argv += ["--stream"] if stream else []
        argv += [option for header in process.headers for option in ("--header", header)]
        argv += ["--pid", str(process.pid)] if process is not self._upstream else []
        with pinned(self._harness):
            done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
        return msgspec.json.decode(done.stdout, type=Load)

    def weigh(self, peer: Peer) -> None:
        """Memory: what the load left behind, then what bodies of 10 MB take on top, one after the other."""
        process = self._running[peer.name]
        if process is self._upstream:
            return
        before = resident_bytes(process.pid)
        self._run.rss_mb[peer.name] = before / 1e6
        reset_peak(process.pid)
        message = {"role": "user", "content": "x" * _LARGE_BODY_BYTES}
        body = msgspec.json.encode({"model": peer.model, "messages": [message]})
        statuses = {process.post(body) for _ in range(_LARGE_BODIES)}
        if statuses == {200}:
            self._run.large_body_mb[peer.name] = (peak_bytes(process.pid) - before) / 1e6
        else:
            self._run.remarks.append(f"{peer.name} answers {sorted(statuses)} to a body of 10 MB")


def measure(peers: Sequence[Peer], schedule: Schedule, folder: Path, tell: Callable[[str], None]) -> Run:
    """Measures `peers`. `tell` gets a line before each load. `folder` takes their configurations and logs."""
    compared = [peer for peer in peers if not peer.reference]
    run = Run(schedule, [peer.name for peer in peers], [peer.name for peer in compared])
    bench = _Bench(run, folder)
    with contextlib.ExitStack() as stack:
        tell("starting")
        bench.start(stack, peers)
        for scenario in schedule.scenarios:
            for number in range(schedule.rounds):
                for peer in peers if number < schedule.reference_rounds else compared:
                    tell(f"{scenario.name}: round {number + 1} of {schedule.rounds}: {peer.name}")
                    run.samples.append(bench.sample(peer, scenario, number))
        for peer in peers:
            bench.weigh(peer)
    return run
