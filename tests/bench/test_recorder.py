"""The benchmark of the recorder measures one that stores everything."""

from pathlib import Path

import pytest

from bench.recorder import Figures, measure, render
from capi_trio.storage.database import open_database
from capi_trio.storage.lock import DirectoryLock
from tests.capi_trio.storage.helpers import row_count


@pytest.mark.slow
async def test_all_that_is_measured_is_stored(tmp_path: Path) -> None:
    figures = await measure(tmp_path, rate=200, seconds=0.3, rounds=1, burst=600)
    assert (len(figures.idle), len(figures.busy), figures.dropped) == (1, 1, 0)
    with DirectoryLock.take(tmp_path) as lock:
        async with open_database(lock) as database:
            assert await row_count(database, "usage_events") >= 600 + 40


def test_the_ratio_is_of_the_medians() -> None:
    text = render(Figures(stored_s=1000.0, rate=500, idle=[0.01, 0.02, 0.9], busy=[0.04, 0.05, 0.06], dropped=0))
    assert "| ratio                                     |  2.5 |" in text
    assert "| CPU us / request recorded                 |   60 |" in text
