"""The clock and the dice of the process."""

import time

import pytest

from capi_trio.clock import now_ms, random_bytes


def test_the_time_is_the_wall_clocks_in_whole_milliseconds() -> None:
    before = time.time()
    now = now_ms()
    assert isinstance(now, int)
    assert int(before * 1000) - 1 <= now <= time.time() * 1000 + 1


def test_the_time_follows_the_clock_when_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded down: an instant is never told before it is there."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_790_000_000_000_999_999)
    assert now_ms() == 1_790_000_000_000


@pytest.mark.parametrize("count", [0, 1, 8, 32])
def test_as_many_random_bytes_as_were_asked_for(count: int) -> None:
    assert len(random_bytes(count)) == count


def test_random_bytes_do_not_repeat() -> None:
    assert len({random_bytes(16) for _ in range(1000)}) == 1000
