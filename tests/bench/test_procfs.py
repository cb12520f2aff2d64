"""Whose CPU and memory are counted."""

import os
import time

from bench.procfs import cpu_seconds, descendants


def test_children_of_children_count_and_others_do_not() -> None:
    parents = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1, 21: 20}
    assert sorted(descendants(10, parents)) == [10, 11, 12]


def test_a_process_without_children_is_alone() -> None:
    assert descendants(21, {21: 20}) == [21]


def test_cpu_is_what_the_process_itself_would_say() -> None:
    before = time.process_time()
    seen = cpu_seconds(os.getpid())
    assert before <= seen <= time.process_time()
