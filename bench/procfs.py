"""What a process and its children cost, as the Linux kernel counts it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["busy_seconds", "cpu_seconds", "descendants", "peak_bytes", "pinned", "reset_peak", "resident_bytes"]

_PROC: Final = Path("/proc")
_CPUCLOCK_SCHED: Final = 2


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Processes started inside run on `core` alone; `None` leaves the choice to the kernel."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(pid: int) -> float:
    """User and system time of `pid` and its living descendants.

    The process's own CPU clock, whose id is made of the pid as clock_getcpuclockid(3) does it: the same account as
    utime and stime in /proc/PID/stat, all threads included, in nanoseconds instead of ticks of 10 ms. A short run at
    one stream is only a few ticks long.
    """
    total = 0.0
    for process in _tree(pid):
        with contextlib.suppress(OSError):  # it has just ended
            total += time.clock_gettime((~process << 3) | _CPUCLOCK_SCHED)
    return total


def resident_bytes(pid: int) -> int:
    """Resident memory of `pid` and its living descendants."""
    return _status_bytes(pid, "VmRSS:")


def peak_bytes(pid: int) -> int:
    """The most that each of them has had resident since `reset_peak`, added up."""
    return _status_bytes(pid, "VmHWM:")


def reset_peak(pid: int) -> None:
    """Makes the present use the peak (proc(5), clear_refs)."""
    for process in _tree(pid):
        (_PROC / str(process) / "clear_refs").write_text("5")


def busy_seconds() -> float:
    """How long all processors together have not been idle since boot, time stolen from this machine included."""
    fields = (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(ticks) for ticks in fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int, parents: Mapping[int, int]) -> list[int]:
    """`pid` and every process below it; `parents` maps each process to its parent."""
    found = [pid]
    for parent in found:  # it grows while it is walked
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found


def _tree(pid: int) -> list[int]:
    parents = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The command's name, in parentheses, may hold anything; the parent is the second field behind it.
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return descendants(pid, parents)


def _status_bytes(pid: int, field: str) -> int:
    total = 0
    for process in _tree(pid):
        with contextlib.suppress(OSError):
            for line in (_PROC / str(process) / "status").read_text().splitlines():
                if line.startswith(field):
                    total += int(line.split()[1]) * 1024
    return total
