"""Whose turn it is: fair over keys, in order within a key, and no key can fill the queue for the others."""

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import LocalError
from capi_core.fair_queue import FairQueue, Waiter


def queue_of(keys: Iterable[str]) -> FairQueue:
    """A queue in which these keys have come in this order, with tickets from 0 and deadlines in the same order."""
    queue = FairQueue()
    for ticket, key in enumerate(keys):
        queue.join(ticket, Waiter(key, 0.0, float(ticket)))
    return queue


def turns(queue: FairQueue) -> str:
    return "".join(queue.take()[1].key for _ in range(len(queue)))


@pytest.mark.parametrize(
    ("keys", "served"),
    [
        ("", ""),
        ("aaa", "aaa"),
        ("aaaabc", "abcaaa"),
        ("aabbcc", "abcabc"),
        ("aaabc" + "b", "abcaba"),
    ],
)
def test_turns_go_round_over_the_keys(keys: str, served: str) -> None:
    assert turns(queue_of(keys)) == served


def test_within_a_key_first_come_first_served() -> None:
    queue = queue_of("abaab")
    assert [queue.take()[0] for _ in range(5)] == [0, 1, 2, 4, 3]


def test_a_key_that_comes_again_waits_for_the_others() -> None:
    queue = queue_of("abc")
    ticket, waiter = queue.take()
    queue.join(ticket, waiter)
    assert turns(queue) == "bca"


def test_who_leaves_is_passed_over() -> None:
    queue = queue_of("abab")
    assert queue.leave(0).key == "a"
    assert queue.leave(1).key == "b"
    assert 0 not in queue
    assert 2 in queue
    assert queue.tickets() == [2, 3]
    assert queue.leave(2).key == "a"
    assert turns(queue) == "b"


def test_what_does_not_fit_changes_nothing() -> None:
    queue = queue_of("ab")
    with pytest.raises(LocalError):
        queue.join(1, Waiter("c", 0.0, 0.0))
    with pytest.raises(LocalError):
        queue.leave(2)
    assert turns(queue) == "ab"
    with pytest.raises(LocalError):
        queue.take()


def test_deadlines_come_in_their_order_whatever_the_turns() -> None:
    queue = FairQueue()
    for ticket, deadline in enumerate([30.0, 10.0, 20.0]):
        queue.join(ticket, Waiter("a", 0.0, deadline))
    assert queue.first_deadline() == 10.0
    assert queue.take_overdue(9.9) is None
    assert queue.take_overdue(20.0) == (1, Waiter("a", 0.0, 10.0))
    queue.leave(2)
    assert queue.first_deadline() == 30.0
    assert queue.take_overdue(29.0) is None
    assert queue.take_overdue(30.0) == (0, Waiter("a", 0.0, 30.0))
    assert queue.first_deadline() == math.inf
    assert queue.take_overdue(1e9) is None


def test_who_comes_and_goes_leaves_no_memory_behind() -> None:
    """A client that asks and gives up, over and over, must not make the queue remember its deadlines."""
    queue = queue_of("ab")
    for ticket in range(10, 10_000):
        queue.join(ticket, Waiter("c", 0.0, 1e6 + ticket))
        queue.leave(ticket)
        assert len(queue._deadlines) <= 2 * len(queue) + 65
    assert queue.first_deadline() == 0.0
    assert turns(queue) == "ab"


@given(keys=st.lists(st.sampled_from("abcd"), max_size=30), key=st.sampled_from("abcde"))
def test_the_place_that_is_told_is_the_turn_that_comes(keys: list[str], key: str) -> None:
    queue = queue_of(keys)
    place = queue.place(key)
    queue.join(1000, Waiter(key, 0.0, 0.0))
    served = [queue.take()[0] for _ in range(len(queue))]
    assert served.index(1000) + 1 == place


@pytest.mark.parametrize(
    ("keys", "key", "excess"),
    [
        ("", "a", None),
        ("aaaa", "a", None),
        ("aaaa", "b", 3),
        ("abcd", "e", None),  # all ask for the same: who comes last has to wait
        ("abcda", "e", 4),
        ("aaabb", "b", None),  # it would become the longest itself
        ("aaaab", "b", 3),
        ("aabbb", "c", 4),
    ],
)
def test_room_is_made_only_by_who_has_more_even_then(keys: str, key: str, excess: int | None) -> None:
    queue = queue_of(keys)
    assert queue.excess(key) == excess
    assert len(queue) == len(keys)


def test_keys_are_told_in_their_turn() -> None:
    queue = queue_of("aab")
    assert list(queue.by_key().items()) == [("a", 2), ("b", 1)]
    queue.take()
    assert list(queue.by_key().items()) == [("b", 1), ("a", 1)]


@given(seed=st.integers(0, 2**32))
def test_between_two_turns_of_one_key_everyone_who_waited_has_had_one(seed: int) -> None:
    """The promise itself, however keys come, leave and are served."""
    rng, queue = random.Random(seed), FairQueue()
    keys: dict[int, str] = {}
    last_turn: dict[str, int] = {}
    waits_since: dict[str, int] = {}  # the step since which a key has waited without a turn or a gap
    for step in range(300):
        kind = rng.random()
        if kind < 0.5:
            keys[step] = rng.choice("aaaaabbcde")
            queue.join(step, Waiter(keys[step], 0.0, 0.0))
            waits_since.setdefault(keys[step], step)
        elif len(queue) and kind < 0.6:
            queue.leave(ticket := rng.choice(queue.tickets()))
            if keys[ticket] not in queue.by_key():
                del waits_since[keys[ticket]]
        elif len(queue):
            key = queue.take()[1].key
            before = last_turn.get(key, -1)
            passed_over = [
                other
                for other, since in waits_since.items()
                if other != key and since < before and last_turn.get(other, -1) < before
            ]
            assert passed_over == []
            last_turn[key] = step
            if key not in queue.by_key():
                del waits_since[key]
